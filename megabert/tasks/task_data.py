"""Training and validation data of a task as features; training features come from the content-addressed cache."""

import dataclasses
import importlib.metadata
import inspect
import json
import os
import platform
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from .. import __version__
from ..config.schema import DataSettings, ModelSettings
from ..data import feature_cache
from ..data.feature_cache import FeatureBlock, feature_blocks
from ..data.packing import Features
from ..data.prefetch import prefetch
from ..errors import ConfigError, ExamplesWarning, InputError, InputWarning
from ..formats.data_files import opened_files
from ..formats.parallel_passes import are_several_processes, by_parts, forked_map, is_divided, several_processes
from ..formats.record_streams import RecordStream, large_files_streamed
from ..storage import file_sha256, folder_sha256
from ..tokenizers.wordpiece import Tokenizer
from .folds import without_fold
from .label_report import LabelReport
from .task import Task

# The code of these rooms determines features, besides the task's own.
ROOMS_IN_KEY = ("formats", "tokenizers", "data")
# Characters of the examples that are tokenized at once; each counts as so many more.
BLOCK_SIZE, EXAMPLE_SIZE = 2**21, 64


@dataclass(frozen=True)
class TrainingData:
    """Tokenized training examples; a long example has several features, one a window."""

    features: Sequence[Features]
    num_examples: int
    labels: LabelReport = field(default_factory=LabelReport)
    teacher: str = ""
    """Digest of the network whose logits are among the targets."""


class Teaching(Protocol):
    """Adds a trained network's logits to features, for a student to learn from."""

    @property
    def key(self) -> str:
        """Digest of the network and of what is taught of it."""

    @property
    def digest(self) -> str:
        """Digest of the network."""

    def unlabelled_files(self) -> list[str]:
        """List the files whose labels are not read."""

    def check_labels(self, task: Task[Any, Any], *, is_new: bool) -> None:
        """Give a task with a new head the network's labels. Raises ConfigError or InputError where they differ."""

    def teach(
        self, task: Task[Any, Any], tokenizer: Tokenizer, examples: Sequence[Any], features: Sequence[Features]
    ) -> list[Features]:
        """Return the features, and those of the unlabelled files, with the network's logits as targets."""


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which results depend."""
    installed = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "tokenizers")}
    return {"megabert": __version__, "python": platform.python_version(), **installed}


def load_training_data(
    task: Task[Any, Any],
    tokenizer: Tokenizer,
    settings: ModelSettings,
    cache_folder: Path,
    *,
    learn_labels: bool,
    teaching: Teaching | None = None,
) -> TrainingData:
    """Read and tokenize model.train_ds, or load its features from the cache.

    With `learn_labels` (for a new head) the task takes its labels from the examples. `teaching` adds a teacher's
    logits. Raises InputError at a label that the head does not have.
    """
    data = settings.train_ds
    # Features of tasks that group sequences need not have the same targets, as the cache's arrays must.
    uses_cache = data.use_cache and task.caches_features and (teaching is not None or not task.groups_sequences)
    teacher = "" if teaching is None else teaching.digest
    key = _cache_key(task, tokenizer, settings, teaching, learn_labels=learn_labels) if uses_cache else ""
    cached = feature_cache.load(cache_folder, key) if uses_cache else None
    files = task.files(data)
    if cached is not None and _stands(cached, files):
        return _restored(task, cached, teacher)
    with recorded_warnings() as caught, ExitStack() as reading:
        is_streamed = uses_cache and teaching is None and data.held_out_fold is None
        if is_streamed:
            reading.enter_context(large_files_streamed(files))
            reading.enter_context(several_processes(files))
        with opened_files() as opened:
            examples = without_fold(task.read_data(data), data.held_out_fold)
        if learn_labels:
            task.learn_labels(examples)
        if teaching is not None:
            teaching.check_labels(task, is_new=learn_labels)
        _require_trained_labels(task, examples)
        labels = task.label_report(examples)

        def meta() -> dict[str, Any]:
            messages = [str(item.message) for item in merged_warnings(caught, len(examples))]
            facts = {"num_examples": len(examples), "state": task.state(), "labels": labels.to_document()}
            return facts | {"warnings": messages, "beside": _files_beside(files, opened)}

        features: Sequence[Features] | None = None
        if uses_cache and teaching is None:
            num_before = len(caught)
            with closing(_feature_blocks(task, tokenizer, examples)) as blocks:
                feature_cache.save(cache_folder, key, blocks, meta)
            if (features := feature_cache.load(cache_folder, key)) is None:  # the disk is full
                _check_held(examples, cache_folder)
                del caught[num_before:]
        if features is None:
            features = task.features(examples, tokenizer, with_targets=True)
        if teaching is not None:
            features = teaching.teach(task, tokenizer, examples, features)
            if uses_cache:
                feature_cache.save(cache_folder, key, feature_blocks(features), meta)
        caught[:] = merged_warnings(caught, len(examples))
    return TrainingData(task.drawn(features), len(examples), labels, teacher)


def _require_trained_labels(task: Task[Any, Any], examples: Sequence[Any]) -> None:
    for label, place in task.unseen_labels(examples).items():
        raise InputError(
            f"{place}: {label!r} is not one of the trained labels ({_first_labels(task)}). Correct it, or train "
            "with model.head.reset=true for another set of labels."
        )


def _stands(cached: feature_cache.CachedFeatures, files: Sequence[str]) -> bool:
    """Return whether what was read beside the files is there as it was."""
    beside = cached.meta.get("beside", {})
    paths = [Path(files[0]).parent / name for name in beside]
    return all(path.is_file() for path in paths) and _files_beside(files, paths) == beside


def _files_beside(files: Sequence[str], opened: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files that are read with the named ones, such as a text of annotations, by their paths."""
    named = [Path(file).absolute() for file in files]
    others = sorted({path.absolute() for path in opened if path.is_file()})
    others = [path for path in others if not any(path == name or name in path.parents for name in named)]
    return {os.path.relpath(path, named[0].parent): file_sha256(path) for path in others}


