"""Read sentences of tagged words: CoNLL columns, JSON tokens, and NeMo's parallel text and label files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .rows import Row
from .text_lines import blank_split, read_lines


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
