"""Several corpora as one: how many texts of each make an epoch, and which.

Without weights an epoch is every text of every corpus once. With weights it is as many texts, of each corpus its
share; each corpus goes through its own texts in passes, in a new order each time, so that none is seen more often than
another of the same corpus.
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

# What keeps the orders of passes apart from other numbers that come from the same seed.
ORDER_STREAM = 11


class SequenceCorpus(ABC):
    """A corpus that is cut into texts; what is drawn in them (masks, order) is another in each pass."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the texts; as many in each pass."""

    @abstractmethod
    def lengths(self, number: int) -> NDArray[np.int64]:
        """Count the tokens of each text of a pass."""

    @abstractmethod
    def sequence(self, index: int, number: int) -> Features:
        """Make one text of a pass."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest what the texts are made from."""


@dataclass(frozen=True)
class Blend(ResampledFeatures):
    """The texts of one epoch of one corpus or several; the notes of each are the number of its corpus."""

    corpora: Sequence[SequenceCorpus]
    weights: Sequence[float] | None
    seed: int
    epoch: int = 0
    _passes: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _quotas(self) -> list[int]:
        sizes = [len(corpus) for corpus in self.corpora]
        return sizes if self.weights is None else apportion(sum(sizes), self.weights)

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self._quotas)

    def resampled(self, epoch: int) -> "Blend":
        """Give the texts of an epoch."""
        return self if epoch == self.epoch else replace(self, epoch=epoch)

    def __len__(self) -> int:
        """Count the texts of an epoch."""
        return int(self._ends[-1])

    def sequence(self, index: int) -> Features:
        """Make a text."""
        source = int(np.searchsorted(self._ends, index, side="right"))
        number, place = divmod(self._drawn_before(source) + index - self._start(source), len(self.corpora[source]))
        return replace(self.corpora[source].sequence(int(self._order(source, number)[place]), number), notes=source)

    def lengths(self) -> NDArray[np.int64]:
        """Count each text's tokens."""
        return np.concatenate([self._lengths_of(source) for source in range(len(self.corpora))])

    def fingerprint(self) -> str:
        """Digest the corpora and how they are mixed."""
        facts = [*(corpus.fingerprint() for corpus in self.corpora), str(self.weights), str(self.seed)]
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()

    def _start(self, source: int) -> int:
        return int(self._ends[source]) - self._quotas[source]

    def _drawn_before(self, source: int) -> int:
        return self.epoch * self._quotas[source]

    def _lengths_of(self, source: int) -> NDArray[np.int64]:
        corpus, first = self.corpora[source], self._drawn_before(source)
        numbers, places = np.divmod(np.arange(first, first + self._quotas[source]), max(len(corpus), 1))
        parts = [
            corpus.lengths(int(number))[self._order(source, int(number))[places[numbers == number]]]
            for number in np.unique(numbers)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _order(self, source: int, number: int) -> NDArray[np.int64]:
        """Order a corpus's texts for a pass; where an epoch is a pass, the loader's own order will do."""
        size = len(self.corpora[source])
        if size == self._quotas[source]:
            return np.arange(size)
        if (source, number) not in self._passes:
            for old in [key for key in self._passes if key[0] == source and key[1] < number - 1]:
                del self._passes[old]
            random = np.random.default_rng([self.seed, ORDER_STREAM, source, number])
            self._passes[source, number] = random.permutation(size)
        return self._passes[source, number]


def check_vocabulary(largest: int, vocabulary_size: int, source: str) -> None:
    """Refuse token files that hold tokens beyond the vocabulary. Raises InputError."""
    if largest >= vocabulary_size:
        raise InputError(
            f"{source} holds the token {largest}; the vocabulary has {vocabulary_size}. "
            "Build it with the vocabulary of the model."
        )


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Cut a number into whole parts in proportion to weights, by largest remainders."""
    exact = np.array(weights, dtype=float) / sum(weights) * total
    parts = np.floor(exact).astype(np.int64)
    for place in np.argsort(parts - exact, kind="stable")[: total - int(parts.sum())]:
        parts[place] += 1
    return [int(part) for part in parts]


def parse_blend(items: Sequence[Any], key: str) -> tuple[list[str], list[float] | None]:
    """Read [PREFIX, ...] or Megatron-LM's [WEIGHT, PREFIX, WEIGHT, PREFIX, ...]: prefixes, and weights if given.

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
