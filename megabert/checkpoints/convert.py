"""Convert a checkpoint of any make to another format, layout or dtype, bit for bit.

An open `Checkpoint` goes in; a folder or file appears whole. Tensors are read one at a time, so memory holds one file
of the target at most (Megatron-LM's and NeMo's, whose container wants it) or one tensor (the others).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, ConfigError
from ..model.config import EncoderConfig
from ..storage import atomic_folder
from .files.lazy_tensor import Cast, Readable
from .huggingface import write_huggingface
from .megatron import write_megatron
from .megatron.write_megatron import ModelParallelLayout
from .native import manifest_folder as folders
from .nemo import nemo_archive as nemo
from .open import Checkpoint, fit_vocabulary, open_checkpoint, resize_vocabulary

FORMATS = ("megabert", "huggingface", "megatron", "megatron-core", "nemo")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """What is to be written."""

    format: str
    layout: ModelParallelLayout = field(default_factory=ModelParallelLayout)
    dtype: torch.dtype | None = None
    """None: as in the source."""


@dataclass(frozen=True)
class _Job:
    """The tensors and all that is known of them, ready for a writer."""

    tensors: Mapping[str, Readable]
    config: EncoderConfig
    source: Checkpoint
    target: Target


def convert(
    source: Checkpoint,
    dest: Path,
    target: Target,
    *,
    num_tokens: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Write `source` as `dest` and compare the two bit for bit; returns what a user should know of the result.

    `num_tokens` is the vocabulary's true size; None keeps all rows, padding included. `progress` is told bytes done
    and in all. Raises ConfigError if the target cannot hold the network, CheckpointError if a tensor cannot be read.
    """
    if dest.exists():
        raise ConfigError(f"{dest} exists. Give a new name, or remove it; nothing is written over.")
    job = _prepare(source, target, num_tokens)
    job = replace(job, tensors=_counted(job.tensors, progress, times=2))
    dest.parent.mkdir(parents=True, exist_ok=True)
    notes = WRITERS[target.format](dest, job)
    _compare(job, dest)
    return notes


def _prepare(source: Checkpoint, target: Target, num_tokens: int | None) -> _Job:
    """Bring vocabulary and dtype to what the target wants."""
    rows = source.config.vocabulary_size
    if num_tokens is not None:
        fit_vocabulary(source, num_tokens, source.tokenizer_source)  # raises if it is another vocabulary
    size = num_tokens or rows
    if target.format not in ("megabert", "huggingface"):
        target.layout.check(source.config)
        # Rows of padding that have room stay as they are: Megatron-LM's logits have columns for them.
        size = target.layout.padded(size)
    elif target.layout != ModelParallelLayout():
        raise ConfigError(
            f"{target.format} has no parallel parts; --tensor-parallel and --pipeline-parallel are not for it."
        )
    tensors = resize_vocabulary(source.tensors, size)
    if target.dtype is not None:
        tensors = {name: Cast(item, target.dtype) for name, item in tensors.items()}
    return _Job(tensors, replace(source.config, vocabulary_size=size), source, target)


@dataclass(frozen=True)
class _Counted:
    """A tensor that tells when it has been read."""

    source: Readable
    tell: Callable[[int], None]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    def read(self) -> torch.Tensor:
        tensor = self.source.read()
        self.tell(tensor.nbytes)
        return tensor


