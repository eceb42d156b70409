"""Sentences of tagged words: the type, JSON objects of words and tags, and NeMo's parallel files.

JSON: `tokens` (or `words`) and `tags`. NeMo: a file of sentences and a file of their tags, line by line.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from ..errors import InputError, InputWarning
from .record_streams import derived, numbered
from .rows import Row
from .text_lines import blank_split, data_lines

WORD_KEYS, TAG_KEYS = ("tokens", "words"), ("tags", "ner_tags")


@dataclass(frozen=True)
class Sentence:
    """Words, their tags if the data have any, and file and first line."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    location: str
    id: str = ""


def has_words(row: Row) -> bool:
    """Return whether a JSON object has words, or neither words nor text, which `sentence_of` reports."""
    return "tokens" in row.values or "words" in row.values or "text" not in row.values


def sentence_of(row: Row, name: str = "", tag_names: Sequence[str] | None = None) -> Sentence:
    """Convert a JSON object with words (and tags) to a sentence; `name` is its id.

    Tags that are numbers count `tag_names`, None where a task has no such setting.
    """
    words = row.strings(next((key for key in WORD_KEYS if key in row.values), WORD_KEYS[-1]))
    key = next((key for key in TAG_KEYS if key in row.values), None)
    tags = None if key is None else _named_tags(row, key, tag_names)
    if tags is not None and len(tags) != len(words):
        raise InputError(f"{row.location}: {len(tags)} tags for {len(words)} words. Give each word one.")
    return Sentence(words, tags, row.location, name)


def without_empty(path: Path, rows: Sequence[Row]) -> Sequence[Row]:
    """Leave out rows with lists of no words and no tags, as some sets of the library datasets end; report how many.

    Raises InputError where no row has words.
    """
    num_rows = num_empty = 0
    for num_rows, row in enumerate(rows, start=1):  # noqa: B007  (used behind the loop)
        num_empty += _is_empty(row)
    if not num_empty:
        return rows
    if num_empty == num_rows:
        raise InputError(f"{path}: none of {num_rows} rows has words. Give `tokens`, and for training `tags`.")
    warnings.warn(f"{path}: {num_empty} rows without words and tags are left out.", InputWarning, stacklevel=2)
    return derived(rows, lambda rows: (row for row in rows if not _is_empty(row)))


def _is_empty(row: Row) -> bool:
    words, tags = ([row.values[key] for key in keys if key in row.values] for keys in (WORD_KEYS, TAG_KEYS))
    return words[:1] == tags[:1] == [[]]


def _named_tags(row: Row, key: str, names: Sequence[str] | None) -> tuple[str, ...]:
    numbers = row.get(key)
    if not isinstance(numbers, list) or not numbers or any(type(item) is not int for item in numbers):
        return row.strings(key)
    if not names:
        remedy = "Write" if names is None else "Set model.dataset.tag_names=[O,B-TYPE,I-TYPE,...],"
        raise InputError(
            f"{row.location}: the tags are numbers, {str(numbers)[:40]}, whose names the file does not have. {remedy} "
            'their names in order (those of datasets are features["ner_tags"].feature.names).'
        )
    if wrong := [item for item in numbers if not 0 <= item < len(names)]:
        raise InputError(f"{row.location}: the tag {wrong[0]} is none of the {len(names)} model.dataset.tag_names.")
    return tuple(names[item] for item in numbers)


def read_parallel(text: Path, labels: Path | None) -> Sequence[Sentence]:
    """Read NeMo's parallel files, sentences and their tags; empty lines are left out."""
    lines = data_lines(text)
    if labels is None:
        return derived(lines, lambda lines: _parallel(text, lines, labels, None))
    tag_lines = data_lines(labels)
    if len(tag_lines) != len(lines):
        raise InputError(
            f"{text} has {len(lines)} lines, {labels} has {len(tag_lines)}. Each sentence needs its line of tags."
        )
    return derived(lines, lambda lines: _parallel(text, lines, labels, tag_lines), "file")


def _parallel(
    text: Path, lines: Iterable[str], labels: Path | None, tag_lines: Iterable[str] | None
) -> Iterator[Sentence]:
    for number, (line, tag_line) in numbered(zip(lines, tag_lines or repeat(""))):  # noqa: B905
        words = tuple(blank_split(line))
        tags = None if tag_lines is None else tuple(blank_split(tag_line))
        if tags is not None and len(tags) != len(words):
            raise InputError(
                f"{labels}:{number}: {len(tags)} tags for the {len(words)} words of {text}:{number}. Give each word "
                "one."
            )
        if words:
            yield Sentence(words, tags, f"{text}:{number}")
