"""Open a checkpoint that another program wrote: what network it is, its tensors by our names, and what was assumed.

The format is told by what is there: a folder with a config.json is Hugging Face's, all else Megatron-LM's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from . import huggingface, megatron
from .rules import QKV_LAYOUTS, Readable, Rule, read_tensors

WORD = "encoder.embeddings.word.weight"
VOCABULARY_BIAS = "language_model.vocabulary.bias"

# The keys of a configuration given by the user: NeMo's and Megatron-LM's names, and Hugging Face's.
CONFIG_KEYS = {
    "num_layers": "num_layers",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "ffn_hidden_size": "ffn_size",
    "intermediate_size": "ffn_size",
    "max_position_embeddings": "max_positions",
    "max_seq_length": "max_positions",
    "seq_length": "max_positions",
    "num_tokentypes": "num_segments",
    "type_vocab_size": "num_segments",
    "layernorm_epsilon": "norm_epsilon",
    "norm_epsilon": "norm_epsilon",
    "layer_norm_eps": "norm_epsilon",
    "hidden_dropout": "hidden_dropout",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "gelu": "gelu",
    "norm_place": "norm_place",
}


@dataclass(frozen=True)
class Checkpoint:
    """A foreign checkpoint, read.

    `shape` holds the properties of an EncoderConfig, vocabulary_size counting all rows that the file has; `tensors`
    has our names, float32. `lower_case` is None where the files do not say it.
    """

    format: str
    source: str
    shape: dict[str, Any]
    tensors: dict[str, Tensor]
    vocabulary: Path | None
    lower_case: bool | None
    notes: Sequence[str]


def read_config(path: Path) -> dict[str, Any]:
    """Read a network's configuration from a JSON file; raises CheckpointError if it is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object with the network's sizes.")
    return config


def shape_of_config(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Take from a configuration what shapes a network; returns it and the names of keys that do not."""
    shape: dict[str, Any] = {}
    others = []
    for key, value in config.items():
        name = CONFIG_KEYS.get(key.replace("-", "_"))  # NeMo's files write max-seq-length
        if name is None:
            others.append(key)
        elif name in shape and shape[name] != value:
            raise ConfigError(f"{source} gives {name} twice: {shape[name]} and {value}. Leave one out.")
        else:
            shape[name] = value
    return shape, others


def open_checkpoint(
    path: Path, *, config: Mapping[str, Any] | None = None, config_source: str = "", qkv_layout: str | None = None
) -> Checkpoint:
    """Read a Megatron-LM checkpoint (file or folder) or a Hugging Face folder.

    `config` gives what the checkpoint does not hold; where both say it, they must agree.
    Raises CheckpointError if there is no checkpoint, it is damaged, or it is of another size than `config` says.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Give a checkpoint file or folder, or a name of `megabert models`."
        )
    told, others = shape_of_config(config or {}, config_source)
    folder = path.parent if path.name in huggingface.WEIGHT_FILES else path
    if huggingface.is_huggingface(folder):
        checkpoint = _open_huggingface(folder)
        shape = _agree(checkpoint.shape, told, checkpoint.source, config_source)
        return Checkpoint(**(vars(checkpoint) | {"shape": shape}))
    notes = [f"not used from {config_source}: {', '.join(others)}"] if others else []
    return _open_megatron(path, told, config_source, qkv_layout, notes)


def _open_huggingface(folder: Path) -> Checkpoint:
    architecture, shape, notes = huggingface.read_config(folder)
    weights = huggingface.open_weights(folder)
    unread = sorted(name for name in weights if name.startswith(("qa_outputs.", "classifier.")))
    if unread:
        notes.append(f"not read: the head of a fine-tuned model ({', '.join(unread)})")
    tensors = _read([weights], huggingface.RULES[architecture], shape["hidden_size"], shape["num_heads"], str(folder))
    _check_shape(tensors, shape, str(folder))
    vocabulary = folder / "vocab.txt"
    return Checkpoint(
        format=f"Hugging Face, {architecture}",
        source=str(folder),
        shape=shape,
        tensors=tensors,
        vocabulary=vocabulary if vocabulary.is_file() else None,
        lower_case=huggingface.read_lower_case(folder),
        notes=notes,
    )


