"""Convert a checkpoint to another format, parallel layout or dtype, and verify the result bit for bit.

The result appears atomically. Tensors are read one at a time: memory holds at most one file of the target (for
Megatron-LM and NeMo, whose containers need it) or one tensor (for the others).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..model.config import EncoderConfig
from ..storage import atomic_folder, fsync_folder, temporary_folder
from ..tokenizers.bpe import END_OF_TEXT
from ..tokenizers.load import files_with_added_tokens
from ..tokenizers.wordpiece import SPECIAL_TOKENS
from .files.lazy_tensor import Derived, Readable, num_bytes
from .huggingface.sentence_modules import EMBEDDING_TASKS
from .huggingface.write_huggingface import write_huggingface
from .megatron.untrained_parts import add_untrained_parts, note_untrained_parts
from .megatron.write_megatron import ModelParallelLayout, era_of, rank_tensors, write_megatron
from .model_card import CARD, huggingface_card
from .native.manifest import write_file
from .native.manifest_folder import Contents, write_manifest_folder
from .nemo.write_nemo import nemo_config, write_nemo
from .open import Checkpoint, open_checkpoint
from .vocabulary_rows import check_vocabulary, resize_vocabulary

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """The format, layout and dtype to write."""

    format: str
    layout: ModelParallelLayout = field(default_factory=ModelParallelLayout)
    dtype: torch.dtype | None = None
    """None: the source's."""


@dataclass(frozen=True)
class _Job:
    """The input of a writer: tensors of the right vocabulary and dtype, and where they came from.

    `untrained` are the names of tensors that Megatron-LM and NeMo expect and the source lacks.
    """

    tensors: Mapping[str, Readable]
    config: EncoderConfig
    source: Checkpoint
    target: Target
    untrained: tuple[str, ...] = ()


