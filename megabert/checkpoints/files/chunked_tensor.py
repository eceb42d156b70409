"""Tensors stored in blocks, in one file or many: every block is read and every number must be covered exactly once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import CheckpointError
from .lazy_tensor import Derived


class Block(Protocol):
    """A hyperrectangle of a tensor."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Its first index in each dim."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its dims."""

    def check_size(self, dtype: torch.dtype, source: str) -> None:
        """Raise CheckpointError if it is larger than the bytes that are there."""

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        """Read its numbers."""


@dataclass(frozen=True)
class _Moved:
    """A block at other offsets, as a part of a smaller tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    block: Block

    def check_size(self, dtype: torch.dtype, source: str) -> None:
        self.block.check_size(dtype, source)

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        return self.block.read(dtype, source)


@dataclass(frozen=True)
class Chunked:
    """A lazy tensor in blocks. Reading raises CheckpointError if the blocks overlap or leave a gap.

    A size of more than twice that of all blocks together is refused at once, before it is allocated.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Sequence[Block]

    def __post_init__(self) -> None:
        """Raise CheckpointError if the blocks are by far too small for the tensor."""
        declared, stored = math.prod(self.shape), sum(math.prod(block.sizes) for block in self.blocks)
        if declared > 2 * stored:
            raise CheckpointError(f"{self.source}: {declared - stored} numbers of {self.name} are in no block.")

    def read(self) -> Tensor:
        """Read all blocks into one tensor."""
        num_missing = math.prod(self.shape) - sum(math.prod(block.sizes) for block in self.blocks)
        if num_missing > 0:  # before memory is allocated
            raise CheckpointError(f"{self.source}: {num_missing} numbers of {self.name} are in no block.")
        for block in self.blocks:
            block.check_size(self.dtype, self.source)
        result = torch.empty(self.shape, dtype=self.dtype)
        covered = torch.zeros(self.shape, dtype=torch.bool)
        for block in self.blocks:
            index = tuple(slice(start, start + size) for start, size in zip(block.offsets, block.sizes, strict=True))
            if covered[index].any():
                raise CheckpointError(f"{self.source}: two blocks of {self.name} overlap at {block.offsets}.")
            result[index], covered[index] = block.read(self.dtype, self.source), True
        if not covered.all():
            raise CheckpointError(f"{self.source}: {int((~covered).sum())} numbers of {self.name} are in no block.")
        return result


def layer_of(stacked: Chunked, layer: int) -> Derived:
    """Return one layer of a tensor whose first dim counts layers; only the blocks that overlap it are read."""

    def read() -> Tensor:
        blocks = [block for block in stacked.blocks if block.offsets[0] <= layer < block.offsets[0] + block.sizes[0]]
        if not blocks:
            raise CheckpointError(f"{stacked.source}: layer {layer} of {stacked.name} is in no block.")
        first = min(block.offsets[0] for block in blocks)
        end = max(block.offsets[0] + block.sizes[0] for block in blocks)
        moved = [_Moved((block.offsets[0] - first, *block.offsets[1:]), block.sizes, block) for block in blocks]
        part = Chunked(stacked.name, stacked.source, (end - first, *stacked.shape[1:]), stacked.dtype, moved)
        return part.read()[layer - first].clone()

    return Derived(stacked.shape[1:], stacked.dtype, read)
