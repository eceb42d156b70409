"""Training sequences of which a part is resampled each epoch, as a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .fingerprint import fingerprint
from .packing import Features, ResampledFeatures
from .sampler import sequence_lengths

# Separates the draws from other random streams of the same seed.
DRAW_STREAM = 29


@dataclass(frozen=True)
class DrawnFeatures(ResampledFeatures):
    """Some features in each epoch, and `num_drawn` of the others."""

    features: Sequence[Features]
    kept: NDArray[np.int64]
    others: NDArray[np.int64]
    num_drawn: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.kept) + self.num_drawn

    def resampled(self, epoch: int) -> DrawnFeatures:
        """Return the sequences of an epoch."""
        return replace(self, epoch=epoch)

    def sequence(self, index: int) -> Features:
        """Return a sequence of the epoch."""
        return self.features[int(self.indices[index])]

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return sequence_lengths(self.features)[self.indices]

    @cached_property
    def indices(self) -> NDArray[np.int64]:
        """Which of the features the epoch has, in their order."""
        random = np.random.default_rng([self.seed, DRAW_STREAM, self.epoch])
        return np.sort(np.concatenate([self.kept, random.choice(self.others, self.num_drawn, replace=False)]))

    def fingerprint(self) -> str:
        """Hash all features, and how many are drawn."""
        return f"{fingerprint(self.features)} {self.num_drawn}"


@dataclass(frozen=True)
class DrawnGroups(ResampledFeatures):
    """Groups of sequences: the first of each, and at most `num_drawn` of its others."""

    make: Callable[[int, NDArray[np.int64]], Features]
    """Makes a group from its number and its members' places."""
    member_lengths: Sequence[NDArray[np.int64]]
    """The tokens of each member of each group."""
    digest: str
    """Hash of what the groups are made of."""
    num_drawn: int
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        """Count the groups."""
        return len(self.member_lengths)

    def resampled(self, epoch: int) -> DrawnGroups:
        """Return the groups of an epoch."""
        return replace(self, epoch=epoch)

    def sequence(self, index: int) -> Features:
        """Make a group of the epoch."""
        return self.make(index, self.places(index))

    def places(self, index: int) -> NDArray[np.int64]:
        """Return which members of a group the epoch has; a group that is small enough has all, in their order."""
        size = len(self.member_lengths[index])
        if size <= self.num_drawn + 1:
            return np.arange(size)
        random = np.random.default_rng([self.seed, DRAW_STREAM, self.epoch, index])
        return np.concatenate([[0], 1 + random.choice(size - 1, self.num_drawn, replace=False)])

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each group."""
        members = self.member_lengths
        return np.array([members[index][self.places(index)].sum() for index in range(len(self))], dtype=np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Count the sequences of each group."""
        return np.array([min(len(item), self.num_drawn + 1) for item in self.member_lengths], dtype=np.int64)

    def fingerprint(self) -> str:
        """Hash the groups, and how many members are drawn."""
        return f"{self.digest} {self.num_drawn}"
