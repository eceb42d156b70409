"""Open a checkpoint of any supported format: returns its configuration, its lazy tensors, and the assumptions made.

The format is detected from the content, not the name: megabert's folder has a manifest, Hugging Face's a config.json,
a `.nemo` file is a tar archive with a model_config.yaml; the generation of Megatron-LM follows from the tensor names.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..model.config import EncoderConfig
from ..tokenizers.huggingface_files import StoredTokenizer
from ..tokenizers.rules import TokenizerRules
from .files.lazy_tensor import Readable, checked
from .huggingface.open_huggingface import HuggingFaceFile, find_folder, open_huggingface, open_lone_file
from .huggingface.read_head import FineTuned, read_head
from .mapping import QKV_LAYOUTS, read_tensors
from .megatron.open_megatron import MegatronFile, find_shape, open_megatron
from .megatron.qkv_layout import decide_qkv_layout
from .megatron.untrained_parts import drop_untrained_parts
from .megatron.zero_centered_norms import restore_norms
from .native.manifest import MANIFEST
from .native.run_checkpoints import CHECKPOINTS, open_best
from .nemo.nemo2_folder import find_nemo2, open_nemo2
from .nemo.open_nemo import is_nemo, open_nemo
from .other_formats import refuse_other_format
from .tensor_names import POSITION, SEGMENT, WORD, check_tensors, find_heads
from .tokenizer_files import find_tokenizer, folders_of_megatron, read_huggingface_tokenizer
from .user_config import UserConfig, merge_arguments, parse_user_config

# Properties of Megatron-LM's networks that are only inferred from a file: the user's configuration takes precedence.
_INFERRED = ("gelu", "head_gelu", "norm_place", "is_causal")


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint of any supported format.

    `shape` holds the properties of an EncoderConfig, with vocabulary_size counting all rows of the file. `tensors` has
    megabert's names and the file's dtypes; `head` holds the head of a fine-tuned run. `lower_case` is None where the
    files do not define it. `tokenizer_files` are those beside the weights (vocab.txt, or vocab.json and merges.txt),
    `num_tokens` counts the rows that they name, None where rows may be padding; `tokenizer_problem` is the message of
    a tokenizer that cannot be read, which matters only where no other vocabulary is given.
    `facts` are properties of the file for reports, `notes` the assumptions, `documents` the JSON documents of a
    megabert folder; a Hugging Face folder with a head has those of a run. `head_problem` is the message of a head that
    cannot be read, which the encoder does not need.
    """

    format: str
    source: str
    shape: Mapping[str, Any]
    tensors: Mapping[str, Readable]
    notes: Sequence[str]
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    tokenizer_source: str = ""
    lower_case: bool | None = None
    tokenizer_rules: TokenizerRules = field(default_factory=TokenizerRules)
    num_tokens: int | None = None
    tokenizer_problem: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Readable] = field(default_factory=dict)
    head_problem: str = ""
    documents: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> EncoderConfig:
        """The shape as an EncoderConfig."""
        return EncoderConfig.from_dict(dict(self.shape))

    @property
    def heads(self) -> list[str]:
        """The names of the pre-training heads in the checkpoint."""
        return find_heads(self.tensors, self.config)


@dataclass(frozen=True)
class _Options:
    """What the user gives beside a checkpoint."""

    config: UserConfig
    qkv_layout: str | None
    ignored: Collection[str]


