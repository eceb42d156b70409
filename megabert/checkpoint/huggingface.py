"""Hugging Face's folders of `megatron-bert` and `bert` architecture: names, configuration keys, vocabulary.

Source: transformers' modeling_megatron_bert.py and modeling_bert.py, and their configuration classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .containers import LazyTensor, open_file
from .rules import SEPARATE_QKV, Rule

_OURS = "encoder.layers.*"
_QKV = ("query", "key", "value")

# What both architectures share. The `bert.` in front is taken off before; headless files have none.
SHARED_RULES = [
    Rule("embeddings.word_embeddings.weight", "encoder.embeddings.word.weight"),
    Rule("embeddings.position_embeddings.weight", "encoder.embeddings.position.weight"),
    Rule("embeddings.token_type_embeddings.weight", "encoder.embeddings.segment.weight"),
    Rule("embeddings.position_ids", None),  # a buffer 0, 1, 2, ... of older versions
    Rule("embeddings.token_type_ids", None),
    *(
        Rule(
            tuple(f"encoder.layer.*.attention.self.{name}.{kind}" for name in _QKV),
            f"{_OURS}.attention.qkv.{kind}",
            SEPARATE_QKV,
        )
        for kind in ("weight", "bias")
    ),
    Rule("encoder.layer.*.attention.output.dense.weight", f"{_OURS}.attention.out.weight"),
    Rule("encoder.layer.*.attention.output.dense.bias", f"{_OURS}.attention.out.bias"),
    Rule("encoder.layer.*.intermediate.dense.weight", f"{_OURS}.mlp.up.weight"),
    Rule("encoder.layer.*.intermediate.dense.bias", f"{_OURS}.mlp.up.bias"),
    Rule("encoder.layer.*.output.dense.weight", f"{_OURS}.mlp.down.weight"),
    Rule("encoder.layer.*.output.dense.bias", f"{_OURS}.mlp.down.bias"),
    Rule("pooler.dense.weight", "sentence_order.pooler.weight"),
    Rule("pooler.dense.bias", "sentence_order.pooler.bias"),
    Rule("cls.predictions.transform.dense.weight", "language_model.dense.weight"),
    Rule("cls.predictions.transform.dense.bias", "language_model.dense.bias"),
    Rule("cls.predictions.transform.LayerNorm.weight", "language_model.norm.weight"),
    Rule("cls.predictions.transform.LayerNorm.bias", "language_model.norm.bias"),
    Rule("cls.predictions.transform.LayerNorm.gamma", "language_model.norm.weight", read_only=True),
    Rule("cls.predictions.transform.LayerNorm.beta", "language_model.norm.bias", read_only=True),
    Rule("cls.predictions.bias", "language_model.vocabulary.bias"),
    Rule("cls.predictions.decoder.weight", None),  # the word embedding again
    Rule("cls.predictions.decoder.bias", None),  # cls.predictions.bias again
    Rule("cls.seq_relationship.weight", "sentence_order.out.weight"),
    Rule("cls.seq_relationship.bias", "sentence_order.out.bias"),
    # Heads of fine-tuned models: an encoder is read from them, its head is not.
    Rule("qa_outputs.*", None),
    Rule("classifier.*", None),
]

NORM_RULES = {
    "megatron-bert": [
        Rule("encoder.layer.*.attention.ln.*", f"{_OURS}.attention_norm.*"),
        Rule("encoder.layer.*.ln.*", f"{_OURS}.mlp_norm.*"),
        Rule("encoder.ln.*", "encoder.final_norm.*"),
    ],
    "bert": [
        rule
        for place, ours in (
            ("embeddings.LayerNorm", "encoder.embeddings.norm"),
            ("encoder.layer.*.attention.output.LayerNorm", f"{_OURS}.attention_norm"),
            ("encoder.layer.*.output.LayerNorm", f"{_OURS}.mlp_norm"),
        )
        for rule in (
            Rule(f"{place}.weight", f"{ours}.weight"),
            Rule(f"{place}.bias", f"{ours}.bias"),
            # The spelling of files converted from TensorFlow.
            Rule(f"{place}.gamma", f"{ours}.weight", read_only=True),
            Rule(f"{place}.beta", f"{ours}.bias", read_only=True),
        )
    ],
}

RULES = {architecture: SHARED_RULES + norms for architecture, norms in NORM_RULES.items()}

CONFIG_KEYS = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_size",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_segments",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
# Values of the configuration classes for keys that a config.json may leave out.
CONFIG_DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
NORM_PLACES = {"megatron-bert": "pre", "bert": "post"}


def is_huggingface(path: Path) -> bool:
    """Whether a folder has Hugging Face's layout."""
    return (path / "config.json").is_file()


def read_config(path: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Read config.json: (architecture, shape of the network, what was assumed)."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds no JSON object.")
    architecture = config.get("model_type")
    if architecture not in RULES:
        raise CheckpointError(
            f"{file}: model_type is {architecture!r}; folders of {' and '.join(RULES)} architecture can be read."
        )
    config = CONFIG_DEFAULTS | config
    missing = [key for key in CONFIG_KEYS if key not in config and not key.endswith("_prob")]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}.")
    if config["hidden_act"] not in GELUS:
        raise CheckpointError(f"{file}: hidden_act is {config['hidden_act']!r}; known are {', '.join(GELUS)}.")
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise CheckpointError(f"{file}: only encoders with absolute positions can be read.")
    gelu = GELUS[config["hidden_act"]]
    shape = {ours: config[theirs] for theirs, ours in CONFIG_KEYS.items() if theirs in config}
    shape |= {"gelu": gelu, "head_gelu": gelu, "norm_place": NORM_PLACES[architecture], "is_causal": False}
    notes = [f"gelu: {gelu}", f"layer norm epsilon: {shape['norm_epsilon']}"]
    if architecture == "megatron-bert" and shape["norm_epsilon"] == CONFIG_DEFAULTS["layer_norm_eps"]:
        notes.append("(Megatron-LM trains with 1e-5; transformers' converter left its own default in config.json)")
    return architecture, shape, notes


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """Open a folder's weights: one safetensors or bin file, or the shards that an index names."""
    for kind in WEIGHT_FILES:
        if (path / kind).is_file():
            return _without_prefix(_tensors_in(path / kind))
        index = path / f"{kind}.index.json"
        if index.is_file():
            return _without_prefix(_indexed(index))
    raise CheckpointError(f"{path} has a config.json, but neither model.safetensors nor pytorch_model.bin beside it.")


def _indexed(index: Path) -> dict[str, LazyTensor]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(file) for name, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of shards: {error!r}") from None
    # A file name in an index chooses a file in this folder and nothing else.
    outside = [file for file in shards.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file beside it.")
    opened = {file: _tensors_in(index.parent / file) for file in sorted(set(shards.values()))}
    lost = [name for name, file in shards.items() if name not in opened[file]]
    if lost:
        raise CheckpointError(f"{index} names {lost[0]}, which is not in {shards[lost[0]]}.")
    return {name: opened[file][name] for name, file in shards.items()}


def _tensors_in(file: Path) -> dict[str, LazyTensor]:
    content = open_file(file).content
    if not isinstance(content, dict) or not all(isinstance(item, LazyTensor) for item in content.values()):
        raise CheckpointError(f"{file} is not a flat dictionary of tensors, as Hugging Face's weights are.")
    return content


def _without_prefix(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}


def read_lower_case(path: Path) -> bool | None:
    """Read do_lower_case from tokenizer_config.json; None where it is not said."""
    file = path / "tokenizer_config.json"
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8")).get("do_lower_case")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    return value if isinstance(value, bool) else None
