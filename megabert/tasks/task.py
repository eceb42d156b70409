"""The contract between a task and everything else, and how a task is found by its name.

A task is one class with six verbs, in the order in which data meets them: read, features, head, loss, decode, score.
It knows nothing of devices, processes, precision or weight files.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.schema import DataSettings, Settings
from ..data.packing import NO_TARGET, Batch, Features
from ..errors import ConfigError, InputError
from ..model.config import EncoderConfig
from ..model.heads import Head
from ..tokenizers.wordpiece import Tokenizer

ExampleType = TypeVar("ExampleType")


PredictionType = TypeVar("PredictionType")


class Task(ABC, Generic[ExampleType, PredictionType]):
    """Turn text into labelled token batches, and logits into answers.

    The class docstring is the task's documentation page. `settings_type` are its settings; `main_score` is the key
    of `score` by which checkpoints are compared, larger being better.
    """

    settings_type: ClassVar[type[Settings]] = Settings
    main_score: str
    default_shape: ClassVar[Mapping[str, Any]] = {}
    """What a network with random weights is where the settings do not say it."""
    caches_features: ClassVar[bool] = True
    """Whether tokenized training texts may be kept; where they are drawn anew each epoch there is nothing to keep."""

    def __init__(self, settings: Any) -> None:
        """Take the task's settings, an instance of `settings_type`."""
        self.settings = settings

    @classmethod
    def name(cls) -> str:
        """Give the task's name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @property
    @abstractmethod
    def row_length(self) -> int:
        """Tokens that the longest text may have; rows are packed to this length."""

    @abstractmethod
    def read(self, path: Path) -> Sequence[ExampleType]:
        """Read a data file; raises InputError with the place and the remedy if it is malformed.

        Answers may be absent: what needs them says so.
        """

    @abstractmethod
    def example(self, **fields: Any) -> ExampleType:
        """Make an example from what a person gives, without an answer; raises InputError if something lacks."""

    def learn_labels(self, examples: Sequence[ExampleType]) -> None:
        """Take from the training data what the head must know, such as the labels; called before a new head is made.

        What is learnt is `state`, plain values; a run keeps them, and `restore_state` puts them back.
        """

    def unseen_labels(self, examples: Sequence[ExampleType]) -> dict[str, str]:
        """List labels that the head does not know, each with the place of its first example.

        Training needs them all; where they are only scored, they cannot be answered and stay out of the loss.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """Give what was learnt from the training data, as plain values."""
        return {}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    def files(self, data: DataSettings) -> list[str]:
        """List the files that hold a set of data; none if the settings name none."""
        return [] if data.file is None else [data.file]

    def read_files(self, files: Sequence[str]) -> Sequence[ExampleType]:
        """Read the files that `files` listed."""
        return self.read(Path(files[0]))

    def read_data(self, data: DataSettings) -> Sequence[ExampleType]:
        """Read the examples of a set of data, at most `num_samples`."""
        examples = self.read_files(self.files(data))
        return examples if data.num_samples < 0 else examples[: data.num_samples]

    @abstractmethod
    def features(
        self, examples: Sequence[ExampleType], tokenizer: Tokenizer, *, with_targets: bool
    ) -> Sequence[Features]:
        """Tokenize examples, long ones in several windows.

        With targets (for training) raises InputError where an example has no answer.
        """

    @abstractmethod
    def head(self, config: EncoderConfig) -> Head:
        """Make the task's head; the caller draws its weights."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss, summed over the batch; divided by the features' weights it is the mean."""

    @abstractmethod
    def decode(
        self,
        examples: Sequence[ExampleType],
        features: Sequence[Features],
        logits: Sequence[NDArray[np.float32]],
    ) -> list[PredictionType]:
        """Turn logits into one prediction for each example: a feature's are [T, C], [C] from a head for whole texts."""

    @abstractmethod
    def score(self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]) -> dict[str, float]:
        """Compare predictions with the examples' answers; the figures are per cent unless named otherwise."""

    @abstractmethod
    def to_json(self, prediction: PredictionType) -> dict[str, Any]:
        """Give a prediction as plain values, for programs."""

    @classmethod
    @abstractmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score a file of predictions against a data file as the task's official scorer does."""

    def label_pairs(
        self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Give pairs of gold and predicted label, for confusion matrices and reports, under a name for each kind."""
        return {}

    def write_predictions(
        self, folder: Path, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Mapping[str, str]:
        """Give the files, name to content, in which the task's official scorer takes predictions."""
        return {}


class LabelledTask(Task[ExampleType, PredictionType]):
    """A task whose head has an output for each label of the training data."""

    def __init__(self, settings: Any) -> None:
        """Start without labels: they are learnt, or restored with a run."""
        super().__init__(settings)
        self.labels: list[str] = []
        self.weights: list[float] = []

    def state(self) -> dict[str, Any]:
        """Give labels and their weights."""
        return {"labels": self.labels, "weights": self.weights}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take labels and weights back."""
        self.labels, self.weights = list(state["labels"]), list(state["weights"])

    def take_labels(self, labels: list[str], counts: Mapping[str, int], class_balancing: str | None) -> None:
        """Take labels in the order of the head's outputs, and weigh them by their counts if that is asked for."""
        self.labels, self.weights = labels, class_weights(labels, counts, class_balancing)


def text_of(fields: Mapping[str, Any], *others: str) -> str:
    """Take `text` from what a person gives; raises InputError where it lacks or something else stands there."""
    unknown = sorted(set(fields) - {"text", "id", *others})
    text = str(fields.get("text") or "")
    if unknown:
        raise InputError(f"{', '.join(unknown)} is not asked for. Give text=...")
    if not text.strip():
        raise InputError("text is missing. Give text=...")
    return text


def class_weights(labels: Sequence[str], counts: Mapping[str, int], class_balancing: str | None) -> list[float]:
    """Weigh labels in the loss: all 1, or N / (K n), N labels in all, K different ones, n of this one.

    Source: NeMo 1.x's weighted_loss.
    """
    if class_balancing != "weighted_loss":
        return [1.0] * len(labels)
    total = sum(counts.values())
    return [total / (len(counts) * counts[label]) if counts.get(label) else 1.0 for label in labels]


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Give numbers as a tensor, made once a device: nothing may come from the host while a step is recorded."""
    with torch.inference_mode(False):  # else what an evaluation made first could not be trained with
        return torch.tensor(values, device=device)


def number_labels(labels: Sequence[str], found: Sequence[str]) -> NDArray[np.int64]:
    """Give the places of what was found among the labels, NO_TARGET for one that is not there."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers.get(label, NO_TARGET) for label in found], dtype=np.int64)


def choice_of(labels: Sequence[str], found: Sequence[str]) -> NDArray[np.float32]:
    """Give 1 for each label that was found, and 0 for the others, [C]; what is not among the labels is left out."""
    return np.array([label in found for label in labels], dtype=np.float32)


def class_probabilities(logits_C: NDArray[np.float64], *, is_multi_label: bool) -> NDArray[np.float64]:
    """Turn logits into probabilities: of each class by itself, or of one of all."""
    if is_multi_label:
        result: NDArray[np.float64] = 1 / (1 + np.exp(-logits_C))
        return result
    weights: NDArray[np.float64] = np.exp(logits_C - logits_C.max())
    return weights / weights.sum()


def require_length(max_seq_length: int) -> None:
    """Refuse windows that are too short to show any surroundings. Raises ConfigError."""
    if max_seq_length < 8:
        raise ConfigError(f"model.dataset.max_seq_length={max_seq_length}; at least 8 is needed.")


def unseen(labels: Sequence[str], found: Iterable[tuple[Sequence[str], str]]) -> dict[str, str]:
    """List what is not among the labels, with its first place; `found` are examples' labels and places."""
    known = set(labels)
    places: dict[str, str] = {}
    for own, place in found:
        for label in own:
            if label not in known:
                places.setdefault(label, place)
    return places
