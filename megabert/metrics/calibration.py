"""Calibration: does a predicted probability agree with how often such predictions are correct?"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bin:
    """Predictions of similar probability: their number, mean probability and share of correct ones."""

    count: int
    confidence: float
    accuracy: float


def reliability_bins(predictions: Sequence[tuple[float, bool]], num_bins: int = 10) -> list[Bin]:
    """Sort predictions (probability, whether it is correct) into bins of equal width, and leave out empty ones.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    members: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for probability, is_correct in predictions:
        members[min(int(probability * num_bins), num_bins - 1)].append((probability, is_correct))
    return [
        Bin(len(items), sum(p for p, _ in items) / len(items), sum(right for _, right in items) / len(items))
        for items in members
        if items
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Average the distance of accuracy and mean probability, weighted by the bins' numbers; 0 without predictions."""
    total = sum(item.count for item in bins)
    return sum(item.count * abs(item.accuracy - item.confidence) for item in bins) / total if total else 0.0
