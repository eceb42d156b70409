"""Write `.nemo` archives for MegatronBertModel and MegatronGPTModel of NeMo 1.6 to 1.23.

Source: https://github.com/NVIDIA/NeMo, r1.23.0, as in `open_nemo`.
"""

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from torch import Tensor

from ...model.config import EncoderConfig
from ...storage import atomic_file
from ..files.lazy_tensor import Readable
from ..megatron.untrained_parts import KEY
from ..megatron.write_megatron import ModelParallelLayout, check_later_code, network_arguments
from ..tensor_names import WORD
from .open_nemo import CONFIG, WEIGHTS

# Settings that NeMo's loader or layers read, under which the network is ours
_SETTINGS = {
    "transformer_block_type": "pre_ln",
    "normalization": "layernorm",
    "activation": "gelu",
    "bias": True,
    "position_embedding_type": "learned_absolute",
    "normalize_attention_scores": True,
    "share_embeddings_and_output_weights": True,
    "apply_query_key_layer_scaling": False,
    "kv_channels": None,
    "onnx_safe": False,
    "megatron_legacy": False,
    "persist_layer_norm": False,
    "gradient_accumulation_fusion": False,
    "sequence_parallel": False,
    "pre_process": True,
    "post_process": True,
    "global_batch_size": 8,
    "seed": 1234,
    "optim": {"name": "fused_adam", "lr": 5.0e-5, "weight_decay": 0.01},
    "data": {"dataloader_type": "single", "data_prefix": [], "num_workers": 0},
}
_PRECISIONS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: "bf16"}


def nemo_config(
    tensors: Mapping[str, Readable], config: EncoderConfig, layout: ModelParallelLayout, untrained: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the model_config.yaml of a network, without its tokenizer; `untrained` as in write_megatron.

    Raises ConfigError for a network that NeMo computes differently.
    """
    check_later_code(tensors, config, "NeMo")
    name = "gpt_model.MegatronGPTModel" if config.is_causal else "bert_model.MegatronBertModel"
    # BERT reads the first name, GPT the second; both default to true. OpenAI's GELU is not passed on to BERT.
    fused = config.gelu == "tanh"
    return {
        "target": f"nemo.collections.nlp.models.language_modeling.megatron_{name}",
        "nemo_version": "1.23.0",
        "micro_batch_size": 4,
        "precision": _PRECISIONS.get(tensors[WORD].dtype, 32),
        **network_arguments(tensors, config, layout),
        **({} if config.is_causal else {"openai_gelu": False}),
        "bias_gelu_fusion": fused,
        "bias_activation_fusion": fused,
        **_SETTINGS,
        **({KEY: list(untrained)} if untrained else {}),
    }


def write_nemo(
    dest: Path,
    ranks: Mapping[tuple[int, int], Callable[[], Mapping[str, Tensor]]],
    config: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
    *,
    lower_case: bool | None,
) -> None:
    """Write an archive atomically.

    `ranks` maps (tensor-parallel rank, pipeline stage) to a function that makes its tensors under the names of
    Megatron-LM v2.6; one rank is in memory at a time.
    """
    with (
        atomic_file(dest) as file,
        tempfile.TemporaryFile(dir=dest.parent) as weights,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        artifacts = {f"{hashlib.md5(data).hexdigest()}_{name}": data for name, data in tokenizer_files.items()}  # noqa: S324
        tokenizer = _tokenizer_config(artifacts, lower_case)
        _add(archive, CONFIG, yaml.safe_dump({**config, "tokenizer": tokenizer}, sort_keys=False).encode())
        for name, data in artifacts.items():
            _add(archive, name, data)
        for rank, make in ranks.items():
            weights.seek(0)
            weights.truncate()
            torch.save({_nemo_name(name): tensor for name, tensor in make().items()}, weights)
            _add_file(archive, f"{_folder_of(rank, ranks)}{WEIGHTS}", weights)


def _tokenizer_config(artifacts: Mapping[str, bytes], lower_case: bool | None) -> dict[str, Any]:
    files = {name.partition("_")[2]: f"nemo:{name}" for name in artifacts}
    bert = "BertWordPieceCase" if lower_case is False else "BertWordPieceLowerCase"
    return {
        "library": "megatron",
        "type": "GPT2BPETokenizer" if "merges.txt" in files else bert,
        "model": None,
        "vocab_file": files.get("vocab.json", files.get("vocab.txt")),
        "merge_file": files.get("merges.txt"),
    }


def _nemo_name(name: str) -> str:
    # The module of the last stage's embedding copy has this name; Megatron-LM renames it on saving.
    return f"model.{name.replace('word_embeddings_for_head.', 'word_embeddings.')}"


def _folder_of(rank: tuple[int, int], ranks: Mapping[tuple[int, int], object]) -> str:
    shard, stage = rank
    if max(stage for _, stage in ranks):
        return f"tp_rank_{shard:02d}_pp_rank_{stage:03d}/"
    return f"mp_rank_{shard:02d}/" if len(ranks) > 1 else ""


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    _add_file(archive, name, io.BytesIO(data))


def _add_file(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> None:
    """Add an open file's content, without owner and time."""
    entry = tarfile.TarInfo(f"./{name}")
    entry.size, entry.mode = file.seek(0, os.SEEK_END), 0o644
    file.seek(0)
    archive.addfile(entry, file)
