"""Tensors that lie in blocks, in one file or many: put together when they are read, every number exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import CheckpointError


class Block(Protocol):
    """A part of a tensor: where it begins in each dim, and its dims."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Its first index in each dim."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its dims."""

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        """Read its numbers."""


@dataclass(frozen=True)
class _Moved:
    """A block as part of a smaller tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    block: Block

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        return self.block.read(dtype, source)


@dataclass(frozen=True)
class Chunked:
    """A tensor in blocks. Raises CheckpointError if they leave a gap or overlap."""

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Sequence[Block]

    def read(self) -> Tensor:
        """Put the blocks together."""
        result = torch.empty(self.shape, dtype=self.dtype)
        covered = torch.zeros(self.shape, dtype=torch.bool)
        for chunk in self.chunks:
            place = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
            if covered[place].any():
                raise CheckpointError(f"{self.source}: two blocks of {self.name} overlap at {chunk.offsets}.")
            result[place], covered[place] = chunk.read(self.dtype, self.source), True
        if not covered.all():
            raise CheckpointError(f"{self.source}: {int((~covered).sum())} numbers of {self.name} are in no block.")
        return result


@dataclass(frozen=True)
class StackedLayer:
    """One layer of a stacked tensor; only the blocks that hold a part of it are read."""

    stacked: Chunked
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims, without that of the layers."""
        return self.stacked.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are."""
        return self.stacked.dtype

    def read(self) -> Tensor:
        """Put the layer's blocks together."""
        whole = self.stacked
        own = [chunk for chunk in whole.chunks if chunk.offsets[0] <= self.number < chunk.offsets[0] + chunk.sizes[0]]
        if not own:
            raise CheckpointError(f"{whole.source}: layer {self.number} of {whole.name} is in no block.")
        first = min(chunk.offsets[0] for chunk in own)
        end = max(chunk.offsets[0] + chunk.sizes[0] for chunk in own)
        moved = [_Moved((chunk.offsets[0] - first, *chunk.offsets[1:]), chunk.sizes, chunk) for chunk in own]
        part = Chunked(whole.name, whole.source, (end - first, *whole.shape[1:]), whole.dtype, moved)
        return part.read()[self.number - first].clone()
