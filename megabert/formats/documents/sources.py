"""Open inputs of documents: files, folders, globs, standard input; compressed or not; in bounded memory.

Compression is recognized by a file's first bytes. Raises InputError with file and line.
"""

import glob
import io
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..data_files import COMPRESSED, decompressed, not_text, open_data

STANDARD_INPUT = Path("-")
# A record (document, line, table row) is held in memory; one above this is a bomb or not of the format.
MAX_RECORD_BYTES = 256 * 2**20
PEEK_BYTES = 2**16
# Files that come with others, and are read with these: i2b2's, settings of brat.
_COMPANIONS = (".ast", ".rel", ".conf")


@dataclass
class Faults:
    """What was wrong in the input: the first one is raised, or each is handed to `report`."""

    report: Callable[[str], None] | None = None
    count: int = 0

    def __call__(self, message: str) -> None:
        """Raise InputError, or report the message and count it."""
        if self.report is None:
            raise InputError(message)
        self.count += 1
        self.report(message)


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need besides the file."""

    faults: Faults = field(default_factory=Faults)
    id_column: str | None = None
    text_column: str | None = None
    lines_are_documents: bool = False
    """Plain text: a document a line, instead of one a file."""


def find_inputs(
    paths: Sequence[str | Path], endings: Sequence[str], log: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """List the files of paths, globs and folders, sorted within each; in folders those of supported endings.

    `log` takes a note of what else folders have.
    """
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if path == STANDARD_INPUT or path.is_file():
            files.append(path)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            inside = [file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)]
            read = [file for file in inside if has_ending(file, endings)]
            if not read:
                raise InputError(f"{path} holds no files of documents ({', '.join(endings)}, compressed or not).")
            others = Counter(
                file.suffix or file.name for file in inside if not has_ending(file, (*endings, *_COMPANIONS))
            )
            if others:
                kinds = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common(5))
                log(f"Files of {path} with other endings are not read: {kinds}.")
            files += read
        else:
            matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))  # noqa: PTH207  (a whole pattern)
            if not matches:
                raise InputError(f"{path} does not exist. Give files, folders, a quoted glob, or - for standard input.")
            files += [match for match in matches if match.is_file()]
    return files


def has_ending(path: Path, endings: Sequence[str]) -> bool:
    """Whether a name ends so, its compression aside; capitals do not matter."""
    return plain_name(path).lower().endswith(tuple(endings))


def plain_name(path: Path) -> str:
    """Return a file's name without the ending of its compression."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in COMPRESSED else path.name


@contextmanager
def open_binary(path: Path) -> Iterator[Any]:
    """Open a file, or standard input, for reading; decompressed, and buffered so that `peek` works."""
    if path == STANDARD_INPUT:
        raw: Any = sys.stdin.buffer
        raw = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
        yield io.BufferedReader(decompressed(path, raw, sys.maxsize), PEEK_BYTES)
        return
    with open_data(path) as file:
        if peek(file).startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
            raise InputError(f"{path} is a zip archive. Unpack it and give its folder.")
        yield io.BufferedReader(file, PEEK_BYTES)


def read_whole(path: Path, file: IO[bytes]) -> bytes:
    """Read a file that is one record."""
    content = file.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise InputError(f"{path} is larger than {MAX_RECORD_BYTES >> 20} MiB, too large for one document or list.")
    return content


def text_of(path: Path, content: bytes, line: int = 1) -> str:
    """Decode UTF-8; the message for anything else has the line."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise InputError(f"{path}:{line}: {not_text(content, content[error.start])}") from None


def text_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Stream numbered lines with their ends."""
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise InputError(f"{path}:{number}: a line of more than {MAX_RECORD_BYTES >> 20} MiB.")
        if b"\0" in line:
            raise InputError(f"{path}:{number}: {not_text(line)}")
        yield number, text_of(path, line, number)


def peek(file: IO[bytes]) -> bytes:
    """Return the first bytes of an opened file without reading them."""
    return file.peek(PEEK_BYTES)  # type: ignore[attr-defined]


def safe_file_name(name: str) -> str:
    """Make a document's identifier a file name: no slash, no leading dot, no control character."""
    safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]', "_", name).lstrip(".") or "_"
    return safe if len(safe.encode()) <= 200 else safe.encode()[:200].decode(errors="ignore")
