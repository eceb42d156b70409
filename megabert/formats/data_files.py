"""Data files: lists and glob patterns of names, and opening them, decompressed where they are compressed.

gzip, bzip2, xz and Zstandard are recognized by the first bytes; in a name their suffix stands behind that of the
format: train.jsonl.gz. What a file expands to is bounded, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_EXPANSION = 200
"""Default of the largest size of decompressed data, in multiples of the compressed size."""
FREE_SIZE = 2**28
"""Bytes that any compressed file may expand to, and that are read at most from what is no regular file."""
# Each compression's first bytes, suffix and name.
SIGNATURES = (
    (b"\x1f\x8b", ".gz", "gzip"),
    (b"BZh", ".bz2", "bzip2"),
    (b"\xfd7zXZ\0", ".xz", "xz"),
    (b"\x28\xb5\x2f\xfd", ".zst", "Zstandard"),
)
# First bytes of files that are often given in place of text.
OTHER_FILES = {
    b"PAR1": "a Parquet file", b"%PDF": "a PDF file", b"PK\x03\x04": "a ZIP archive, as .xlsx and .docx are",
    b"\xd0\xcf\x11\xe0": "a file of Word or Excel", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
COMPRESSED = tuple(suffix for _, suffix, _ in SIGNATURES)
# A context variable, not an argument of every reader: no reader has anything else to do with compression.
_max_expansion: ContextVar[int] = ContextVar("max_expansion", default=MAX_EXPANSION)
_opened: ContextVar[set[Path] | None] = ContextVar("opened", default=None)


def expand_names(given: str | Sequence[str] | None) -> list[str]:
    """List the files that a name, a glob pattern or a list of these stands for; those of a pattern sorted by name.

    A name that exists is no pattern. A pattern that matches nothing stays as it is.
    """
    names = [given] if isinstance(given, str) else list(given or ())
    files: list[str] = []
    for name in map(str, names):
        is_pattern = glob.has_magic(name) and not Path(name).exists()
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else []  # noqa: PTH207  (may be absolute)
        files += matches or [name]
    return files


def not_text(start: bytes, byte: int | None = None) -> str:
    """Describe a file with a byte that is no UTF-8, or with a NUL character, by its first bytes; with the remedy."""
    kind = next((f" It is {name}." for first, name in OTHER_FILES.items() if start.startswith(first)), "")
    if byte is None:
        return f"a NUL character.{kind} Is this a text file?"
    return f"not UTF-8 text: byte {byte:#04x}.{kind} Save {'its contents' if kind else 'the file'} as UTF-8."


def data_suffix(path: Path) -> str:
    """Return the suffix of a file's format in lower case: that before .gz, .bz2, .xz or .zst."""
    is_compressed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem).suffix if is_compressed else path.suffix).lower()


@contextmanager
def expansion_limit(multiple: int) -> Iterator[None]:
    """Let files opened within expand to so many times their size, in place of MAX_EXPANSION."""
    token = _max_expansion.set(multiple)
    try:
        yield
    finally:
        _max_expansion.reset(token)


@contextmanager
def opened_files() -> Iterator[set[Path]]:
    """Collect the files that are opened within, by this thread: also those that no setting names."""
    files: set[Path] = set()
    token = _opened.set(files)
    try:
        yield files
    finally:
        _opened.reset(token)


def largest_expansion() -> int:
    """Return how many times its size a file may expand to that is opened here, by `expansion_limit`."""
    return _max_expansion.get()


@contextmanager
def open_data(path: Path, max_expansion: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed. Raises InputError if it is unreadable, damaged or expands too far.

    `max_expansion` is a limit that was found before, None that of here.
    What is no regular file, such as a pipe, may have FREE_SIZE bytes.
    """
    if (files := _opened.get()) is not None:
        files.add(path)
    if path.is_char_device():  # /dev/zero never ends
        raise InputError(f"{path} is a device. Give the path of a data file, or file=- for standard input.")
    try:
        with path.open("rb") as file:
            multiple = _max_expansion.get() if max_expansion is None else max_expansion
            stream = decompressed(path, file, max(FREE_SIZE, multiple * os.fstat(file.fileno()).st_size))
            yield stream if stream is not file or path.is_file() else _bounded(path, file, FREE_SIZE, ())
    except IsADirectoryError:
        raise InputError(f"{path} cannot be read: it is a folder. Give the path of a data file.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read: {reason}. Give the path of a data file.") from None


def decompressed(path: Path, file: Any, size: int) -> Any:
    """Return an opened file, or if its first bytes are those of a compression a stream of up to `size` bytes of it."""
    start = file.peek(8)[:8]
    found = next((kind for kind in SIGNATURES if start.startswith(kind[0])), None)
    if path.suffix.lower() in COMPRESSED and start and (found is None or found[1] != path.suffix.lower()):
        raise InputError(
            f"{path} is damaged or truncated: no {path.suffix} file begins so. Download it again, or correct its name."
        )
    # As text BZh may begin a word: it counts with what follows in every bzip2 file.
    if found is None or (found[1] == ".bz2" and start[4:8] != b"1AY&" and path.suffix.lower() != ".bz2"):
        return file
    opener, errors = _decompressor(path, found[1])
    return _bounded(path, opener(file), size, errors)


def _decompressor(path: Path, suffix: str) -> tuple[Callable[[Any], Any], tuple[type[Exception], ...]]:
    """Return the function that opens a compressed stream, and the errors of damaged data."""
    if suffix == ".gz":
        return lambda file: gzip.GzipFile(fileobj=file), (zlib.error, EOFError, OSError)
    if suffix == ".bz2":
        return bz2.BZ2File, (EOFError, OSError)
    if suffix == ".xz":
        return lzma.LZMAFile, (lzma.LZMAError, EOFError)
    zstd = import_zstd(path)
    return zstd.ZstdFile, (zstd.ZstdError, EOFError)


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, by its first bytes."""
    with path.open("rb") as file:
        return decompressed(path, file, FREE_SIZE) is not file


def import_zstd(path: Path) -> Any:
    """Import the module for a file of Zstandard. Raises InputError where it is missing."""
    try:
        from compression import zstd  # Python 3.14 and later
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise InputError(
                f'{path} is compressed by Zstandard. Install its reader (pip install "megabert[zstd]"), or use the '
                "program zstd."
            ) from None
    return zstd


def _bounded(path: Path, stream: IO[bytes], size: int, errors: tuple[type[Exception], ...]) -> IO[bytes]:
    return io.BufferedReader(_BoundedStream(path, stream, size, errors), 2**16)


class _BoundedStream(io.RawIOBase):
    """A stream of at most `size` bytes; more of them, and the errors of damaged data, are InputErrors."""

    def __init__(self, path: Path, stream: IO[bytes], size: int, errors: tuple[type[Exception], ...]) -> None:
        self.path, self.stream, self.size, self.errors = path, stream, size, errors
        self.num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        try:
            data = self.stream.read(len(view))
        except self.errors as error:
            raise InputError(f"{self.path} is damaged or truncated: {error}. Download it again.") from None
        self.num_read += len(data)
        if self.num_read > self.size:
            raise InputError(
                f"{self.path} has more than {self.size:,} bytes, the most of what is compressed or a pipe. If that is "
                "right, decompress it to a file first."
            )
        view[: len(data)] = data
        return len(data)
