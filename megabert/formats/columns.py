"""Sentences of tagged words in CoNLL's columns, recognized by `are_columns`.

A word a line with its tag in one of the columns, an empty line after each sentence.
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import InputError, InputWarning
from .data_files import data_suffix
from .parallel_passes import by_parts
from .record_streams import derived, numbered
from .tag_schemes import SCHEMES, TagScheme, are_tags, find_scheme, standard_tags
from .tagged_words import Sentence
from .text_lines import NO_TEXT_ENDINGS, blank_split, read_lines

COLUMN_ENDINGS = (
    *(".conll", ".conllu", ".conllx", ".conll2003", ".col", ".iob", ".iob1", ".iob2", ".bio", ".bioes", ".iobes"),
    *(".bilou", ".bmes"),
)
MAX_WIDTH, MAX_TAGS, MAX_DIGITS = 20, 2**12, 10
# First fields that number no word: comments, ranges of contracted words, empty nodes.
_NO_WORD = re.compile(r"#|\d+[-.]\d+$")
# CoNLL-U's column of the part of speech, UPOS.
CONLLU_TAG = 4
_Fields = tuple[int, list[str]]


@dataclass(frozen=True)
class ColumnLayout:
    """The columns of words and tags, counted from 1 (from the last if negative); None: found in the data."""

    word: int | None = None
    tag: int | None = None
    outside: str = "O"
    """The tag of words outside of all entities."""


def are_columns(path: Path, lines: Sequence[str], outside: str = "O") -> bool:
    """Return whether a file has columns: by its ending, else if half of the lines have a tag in the same column.

    Raises InputError for a table or markup without such a column.
    """
    if data_suffix(path) in COLUMN_ENDINGS:
        return True
    rows = _split(lines)
    widths = Counter(len(item) for _, item in rows if item)
    num_filled = widths.total()
    for width, _ in Counter({n: count for n, count in widths.items() if 1 < n <= MAX_WIDTH}).most_common(1):
        columns = [Counter[str]() for _ in range(width)]
        for _, fields in rows:
            if len(fields) == width:
                for column, value in zip(columns, fields, strict=True):
                    if value == outside or _is_tag(value) or (value == "o" and outside == "O"):
                        column[outside if value == "o" else value] += 1
        for tags in columns:
            # Raw text hardly has an O and a word like B-12 in one column, and not in most lines.
            if 2 * tags.total() >= num_filled and tags[outside] and (len(tags) > 1 or tags.total() == num_filled):
                return True
    if data_suffix(path) in NO_TEXT_ENDINGS:
        raise InputError(
            f"{path}: no column has tags (O, B-TYPE, I-TYPE), and {data_suffix(path)} is no ending of raw text. Give "
            "JSON lines with text, or with tokens and tags; annotated documents end in .pubtator, .bioc.xml and the "
            "like. model.dataset.format=text reads each line as a text, "
            "format=columns any last column as tags."
        )
    return False


@lru_cache(maxsize=2**14)
def _is_tag(value: str) -> bool:
    return any(scheme.is_tag(value) for scheme in SCHEMES)


def read_columns(path: Path) -> list[Sentence]:
    """Read a file in CoNLL's column format."""
    return list(column_sentences(path, read_lines(path)))


@dataclass(frozen=True)
class Columns:
    """The lines of a file in CoNLL's column format, and the columns of words and tags, from 0."""

    path: Path
    rows: Sequence[_Fields]
    word: int
    tag: int | None
    tags: Collection[str] | None
    """The different tags, None where they were not counted."""

    def sentences(self) -> Sequence[Sentence]:
        """Make sentences of the lines."""
        return derived(self.rows, lambda rows: _sentences(self.path, rows, self.word, self.tag), "sentence")


def column_sentences(path: Path, lines: Sequence[str], layout: ColumnLayout = ColumnLayout()) -> Sequence[Sentence]:
    """Parse lines in CoNLL's column format, as `find_columns` describes."""
    return find_columns(path, lines, layout).sentences()


