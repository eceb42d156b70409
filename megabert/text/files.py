"""File formats that several tasks share: text lines, tab-separated tables, JSON lines, CoNLL's columns.

Every reader raises InputError with file, line and remedy; no line is skipped unsaid.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines without their ends (LF or CRLF); a byte-order mark at the start is dropped."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give the path of a data file.") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 text: byte {data[error.start]:#04x}. Save the file as UTF-8."
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty.")
    if "\0" in text:
        raise InputError(
            f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character. Is this a text file?"
        )
    # split, not splitlines: U+2028 and its like are part of the text. Old Macintosh files have lone carriage returns.
    lines = [line.removesuffix("\r") for line in text.split("\n" if "\n" in text else "\r")]
    return lines[:-1] if not lines[-1] else lines


def blank_split(line: str) -> list[str]:
    """Cut a line at blanks and tabs; other white space, such as U+00A0, is part of a word."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


@dataclass(frozen=True)
class Row:
    """One record: its values by column, and where it stands, for messages."""

    values: dict[str, Any]
    place: str

    def get(self, name: str) -> Any:
        """Give a value that must be there."""
        if name not in self.values:
            raise InputError(f"{self.place}: there is no {name!r}.")
        return self.values[name]

    def text(self, name: str) -> str:
        """Give a text that must be there."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.place}: {name!r} is {value!r}; expected a text.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Give a list of texts that must be there."""
        value = self.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise InputError(f"{self.place}: {name!r} is {str(value)[:60]!r}; expected a list of texts.")
        return tuple(value)


def table_rows(path: Path, lines: Sequence[str], columns: Sequence[str], known: Sequence[str]) -> list[Row]:
    """Take records from a file's lines, tab-separated with a header of known names, or without one.

    `columns` are those of a table without header, in order; the last ones may be absent in all rows.
    """
    rows = split_lines(path, lines)
    header = [name.strip().lower() for name in rows[0][0]]
    names_all = len(header) > 1 and all(name in known for name in header)
    # Of more columns than a table without header may have, others than the known ones are left unread.
    if names_all or (len(header) > len(columns) and len(set(known) & set(header)) > 1):
        names, rows = header, rows[1:]
        if len(set(names)) < len(names):
            raise InputError(f"{path}:1: a column's name stands twice: {', '.join(names)}. Give each its own.")
    else:
        width = len(rows[0][0])
        if not 1 <= width <= len(columns):
            raise InputError(
                f"{path}:1: {width} columns; expected at most {len(columns)}: {', '.join(columns)}, separated by tabs, "
                "or a header line with their names."
            )
        names = list(columns[:width])
    if not rows:
        raise InputError(f"{path} holds no rows but a header.")
    for values, place in rows:
        if len(values) != len(names):
            raise InputError(
                f"{place}: {len(values)} columns where {len(names)} are expected ({', '.join(names)}). "
                "Is there a tab too many or too few?"
            )
    return [Row(dict(zip(names, values, strict=True)), place) for values, place in rows]


def read_json_lines(path: Path) -> list[Row]:
    """Read one JSON object a line; empty lines are left out."""
    lines = enumerate(read_lines(path), start=1)
    return [json_row(line, f"{path}:{number}") for number, line in lines if line.strip()]


def json_row(line: str, place: str) -> Row:
    """Read a JSON object from a line."""
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InputError(f"{place}: not JSON: {reason}. Write one JSON object a line.") from None
    if not isinstance(values, dict):
        raise InputError(f"{place}: a JSON {type(values).__name__}; expected an object, one a line.")
    return Row(values, place)


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, and the line on which they start."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    place: str


def sentence_of(row: Row) -> Sentence:
    """Take a sentence from JSON: its words as `tokens` and, where they are known, their `tags`."""
    words = row.texts("tokens" if "tokens" in row.values else "words")
    tags = row.texts("tags") if "tags" in row.values else None
    if tags is not None and len(tags) != len(words):
        raise InputError(f"{row.place}: {len(tags)} tags for {len(words)} words. Give each word one.")
    return Sentence(words, tags, row.place)


def read_columns(path: Path) -> list[Sentence]:
    """Read CoNLL's format, as `column_sentences` takes it."""
    return column_sentences(path, read_lines(path))


def column_sentences(path: Path, lines: Sequence[str]) -> list[Sentence]:
    """Take sentences from lines: a word each, its tag in the last column (tab or blanks), then an empty line.

    Files of words alone have no tags. Lines of -DOCSTART- are left out, as CoNLL's own scorer leaves them.
    """
    sentences: list[Sentence] = []
    rows: list[list[str]] = []
    first, width = 1, 0
    for number, line in enumerate([*lines, ""], start=1):
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else blank_split(line)
        if not any(fields):
            if rows:
                sentences.append(_sentence(rows, f"{path}:{first}"))
            rows, first = [], number + 1
            continue
        if fields[0] == "-DOCSTART-":
            continue
        width = width or len(fields)
        if len(fields) != width:
            raise InputError(
                f"{path}:{number}: {len(fields)} columns where the lines before have {width}: a word and its tag, "
                "separated by a tab or blanks."
            )
        if not fields[0] or not fields[-1]:
            raise InputError(f"{path}:{number}: a word or a tag is missing.")
        rows.append(fields)
    if not sentences:
        raise InputError(f"{path} holds no sentences.")
    return sentences


def _sentence(rows: list[list[str]], place: str) -> Sentence:
    tags = tuple(row[-1] for row in rows) if len(rows[0]) > 1 else None
    return Sentence(tuple(row[0] for row in rows), tags, place)


def split_rows(path: Path) -> list[tuple[list[str], str]]:
    """Read tab-separated rows, empty lines left out: their columns, and their places for messages."""
    return split_lines(path, read_lines(path))


def split_lines(path: Path, lines: Sequence[str]) -> list[tuple[list[str], str]]:
    """Cut a file's lines at tabs, as `split_rows` reads them."""
    return [(line.split("\t"), f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def read_parallel(text: Path, labels: Path | None) -> list[Sentence]:
    """Read NeMo's two files: a sentence a line, and its words' tags on the same line of the other."""
    texts = read_lines(text)
    tags = read_lines(labels) if labels is not None else None
    if tags is not None and len(tags) != len(texts):
        raise InputError(
            f"{text} has {len(texts)} lines, {labels} has {len(tags)}. Each sentence needs its line of tags."
        )
    return list(_paired(texts, tags, text, labels))


def _paired(texts: list[str], tags: list[str] | None, text: Path, labels: Path | None) -> Iterator[Sentence]:
    for number, line in enumerate(texts, start=1):
        words = tuple(blank_split(line))
        own = None if tags is None else tuple(blank_split(tags[number - 1]))
        if own is not None and len(own) != len(words):
            raise InputError(
                f"{labels}:{number}: {len(own)} tags for the {len(words)} words of {text}:{number}. Give each word one."
            )
        if words:
            yield Sentence(words, own, f"{text}:{number}")
