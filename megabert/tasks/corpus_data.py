"""Corpora as the examples of the pre-training tasks: which documents of which token files, and which sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features, ResampledFeatures
from ..pretraining.indexed_dataset import TokenDataset


@dataclass(frozen=True)
class Example:
    """A document, or a string whose tokens are predicted."""

    id: str
    text: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Other fields of the data, which rows of predictions repeat."""


@dataclass(frozen=True)
class DocumentRange:
    """Documents [first, end) of a pair of token files."""

    tokens: TokenDataset
    first: int
    end: int
    source: str


@dataclass(frozen=True)
class Corpora(Sequence[Example]):
    """The documents of one corpus or several, and how they are blended; they are read when sequences are made."""

    parts: Sequence[DocumentRange]
    weights: Sequence[float] | None
    limit: int
    """Number of sequences, evenly spaced over all; -1: all."""

    def __len__(self) -> int:
        """Count the documents."""
        return sum(part.end - part.first for part in self.parts)

    def __getitem__(self, index: Any) -> Any:
        """Return a document's id; token files do not hold its text."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        for part in self.parts:
            if index < part.end - part.first:
                return Example(f"{part.source}:{part.first + index}", "")
            index -= part.end - part.first
        raise IndexError(index)


@dataclass(frozen=True)
class EvenlySpaced(ResampledFeatures):
    """A number of evenly spaced sequences of others."""

    sequences: ResampledFeatures
    indices: NDArray[np.int64]

    @classmethod
    def choose(cls, sequences: ResampledFeatures, number: int) -> EvenlySpaced:
        """Choose so many of the sequences."""
        return cls(sequences, np.arange(number) * len(sequences) // max(number, 1))

    def resampled(self, epoch: int) -> EvenlySpaced:
        """Return the same indices of another epoch."""
        return EvenlySpaced(self.sequences.resampled(epoch), self.indices)

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.indices)

    def sequence(self, index: int) -> Features:
        """Make a sequence."""
        return self.sequences[int(self.indices[index])]

    def lengths(self) -> NDArray[np.int64]:
        """Count each sequence's tokens."""
        return self.sequences.lengths()[self.indices]

    def fingerprint(self) -> str:
        """Digest what the sequences are made from."""
        return f"{self.sequences.fingerprint()} {len(self)}"