def convert(
    source: Checkpoint,
    dest: Path,
    target: Target,
    *,
    num_tokens: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Write `source` as `dest` and compare the two bit for bit; returns notes for the user.

    `num_tokens` is the vocabulary's true size; None keeps all rows, padding included. `progress` is called with the
    bytes done and the total. Raises ConfigError if the target cannot hold the network or its numbers, CheckpointError
    if a tensor cannot be read. After an error nothing is left at `dest`.
    """
    if dest.exists():
        raise ConfigError(f"{dest} exists. Give a new name, or remove it; nothing is overwritten.")
    job = _prepare(source, target, num_tokens)
    job = replace(job, tensors=_report_reads(job.tensors, progress, num_passes=2))
    dest.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(dest) as folder:
        unverified = folder / dest.name
        notes = WRITERS[target.format](unverified, job)
        _verify(job, unverified, dest)
        unverified.rename(dest)
        fsync_folder(dest.parent)
    return notes


def _prepare(source: Checkpoint, target: Target, num_tokens: int | None) -> _Job:
    """Convert vocabulary and dtype to the target's."""
    rows = source.config.vocabulary_size
    if num_tokens is not None:
        check_vocabulary(source, num_tokens, source.tokenizer_source)
    size = num_tokens or rows
    if target.format not in ("megabert", "huggingface"):
        target.layout.check(source.config)
        # Padding rows of the source are kept where they fit: Megatron-LM's logits have columns for them.
        size = target.layout.padded(size)
    elif target.layout != ModelParallelLayout():
        raise ConfigError(
            f"{target.format} has no parallel layout; leave out --tensor-parallel and --pipeline-parallel."
        )
    tensors, config = resize_vocabulary(source.tensors, size), replace(source.config, vocabulary_size=size)
    if target.dtype is not None:
        tensors = {name: _cast(name, item, target.dtype) for name, item in tensors.items()}
    if target.format in ("megabert", "huggingface"):
        return _Job(tensors, config, source, target)
    complete, full_config, untrained = add_untrained_parts(tensors, config)
    if target.format == "megatron" and not source.heads:
        # megatron.model's fine-tuning (--pretrained-checkpoint) loads a lone encoder.
        return _Job(tensors, config, source, target)
    return _Job(complete, full_config, source, target, tuple(untrained))


def _cast(name: str, item: Readable, dtype: torch.dtype) -> Readable:
    """Convert a tensor when it is read. Raises ConfigError for numbers that the dtype does not reach."""

    def read() -> Tensor:
        tensor = item.read()
        converted = tensor.to(dtype)
        if not torch.isfinite(converted).all():
            raise ConfigError(
                f"{name} reaches {float(tensor.abs().max()):.6g}, more than the {torch.finfo(dtype).max:g} of {dtype}. "
                "Convert with --dtype bfloat16 or float32, or without --dtype."
            )
        return converted

    return Derived(tuple(item.shape), dtype, read)


def _report_reads(
    tensors: Mapping[str, Readable], progress: Callable[[int, int], None] | None, num_passes: int
) -> Mapping[str, Readable]:
    """Report progress whenever a tensor has been read."""
    if progress is None:
        return tensors
    total, done = num_passes * sum(map(num_bytes, tensors.values())), 0

    def read(item: Readable) -> Tensor:
        nonlocal done
        tensor = item.read()
        done += tensor.nbytes
        progress(min(done, total), total)
        return tensor

    return {name: Derived(tuple(item.shape), item.dtype, partial(read, item)) for name, item in tensors.items()}


def _write_megabert(dest: Path, job: _Job) -> list[str]:
    source = job.source
    documents = {
        "encoder": job.config.to_dict(),
        "origin": {"format": source.format, "name": Path(source.source).name, "notes": list(source.notes)},
    }
    if source.tokenizer_files:
        documents["tokenizer"] = {"lower_case": source.lower_case, **source.tokenizer_rules.to_document()}
    texts = {name: data.decode() for name, data in source.tokenizer_files.items()}
    write_manifest_folder(dest, Contents({"model": job.tensors}, documents, texts), {})
    return _note_dropped_head(source)


def _write_huggingface(dest: Path, job: _Job) -> list[str]:
    source = job.source
    with atomic_folder(dest) as folder:
        notes = write_huggingface(
            folder,
            job.tensors,
            job.config,
            tokenizer_files=source.tokenizer_files,
            lower_case=source.lower_case,
            rules=source.tokenizer_rules,
            head=source.head,
            run=source.documents,
        )
        if "run" in source.documents and source.format.startswith("megabert"):
            write_file(folder / CARD, [huggingface_card(source, job.config).encode()])
    return [*notes, *([f"WARNING: without its head: {source.head_problem}"] if source.head_problem else [])]


def _write_megatron(dest: Path, job: _Job) -> list[str]:
    source = job.source
    with atomic_folder(dest) as folder:
        write_megatron(
            folder,
            job.tensors,
            job.config,
            job.target.layout,
            core=job.target.format == "megatron-core",
            lower_case=source.lower_case,
            untrained=job.untrained,
        )
        for name, data in files_with_added_tokens(source.tokenizer_files, source.tokenizer_rules).items():
            write_file(folder / name, [data])
    added = note_untrained_parts(job.untrained, "Megatron-LM's loader")
    return [*added, *_note_dropped_head(source), *_note_dropped_rules(source)]


def _write_nemo(dest: Path, job: _Job) -> list[str]:
    layout = job.target.layout
    era = era_of(job.tensors, job.config, core=False)
    ranks = rank_tensors(job.tensors, job.config, era, layout)
    write_nemo(
        dest,
        {(rank, stage): make for rank, stage, make in ranks},
        nemo_config(job.tensors, job.config, layout, job.untrained),
        files_with_added_tokens(job.source.tokenizer_files, job.source.tokenizer_rules),
        lower_case=job.source.lower_case,
    )
    added = note_untrained_parts(job.untrained, "NeMo's loader")
    return [*added, *_note_dropped_head(job.source), *_note_dropped_rules(job.source)]


def _note_dropped_head(source: Checkpoint) -> list[str]:
    if not source.head and source.documents.get("run", {}).get("task") not in EMBEDDING_TASKS:
        return []
    return ["the head of the fine-tuned run has no place in this format and was dropped; the encoder was written"]


def _note_dropped_rules(source: Checkpoint) -> Iterator[str]:
    """Yield what the tokenizers of Megatron-LM and NeMo cannot express: they read vocabulary and casing only."""
    rules, theirs = source.tokenizer_rules, "the tokenizers of Megatron-LM and NeMo"
    added = [token.content for token in rules.added_tokens if token.content not in (*SPECIAL_TOKENS, END_OF_TEXT)]
    if added:
        shown = ", ".join(map(repr, added[:6])) + (" ..." if len(added) > 6 else "")
        yield (
            f"WARNING: {theirs} split the added tokens {shown} in a text like other words. Their rows are kept, and "
            "the vocabulary names them; put their ids into the input yourself."
        )
    if "vocab.txt" in source.tokenizer_files and rules.strip_accents not in (None, source.lower_case):
        what = "strips accents without lower-casing" if rules.strip_accents else "lower-cases but keeps accents"
        yield f"WARNING: this model's tokenizer {what}; {theirs} strip accents exactly where they lower-case."
    if not rules.tokenize_chinese_chars:
        yield f"WARNING: this model's tokenizer leaves Chinese characters together; {theirs} make each one a word."


WRITERS: Mapping[str, Callable[[Path, _Job], list[str]]] = {
    "megabert": _write_megabert,
    "huggingface": _write_huggingface,
    "megatron": _write_megatron,
    "megatron-core": _write_megatron,
    "nemo": _write_nemo,
}


def _verify(job: _Job, path: Path, dest: Path) -> None:
    """Read the result back and compare every tensor, bit for bit."""
    written = open_checkpoint(path)
    has_head = not job.config.is_causal and "language_model.dense.weight" in job.source.tensors
    unused = {"hidden_dropout", "attention_dropout", *(() if has_head else ("head_gelu",))}
    expected = replace(job.config, num_segments=job.source.config.num_segments).to_dict()
    different = [
        f"{name} {written.shape[name]} instead of {value}"
        for name, value in expected.items()
        if name not in unused and written.shape.get(name, value) != value
    ]
    stored = {name: item for name, item in job.tensors.items() if name not in job.untrained}
    names = sorted(written.tensors.keys() ^ stored.keys())
    if job.source.head:  # transformers' pooler may be a layer of the head
        names = [name for name in names if not name.startswith("sentence_order.pooler.")]
    if different or names:
        raise CheckpointError(f"{dest} does not read back as it was written: {', '.join([*different, *names][:8])}.")
    _compare_tensors(job, stored, written, dest)


def _compare_tensors(job: _Job, stored: Mapping[str, Readable], written: Checkpoint, dest: Path) -> None:
    # The merged head of punctuation and capitalization is split when it is read.
    is_compared = job.target.format == "huggingface" and not any(".heads." in name for name in job.source.head)
    for name, item in job.source.head.items() if is_compared else ():
        if name not in written.head or not _equal_bits(item.read(), written.head[name].read()):
            raise CheckpointError(f"{dest}: {name} does not read back as it was written: {written.head_problem}")
    for name, tensor in stored.items():
        if not _equal_bits(tensor.read(), written.tensors[name].read()):
            raise CheckpointError(f"{dest}: {name} does not read back as it was written. Is the disk sound?")


def _equal_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8)
    )