def _restored(task: Task[Any, Any], cached: feature_cache.CachedFeatures, teacher: str) -> TrainingData:
    task.restore_state(cached.meta["state"])
    for message in cached.meta["warnings"]:
        warnings.warn(message, InputWarning, stacklevel=3)
    labels = LabelReport.from_document(cached.meta["labels"])
    return TrainingData(task.drawn(cached), cached.meta["num_examples"], labels, teacher)


def _cache_key(
    task: Task[Any, Any],
    tokenizer: Tokenizer,
    settings: ModelSettings,
    teaching: Teaching | None,
    *,
    learn_labels: bool,
) -> str:
    """Digest everything that the features depend on."""
    files = [*task.files(settings.train_ds), *([] if teaching is None else teaching.unlabelled_files())]
    sums = [_content_sha256(path).encode() for path in [*map(Path, files), *_code_files(task)]]
    own, versions = _settings_in_key(settings), software_versions()
    vocabulary = [content.encode() for content in tokenizer.files().values()]
    facts = [own, tokenizer.to_document(), versions, learn_labels, task.state()]
    facts += [] if teaching is None else [teaching.key]
    return feature_cache.digest(json.dumps(facts, default=str).encode(), *vocabulary, *sums)


def _check_held(examples: Sequence[Any], cache_folder: Path) -> None:
    """Raise ConfigError where the features of a large file can only be kept in the cache."""
    if isinstance(examples, RecordStream):
        raise ConfigError(
            f"The features of {len(examples):,} examples cannot be written to {cache_folder}, and are too many for "
            "memory. Make room there, set MEGABERT_HOME to another folder, or model.train_ds.use_cache=false."
        )


def _content_sha256(path: Path) -> str:
    return folder_sha256(path) if path.is_dir() else file_sha256(path)


