"""Records of data files that are too large for memory: read anew in each pass over them, and never all held.

Readers of row-wise formats make sequences of sequences by `derived`: lists of lists where a file is small, streams of
streams where it is large and `large_files_streamed`. Both give the same records and errors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .data_files import COMPRESSED

MAX_HELD = 2**22
"""Bytes of the data files whose records are held in memory, which takes 50 to 70 times as much."""
EXPANSION = 8
"""How much larger than its file compressed text is assumed to be."""
_are_streamed: ContextVar[bool] = ContextVar("are_streamed", default=False)
RecordType = TypeVar("RecordType")
SourceType = TypeVar("SourceType")


class RecordStream(Sequence[RecordType]):
    """Records that a function reads from the start for each pass; their number is known after the first one."""

    def __init__(self, read: Callable[[], Iterator[RecordType]]) -> None:
        self._read = read
        self._length: int | None = None

    def __iter__(self) -> Iterator[RecordType]:
        """Read all."""
        number = 0
        for number, record in enumerate(self._read(), start=1):  # noqa: B007  (used behind the loop)
            yield record
        self._length = number

    def __len__(self) -> int:
        """Count the records."""
        if self._length is None:
            for _ in self:
                pass
        assert self._length is not None
        return self._length

    def __bool__(self) -> bool:
        """Return whether there is a record."""
        return any(True for _ in self)

    def __getitem__(self, index: Any) -> Any:
        """Return a record, read from the start, or the stream of a slice that counts from the start."""
        if isinstance(index, slice):
            return RecordStream(lambda: islice(self, index.start, index.stop, index.step))
        return next(islice(self, index if index >= 0 else index + len(self), None))


@contextmanager
def large_files_streamed(files: Iterable[str]) -> Iterator[None]:
    """Let the files that are read within be streams if they are large together.

    For who reads all records in turn, never one by its number.
    """
    token = _are_streamed.set(sum(map(_size, map(Path, files))) > MAX_HELD)
    try:
        yield
    finally:
        _are_streamed.reset(token)


def _size(path: Path) -> int:
    factor = EXPANSION if path.suffix.lower() in COMPRESSED else 1
    return factor * path.stat().st_size if path.is_file() else 0


def is_held(path: Path) -> bool:
    """Return whether a file's records are held in memory: where streams are not wanted, or it cannot be read anew."""
    return not (_are_streamed.get() and path.is_file())


def derived(
    source: Sequence[SourceType], make: Callable[[Iterable[SourceType]], Iterator[RecordType]]
) -> Sequence[RecordType]:
    """Make records of others: a stream of a stream's, a list of a list's."""
    return RecordStream(lambda: make(source)) if isinstance(source, RecordStream) else list(make(source))


def joined(groups: Sequence[Sequence[RecordType]]) -> Sequence[RecordType]:
    """Concatenate the records of several files: a stream if one of them is a stream."""
    if len(groups) == 1:
        return groups[0]
    if any(isinstance(group, RecordStream) for group in groups):
        return RecordStream(lambda: chain.from_iterable(groups))
    return [record for group in groups for record in group]


def find_repeated(names: Sequence[str]) -> tuple[int, int] | None:
    """Find the first name that occurred before: the numbers of that record, from 0, and of the first one with the name.

    Takes 8 bytes a name, and a second pass where two have the same hash.
    """
    hashes, counts = np.unique(np.fromiter(map(hash, names), dtype=np.int64), return_counts=True)
    often = set(hashes[counts > 1].tolist())
    first: dict[str, int] = {}
    for number, name in enumerate(names if often else ()):
        if hash(name) in often and first.setdefault(name, number) != number:
            return number, first[name]
    return None