def find_columns(path: Path, lines: Sequence[str], layout: ColumnLayout) -> Columns:
    """Find the columns of lines in CoNLL's column format; columns are separated by a tab or blanks.

    With one column there are no tags. Lines of -DOCSTART- are left out, as in CoNLL's own scorer; in CoNLL-U comments,
    the ranges of contracted words and empty nodes.
    """
    rows = _split(lines)
    is_numbered = _is_numbered(rows)
    if data_suffix(path) == ".conllu" and not (is_numbered and _first_number(rows) == "1"):
        raise InputError(f"{path} is not CoNLL-U: its first column does not number the words of each sentence from 1.")
    if is_numbered:
        rows = derived(rows, lambda rows: (row for row in rows if not row[1] or row[1][0].isdecimal()))
    widths, last, has_marks = _survey(rows)
    if not widths:
        raise InputError(f"{path} holds no sentences.")
    width = widths.most_common(1)[0][0]
    if has_marks:
        are_tags = last is None or layout.outside in last
        rows = _without_comments(path, rows, width, layout.outside if are_tags else None)
        widths, last, _ = _survey(rows)
    if len(widths) > 1:
        number, fields = next(row for row in rows if row[1] and len(row[1]) != width)
        raise InputError(
            f"{path}:{number}: {len(fields)} columns where other lines have {width}: a word and its tag, separated "
            "by a tab or blanks."
        )
    word = _column(path, "word_column", layout.word or (2 if is_numbered else 1), width)
    if layout.word is None and width > 2:
        _require_words(path, rows, word)
    tag = _tag_column(path, rows, word, width, layout, last, is_numbered=is_numbered)
    return Columns(path, rows, word, tag, last if tag == width - 1 else None)


def _without_comments(path: Path, rows: Sequence[_Fields], width: int, outside: str | None) -> Sequence[_Fields]:
    """Leave out comments: lines with # before a sentence's words that have other columns, or no tag where words do."""

    def kept(rows: Iterable[_Fields]) -> Iterator[_Fields]:
        is_start = True
        for row in rows:
            is_start = not row[1] or (is_start and is_comment(row[1]))
            if not row[1] or not is_start:
                yield row

    def is_comment(fields: list[str]) -> bool:
        is_other = len(fields) != width or (outside not in (None, fields[-1]) and not _is_tag(fields[-1]))
        return fields[0].startswith("#") and is_other

    left = derived(rows, kept, "sentence")
    if num_comments := len(rows) - len(left):
        text = f"{path}: {num_comments} lines that begin with # before sentences are left out as comments."
        warnings.warn(text, InputWarning, stacklevel=2)
    return left


def _require_words(path: Path, rows: Sequence[_Fields], word: int) -> None:
    """Raise InputError where a column has numbers only, or one value in all lines of each sentence."""
    are_numbers, are_same, longest = True, True, 0
    for block in _blocks(rows):
        values = {fields[word] for _, fields in block}
        are_numbers = are_numbers and all(map(str.isdecimal, values))
        are_same, longest = are_same and len(values) == 1, max(longest, len(block))
        if not (are_numbers or are_same):
            return
    are_same = are_same and longest > 1
    if are_numbers or are_same:
        number = next(number for number, fields in rows if fields)
        what = "nothing but numbers" if are_numbers else "the same in all lines of a sentence"
        raise InputError(
            f"{path}:{number}: column {word + 1} has {what}. Name the column of words: model.dataset.word_column=N."
        )


def _survey(rows: Sequence[_Fields]) -> tuple[Counter[int], set[str] | None, bool]:
    """Count the lines of each number of columns, and list the values of the last one unless they are many.

    Also returns whether a line begins with #.
    """
    widths: Counter[int] = Counter()
    last: set[str] | None = set()
    has_marks = False
    for more, values, is_marked in by_parts(rows, _survey_part):
        widths.update(more)
        last = None if last is None or values is None or len(last | values) > MAX_TAGS else last | values
        has_marks = has_marks or is_marked
    return widths, last, has_marks


def _survey_part(rows: Iterable[_Fields]) -> tuple[Counter[int], set[str] | None, bool]:
    widths: Counter[int] = Counter()
    last: set[str] | None = set()
    has_marks = False
    for _, fields in rows:
        if fields:
            widths[len(fields)] += 1
            has_marks = has_marks or fields[0].startswith("#")
            if last is not None:
                last.add(fields[-1].strip())
                last = last if len(last) <= MAX_TAGS else None
    return widths, last, has_marks


def _sentences(path: Path, rows: Iterable[_Fields], word: int, tag: int | None) -> Iterator[Sentence]:
    for block in _blocks(rows):
        words = [fields[word] for _, fields in block]
        tags = None if tag is None else [fields[tag] for _, fields in block]
        if not all(words) or not all(tags or ()):
            number = next(n for n, fields in block if not fields[word] or (tag is not None and not fields[tag]))
            raise InputError(f"{path}:{number}: a word or a tag is missing.")
        own = None if tags is None else tuple(map(str.strip, tags))
        yield Sentence(tuple(words), own, f"{path}:{block[0][0]}")