def _feature_blocks(
    task: Task[Any, Any], tokenizer: Tokenizer, examples: Sequence[Any]
) -> Generator[FeatureBlock, None, None]:
    """Tokenize examples in blocks, each while the next one is read and that before is written."""

    def tokenized(block: Sequence[Any]) -> list[FeatureBlock]:
        return list(feature_blocks(task.features(block, tokenizer, with_targets=True)))

    def of_part(examples: Iterable[Any]) -> list[FeatureBlock]:
        return [made for block in example_blocks(examples) for made in tokenized(block)]

    if is_divided(examples):
        made = by_parts(examples, of_part)
    elif are_several_processes():
        made = forked_map(tokenized, example_blocks(examples))
    else:
        made = prefetch(tokenized, example_blocks(examples), depth=1)
    with closing(made) as blocks:
        yield from chain.from_iterable(blocks)


def example_blocks(examples: Iterable[Any]) -> Iterator[list[Any]]:
    """Group examples into blocks of so few characters that their tokens fit into memory many times."""
    block: list[Any] = []
    size = 0
    for example in examples:
        block.append(example)
        values = getattr(example, "__dict__", {}).values()
        size += EXAMPLE_SIZE + sum(len(value) for value in values if isinstance(value, str | tuple))
        if size >= BLOCK_SIZE:
            yield block
            block, size = [], 0
    if block:
        yield block


@contextmanager
def recorded_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings about the data, which are shown at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
    for item in caught:
        warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)


def merged_warnings(caught: Sequence[warnings.WarningMessage], total: int) -> list[warnings.WarningMessage]:
    """Make one warning about all examples of those about blocks of them."""
    merged: dict[Any, list[warnings.WarningMessage]] = {}
    for number, item in enumerate(caught):
        merged.setdefault(getattr(item.message, "text", number), []).append(item)
    return [_sum(items, total) for items in merged.values()]


def _sum(caught: Sequence[warnings.WarningMessage], total: int) -> warnings.WarningMessage:
    messages = [item.message for item in caught if isinstance(item.message, ExamplesWarning)]
    first = caught[0]
    message = messages[0].with_later(messages[1:], total) if messages else first.message
    return warnings.WarningMessage(message, first.category, first.filename, first.lineno)


@dataclass(frozen=True)
class ValidationData:
    """Validation examples with their features; empty where the settings name no file."""

    examples: Sequence[Any]
    features: Sequence[Features]
    unseen_labels: Sequence[str]
    """Labels that the training data lack: they count as errors."""


def load_validation_data(task: Task[Any, Any], tokenizer: Tokenizer, settings: DataSettings) -> ValidationData:
    """Read and tokenize a validation set."""
    examples = task.read_data(settings) if task.files(settings) else []
    features = task.features(examples, tokenizer, with_targets=True)
    return ValidationData(examples, features, list(task.unseen_labels(examples)))


def _settings_in_key(settings: ModelSettings) -> dict[str, Any]:
    """Return the settings that determine features; the files' content is in the key itself."""
    tree: Any = dataclasses.asdict(settings)
    for block in ("optim", "language_model", "validation_ds", "test_ds", "distillation"):
        del tree[block]
    data = settings.train_ds
    fold = {} if data.held_out_fold is None else {"held_out_fold": data.held_out_fold}
    return tree | {"train_ds": {"num_samples": data.num_samples, **fold}}


def _code_files(task: Task[Any, Any]) -> list[Path]:
    """List the files of the task's code, of what it inherits, and of the rooms in the key."""
    package = Path(__file__).parent.parent
    members: list[Any] = [member for cls in type(task).__mro__ for member in vars(cls).values()]
    own = {Path(member.__code__.co_filename) for member in members if inspect.isfunction(member)}
    return sorted(own | {file for room in ROOMS_IN_KEY for file in (package / room).rglob("*.py")})


def _first_labels(task: Task[Any, Any]) -> str:
    labels = [label for value in task.state().values() if isinstance(value, list) for label in value]
    names = [label for label in labels if isinstance(label, str)]
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
