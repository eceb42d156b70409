"""Read a file in bounded pieces, and its tensors only when they are asked for.

A `Region` is a part of a file that is never read beyond; a `LazyTensor` knows its dtype, shape and place in the bytes
of a `Storage`, and reads its own numbers and no others.
"""

import math
import os
import stat
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...errors import CheckpointError
from .pickle_values import ByteSource

MOST_DIMS = 64
# A tensor may repeat its elements (stride 0). One that pretends to more than its storage stays this small.
_LARGEST_REPEATED = 2**26


class Readable(Protocol):
    """A tensor that still lies in its file, whole or in parts."""

    @property
    def shape(self) -> Sequence[int]:
        """Its dims."""

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are."""

    def read(self) -> torch.Tensor:
        """Read it into memory of its own. Raises CheckpointError if its numbers are damaged."""


class _File:
    """An open file that closes when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.stamp = self.current_stamp()

    def current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def read(self, start: int, length: int) -> bytearray:
        if self.current_stamp() != self.stamp:
            raise CheckpointError(f"{self.path} was changed while it was being read. Open it again.")
        result = bytearray(length)
        rest, position = memoryview(result), start
        while rest:
            num_read = os.preadv(self.descriptor, [rest], position)
            if num_read == 0:
                raise CheckpointError(f"{self.path} became shorter while it was being read.")
            rest, position = rest[num_read:], position + num_read
        return result


class _Memory:
    """Bytes that were decompressed. What is read of them is a copy, as it is of a file."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read(self, start: int, length: int) -> bytearray:
        return self.data[start : start + length]


@dataclass(frozen=True)
class Region:
    """A part of a file, read with bounded reads. A memory map would follow a change by others, or crash."""

    file: _File | _Memory
    start: int
    size: int
    label: str

    @property
    def is_decompressed(self) -> bool:
        """Whether the bytes lie in memory because the file holds them compressed."""
        return isinstance(self.file, _Memory)

    def error(self, what: str) -> CheckpointError:
        """Say what is wrong with this part of the file."""
        return CheckpointError(f"{self.label}: {what}")

    def part(self, offset: int, length: int, label: str) -> "Region":
        """Return a part of this part. Raises CheckpointError if it is not all there."""
        if not (0 <= offset <= self.size and 0 <= length <= self.size - offset):
            raise self.error(
                f"{label} lies at byte {offset} with {length} bytes, outside of the {self.size} "
                "bytes that are there. The file is cut off or damaged; fetch it again."
            )
        return Region(self.file, self.start + offset, length, f"{self.label}: {label}")

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes. Raises CheckpointError if they are not there or changed."""
        part = self.part(offset, length, "data")
        return self.file.read(part.start, length)


def decompressed(data: bytearray, label: str) -> Region:
    """Return bytes in memory as a part of the file that holds them compressed."""
    return Region(_Memory(data), 0, len(data), label)


def open_regular(path: Path) -> Region:
    """Open a file, and no folder, device or pipe. Raises CheckpointError if that is not possible."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is a folder. Give the weight file in it, such as {path}/model.safetensors.")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is a device or a pipe, not a file.")
        file = _File(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be opened: {reason}.") from None
    return Region(file, 0, file.stamp[0], str(path))


@dataclass(eq=False)
class Storage:
    """The memory that tensors share: items of one dtype. Where its bytes lie is known only later."""

    key: str
    dtype: torch.dtype
    num_items: int
    source: ByteSource | None = None

    @property
    def nbytes(self) -> int:
        """Size of its whole items."""
        return self.num_items * self.dtype.itemsize


@dataclass(frozen=True)
class StoragePart:
    """A run of items of a storage, as the pickle refers to it."""

    storage: Storage
    start: int
    num_items: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose numbers are still in the file.

    `start` is its first byte in the storage; strides count items.
    Raises ValueError if any of its items lies outside the storage.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: Storage
    start: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > MOST_DIMS:
            raise ValueError(f"a shape of {len(self.shape)} dims with a stride of {len(self.stride)}.")
        if any(type(n) is not int or not 0 <= n < 2**62 for n in (*self.shape, *self.stride, self.start)):
            raise ValueError("a shape, a stride or an offset is not a number from 0 to 2**62.")
        if self.end > self.storage.nbytes:
            raise ValueError(
                f"a tensor of shape {self.shape} with stride {self.stride} from byte {self.start} on reaches "
                f"outside its storage {self.storage.key!r} of {self.storage.nbytes} bytes."
            )
        largest = max(self.storage.nbytes, _LARGEST_REPEATED)
        if self.nbytes > largest or math.prod(max(dim, 1) for dim in self.shape) >= 2**62:
            raise ValueError(f"a tensor of shape {self.shape} pretends to more than its storage holds.")

    @property
    def nbytes(self) -> int:
        """Size of its numbers once they are read; items that a stride repeats count each time."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte of the storage behind its last item; 0 if it has no items, since it may begin anywhere."""
        if 0 in self.shape:
            return 0
        last = sum((dim - 1) * step for dim, step in zip(self.shape, self.stride, strict=True))
        return self.start + (last + 1) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Read the numbers into memory of their own. Raises CheckpointError if they are damaged."""
        assert self.storage.source is not None, "a storage is bound to its bytes before open_file returns"
        if 0 in self.shape:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        data = self.storage.source.read(self.start, self.end - self.start)
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride)


def check_numbers(tensor: torch.Tensor, source: str, name: str) -> None:
    """Raise CheckpointError if a tensor of weights holds what is no number."""
    if not torch.isfinite(tensor).all():
        num_bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{source}: {name} holds {num_bad} values that are NaN or infinite. "
            "The training that wrote it had diverged, or the file is damaged."
        )


def check_weights(dtype: torch.dtype, source: str, name: str) -> None:
    """Raise CheckpointError for a dtype that no weights have."""
    if not dtype.is_floating_point:
        raise CheckpointError(f"{source}: {name} holds {dtype}; weights are floating-point numbers.")


@dataclass(frozen=True)
class Weights:
    """A tensor of weights as it lies in a file; what is no number is refused when it is read."""

    stored: LazyTensor
    source: str
    name: str

    def __post_init__(self) -> None:
        """Refuse dtypes that no weights have."""
        check_weights(self.stored.dtype, self.source, self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are."""
        return self.stored.dtype

    def read(self) -> torch.Tensor:
        """Read it."""
        tensor = self.stored.read()
        check_numbers(tensor, self.source, self.name)
        return tensor


@dataclass(frozen=True)
class Loaded:
    """A tensor in memory, for those who take tensors that are not read yet."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are."""
        return self.tensor.dtype

    def read(self) -> torch.Tensor:
        """Return it, on the CPU."""
        return self.tensor.detach().cpu()


@dataclass(frozen=True)
class Cast:
    """A tensor that becomes another dtype when it is read."""

    source: Readable
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return tuple(self.source.shape)

    def read(self) -> torch.Tensor:
        """Read and convert it."""
        return self.source.read().to(self.dtype)


@dataclass(frozen=True)
class Rows:
    """The first rows of a tensor; rows beyond its own are 0."""

    source: Readable
    num_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return (self.num_rows, *self.source.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are."""
        return self.source.dtype

    def read(self) -> torch.Tensor:
        """Read it, cut or filled up."""
        tensor = self.source.read()
        if len(tensor) >= self.num_rows:
            # A copy, so that the memory of the rows that go is free.
            return tensor[: self.num_rows].clone()
        return torch.cat([tensor, tensor.new_zeros(self.num_rows - len(tensor), *tensor.shape[1:])])
