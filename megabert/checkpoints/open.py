"""Open a checkpoint of any make: what network it is, its tensors by our names, and what was assumed.

A path goes in, a `Checkpoint` comes out whose tensors are not read yet. What is there decides the format, not its
name: our own folder has a manifest, Hugging Face's a config.json, a `.nemo` is a tar archive with a
model_config.yaml; tensor names tell the rest.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..model.config import EncoderConfig
from .files.lazy_tensor import Readable, Rows, Weights
from .huggingface import open_huggingface as huggingface
from .mapping import QKV_LAYOUTS, read_tensors
from .megatron import open_megatron as megatron
from .megatron import qkv_layout as qkv
from .native import manifest_folder as folders
from .native import run_checkpoints as run
from .nemo import nemo_archive as nemo
from .tensor_names import PER_TOKEN, POSITION, SEGMENT, WORD, check_tensors, find_heads

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
    "head_gelu": "head_gelu",
    "norm_place": "norm_place",
    "is_causal": "is_causal",
}
# What a user's configuration decides even where the file seems to say otherwise: the file's word is an inference.
_TOLD_WINS = ("gelu", "head_gelu", "norm_place", "is_causal")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any make, open.

    `shape` holds the properties of an EncoderConfig, vocabulary_size counting all rows that the file has. `tensors`
    has our names, in the file's dtypes; `head` those of a fine-tuned run's own head. `lower_case` is None where the
    files do not say it. `tokenizer_files` are those that lie beside the weights (vocab.txt, or vocab.json and
    merges.txt). `facts` say for people and programs what is known of the file, `notes` what was assumed.
    """

    format: str
    source: str
    shape: Mapping[str, Any]
    tensors: Mapping[str, Readable]
    notes: Sequence[str]
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    tokenizer_source: str = ""
    lower_case: bool | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Readable] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    """The JSON documents of our own folder."""

    @property
    def config(self) -> EncoderConfig:
        """The network's shape, typed."""
        return EncoderConfig.from_dict(dict(self.shape))

    @property
    def heads(self) -> list[str]:
        """The heads that are there, as people call them."""
        return find_heads(self.tensors, self.config)


def read_config(path: Path) -> dict[str, Any]:
    """Read a network's configuration from a JSON file; raises CheckpointError if it is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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
    """Open a checkpoint: a file or folder of Megatron-LM, NeMo or Hugging Face, or one of ours.

    `config` gives what the checkpoint does not hold; where both say it, they must agree.
    Raises CheckpointError if there is no checkpoint, it is damaged, or it is of another size than `config` says.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Give a checkpoint file or folder, or a name of `megabert models`."
        )
    if qkv_layout is not None and qkv_layout not in QKV_LAYOUTS:
        raise ConfigError(f"qkv_layout {qkv_layout!r} is unknown. Choose one of {', '.join(QKV_LAYOUTS)}.")
    told, others = shape_of_config(config or {}, config_source)
    checkpoint = _open(path, told, qkv_layout)
    shape = _agree(checkpoint.shape, told, checkpoint.source, config_source)
    check_tensors(checkpoint.tensors, EncoderConfig.from_dict(shape), checkpoint.source)
    notes = [*checkpoint.notes, *([f"not used from {config_source}: {', '.join(others)}"] if others else [])]
    return replace(checkpoint, shape=shape, notes=notes)


def _open(path: Path, told: Mapping[str, Any], qkv_layout: str | None) -> Checkpoint:
    if (path / folders.MANIFEST).is_file() or (path / run.CHECKPOINTS).is_dir():
        return _open_ours(run.find_checkpoint(path))
    if nemo.is_nemo(path):
        return _open_nemo(path, told, qkv_layout)
    hub = huggingface.find_folder(path)
    if hub is not None:
        return _open_huggingface(huggingface.open_folder(hub))
    if path.is_file() and (weights := huggingface.open_lone_file(path)) is not None:
        return _open_huggingface(huggingface.without_config(weights, told, path))
    return _open_megatron(megatron.open_megatron(path), path, told, qkv_layout)


