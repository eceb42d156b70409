"""Precision, recall and F1 from counts of correct, gold and predicted items."""

from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Self

from ..errors import InputError


@dataclass(frozen=True)
class MatchCounts:
    """Numbers of correct, gold and predicted items; precision, recall and F1 are per cent, 0 without a denominator."""

    num_correct: int
    num_gold: int
    num_predicted: int

    @classmethod
    def of_sets(cls, gold: Sequence[AbstractSet[Hashable]], predicted: Sequence[AbstractSet[Hashable]]) -> Self:
        """Count the items of one set per example; items are correct where they are in both."""
        num_correct = sum(len(a & b) for a, b in zip(gold, predicted, strict=True))
        return cls(num_correct, sum(map(len, gold)), sum(map(len, predicted)))

    @property
    def precision(self) -> float:
        """Share of the predicted items that are correct."""
        return 100.0 * self.num_correct / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold items that are predicted."""
        return 100.0 * self.num_correct / self.num_gold if self.num_gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.num_gold + self.num_predicted
        return 200.0 * self.num_correct / total if total else 0.0

    def scores(self, prefix: str = "") -> dict[str, float]:
        """Return precision, recall and F1 under names that begin with `prefix`."""
        return {f"{prefix}{name}": getattr(self, name) for name in ("precision", "recall", "f1")}


def scores_by_label(counts: Mapping[str, MatchCounts]) -> dict[str, float]:
    """Return LABEL/precision, LABEL/recall and LABEL/f1 of each label."""
    return {name: score for label, item in counts.items() for name, score in item.scores(f"{label}/").items()}


def require_pairs(gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    """Raise InputError where there is nothing to score, or gold values and predictions differ in number."""
    if not gold:
        raise InputError("There is nothing to score.")
    if len(gold) != len(predicted):
        raise InputError(f"{len(predicted)} predictions for {len(gold)} gold answers. Give one for each.")
