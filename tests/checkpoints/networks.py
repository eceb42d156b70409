"""Small networks of every architecture, written as megabert checkpoints, for conversion tests."""

from dataclasses import replace

import torch

from megabert.checkpoints.native.manifest_folder import Contents, write_manifest_folder
from megabert.model.config import EncoderConfig
from megabert.model.encoder import initialize
from megabert.model.pretraining_heads import PretrainingModel

MEGATRON = EncoderConfig(
    vocabulary_size=50, num_layers=4, hidden_size=16, num_heads=4, ffn_size=24, max_positions=12, norm_epsilon=1e-5
)
ARCHITECTURES = {
    "megatron-bert": (MEGATRON, {"language_model": True, "sentence_order": True}),
    "fused gelu": (replace(MEGATRON, gelu="tanh"), {"language_model": True, "sentence_order": True}),
    "openai gelu": (replace(MEGATRON, gelu="tanh", head_gelu="tanh"), {"language_model": True}),
    "headless": (MEGATRON, {"language_model": False}),
    "no segments": (replace(MEGATRON, num_segments=0), {"language_model": True}),
    "normed residual": (
        replace(MEGATRON, norm_place="pre_residual_normed", norm_epsilon=1e-6),
        {"language_model": True, "sentence_order": True},
    ),
    "gpt": (replace(MEGATRON, num_segments=0, is_causal=True, gelu="tanh", head_gelu="tanh"), {"language_model": True}),
    "one layer": (replace(MEGATRON, num_layers=1, hidden_size=8), {"language_model": True}),
    "bert": (
        replace(MEGATRON, norm_place="post", norm_epsilon=1e-12),
        {"language_model": True, "sentence_order": True},
    ),
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(45))]
VOCABULARY = "".join(f"{word}\n" for word in WORDS)


def new_pretraining_model(config, seed, **heads):
    """Build a network with Megatron-LM's initialization, a function of the seed."""
    model = PretrainingModel(config, **heads)
    initialize(model, torch.Generator().manual_seed(seed), num_layers=config.num_layers)
    return model


def network(name, dtype=torch.float32):
    """Make the network with weights far from their initial values."""
    config, heads = ARCHITECTURES[name]
    torch.manual_seed(list(ARCHITECTURES).index(name))
    model = PretrainingModel(config, **heads).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.3).to(dtype))
    return model


def write(folder, name, dtype=torch.float32, vocabulary=None):
    """Write the network as a megabert checkpoint; returns its tensors."""
    config, _ = ARCHITECTURES[name]
    tensors = {key: item.detach().to(dtype) for key, item in network(name, dtype).named_parameters()}
    texts = {} if vocabulary is None else {"vocab.txt": vocabulary}
    documents = {"encoder": config.to_dict()} | ({"tokenizer": {"lower_case": True}} if texts else {})
    write_manifest_folder(folder, Contents({"model": tensors}, documents, texts), {})
    return tensors