def _open_ours(path: Path) -> Checkpoint:
    opened = folders.open_folder(path, groups=("model",))
    try:
        config = EncoderConfig.from_dict(opened.documents["encoder"])
        lower_case = opened.documents.get("tokenizer", {}).get("lower_case")
    except (KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks {error}. Is it a checkpoint of megabert?") from None
    tensors = {_own_name(name): Weights(item, str(path), name) for name, item in opened.tensors["model"].items()}
    is_run = "run" in opened.documents
    return Checkpoint(
        format="megabert, " + ("run" if is_run else "language model"),
        source=str(path),
        shape=config.to_dict(),
        tensors={name: item for name, item in tensors.items() if not name.startswith("head.")},
        notes=[*opened.documents.get("origin", {}).get("notes", [])],
        tokenizer_files={name: text.encode() for name, text in opened.texts.items()},
        tokenizer_source=str(path),
        lower_case=lower_case,
        facts={"container": "safetensors", **({"iteration": opened.manifest["step"]} if is_run else {})},
        head={name: item for name, item in tensors.items() if name.startswith("head.")},
        documents=opened.documents,
    )


def _own_name(name: str) -> str:
    """Take the heads of a pre-training run for what they are; other tasks' heads keep the name `head`."""
    bare = name.removeprefix("head.")
    return bare if bare.startswith(("language_model.", "sentence_order.")) else name


def _open_huggingface(file: huggingface.HuggingFaceFile) -> Checkpoint:
    EncoderConfig.from_dict(dict(file.shape))  # its types and ranges, before anything is computed with them
    hidden_size, num_heads = file.shape["hidden_size"], file.shape["num_heads"]
    tensors, not_kept = read_tensors(
        [file.weights], file.architecture.rules, _head_dim(hidden_size, num_heads, file.source), file.source
    )
    if not file.shape["num_segments"]:
        tensors.pop(SEGMENT, None)
    folder = Path(file.source) if Path(file.source).is_dir() else Path(file.source).parent
    tokenizer_source, tokenizer_files = find_tokenizer(folder)
    return Checkpoint(
        format=f"Hugging Face, {file.architecture.name}",
        source=file.source,
        shape=file.shape,
        tensors=tensors,
        notes=[*file.notes, *_not_kept(not_kept)],
        tokenizer_files=tokenizer_files,
        tokenizer_source=tokenizer_source,
        lower_case=huggingface.read_lower_case(folder),
        facts={"container": file.container, "not_kept": not_kept, "unknown_globals": sorted(file.unknown_globals)},
    )


def _open_nemo(path: Path, told: Mapping[str, Any], qkv_layout: str | None) -> Checkpoint:
    opened = nemo.open_nemo(path)
    file = megatron.MegatronFile(
        source=str(path),
        era=megatron.find_era(opened.shards[0], str(path)),
        shards=opened.shards,
        arguments=nemo.arguments_of(opened),
        version=opened.checkpoint_version,
        iteration=None,
        num_stages=opened.num_stages,
        container=".nemo",
        unknown_globals=opened.unknown_globals,
    )
    checkpoint = _open_megatron(file, path, told, qkv_layout)
    heads = _not_kept(sorted(opened.heads))
    checkpoint = replace(checkpoint, format=f"NeMo, names of {file.era.name}", notes=[*checkpoint.notes, *heads])
    if opened.tokenizer_files:
        checkpoint = replace(checkpoint, tokenizer_files=opened.tokenizer_files, tokenizer_source=str(path))
    return checkpoint


def _open_megatron(
    file: megatron.MegatronFile, path: Path, told: Mapping[str, Any], qkv_layout: str | None
) -> Checkpoint:
    shape, assumptions = megatron.find_shape(file)
    shape |= {name: value for name, value in told.items() if name not in shape or name in _TOLD_WINS}
    if "num_heads" not in shape:
        raise CheckpointError(
            f"{path} does not say its number of attention heads. Give it: --bert_config FILE with num_attention_heads."
        )
    hidden_size = _hidden_size(file)
    head_dim = _head_dim(hidden_size, shape["num_heads"], str(path))
    decision = qkv.decide(file, head_dim)
    layout, evidence = (qkv_layout, "as asked") if qkv_layout else (decision.layout, decision.evidence)
    tensors, not_kept = read_tensors(file.shards, file.era.rules(layout), head_dim, str(path))
    shape |= {"hidden_size": hidden_size} | _sizes_of(tensors, str(path))
    tokenizer_source, tokenizer_files = next(
        (found for place in _folders_of(path) if (found := find_tokenizer(place))[1]), ("", {})
    )
    return Checkpoint(
        format=f"Megatron-LM, {file.era.name}",
        source=str(path),
        shape=shape,
        tensors=tensors,
        notes=[*assumptions, f"query-key-value rows: {layout} ({evidence})", *file.notes, *_not_kept(not_kept)],
        tokenizer_files=tokenizer_files,
        tokenizer_source=tokenizer_source,
        facts={
            **_megatron_facts(file, not_kept),
            "qkv_layout": layout,
            "qkv_claimed": decision.claimed,
            "qkv_evidence": evidence,
            "key_bias_shares": dict(decision.key_bias_shares),
        },
    )


def _megatron_facts(file: megatron.MegatronFile, not_kept: list[str]) -> dict[str, Any]:
    return {
        "era": file.era.name,
        "container": file.container,
        "iteration": file.iteration,
        "checkpoint_version": file.version,
        "tensor_parallel": len(file.shards),
        "pipeline_parallel": file.num_stages,
        "interleaved": file.num_chunks,
        "not_kept": not_kept,
        "unknown_globals": sorted(file.unknown_globals),
    }


def _not_kept(names: Sequence[str]) -> list[str]:
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    return [f"not read: {shown}"] if names else []


# What the files of a tokenizer are called, and what we call them.
_TOKENIZERS = (
    {"vocab.txt": "vocab.txt"},
    {"vocab.json": "vocab.json", "merges.txt": "merges.txt"},
    {"gpt2-vocab.json": "vocab.json", "gpt2-merges.txt": "merges.txt"},
)
_LARGEST_TOKENIZER = 2**26


def find_tokenizer(folder: Path) -> tuple[str, dict[str, bytes]]:
    """Read a tokenizer's files from a folder: (where, files by our name); ("", {}) where there are none."""
    for files in _TOKENIZERS:
        if all((folder / name).is_file() for name in files):
            return str(folder / next(iter(files))), {ours: _read_small(folder / name) for name, ours in files.items()}
    return "", {}


def _read_small(file: Path) -> bytes:
    size = file.stat().st_size
    if size > _LARGEST_TOKENIZER:
        raise CheckpointError(
            f"{file} has {size} bytes, which is no vocabulary; at most {_LARGEST_TOKENIZER} are read."
        )
    return file.read_bytes()


def _folders_of(path: Path) -> list[Path]:
    """List where a vocabulary may lie: the folder itself, or the one that holds its iteration or release."""
    folder = path if path.is_dir() else path.parent
    places = [folder]
    while folder.name.startswith(("mp_rank_", "iter_")) or folder.name == "release":
        folder = folder.parent
        places.append(folder)
    return places


def _hidden_size(file: megatron.MegatronFile) -> int:
    widths = {}
    for part in ("position_embeddings", "word_embeddings"):
        name = next((name for name in file.shards[0] if part in name), None)
        if name is None or len(file.shards[0][name].shape) != 2:
            raise CheckpointError(f"{file.source} has no {part} of words or positions x width. Is it an encoder?")
        widths[name] = int(file.shards[0][name].shape[1])
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise CheckpointError(f"{file.source}: the embeddings are of different widths: {shown}.")
    return widths.popitem()[1]


def _sizes_of(tensors: Mapping[str, Readable], source: str) -> dict[str, int]:
    up = "encoder.layers.0.mlp.up.weight"
    missing = [name for name in (WORD, POSITION, up) if name not in tensors]
    if missing:
        raise CheckpointError(f"{source} has no {', '.join(missing)}. Is it an encoder's checkpoint?")
    return {
        "vocabulary_size": tensors[WORD].shape[0],
        "max_positions": tensors[POSITION].shape[0],
        "num_segments": tensors[SEGMENT].shape[0] if SEGMENT in tensors else 0,
        "ffn_size": tensors[up].shape[0],
    }


def _head_dim(hidden_size: int, num_heads: int, source: str) -> int:
    if not isinstance(num_heads, int) or num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"{source}: {num_heads} attention heads do not divide a hidden size of {hidden_size}.")
    return hidden_size // num_heads