def _open_megatron(
    path: Path, told: dict[str, Any], config_source: str, qkv_layout: str | None, notes: list[str]
) -> Checkpoint:
    file = megatron.open_megatron(path)
    shape, assumptions = megatron.find_shape(file)
    shape |= {name: value for name, value in told.items() if name not in shape or name in ("gelu", "norm_place")}
    if "num_heads" not in shape:
        raise CheckpointError(
            f"{path} does not say its number of attention heads. Give it: --bert_config FILE with num_attention_heads."
        )
    layout, evidence = (qkv_layout, "as asked") if qkv_layout else megatron.find_qkv_layout(file)
    if layout not in QKV_LAYOUTS:
        raise ConfigError(f"qkv_layout {layout!r} is unknown. Choose one of {', '.join(QKV_LAYOUTS)}.")
    rules = file.era.rules(layout)
    shape |= _sizes(file)
    tensors = _read(file.shards, rules, shape["hidden_size"], shape["num_heads"], str(path))
    shape |= _sizes_of_tensors(tensors)
    _agree(shape, told, str(path), config_source)
    _check_shape(tensors, shape, str(path))
    vocabulary = next((place / "vocab.txt" for place in _folders_of(path) if (place / "vocab.txt").is_file()), None)
    return Checkpoint(
        format=f"Megatron-LM, {file.era.name}, {len(file.shards)} x {file.num_stages} parts",
        source=str(path),
        shape=shape,
        tensors=tensors,
        vocabulary=vocabulary,
        lower_case=None,
        notes=[*assumptions, f"query-key-value rows: {layout} ({evidence})", *notes],
    )


def _folders_of(path: Path) -> list[Path]:
    """List where a vocabulary may lie: the folder itself, or the one that holds its iteration or release."""
    folder = path if path.is_dir() else path.parent
    places = [folder]
    while folder.name.startswith(("mp_rank_", "iter_")) or folder.name == "release":
        folder = folder.parent
        places.append(folder)
    return places


def _sizes(file: megatron.MegatronFile) -> dict[str, Any]:
    position = next((item for name, item in file.shards[0].items() if "position_embeddings" in name), None)
    if position is None or len(position.shape) != 2:
        raise CheckpointError(f"{file.source} has no position embedding: only learned positions can be read.")
    return {"hidden_size": int(position.shape[1])}


def _sizes_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    segment = tensors.get("encoder.embeddings.segment.weight")
    return {
        "vocabulary_size": _rows(tensors, WORD),
        "max_positions": _rows(tensors, "encoder.embeddings.position.weight"),
        "num_segments": 0 if segment is None else len(segment),
        "ffn_size": _rows(tensors, "encoder.layers.0.mlp.up.weight"),
    }


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise CheckpointError(f"the checkpoint has no {name}. Is it an encoder's?")
    return len(tensors[name])


def _read(
    shards: Sequence[Mapping[str, Readable]], rules: Sequence[Rule], hidden_size: int, num_heads: int, source: str
) -> dict[str, Tensor]:
    if not isinstance(num_heads, int) or num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"{source}: {num_heads} attention heads do not divide a hidden size of {hidden_size}.")
    tensors = read_tensors(shards, rules, hidden_size // num_heads, source)
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _agree(found: dict[str, Any], told: Mapping[str, Any], source: str, config_source: str) -> dict[str, Any]:
    for name, value in told.items():
        if name in found and found[name] != value:
            raise CheckpointError(
                f"{source} has {name} {found[name]}, but {config_source} says {value}. "
                "Give the configuration that belongs to this checkpoint, or leave it out."
            )
    return found | dict(told)


def _check_shape(tensors: Mapping[str, Tensor], shape: Mapping[str, Any], source: str) -> None:
    """Compare what config.json or the arguments say with the tensors, in the terms in which people know them."""
    counts = {
        "hidden_size": tensors[WORD].shape[1] if WORD in tensors else None,
        "num_layers": len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}),
        "ffn_size": _rows(tensors, "encoder.layers.0.mlp.up.weight"),
        "max_positions": _rows(tensors, "encoder.embeddings.position.weight"),
        "vocabulary_size": _rows(tensors, WORD),
    }
    for name, count in counts.items():
        if shape.get(name) != count:
            raise CheckpointError(f"{source}: its configuration says {name} {shape.get(name)}, its tensors {count}.")


def fit_vocabulary(checkpoint: Checkpoint, num_tokens: int, vocabulary_source: str) -> dict[str, Tensor]:
    """Strip the rows with which a vocabulary was padded; returns the tensors for a vocabulary of `num_tokens`.

    Megatron-LM pads to a multiple of 128 x tensor-parallel size, Hugging Face's tools to one of 8 to 128.
    Raises CheckpointError if the vocabulary cannot be the checkpoint's.
    """
    rows = checkpoint.shape["vocabulary_size"]
    multiples = [8, 16, 32, *(64 * factor for factor in range(1, 129))]
    if rows != num_tokens and not any(-(-num_tokens // multiple) * multiple == rows for multiple in multiples):
        raise CheckpointError(
            f"{vocabulary_source} has {num_tokens} tokens, but {checkpoint.source} has {rows} word vectors, and no "
            f"padding leads from one to the other. Give the vocabulary that the checkpoint was trained with "
            "(model.tokenizer.vocab_file)."
        )
    per_token = (WORD, VOCABULARY_BIAS)
    return {
        name: tensor[:num_tokens].clone() if name in per_token else tensor
        for name, tensor in checkpoint.tensors.items()
    }
