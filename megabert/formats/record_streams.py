"""Records of data files that are too large for memory: read anew in each pass over them, and never all held.

Readers of row-wise formats make sequences of sequences by `derived`: lists of lists where a file is small, streams of
streams where it is large and `large_files_streamed`. Both give the same records and errors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from .data_files import COMPRESSED

MAX_HELD = 2**22
"""Bytes of the data files whose records are held in memory, which takes 50 to 70 times as much."""
EXPANSION = 8
"""How much larger than its file compressed text is assumed to be."""
_are_streamed: ContextVar[bool] = ContextVar("are_streamed", default=False)
RecordType = TypeVar("RecordType")
SourceType = TypeVar("SourceType")


@dataclass(frozen=True)
class Part:
    """Lines of a text file: the place of the file among those of a stream, the first byte, the first line from 1."""

    file: int
    path: Path
    start: int
    first_line: int
    num_lines: int | None


reading_part: ContextVar[Part | None] = ContextVar("reading_part", default=None)
"""The part that passes over records have, None: all."""


def numbered(lines: Iterable[SourceType]) -> Iterator[tuple[int, SourceType]]:
    """Number the lines of a file from 1, those of a part as in the file."""
    part = reading_part.get()
    return enumerate(lines, start=1 if part is None else part.first_line)


def _is_at_start() -> bool:
    part = reading_part.get()
    return part is None or part.start == 0


class RecordStream(Sequence[RecordType]):
    """Records that a function reads from the start for each pass; their number is known after the first one.

    They come from `files`, which may be divided where a `unit` ends, a line or a sentence (behind an empty line):
    while `reading_part` is set a pass has the records of that part. Of the unit file they cannot be divided.
    """

    def __init__(
        self, read: Callable[[], Iterator[RecordType]], files: Sequence[Path] = (), unit: str = "file"
    ) -> None:
        self._read = read
        self.files, self.unit = files, unit
        self.length: int | None = None

    def __iter__(self) -> Iterator[RecordType]:
        """Read all."""
        number = 0
        for number, record in enumerate(self._read(), start=1):  # noqa: B007  (used behind the loop)
            yield record
        self.length = number

    def __len__(self) -> int:
        """Count the records."""
        if self.length is None:
            for _ in self:
                pass
        assert self.length is not None
        return self.length

    def __bool__(self) -> bool:
        """Return whether there is a record."""
        return any(True for _ in self)

    def __getitem__(self, index: Any) -> Any:
        """Return a record, read from the start, or the stream of a slice that counts from the start."""
        if isinstance(index, slice):
            if index == slice(1, None):  # behind a header
                return RecordStream(lambda: islice(self, int(_is_at_start()), None), self.files, self.unit)
            return RecordStream(lambda: islice(self, index.start, index.stop, index.step))
        return next(islice(self, index if index >= 0 else index + len(self), None))


@contextmanager
def large_files_streamed(files: Iterable[str]) -> Iterator[None]:
    """Let the files that are read within be streams if they are large together.

    For who reads all records in turn, never one by its number.
    """
    token = _are_streamed.set(total_size(files) > MAX_HELD)
    try:
        yield
    finally:
        _are_streamed.reset(token)


def total_size(files: Iterable[str]) -> int:
    """Add the sizes of files, as if decompressed."""
    return sum(map(_size, map(Path, files)))


def _size(path: Path) -> int:
    factor = EXPANSION if path.suffix.lower() in COMPRESSED else 1
    return factor * path.stat().st_size if path.is_file() else 0


def is_held(path: Path) -> bool:
    """Return whether a file's records are held in memory: where streams are not wanted, or it cannot be read anew."""
    return not (_are_streamed.get() and path.is_file())


def derived(
    source: Sequence[SourceType],
    make: Callable[[Iterable[SourceType]], Iterator[RecordType]],
    unit: str | None = None,
) -> Sequence[RecordType]:
    """Make records of others, a stream of a stream's, a list of a list's; `unit` is theirs if it is another."""
    if not isinstance(source, RecordStream):
        return list(make(source))
    return RecordStream(lambda: make(source), () if unit == "file" else source.files, unit or source.unit)


def joined(groups: Sequence[Sequence[RecordType]]) -> Sequence[RecordType]:
    """Concatenate the records of several files: a stream if one of them is a stream."""
    if len(groups) == 1:
        return groups[0]
    streams = [group for group in groups if isinstance(group, RecordStream)]
    if not streams:
        return [record for group in groups for record in group]
    files, units = [file for group in streams for file in group.files], {group.unit for group in streams}
    is_divisible = len(files) == len(groups) == len(streams) and len(units) == 1
    return RecordStream(lambda: _concatenated(groups), files if is_divisible else (), units.pop())


def _concatenated(groups: Sequence[Sequence[RecordType]]) -> Iterator[RecordType]:
    part = reading_part.get()
    return chain.from_iterable(groups if part is None else [groups[part.file]])
