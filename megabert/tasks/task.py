"""The contract of a task: a `Task` turns data files into labelled token sequences, and logits into predictions.

A task must define seven methods, in the order in which data pass through them: read, example, features, head, loss,
decode, score. All others have defaults. A task does not depend on devices, processes, precision or weight files.
Importing a task needs no torch: only `head` and `loss` use it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config.parser import compose
from ..config.schema import DataSettings, Settings
from ..data.packing import Batch, Features
from ..errors import ConfigError, InputError
from ..formats.data_files import expand_names, expansion_limit
from ..formats.json_lines import read_json_lines
from ..formats.record_streams import joined
from ..formats.rows import Row
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .label_report import LabelReport
from .prediction_rows import pass_through, rows_by_id

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head

ExampleType = TypeVar("ExampleType")
PredictionType = TypeVar("PredictionType")
Logits = Sequence[NDArray[np.float32]]
"""Of each feature: [T, C], or [C] of a head for whole sequences."""


class Task(ABC, Generic[ExampleType, PredictionType]):
    """A task: its settings, data, head, loss, predictions and metrics.

    The class docstring is the task's documentation page. Predictions are dataclasses; examples have an `id`.
    """

    settings_type: ClassVar[type[Settings]] = Settings
    main_score: str
    """The metric of `score` by which checkpoints are compared; larger is better unless its name contains loss."""
    default_shape: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the encoder's configuration where it starts from random weights."""
    groups_sequences: ClassVar[bool] = False
    """Whether `loss` compares the parts of training features, whose number varies: its shapes are not static."""
    contrasts_sequences: ClassVar[bool] = False
    """Whether `loss` compares the sequences of a whole step, of all micro-batches and processes."""
    is_embedding: ClassVar[bool] = False
    """Whether the logits are the texts' embeddings."""
    caches_features: ClassVar[bool] = True
    """Whether the features of the training data may be cached; not if they are resampled each epoch."""
    can_distil: ClassVar[bool] = False
    """Whether a student can learn from a teacher: `aligned_logits` and `distillation_loss` fit its logits."""
    state_names: ClassVar[tuple[str, ...]] = ()
    """The attributes that `state` consists of."""
    input_fields: ClassVar[Mapping[str, type]] = {}
    """The fields that `example` takes besides id, each a string (str) or a list; other fields of a JSON object are
    passed through to its prediction's row. If none are named `example` gets all."""

    def __init__(self, settings: Any) -> None:
        """Keep the task's settings, an instance of `settings_type`, and check the sequence length."""
        self.settings = settings
        self.notes: list[str] = []
        """What reading of data left out or changed."""
        if self.row_length < 8:
            raise ConfigError(f"model.dataset.max_seq_length={self.row_length}; at least 8 is needed.")

    @classmethod
    def name(cls) -> str:
        """Return the task's name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @property
    def row_length(self) -> int:
        """Largest number of tokens of a sequence."""
        return int(self.settings.model.dataset.max_seq_length)

    @abstractmethod
    def read(self, path: Path) -> Sequence[ExampleType]:
        """Read a data file, with labels or without; raises InputError with location and remedy if it is malformed."""

    @abstractmethod
    def example(self, **fields: Any) -> ExampleType:
        """Make an unlabelled example from a user's fields; raises InputError for a missing or unexpected field."""

    @abstractmethod
    def features(
        self, examples: Sequence[ExampleType], tokenizer: Tokenizer, *, with_targets: bool
    ) -> Sequence[Features]:
        """Tokenize examples, long ones in several windows.

        With targets (for training) raises InputError for an example without labels.
        """

    def examples_of_texts(
        self, texts: Sequence[str], tokenizer: Tokenizer
    ) -> tuple[list[ExampleType], Sequence[Features]]:
        """Make an example of each text, as `example` does, with their features; a task may be faster for many."""
        examples = [self.example(text=text) for text in texts]
        return examples, self.features(examples, tokenizer, with_targets=False)

    def drawn(self, features: Sequence[Features]) -> Sequence[Features]:
        """Return the training features of an epoch, where a part of all is resampled for each; by default all."""
        return features

    @abstractmethod
    def head(self, config: EncoderConfig) -> Head:
        """Make the task's head; the caller initializes its weights."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss, summed over the batch; divided by the sum of the features' weights it is the mean."""

    @abstractmethod
    def decode(
        self, examples: Sequence[ExampleType], features: Sequence[Features], logits: Logits
    ) -> list[PredictionType]:
        """Turn logits into one prediction for each example."""

    @abstractmethod
    def score(self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]) -> dict[str, float]:
        """Compute metrics of predictions against the examples' labels, in per cent unless named otherwise."""

    def learn_labels(self, examples: Sequence[ExampleType]) -> None:
        """Set what the head depends on, such as the labels, from the training data; called before a head is made."""

    def label_report(self, examples: Sequence[ExampleType]) -> LabelReport:
        """Count the labels of the training data, which every training prints; empty for a task without labels."""
        return LabelReport()

    def unseen_labels(self, examples: Sequence[ExampleType]) -> dict[str, str]:
        """Map each label that the head lacks to the location of its first example.

        Training data must have none. Validation data may: such labels count as errors and have no loss.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Return what was learnt from the training data, as plain values; a run keeps them."""
        return {name: getattr(self, name) for name in self.state_names}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        for name in self.state_names:
            setattr(self, name, state[name])

    def file_groups(self, data: DataSettings) -> list[list[str]]:
        """List the files of a set of data, in groups that are read together; none if the settings name none."""
        return [[file] for file in expand_names(data.file)]

    def files(self, data: DataSettings) -> list[str]:
        """List the files of a set of data; none if the settings name none."""
        return [file for group in self.file_groups(data) for file in group]

    def check_files(self) -> None:
        """Raise ConfigError or InputError where a data file, or one for a setting, is missing.

        It is called before the network is loaded, which is slow.
        """
        model = self.settings.model
        if self.settings.do_training and not self.files(model.train_ds):
            raise ConfigError("model.train_ds.file is not given. Name the training data: model.train_ds.file=FILE.")
        for name in ("train_ds", "validation_ds", "test_ds"):
            data: DataSettings = getattr(model, name)
            for file in self.files(data):
                if not Path(file).exists():
                    raise InputError(f"model.{name}: {file} does not exist.")
                # It is read twice, for its digest, too.
                if not (Path(file).is_file() or (Path(file).is_dir() and self.reads_folder(Path(file)))):
                    raise InputError(f"model.{name}: {file} is a folder, pipe or device. Give a file.")
            if data.batch_size < 1:
                raise ConfigError(f"model.{name}.batch_size={data.batch_size}; at least 1 is needed.")
        experiment = self.settings.exp_manager
        stops_early = self.settings.do_training and experiment.create_early_stopping_callback
        if stops_early and not self.files(model.validation_ds):
            raise ConfigError("Early stopping needs validation data. Give model.validation_ds.file=FILE.")
        kept = experiment.checkpoint_callback_params.save_top_k
        if kept < -1:
            raise ConfigError(f"save_top_k={kept}: give 0 or more, or -1 to keep all checkpoints.")

    def reads_folder(self, path: Path) -> bool:
        """Return whether a folder is a data file: one of documents that have several files each."""
        return False

    def read_files(self, files: Sequence[str]) -> Sequence[ExampleType]:
        """Read a group of files."""
        return self.read(Path(files[0]))

    def read_data(self, data: DataSettings) -> Sequence[ExampleType]:
        """Read the examples of a set of data, at most `num_samples`."""
        with expansion_limit(data.max_expansion):
            groups = [self.read_files(files) for files in self.file_groups(data)]
        examples = joined(groups)
        return examples if data.num_samples < 0 else examples[: data.num_samples]

    def to_json(self, prediction: PredictionType) -> dict[str, Any]:
        """Convert a prediction to plain values; by default the fields of its dataclass."""
        values: dict[str, Any] = asdict(prediction)  # type: ignore[call-overload]
        return values

    def gold(self, example: ExampleType) -> dict[str, Any]:
        """Return an example's labels under the names of `to_json`; empty where they are unknown."""
        return {}

    def to_row(self, example: ExampleType, prediction: PredictionType) -> dict[str, Any]:
        """Convert an example and its prediction to a row of predictions.jsonl: `to_json`, other fields, gold labels."""
        gold = self.gold(example)
        return pass_through(self.to_json(prediction) | ({"gold": gold} if gold else {}), getattr(example, "given", {}))

    def to_rows(
        self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Iterable[dict[str, Any]]:
        """Convert examples and their predictions to the rows of predictions.jsonl."""
        return map(self.to_row, examples, predictions)

    def unlabelled_features(self, examples: Sequence[ExampleType], tokenizer: Tokenizer) -> Sequence[Features]:
        """Tokenize examples whose labels a student does not read; targets that are missing are added empty."""
        return self.features(examples, tokenizer, with_targets=False)

    def aligned_logits(
        self,
        examples: Sequence[ExampleType],
        own: Sequence[Features],
        logits: Logits,
        student: Sequence[Features],
    ) -> list[NDArray[np.float32]]:
        """Return this task's logits of its own features at the tokens or sequences of a student's features.

        The student reads the same examples, perhaps by another vocabulary or in other windows. NaN where there are
        none. Hidden states, [T, D] or [D], are aligned likewise. By default each example is one sequence of both.
        """
        assert len(own) == len(student), "each example is one sequence"
        return list(logits)

    def distillation_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Compute the loss against a teacher's aligned logits, summed over the batch as `loss` is."""
        from ..model.distillation_loss import divergences

        return divergences(logits, teacher, temperature).sum()

    def text_features(self, texts: Sequence[str], tokenizer: Tokenizer, role: str) -> Sequence[Features]:
        """Tokenize texts that are embedded in a role, query or passage; of a task whose logits are embeddings."""
        return list(self.features([self.example(text=text) for text in texts], tokenizer, with_targets=False))

    def label_sets(self) -> dict[str, list[str]]:
        """Return the labels that the head can predict, by kind of label."""
        return {}

    def from_json(self, example: ExampleType, row: Row) -> PredictionType:
        """Convert an example's row of a predictions file back to what `score` needs of a prediction."""
        raise NotImplementedError

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read a file of predictions: JSON lines as `megabert predict` writes them."""
        return read_json_lines(path)

    @classmethod
    def inferred_settings(cls, rows: Sequence[Row]) -> list[str]:
        """Infer the settings on which scores depend from the rows of predictions."""
        return []

    @classmethod
    def scorer(cls, gold: Path, rows: Sequence[Row], words: Sequence[str] = ()) -> Task[ExampleType, PredictionType]:
        """Make the task that scores predictions, by the settings `words`, such as key=value, else inferred ones."""
        return cls(compose(cls.settings_type, [*cls.inferred_settings(rows), *words], owner=cls.name())[0])

    @classmethod
    def score_files(cls, gold: Path, predictions: Path, words: Sequence[str] = ()) -> dict[str, Any]:
        """Score a file of predictions against a data file; rows belong to the examples with the same id."""
        if cls.from_json is Task.from_json:
            raise ConfigError(f"{cls.name()} has no predictions to score. Use `megabert evaluate RUN file={gold}`.")
        rows = cls.read_predictions(predictions)
        task = cls.scorer(gold, rows, words)
        examples = task.read(gold)
        ordered = rows_by_id(examples, rows, predictions)
        return task.score(examples, [task.from_json(*pair) for pair in zip(examples, ordered, strict=True)])

    def label_pairs(
        self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return pairs of gold and predicted label for each kind of label, for reports and confusion matrices."""
        return {}

    def write_predictions(
        self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Mapping[str, str]:
        """Return predictions in the formats of the task's official scorer: file names to contents."""
        return {}


def require_text(fields: Mapping[str, Any], *others: str) -> str:
    """Return the field `text`; raises InputError if it is missing, or for a field that is neither it, id nor others."""
    return require_texts(fields, "text", optional=others)[0]


def require_texts(fields: Mapping[str, Any], *names: str, optional: Collection[str] = ()) -> list[str]:
    """Return the fields `names`, each a string that is not blank.

    Raises InputError that names what is expected and what is found, also for a field that is none of these, id or
    `optional`.
    """
    unexpected = [name for name in fields if name not in (*names, "id", *optional)]
    missing = [
        name for name in names if fields.get(name) is None or (isinstance(fields[name], str) and not fields[name])
    ]
    problems = [f"{name} is missing" for name in missing] + [f"unexpected field {name}" for name in unexpected]
    problems += [problem for name in names if name not in missing and (problem := _problem_of_text(name, fields[name]))]
    if problems:
        wanted = " and ".join(f"{name}=..." for name in names)
        more = f" (also possible: {', '.join(optional)})." if optional else ""
        raise InputError(f"{'; '.join(problems)}. Give {wanted}{more}")
    return [str(fields[name]) for name in names]


def by_example(num_examples: int, features: Sequence[Features], outputs: Sequence[Any]) -> list[list[Any]]:
    """List the outputs of each example's windows; a feature's notes are its example's index, or have it."""
    windows: list[Any] = [[] for _ in range(num_examples)]
    for feature, output in zip(features, outputs, strict=True):
        windows[getattr(feature.notes, "example", feature.notes)].append(output)
    return windows


def parse_json_field(name: str, text: str) -> Any:
    """Parse a field that is given as a list in JSON, as on a command line; raises InputError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f'{name}={text!r:.60} is no list in JSON, such as ["yes", "no"].') from None


def _problem_of_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{name} is a {type(value).__name__}; expected a string"
    if not value.strip():
        return f"{name} is blank"
    half = None if value.isascii() else re.search("[\ud800-\udfff]", value)
    return None if half is None else f"{name} is not valid Unicode: half a surrogate pair at character {half.start()}"
