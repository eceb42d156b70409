"""Sentences of tagged words in three formats: CoNLL columns, JSON objects, and NeMo's parallel files.

CoNLL: a word a line with its tag in the last column, an empty line after each sentence. JSON: `tokens` (or `words`)
and `tags`, recognized by the suffix of JSON lines. NeMo: a file of sentences and a file of their tags, line by line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .rows import Row
from .text_lines import blank_split, read_lines


@dataclass(frozen=True)
class Sentence:
    """Words, their tags if the data have any, and file and first line."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    location: str


def sentence_of(row: Row) -> Sentence:
    """Convert a JSON object with words (and tags) to a sentence."""
    words = row.strings("tokens" if "tokens" in row.values else "words")
    tags = row.strings("tags") if "tags" in row.values else None
    if tags is not None and len(tags) != len(words):
        raise InputError(f"{row.location}: {len(tags)} tags for {len(words)} words. Give each word one.")
    return Sentence(words, tags, row.location)


def read_columns(path: Path) -> list[Sentence]:
    """Read a file in CoNLL's column format."""
    return column_sentences(path, read_lines(path))


def column_sentences(path: Path, lines: Sequence[str]) -> list[Sentence]:
    """Parse lines in CoNLL's column format; columns are separated by a tab or blanks.

    With one column there are no tags. Lines of -DOCSTART- are left out, as in CoNLL's own scorer.
    """
    sentences: list[Sentence] = []
    rows: list[list[str]] = []
    first, width = 1, 0
    for number, line in enumerate([*lines, ""], start=1):
        fields = [field.strip(" ") for field in line.split("\t")] if "\t" in line else blank_split(line)
        if not any(fields):
            if rows:
                tags = tuple(row[-1] for row in rows) if width > 1 else None
                sentences.append(Sentence(tuple(row[0] for row in rows), tags, f"{path}:{first}"))
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


def read_parallel(text: Path, labels: Path | None) -> list[Sentence]:
    """Read NeMo's parallel files, sentences and their tags; empty lines are left out."""
    lines = read_lines(text)
    tag_lines = read_lines(labels) if labels is not None else None
    if tag_lines is not None and len(tag_lines) != len(lines):
        raise InputError(
            f"{text} has {len(lines)} lines, {labels} has {len(tag_lines)}. Each sentence needs its line of tags."
        )
    sentences = []
    for number, line in enumerate(lines, start=1):
        words = tuple(blank_split(line))
        tags = None if tag_lines is None else tuple(blank_split(tag_lines[number - 1]))
        if tags is not None and len(tags) != len(words):
            raise InputError(
                f"{labels}:{number}: {len(tags)} tags for the {len(words)} words of {text}:{number}. Give each word "
                "one."
            )
        if words:
            sentences.append(Sentence(words, tags, f"{text}:{number}"))
    return sentences
