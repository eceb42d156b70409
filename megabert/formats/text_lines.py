"""UTF-8 text files as lines, compressed or not; every error names file, line and remedy."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..errors import InputError
from .data_files import data_suffix, largest_expansion, not_text, open_data
from .record_streams import Part, RecordStream, is_held, reading_part

# Endings of tables, documents and markup, whose lines are no texts.
NO_TEXT_ENDINGS = (".tsv", ".csv", ".tab", ".ann", ".a1", ".a2", ".xml", ".nxml", ".xmi", ".html", ".pubtator", ".yml",
                   ".yaml")  # fmt: skip


def require_raw_text(path: Path, lines: Sequence[str]) -> None:
    """Raise InputError if a file that would be read as lines of text has an ending of tables or markup, or JSON."""
    if data_suffix(path) in NO_TEXT_ENDINGS:
        raise InputError(
            f"{path}: {data_suffix(path)} is no ending of raw text, a text a line. Give the texts alone in a "
            '.txt file, or JSON lines with {"text": ...}.'
        )
    # One line of a text may be an object, too.
    first = list(islice((line for line in lines if line.strip()), 2))
    if first and all(map(_is_object, first)):
        raise InputError(f"{path} has JSON objects, no lines of text. Name it {path.with_suffix('.jsonl').name}.")


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a byte-order mark at the start is dropped. Raises InputError if it is empty."""
    with open_data(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: {not_text(data, data[error.start])}") from None
    if not text.strip():
        raise InputError(f"{path} is empty.")
    return text


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines without their ends (LF, CRLF, or CR alone)."""
    return list(_lines(path, largest_expansion()))


def iterate_lines(path: Path) -> Iterator[str]:
    """Yield a text file's lines as `read_lines` returns them, one at a time."""
    return _lines(path, largest_expansion())


def data_lines(path: Path) -> Sequence[str]:
    """Return a text file's lines as `read_lines` does, of a large file as a stream."""
    expansion = largest_expansion()
    return read_lines(path) if is_held(path) else RecordStream(lambda: _lines(path, expansion), (path,), "line")


def _lines(path: Path, max_expansion: int) -> Iterator[str]:
    part = reading_part.get()
    if part is None or part.path != path:
        part = Part(0, path, 0, 1, None)
    is_blank, start = True, b""
    with open_data(path, max_expansion) as file:
        if part.start:
            is_blank, start = False, file.readline()[:4]
            file.seek(part.start)
        for number, data in enumerate(islice(file, part.num_lines), start=part.first_line):
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8")
                problem = not_text(start or data) if "\0" in text else ""
            except UnicodeDecodeError as error:
                problem = not_text(start or data, data[error.start])
            if problem:
                for _ in file:  # a compressed file may be damaged, which then is the reason
                    pass
                raise InputError(f"{path}:{number}: {problem}")
            start = start or data[:4]
            is_blank = is_blank and not text.strip()
            # At line feeds alone: U+2028 and its like are part of the text.
            if number > 1 or text.endswith("\n"):
                yield text.removesuffix("\n").removesuffix("\r")
            else:  # old Macintosh files have lone carriage returns
                yield from text.removesuffix("\r").split("\r")
    if is_blank:
        raise InputError(f"{path} is empty.")


def blank_split(line: str) -> list[str]:
    """Split a line at blanks and tabs; other white space, such as U+00A0, is part of a word."""
    return [word for word in line.replace("\t", " ").split(" ") if word]
