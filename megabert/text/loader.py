"""The order in which a run sees its texts: a pure function of seed and position, so resuming needs one integer.

It does not depend on processes, workers or how a step is cut into micro-batches of the same total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Features, pack


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a training set, addressed by number; number len(self) is the first of the second epoch."""

    features: Sequence[Features]
    batch_size: int
    row_length: int
    pad_id: int
    seed: int
    shuffle: bool
    drop_last: bool

    def __len__(self) -> int:
        """Count the micro-batches of an epoch."""
        whole, rest = divmod(len(self.features), self.batch_size)
        return whole + (1 if rest and not (self.drop_last and whole) else 0)

    def indices(self, number: int) -> NDArray[np.int64]:
        """List which features make up a micro-batch."""
        epoch, place = divmod(number, len(self))
        start = place * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def batch(self, number: int) -> Batch:
        """Pack a micro-batch."""
        return pack([self.features[index] for index in self.indices(number)], self.row_length, self.pad_id)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.features))
        return _permutation(self.seed, epoch, len(self.features))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    # Seeded by both numbers, so an epoch's order can be made without those before it.
    return np.random.default_rng([seed, epoch]).permutation(count)


def evaluation_batches(
    features: Sequence[Features], batch_size: int, row_length: int, pad_id: int
) -> list[tuple[list[int], Batch]]:
    """Pack a set for evaluation, texts of like length together; each batch comes with its features' numbers."""
    by_length = sorted(range(len(features)), key=lambda index: (-len(features[index]), index))
    groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    return [(group, pack([features[index] for index in group], row_length, pad_id)) for group in groups]
