"""Blending of corpora with weights: which sequences of each corpus make up an epoch.

Without weights, an epoch has every sequence of every corpus once. With weights, it has the same number of sequences,
each corpus by its weight. A corpus is sampled in passes over all its sequences, each pass shuffled anew, so that no
sequence is sampled more often than another of the same corpus.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features, ResampledFeatures
from ..errors import ConfigError, InputError

# Separates the shuffling of passes from other random streams of the same seed.
ORDER_STREAM = 11


class SequenceCorpus(ABC):
    """A corpus divided into sequences; what is random in them (masks, order) is resampled in each pass."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the sequences of a pass; every pass has the same number."""

    @abstractmethod
    def lengths(self, number: int) -> NDArray[np.int64]:
        """Count the tokens of each sequence of a pass."""

    @abstractmethod
    def sequence(self, index: int, number: int) -> Features:
        """Make one sequence of a pass."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the data and settings that determine the sequences."""


@dataclass(frozen=True)
class Blend(ResampledFeatures):
    """The sequences of one epoch of one corpus or several; the notes of each are the index of its corpus."""

    corpora: Sequence[SequenceCorpus]
    weights: Sequence[float] | None
    seed: int
    epoch: int = 0
    _orders: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _quotas(self) -> list[int]:
        sizes = [len(corpus) for corpus in self.corpora]
        return sizes if self.weights is None else apportion(sum(sizes), self.weights)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._quotas)

    def resampled(self, epoch: int) -> "Blend":
        """Return the sequences of an epoch."""
        return self if epoch == self.epoch else replace(self, epoch=epoch)

    def __len__(self) -> int:
        """Count the sequences of an epoch."""
        return int(self._ends[-1])

    def sequence(self, index: int) -> Features:
        """Make a sequence."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[source]) + self._quotas[source]
        number, position = divmod(self.epoch * self._quotas[source] + within, len(self.corpora[source]))
        return replace(self.corpora[source].sequence(int(self._order(source, number)[position]), number), notes=source)

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return np.concatenate([self._lengths_of(source) for source in range(len(self.corpora))])

    def fingerprint(self) -> str:
        """Hash the corpora and how they are blended."""
        facts = [*(corpus.fingerprint() for corpus in self.corpora), str(self.weights), str(self.seed)]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()

    def _lengths_of(self, source: int) -> NDArray[np.int64]:
        corpus, first = self.corpora[source], self.epoch * self._quotas[source]
        numbers, positions = np.divmod(np.arange(first, first + self._quotas[source]), max(len(corpus), 1))
        parts = [
            corpus.lengths(int(number))[self._order(source, int(number))[positions[numbers == number]]]
            for number in np.unique(numbers)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _order(self, source: int, number: int) -> NDArray[np.int64]:
        """Shuffle a corpus for a pass; not needed where an epoch is a pass, because the batch sampler shuffles it."""
        size = len(self.corpora[source])
        if size == self._quotas[source]:
            return np.arange(size)
        if (source, number) not in self._orders:
            for old in [key for key in self._orders if key[0] == source and key[1] < number - 1]:
                del self._orders[old]
            random = np.random.default_rng([self.seed, ORDER_STREAM, source, number])
            self._orders[source, number] = random.permutation(size)
        return self._orders[source, number]


def check_vocabulary(ids: NDArray[Any], vocabulary_size: int, source: str) -> None:
    """Raise InputError if a token of a corpus is not in the vocabulary."""
    smallest, largest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
    if smallest < 0 or largest >= vocabulary_size:
        raise InputError(
            f"{source} holds the token {smallest if smallest < 0 else largest}; the vocabulary has {vocabulary_size}. "
            "Build it with the vocabulary of the model."
        )


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a number into integers proportional to weights, by the largest-remainder method."""
    exact = np.array(weights, dtype=float) / sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
    return [int(count) for count in counts]


def parse_blend(items: Sequence[Any], key: str) -> tuple[list[str], list[float] | None]:
    """Parse [PREFIX, ...] or Megatron-LM's [WEIGHT, PREFIX, WEIGHT, PREFIX, ...] to prefixes, and weights if given.

    Raises ConfigError for anything else.
    """
    numbers = [_number(item) for item in items]
    if all(number is None for number in numbers):
        return [str(item) for item in items], None
    weights, prefixes = numbers[::2], [str(item) for item in items[1::2]]
    is_paired = len(items) % 2 == 0 and all(number is None for number in numbers[1::2])
    if not is_paired or not all(weight is not None and weight > 0 for weight in weights):
        raise ConfigError(f"{key}={list(items)}: give [PREFIX, ...] or [WEIGHT, PREFIX, WEIGHT, PREFIX, ...].")
    return prefixes, [weight for weight in weights if weight is not None]


def _number(item: Any) -> float | None:
    try:
        return float(item)
    except (TypeError, ValueError):
        return None