def _split(lines: Sequence[str]) -> Sequence[_Fields]:
    """Split lines at tabs if most have one, else at blanks; an empty line has no fields."""
    num_filled, num_tabs = map(sum, zip(*by_parts(lines, _count_tabs), strict=True))
    return derived(lines, lambda lines: _fields(lines, has_tabs=2 * num_tabs > num_filled))


def _count_tabs(lines: Iterable[str]) -> tuple[int, int]:
    counts = Counter("\t" in line for line in lines if line.strip())
    return counts.total(), counts[True]


def _fields(lines: Iterable[str], *, has_tabs: bool) -> Iterator[_Fields]:
    for number, line in numbered(lines):
        if not has_tabs:
            fields = blank_split(line)
        else:
            fields = [field.strip(" ") for field in line.split("\t")] if " " in line else line.split("\t")
        if not line.startswith("-DOCSTART-"):
            yield number, fields if any(fields) else []


def _blocks(rows: Iterable[_Fields]) -> Iterator[list[_Fields]]:
    """Group lines into sentences, at empty lines."""
    block: list[_Fields] = []
    for row in rows:
        if row[1]:
            block.append(row)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _is_numbered(rows: Sequence[_Fields]) -> bool:
    """Return whether the first column numbers the words of each sentence, as in CoNLL-U and GermEval, or goes on."""
    longest = 0
    for block in _blocks(rows):
        firsts = [fields[0] for _, fields in block if not _NO_WORD.match(fields[0])]
        if any(len(fields) == 1 for _, fields in block if not fields[0].startswith("#")):
            return False
        start = int(firsts[0]) if firsts and firsts[0].isdecimal() and len(firsts[0]) < MAX_DIGITS else 0
        if firsts != [str(number) for number in range(start, start + len(firsts))]:
            return False
        longest = max(longest, len(firsts))
    return longest > 1


def _first_number(rows: Iterable[_Fields]) -> str:
    return next((fields[0] for _, fields in rows if fields and not _NO_WORD.match(fields[0])), "")


def _column(path: Path, name: str, number: int, width: int) -> int:
    """Return the index of a column that is counted from 1, or from the last if negative."""
    if not 1 <= abs(number) <= width:
        raise InputError(f"{path} has {width} columns; model.dataset.{name}={number} is none of them.")
    return number - 1 if number > 0 else width + number


def _tag_column(
    path: Path,
    rows: Sequence[_Fields],
    word: int,
    width: int,
    layout: ColumnLayout,
    values: Collection[str] | None,
    *,
    is_numbered: bool,
) -> int | None:
    """Find the column of tags: the last, of which `values` may be known.

    Raises InputError if it has none where another column has tags.
    """
    last = width - 1
    if layout.tag is not None:
        return _column(path, "tag_column", layout.tag, width)
    if last == (1 if is_numbered else 0):
        return None
    scheme = find_scheme(_values(rows, last) if values is None else values, layout.outside)
    if scheme is not None and word != last:
        if values is None or not are_tags(values, scheme, layout.outside):
            _require_tags(path, rows, last, scheme, layout.outside)
        return last
    others = [index for index in range(last) if find_scheme(_values(rows, index), layout.outside) is not None]
    first = next(number for number, fields in rows if fields)
    if others:
        swapped = f" model.dataset.word_column={1 if others[-1] else last + 1}" if others[-1] == word else ""
        raise InputError(
            f"{path}:{first}: the tags stand in column {others[-1] + 1} of {last + 1}, not in the last. Set "
            f"model.dataset.tag_column={others[-1] + 1}{swapped}; tag_column=-1 is the last all the same."
        )
    if is_numbered and data_suffix(path) == ".conllu":
        return CONLLU_TAG - 1
    if last == word or all(map(_is_number, _values(rows, last) if values is None else values)):
        raise InputError(
            f"{path}:{first}: the last column has no tags. Name the column of tags: model.dataset.tag_column=N."
        )
    return last


def _values(rows: Iterable[_Fields], column: int) -> Iterator[str]:
    return (fields[column].strip() for _, fields in rows if fields)


def _require_tags(path: Path, rows: Sequence[_Fields], column: int, scheme: TagScheme, outside: str) -> None:
    """Raise InputError with the line of the first value that is no tag."""
    right, first = {""}, next(number for number, fields in rows if fields)
    for number, fields in rows:
        if fields and (value := fields[column].strip()) not in right:
            if number == first and not are_tags((value,), scheme, outside):
                raise InputError(
                    f"{path}:{number}: {value!r:.60} is no tag, as others are. If the line is a header, remove it; "
                    "if it stands for words outside, set model.dataset.pad_label to it."
                )
            standard_tags((value,), scheme, outside, f"{path}:{number}")
            right.add(value)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
