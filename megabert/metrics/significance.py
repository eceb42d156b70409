"""Whether two systems differ on the same examples: McNemar's exact test and the paired bootstrap."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from .counts import require_pairs

# Resampled numbers that are in memory at once
_CHUNK = 2_000_000


@dataclass(frozen=True)
class McNemar:
    """Numbers of examples that only one of two systems has right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Test whether two systems are right equally often.

    The exact test, binomial over the examples that one of them has right; without any p is 1.
    Source: McNemar 1947; Dietterich 1998, Neural Computation 10(7).
    """
    require_pairs(first, second)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    total, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for number in range(1, fewer + 1):
        term = term * (total - number + 1) // number
        tail += term
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**total) if total < 1000 else _ratio(tail, total))


def _ratio(tail: int, total: int) -> float:
    """Compute min(1, 2 * tail / 2**total) where the power has no float."""
    return min(1.0, math.exp(math.log(2 * tail) - total * math.log(2)))


@dataclass(frozen=True)
class Difference:
    """Second score minus first, its 95% interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first: Sequence[tuple[float, float]],
    second: Sequence[tuple[float, float]],
    *,
    num_samples: int = 5000,
    seed: int = 0,
) -> Difference:
    """Compare scores of the form 100 * sum(numerators) / sum(denominators), a pair for each example.

    Accuracy has denominators of 1; F1 is twice the correct items by gold plus predicted items. Examples are resampled
    with replacement, the same for both systems; p is twice the share of samples on the other side of 0.
    Source: Efron and Tibshirani 1993; Berg-Kirkpatrick et al. 2012, EMNLP.
    """
    require_pairs(first, second)
    pairs_N4 = numpy.array([(*a, *b) for a, b in zip(first, second, strict=True)], dtype=numpy.float64)
    generator = numpy.random.default_rng(seed)
    differences = []
    left = num_samples
    while left:
        rows = min(left, max(1, _CHUNK // len(pairs_N4)))
        chosen = generator.integers(0, len(pairs_N4), (rows, len(pairs_N4)))
        counts = numpy.array([numpy.bincount(row, minlength=len(pairs_N4)) for row in chosen])
        differences.append(_difference(counts @ pairs_N4))
        left -= rows
    sampled = numpy.concatenate(differences)
    other_side = min(int((sampled <= 0).sum()), int((sampled >= 0).sum()))
    low, high = numpy.percentile(sampled, (2.5, 97.5))
    observed = float(_difference(pairs_N4.sum(axis=0)[None])[0])
    return Difference(observed, float(low), float(high), min(1.0, 2 * (other_side + 1) / (num_samples + 1)))


def _difference(sums_S4: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Second score minus first; a score without a denominator is 0."""
    scores = [
        numpy.divide(100 * sums_S4[:, i], sums_S4[:, i + 1], out=numpy.zeros(len(sums_S4)), where=sums_S4[:, i + 1] > 0)
        for i in (0, 2)
    ]
    return numpy.asarray(scores[1] - scores[0])
