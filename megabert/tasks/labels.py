"""Labels that are learnt from the training data: their order, class weights, targets, unseen labels, report pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.packing import NO_TARGET
from ..errors import InputError
from ..formats.parallel_passes import by_parts
from ..formats.record_streams import RecordStream
from .label_report import LabelReport, label_warnings
from .task import ExampleType, PredictionType, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LabelKind:
    """A kind of label that a task predicts, such as the slots of words."""

    name: str
    """Its name in reports."""
    field: str
    """The attribute of examples and predictions: a sequence of labels; of examples None where they are unknown."""
    outputs: str = "labels"
    """The attribute of the task: the labels in the order of the head's outputs."""
    weights: str | None = "weights"
    """The attribute of the task with their class weights; None: there are none."""
    first: str | None = None
    """The label that precedes all others, such as O."""
    is_set: bool = False
    """Whether an example has any number of these labels, in no order."""


class LabelledTask(Task[ExampleType, PredictionType]):
    """A task whose head has an output for each label of the training data."""

    def __init__(self, settings: Any, *kinds: LabelKind, class_balancing: str | None = None) -> None:
        """Start without labels: they are learnt, or restored with a run."""
        super().__init__(settings)
        self.label_kinds = kinds
        self.class_balancing = class_balancing
        self.labels: list[str] = []
        self.weights: list[float] = []
        self._counted: tuple[RecordStream[Any], dict[str, Counter[str]]] | None = None

    def learn_labels(self, examples: Sequence[ExampleType]) -> None:
        """List each kind's labels, and weight them if `class_balancing` is set."""
        by_kind = self._counts(examples)
        for kind in self.label_kinds:
            counts = by_kind[kind.name]
            if not counts:
                place = getattr(examples[0], "location", "the data") if examples else "the data"
                others = list(getattr(examples[0], "given", ())) if examples else []
                column = "".join(
                    f"; or is {name} their column? model.dataset.columns.label={name}" for name in others[:1]
                )
                raise InputError(f"{place}: the training data have no {kind.field}. Add them to the examples{column}.")
            labels = self.ordered(kind, counts)
            setattr(self, kind.outputs, labels)
            if kind.weights is not None:
                setattr(self, kind.weights, class_weights(labels, counts, self.class_balancing))

    def _counts(self, examples: Sequence[ExampleType]) -> dict[str, Counter[str]]:
        """Count the labels of each kind; the counts of a stream are kept, since a pass over it takes long."""
        if not isinstance(examples, RecordStream):
            return count_labels(self.label_kinds, examples)
        if self._counted is None or self._counted[0] is not examples:
            counts = count_labels(self.label_kinds, ())
            for part in by_parts(examples, lambda examples: count_labels(self.label_kinds, examples)):
                for name, own in part.items():
                    counts[name].update(own)
            self._counted = examples, counts
        return self._counted[1]

    def ordered(self, kind: LabelKind, labels: Collection[str]) -> list[str]:
        """Sort a kind's labels into the order of the head's outputs."""
        first = [] if kind.first is None else [kind.first]
        return [*first, *sorted(set(labels) - set(first))]

    def label_report(self, examples: Sequence[ExampleType]) -> LabelReport:
        """Count the labels of each kind, and warn where they look like something else."""
        counts = {
            name: dict(sorted(own.items(), key=lambda item: (-item[1], item[0])))
            for name, own in self._counts(examples).items()
        }
        warnings = [
            f"{kind.name}: all have the label {label}. Nothing can be learnt from that."
            for kind in self.label_kinds
            for label in ([] if kind.is_set or len(counts[kind.name]) > 1 else counts[kind.name])
        ]
        warnings += [
            warning for kind in self.label_kinds for warning in self.warnings_about(kind, counts[kind.name], examples)
        ]
        return LabelReport(counts, tuple(warnings))

    def warnings_about(
        self, kind: LabelKind, counts: Mapping[str, int], examples: Sequence[ExampleType]
    ) -> Sequence[str]:
        """Warn about the labels of one kind."""
        return label_warnings(kind.name, counts, kind.first, None)

    def unseen_labels(self, examples: Sequence[ExampleType]) -> dict[str, str]:
        """Map each label that the head lacks to the location of its first example."""
        locations: dict[str, str] = {}
        by_kind = self._counts(examples)
        for kind in self.label_kinds:
            known = set(getattr(self, kind.outputs))
            for example in examples if by_kind[kind.name].keys() - known else ():
                for label in getattr(example, kind.field) or ():
                    if label not in known:
                        locations.setdefault(label, example.location)  # type: ignore[attr-defined]
        return locations

    def label_sets(self) -> dict[str, list[str]]:
        """Return each kind's labels, in the order of the head's outputs."""
        return {kind.name: list(getattr(self, kind.outputs)) for kind in self.label_kinds}

    def label_pairs(
        self, examples: Sequence[ExampleType], predictions: Sequence[PredictionType]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return pairs of gold and predicted label for each kind of which an example's labels have an order."""
        return {
            kind.name: [
                pair
                for example, prediction in zip(examples, predictions, strict=True)
                for pair in zip(require_labels(example, kind.field), getattr(prediction, kind.field), strict=True)
            ]
            for kind in self.label_kinds
            if not kind.is_set
        }


def count_labels(kinds: Sequence[LabelKind], examples: Iterable[Any]) -> dict[str, Counter[str]]:
    """Count the labels of each kind, in one pass."""
    counts = {kind.name: Counter[str]() for kind in kinds}
    for example in examples:
        for kind in kinds:
            counts[kind.name].update(getattr(example, kind.field) or ())
    return counts


def require_labels(example: Any, field: str) -> tuple[str, ...]:
    """Return an example's labels; raises InputError where they are unknown."""
    labels: tuple[str, ...] | None = getattr(example, field)
    if labels is None:
        raise InputError(
            f"{example.location}: the example has no {field} to train on or to score against. Add them, or predict."
        )
    return labels


def class_weights(labels: Sequence[str], counts: Mapping[str, int], class_balancing: str | None) -> list[float]:
    """Weight labels in the loss: all 1, or N / (K n) for N labels in all, K different ones, n of this one.

    Source: NeMo 1.x's weighted_loss.
    """
    if class_balancing != "weighted_loss":
        return [1.0] * len(labels)
    total = sum(counts.values())
    return [total / (len(counts) * counts[label]) if counts.get(label) else 1.0 for label in labels]


@cache
def device_constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor, made once for each device: a captured step must not copy from the host."""
    import torch

    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        return torch.tensor(values, device=device)


def label_indices(indices: Mapping[str, int], wanted: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each wanted label, NO_TARGET for one that has none."""
    return np.array([indices.get(label, NO_TARGET) for label in wanted], dtype=np.int64)


def multi_hot(labels: Sequence[str], wanted: Collection[str]) -> NDArray[np.float32]:
    """Return 1 for each wanted label and 0 for the others, [C]; what is not among the labels is left out."""
    return np.array([label in wanted for label in labels], dtype=np.float32)


def class_probabilities(logits_C: NDArray[np.float64], *, is_multi_label: bool) -> NDArray[np.float64]:
    """Compute probabilities: the sigmoid of each logit if any number of labels may hold, else their softmax."""
    if is_multi_label:
        result: NDArray[np.float64] = 1 / (1 + np.exp(-logits_C))
        return result
    weights: NDArray[np.float64] = np.exp(logits_C - logits_C.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
