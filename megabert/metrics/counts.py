"""Counts of right, gold and predicted items, and the precision, recall and F1 of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class MatchCounts:
    """What precision and recall are made of; the figures are per cent."""

    num_correct: int
    num_gold: int
    num_predicted: int

    @property
    def precision(self) -> float:
        """Share of the predicted items that are right."""
        return 100.0 * self.num_correct / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold items that were found."""
        return 100.0 * self.num_correct / self.num_gold if self.num_gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.num_gold + self.num_predicted
        return 200.0 * self.num_correct / both if both else 0.0

    def figures(self) -> tuple[float, float, float]:
        """Precision, recall and F1."""
        return self.precision, self.recall, self.f1


def require_pairs(gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    """Raise InputError where gold answers and predictions differ in number."""
    if not gold:
        raise InputError("There is nothing to score.")
    if len(gold) != len(predicted):
        raise InputError(f"{len(predicted)} predictions for {len(gold)} gold answers. Give one for each.")