def open_checkpoint(
    path: Path,
    *,
    config: Mapping[str, Any] | None = None,
    config_source: str = "",
    qkv_layout: str | None = None,
    ignored: Collection[str] = (),
) -> Checkpoint:
    """Open a checkpoint file or folder of Megatron-LM, NeMo, Hugging Face or megabert.

    `config` gives what the checkpoint does not hold; values that both give must agree. `ignored` are arguments of the
    checkpoint or of `config` that have no effect on the network, although megabert has no rule for them.
    Raises CheckpointError if there is no checkpoint, if it is damaged, if its arguments mean a network that megabert
    does not compute, or if it differs from `config`.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist. Give a checkpoint file or folder, or a name of `megabert models`."
        )
    if qkv_layout is not None and qkv_layout not in QKV_LAYOUTS:
        raise ConfigError(f"qkv_layout {qkv_layout!r} is unknown. Choose one of {', '.join(QKV_LAYOUTS)}.")
    user = parse_user_config(config or {}, config_source, ignored=ignored)
    refuse_other_format(path)
    checkpoint = _open(path, _Options(user, qkv_layout, ignored))
    given = user.shape if "era" in checkpoint.facts else user.full_shape
    for name, value in given.items():
        if checkpoint.shape.get(name, value) != value:
            raise CheckpointError(
                f"{checkpoint.source} has {name} {checkpoint.shape[name]}, but {config_source} has {value}. "
                "Give the configuration that belongs to this checkpoint, or leave it out."
            )
    shape = {**checkpoint.shape, **given}
    check_tensors(checkpoint.tensors, EncoderConfig.from_dict(shape), checkpoint.source)
    unused = [f"not used from {config_source}: {', '.join(user.others)}"] if user.others else []
    return replace(checkpoint, shape=shape, notes=[*checkpoint.notes, *user.notes, *unused])


def _open(path: Path, options: _Options) -> Checkpoint:
    if (path / MANIFEST).is_file() or (path / CHECKPOINTS).is_dir():
        return _open_native(path)
    if (nemo2 := find_nemo2(path)) is not None:
        checkpoint = _open_megatron(open_nemo2(nemo2), nemo2 / "context", options)
        return replace(checkpoint, format=f"NeMo 2, names of {checkpoint.facts['era']}", source=str(nemo2))
    if is_nemo(path):
        return _open_nemo(path, options)
    folder = find_folder(path)
    if folder is not None:
        return _open_huggingface(open_huggingface(folder, options.ignored), folder)
    if path.is_file() and (lone_file := open_lone_file(path, options.config.full_shape)) is not None:
        return _open_huggingface(lone_file, path.parent)
    return _open_megatron(open_megatron(path), path, options)


def _open_native(path: Path) -> Checkpoint:
    path, opened = open_best(path, groups=("model",))
    if "adapter" in opened.documents:
        raise CheckpointError(
            f"{path} holds adapters and a head, not the encoder. Merge them: megabert merge {path} -o FOLDER."
        )
    try:
        shape = EncoderConfig.from_dict(opened.documents["encoder"]).to_dict()
        tokenizer = opened.documents.get("tokenizer", {})
        lower_case = tokenizer.get("lower_case")
        notes = [str(note) for note in opened.documents.get("origin", {}).get("notes", [])]
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} lacks {error}. Is it a checkpoint of megabert?") from None
    # Pre-training heads are stored with the prefix of a task's head.
    tensors = {
        re.sub(r"^head\.(?=language_model\.|sentence_order\.)", "", name): checked(item, str(path), name)
        for name, item in opened.tensors["model"].items()
    }
    is_run = "run" in opened.documents
    return Checkpoint(
        format="megabert, " + ("run" if is_run else "language model"),
        source=str(path),
        shape=shape,
        tensors={name: item for name, item in tensors.items() if not name.startswith("head.")},
        notes=notes,
        tokenizer_files={name: text.encode() for name, text in opened.texts.items()},
        tokenizer_source=str(path),
        lower_case=lower_case,
        tokenizer_rules=TokenizerRules.from_document(tokenizer, str(path)),
        facts={"container": "safetensors", **({"iteration": opened.manifest["step"]} if is_run else {})},
        head={name: item for name, item in tensors.items() if name.startswith("head.")},
        documents=opened.documents,
    )


def _open_huggingface(file: HuggingFaceFile, folder: Path) -> Checkpoint:
    try:
        EncoderConfig.from_dict(dict(file.shape))  # checks types and ranges before they are used in computations
    except CheckpointError as error:
        raise CheckpointError(f"{file.source}{'/config.json' if file.config else ''}: {error}") from None
    head_dim = _head_dim(file.shape["hidden_size"], file.shape["num_heads"], file.source)
    tensors, dropped = read_tensors([file.weights], file.architecture.rules, head_dim, file.source)
    if not file.shape["num_segments"]:
        tensors.pop(SEGMENT, None)
    tuned, head_problem = FineTuned(), ""
    try:
        tuned = read_head(file, folder)
    except CheckpointError as error:
        head_problem = str(error)
    if tuned.head:
        dropped = [name for name in dropped if not name.startswith(("classifier.", "qa_outputs."))]
    problem, source, tokenizer = "", "", StoredTokenizer()
    try:
        source, tokenizer = read_huggingface_tokenizer(folder)
    except CheckpointError as error:
        problem = str(error)
    return Checkpoint(
        format=f"Hugging Face, {file.architecture.name}",
        source=file.source,
        shape=file.shape,
        tensors=tensors,
        notes=[*file.notes, *tuned.notes, *_not_read(dropped), *tokenizer.notes],
        tokenizer_files=tokenizer.files,
        tokenizer_source=source,
        lower_case=tokenizer.lower_case,
        tokenizer_rules=tokenizer.rules,
        num_tokens=tokenizer.num_tokens,
        tokenizer_problem=problem,
        facts={"container": file.container, "not_kept": dropped, "unknown_globals": sorted(file.unknown_globals)},
        head=tuned.head,
        head_problem=head_problem,
        documents=tuned.documents,
    )


def _open_nemo(path: Path, options: _Options) -> Checkpoint:
    opened = open_nemo(path)
    checkpoint = _open_megatron(opened.megatron, path, options)
    notes = [*checkpoint.notes, *_not_read(sorted(opened.heads))]
    checkpoint = replace(checkpoint, format=f"NeMo, names of {opened.megatron.era.name}", notes=notes)
    if opened.tokenizer_files:
        checkpoint = replace(checkpoint, tokenizer_files=opened.tokenizer_files, tokenizer_source=str(path))
    return checkpoint


def _open_megatron(file: MegatronFile, path: Path, options: _Options) -> Checkpoint:
    user, source = options.config, file.source
    file = replace(file, arguments=merge_arguments(user, file.arguments, source))
    shape, assumptions = find_shape(file, options.ignored)
    # Hugging Face's "gelu" may be either variant of Megatron-LM's: the file's own arguments take precedence.
    user_shape = user.shape if user.activation == "gelu" and file.arguments else user.full_shape
    shape |= {name: value for name, value in user_shape.items() if name not in shape or name in _INFERRED}
    if "num_heads" not in shape:
        raise CheckpointError(
            f"{path} does not hold its number of attention heads. Give it: --bert_config FILE with num_attention_heads."
        )
    hidden_size = _hidden_size(file)
    head_dim = _head_dim(hidden_size, shape["num_heads"], source)
    decision = decide_qkv_layout(file, head_dim)
    qkv_layout = options.qkv_layout
    layout, evidence = (qkv_layout, "as requested") if qkv_layout else (decision.layout, decision.evidence)
    stored, dropped = read_tensors(file.shards, file.era.rules(layout), head_dim, source)
    tensors, norm_notes = restore_norms(drop_untrained_parts(stored, file.arguments), file, options.ignored)
    shape |= {"hidden_size": hidden_size} | _sizes_of(tensors, source)
    tokenizer_source, tokenizer_files = find_tokenizer(folders_of_megatron(path))
    return Checkpoint(
        format=f"Megatron-LM, {file.era.name}",
        source=str(path),
        shape=shape,
        tensors=tensors,
        notes=[
            *assumptions,
            *norm_notes,
            f"query-key-value rows: {layout} ({evidence})",
            *file.notes,
            *_not_read(dropped),
        ],
        tokenizer_files=tokenizer_files,
        tokenizer_source=tokenizer_source,
        facts={
            "era": file.era.name,
            "container": file.container,
            "iteration": file.iteration,
            "checkpoint_version": file.version,
            "tensor_parallel": len(file.shards),
            "pipeline_parallel": file.num_stages,
            "interleaved": file.num_chunks,
            "not_kept": dropped,
            "unknown_globals": sorted(file.unknown_globals),
            "qkv_layout": layout,
            "qkv_claimed": decision.claimed,
            "qkv_evidence": evidence,
            "key_bias_shares": dict(decision.key_bias_shares),
        },
    )


def _not_read(names: Sequence[str]) -> list[str]:
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    return [f"not read: {shown}"] if names else []


def _hidden_size(file: MegatronFile) -> int:
    widths = {}
    for part in ("position_embeddings", "word_embeddings"):
        name = next((name for name in file.shards[0] if part in name), None)
        if name is None or len(file.shards[0][name].shape) != 2:
            raise CheckpointError(f"{file.source} has no matrix of {part}. Is it an encoder?")
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