def _counted(
    tensors: Mapping[str, Readable], progress: Callable[[int, int], None] | None, times: int
) -> Mapping[str, Readable]:
    if progress is None:
        return tensors
    total = times * sum(torch.Size(item.shape).numel() * item.dtype.itemsize for item in tensors.values())
    done = 0

    def tell(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(min(done, total), total)

    return {name: _Counted(item, tell) for name, item in tensors.items()}


def _write_megabert(dest: Path, job: _Job) -> list[str]:
    source = job.source
    documents = {
        "encoder": job.config.to_dict(),
        "origin": {"format": source.format, "name": Path(source.source).name, "notes": list(source.notes)},
    }
    if source.tokenizer_files:
        documents["tokenizer"] = {"lower_case": source.lower_case}
    texts = {name: data.decode() for name, data in source.tokenizer_files.items()}
    folders.write(dest, {"model": job.tensors}, documents, texts, {})
    return _head_is_left_out(source)


def _write_huggingface(dest: Path, job: _Job) -> list[str]:
    source = job.source
    with atomic_folder(dest) as partial:
        return write_huggingface.write_folder(
            partial,
            job.tensors,
            job.config,
            tokenizer_files=source.tokenizer_files,
            lower_case=source.lower_case,
            head=source.head,
            task=source.documents.get("run", {}).get("task"),
            task_config=_task_config(source.documents),
        )


def _task_config(documents: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a fine-tuned run's config.json says of its labels.

    Raises ConfigError if the head computes otherwise than transformers'.
    """
    settings = documents.get("settings", {}).get("model", {})
    activation = settings.get("classifier_head", {}).get("activation", "tanh")
    if activation != "tanh":
        raise ConfigError(
            f"transformers' classifiers have tanh in their head; this run's has {activation}. Train with "
            "model.classifier_head.activation=tanh, or convert the encoder alone."
        )
    labels = documents.get("task", {}).get("labels", [])
    found: dict[str, Any] = dict(documents.get("task_config", {}))
    if labels:
        found["id2label"] = {str(number): label for number, label in enumerate(labels)}
        found["label2id"] = {label: number for number, label in enumerate(labels)}
    problem = documents.get("task", {}).get("problem")
    if problem is not None:
        found["problem_type"] = problem if problem == "regression" else f"{problem}_classification"
    if problem == "regression":
        found["num_labels"] = 1
    return found


def _write_megatron(dest: Path, job: _Job) -> list[str]:
    source = job.source
    with atomic_folder(dest) as partial:
        write_megatron.write_folder(
            partial,
            job.tensors,
            job.config,
            job.target.layout,
            core=job.target.format == "megatron-core",
            lower_case=source.lower_case,
        )
        for name, data in source.tokenizer_files.items():
            folders.write_file(partial / name, [data])
    return _head_is_left_out(source)


def _write_nemo(dest: Path, job: _Job) -> list[str]:
    layout = job.target.layout
    era = write_megatron.era_of(job.config, core=False)
    ranks = list(write_megatron.rank_tensors(job.tensors, job.config, era, layout))
    nemo.write_nemo(
        dest,
        {(rank, stage): make for rank, stage, make in ranks},
        nemo.config_of(
            job.config,
            layout.tensor_parallel,
            layout.pipeline_parallel,
            has_binary_head="sentence_order.out.weight" in job.tensors,
        ),
        job.source.tokenizer_files,
        lower_case=job.source.lower_case,
    )
    return _head_is_left_out(job.source)


def _head_is_left_out(source: Checkpoint) -> list[str]:
    if not source.head:
        return []
    return ["the head of the fine-tuned run has no place in this format and was left out; the encoder is there"]


WRITERS: Mapping[str, Callable[[Path, _Job], list[str]]] = {
    "megabert": _write_megabert,
    "huggingface": _write_huggingface,
    "megatron": _write_megatron,
    "megatron-core": _write_megatron,
    "nemo": _write_nemo,
}


def _compare(job: _Job, dest: Path) -> None:
    """Open what was written and compare every tensor, bit for bit."""
    written = open_checkpoint(dest)
    different = _different_values(job.config.to_dict(), written.shape)
    names = sorted(written.tensors.keys() ^ job.tensors.keys())
    if job.source.head:  # transformers' pooler may be a layer of the head
        names = [name for name in names if not name.startswith("sentence_order.pooler.")]
    if different or names:
        raise CheckpointError(f"{dest} does not read back as it was written: {', '.join([*different, *names][:8])}.")
    for name, tensor in job.tensors.items():
        if not _equal_bits(tensor.read(), written.tensors[name].read()):
            raise CheckpointError(f"{dest}: {name} does not read back as it was written. Is the disk sound?")


def _different_values(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {found[name]} instead of {value}"
        for name, value in expected.items()
        if not name.endswith("_dropout") and name in found and found[name] != value
    ]


def _equal_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().flatten().view(torch.uint8), second.contiguous().flatten().view(torch.uint8)
    )