def _agree(found: Mapping[str, Any], told: Mapping[str, Any], source: str, config_source: str) -> dict[str, Any]:
    for name, value in told.items():
        if name in found and found[name] != value:
            raise CheckpointError(
                f"{source} has {name} {found[name]}, but {config_source} says {value}. "
                "Give the configuration that belongs to this checkpoint, or leave it out."
            )
    return {**found, **told}


def fit_vocabulary(checkpoint: Checkpoint, num_tokens: int, vocabulary_source: str) -> dict[str, Readable]:
    """Strip the rows with which a vocabulary was padded; returns the tensors for a vocabulary of `num_tokens`.

    Megatron-LM pads to a multiple of 128 x tensor-parallel size, Hugging Face's tools to one of 8 to 128.
    Raises CheckpointError if the vocabulary cannot be the checkpoint's.
    """
    rows = checkpoint.shape["vocabulary_size"]
    if not is_padded(num_tokens, rows):
        raise CheckpointError(
            f"{vocabulary_source} has {num_tokens} tokens, but {checkpoint.source} has {rows} word vectors, and no "
            f"padding leads from one to the other. Give the vocabulary that the checkpoint was trained with "
            "(model.tokenizer.vocab_file)."
        )
    return resize_vocabulary(checkpoint.tensors, num_tokens)


def is_padded(num_tokens: int, num_rows: int) -> bool:
    """Whether a vocabulary may have been padded to so many rows: not at all, or up to a multiple that people use."""
    multiples = [8, 16, 32, *(64 * factor for factor in range(1, 129))]
    return num_rows == num_tokens or any(-(-num_tokens // multiple) * multiple == num_rows for multiple in multiples)


def resize_vocabulary(tensors: Mapping[str, Readable], num_rows: int) -> dict[str, Readable]:
    """Cut the tensors that have a row for each token, or fill them up with zeros."""
    return {name: Rows(item, num_rows) if name in PER_TOKEN else item for name, item in tensors.items()}
