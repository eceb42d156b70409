"""Lazy tensors: shape and dtype are known at once, the numbers are read from the file on demand.

A `Region` is a part of a file with bounded reads; a `LazyTensor` refers to items of a `Storage` and reads only the
bytes of its own items. `in_memory`, `checked` and `resize_rows` derive lazy tensors from others.
"""

import math
import os
import stat
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ...errors import CheckpointError
from .pickle_values import ByteSource

MOST_DIMS = 64
# Stride 0 repeats elements. A tensor larger than its storage must stay below this many bytes.
LARGEST_REPEATED = 2**26


class _Described(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...


class Readable(_Described, Protocol):
    """A lazy tensor, with its shape and dtype."""

    def read(self) -> torch.Tensor:
        """Read it into newly allocated memory. Raises CheckpointError if its bytes are damaged."""


class _File:
    """An open file that is closed when the last reference to it goes."""

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
    """Decompressed bytes. A read returns a copy, as a read of a file does."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read(self, start: int, length: int) -> bytearray:
        return self.data[start : start + length]


@dataclass(frozen=True)
class Region:
    """A part of a file with bounded reads. A memory map would show changes by other processes, or crash."""

    file: _File | _Memory
    start: int
    size: int
    label: str

    @property
    def is_decompressed(self) -> bool:
        """Whether the bytes are a decompressed copy in memory."""
        return isinstance(self.file, _Memory)

    def error(self, problem: str) -> CheckpointError:
        """Return an error that names this part of the file."""
        return CheckpointError(f"{self.label}: {problem}")

    def part(self, offset: int, length: int, label: str) -> "Region":
        """Return a part of this region. Raises CheckpointError if it exceeds the region."""
        if not (0 <= offset <= self.size and 0 <= length <= self.size - offset):
            raise self.error(
                f"{label} of {length} bytes at byte {offset} exceeds the {self.size} bytes that are there. "
                "The file is cut off or damaged; fetch it again."
            )
        return Region(self.file, self.start + offset, length, f"{self.label}: {label}")

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes. Raises CheckpointError if they are missing or the file was changed."""
        part = self.part(offset, length, "data")
        return self.file.read(part.start, length)


def decompressed(data: bytearray, label: str) -> Region:
    """Return decompressed bytes as a region, labelled by the file that contains them compressed."""
    return Region(_Memory(data), 0, len(data), label)


def open_regular(path: Path) -> Region:
    """Open a regular file. Raises CheckpointError for a folder, a device, a pipe, or an unreadable file."""
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
    """Items of one dtype that several tensors may share. `source` is set when the location of its bytes is known."""

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
    """A range of items of a storage, as a pickle refers to it."""

    storage: Storage
    start: int
    num_items: int


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A strided view of a storage, not read yet.

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
        largest = max(self.storage.nbytes, LARGEST_REPEATED)
        if self.nbytes > largest or math.prod(max(dim, 1) for dim in self.shape) >= 2**62:
            raise ValueError(f"a tensor of shape {self.shape} is larger than its storage.")

    @property
    def nbytes(self) -> int:
        """Size of the tensor in memory; items that a stride repeats count each time."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte of the storage after its last item; 0 for an empty tensor, which may begin anywhere."""
        if 0 in self.shape:
            return 0
        last = sum((dim - 1) * step for dim, step in zip(self.shape, self.stride, strict=True))
        return self.start + (last + 1) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Read the numbers into newly allocated memory. Raises CheckpointError if they are damaged."""
        assert self.storage.source is not None, "a storage is bound to its bytes before open_file returns"
        if 0 in self.shape:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        data = self.storage.source.read(self.start, self.end - self.start)
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride)


def num_bytes(tensor: _Described) -> int:
    """Compute the size of a tensor in memory."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def check_finite(tensor: torch.Tensor, source: str, name: str) -> None:
    """Raise CheckpointError if weights are NaN or infinite."""
    if not torch.isfinite(tensor).all():
        num_bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{source}: {name} holds {num_bad} values that are NaN or infinite. "
            "The training that wrote it had diverged, or the file is damaged."
        )


def check_floating_point(dtype: torch.dtype, source: str, name: str) -> None:
    """Raise CheckpointError for a dtype that weights cannot have."""
    if not dtype.is_floating_point:
        raise CheckpointError(f"{source}: {name} holds {dtype}; weights are floating-point numbers.")


@dataclass(frozen=True)
class Derived:
    """A lazy tensor that a function computes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def in_memory(tensor: torch.Tensor) -> Derived:
    """Wrap a tensor in memory; reading it copies it to the CPU where needed."""
    return Derived(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())


def checked(stored: Readable, source: str, name: str) -> Derived:
    """Check weights: their dtype at once, their values when they are read."""
    check_floating_point(stored.dtype, source, name)

    def read() -> torch.Tensor:
        tensor = stored.read()
        check_finite(tensor, source, name)
        return tensor

    return Derived(tuple(stored.shape), stored.dtype, read)


def resize_rows(source: Readable, num_rows: int) -> Derived:
    """Truncate a tensor to its first rows, or pad it with rows of zeros, when it is read."""

    def read() -> torch.Tensor:
        tensor = source.read()
        if len(tensor) >= num_rows:
            return tensor[:num_rows].clone()  # a copy, so that the memory of the other rows is freed
        return torch.cat([tensor, tensor.new_zeros(num_rows - len(tensor), *tensor.shape[1:])])

    return Derived((num_rows, *source.shape[1:]), source.dtype, read)
