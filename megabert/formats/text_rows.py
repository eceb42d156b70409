"""Texts and pairs of texts with labels: which columns of a table, or keys of JSON lines, are what.

Files are JSON lines (by their name), tables (tables.py) or NeMo's lines of words with an integer label at the end.
Without a header a table has text and label, in this order; a first line that is a header of unknown names, and columns
that are swapped, are errors. class_labels.py reads the labels.
"""

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, InputWarning
from .class_labels import possible_labels, trimmed
from .json_lines import has_objects, object_rows
from .parallel_passes import by_parts, find_repeated
from .pubmedqa import is_pubmedqa, read_pubmedqa
from .record_streams import derived, numbered
from .rows import Row
from .tables import is_table, name_columns, table_records
from .text_lines import data_lines, require_raw_text

TEXT_COLUMNS = ("text", "sentence", "sentence1", "text_a", "premise", "text_1")
PAIR_COLUMNS = ("text_b", "sentence2", "hypothesis", "text2", "text_2")
LABEL_COLUMNS = ("label", "labels", "gold_label", "class", "score")
ROLES: Mapping[str, Sequence[str]] = {
    "text": TEXT_COLUMNS, "text_b": PAIR_COLUMNS, "label": LABEL_COLUMNS, "id": ("id",)}  # fmt: skip
COLUMNS = (*TEXT_COLUMNS, *PAIR_COLUMNS, *LABEL_COLUMNS, "id", "index", "idx")
# Usual names of texts that are read only where model.dataset.columns names them.
OTHER_TEXTS = frozenset(("question", "question1", "question2", "query", "context", "passage", "answer", "title",
                         "abstract", "body", "document", "content"))  # fmt: skip
NO_GOLD_LABEL = ()
"""Stands for the label of a pair in a labelled file that has none."""
BY_NUMBER = "model.dataset.columns.text=1 model.dataset.columns.label=2"


def read_text_rows(path: Path, columns: Mapping[str, Any], labels: Collection[str] = ()) -> Sequence[Row]:
    """Read rows with `text`, and where the file has them `text_b`, `label` and `id`; other values keep their names.

    `columns` maps these four to the file's names or numbers of columns. Where `labels` are known, numbers at the ends
    of lines belong to the texts unless each line has one and some are labels.
    """
    if is_pubmedqa(path):
        return read_pubmedqa(path)
    if has_objects(path):
        rows = object_rows(path)
        _warn_of_texts(rows[0], columns)
        return _without_gold(path, _by_role(rows, columns), labels)
    lines = data_lines(path)
    if not is_table(path, lines):
        require_raw_text(path, lines)
        return _rows_of_blanks(path, lines, labels)
    table = name_columns(path, table_records(path, lines, COLUMNS), ("text", "label"), COLUMNS, columns)
    if not table.has_header and not columns and "label" in table.rows[0].values:
        _check_unnamed(table.rows)
        _check_known(table.rows, labels)
    _warn_of_texts(table.rows[0], columns)
    names = {role: role if isinstance(name, int) else str(name).lower() for role, name in columns.items()}
    return _without_gold(path, _by_role(table.rows, names), labels)


def _warn_of_texts(row: Row, columns: Mapping[str, Any]) -> None:
    """Report columns whose names are those of texts, and which are not read."""
    unread = [name for name in row.values if name.lower() in OTHER_TEXTS]
    text = next((name for name in TEXT_COLUMNS if name in row.values), None)
    if columns or not unread or text is None:
        return
    roles = {
        "text": unread[0],
        "text_b": text,
        "label": next((key for key in LABEL_COLUMNS if key in row.values), None),
    }
    words = " ".join(f"model.dataset.columns.{role}={name}" for role, name in roles.items() if name)
    note = f"{row.location}: of the texts {text} is read, {', '.join(unread)} not. To read pairs: {words}."
    warnings.warn(note, InputWarning, stacklevel=3)


def check_ids(path: Path, rows: Sequence[Row]) -> None:
    """Raise InputError if two rows have the same id."""
    if not has_objects(path) and "id" not in rows[0].values:  # a pass over a large file takes long
        return
    named = derived(rows, lambda rows: (row for row in rows if isinstance(row.values.get("id"), str | int)))
    if repeated := find_repeated(derived(named, lambda rows: (str(row.values["id"]) for row in rows))):
        row, first = (named[number] for number in repeated)
        raise InputError(
            f"{row.location}: the id {row.values['id']!r} is that of {first.location} too. Give each its own."
        )


def _by_role(rows: Sequence[Row], columns: Mapping[str, Any]) -> Sequence[Row]:
    return derived(rows, lambda rows: (by_role(row, columns) for row in rows))


def by_role(row: Row, columns: Mapping[str, Any]) -> Row:
    """Rename a row's values to text, text_b, label and id, by `columns` or else by the known names."""
    names, problem = _renamed(tuple(row.values), tuple(columns.items()))
    if problem:
        raise InputError(f"{row.location}: {problem}")
    values = row.values
    return Row({name: values[own] for name, own in names}, row.location)


@lru_cache(maxsize=2**10)
def _renamed(names: Sequence[str], columns: Sequence[tuple[str, Any]]) -> tuple[Sequence[tuple[str, str]], str]:
    """Return the new name of each of a row's names, or what is missing."""
    left, given = dict.fromkeys(names), dict(columns)
    found: dict[str, str] = {}
    for role, known in ROLES.items():
        name = given.get(role) if given else next((name for name in known if name in left), None)
        if name in left:
            del left[name]
            found[role] = name
        elif name is not None and role != "label":
            return (), f"there is no {name!r} (model.dataset.columns.{role}); found {', '.join(left)[:100]}."
    # What the setting leaves out is not taken for a text or a label.
    others = {name: name for name in left if not given or name not in COLUMNS}
    return tuple((others | found).items()), ""


def _without_gold(path: Path, rows: Sequence[Row], known: Collection[str]) -> Sequence[Row]:
    """Mark pairs on which annotators did not agree, with the label - or -1 as in SNLI; report how many.

    A file whose labels are all -1, and no `known` one is, has none: the library datasets writes GLUE's test data so.
    """
    if "-1" not in known and _label_of(rows[0]) == "-1" and all(_label_of(row) == "-1" for row in rows):
        return derived(rows, lambda rows: (Row(row.others("label"), row.location) for row in rows))
    if "text_b" not in rows[0].values:
        return rows
    labels: Counter[str | None] = Counter()
    for counts in by_parts(rows, lambda rows: Counter(map(_label_of_pair, rows))):
        labels.update(counts)
    others = set(labels) - {"-", "-1", None}
    missing = ("-", "-1") if others == {"0", "1", "2"} else ("-",)
    num_missing = sum(labels[label] for label in missing)
    if not num_missing:
        return rows
    if num_missing == labels.total():  # the file is unlabelled
        return derived(rows, lambda rows: (Row(row.others("label"), row.location) for row in rows))
    warnings.warn(
        f"{path}: {num_missing} of {labels.total()} pairs have no gold label ({' or '.join(missing)}). They are not "
        "trained on, and not scored.",
        InputWarning,
        stacklevel=2,
    )
    without = {"label": NO_GOLD_LABEL}
    return derived(
        rows,
        lambda rows: (
            Row(row.values | without, row.location) if _label_of_pair(row) in missing else row for row in rows
        ),
    )


def _label_of(row: Row) -> str:
    return str(row.values.get("label")).removesuffix(".0")


def _label_of_pair(row: Row) -> str | None:
    return _label_of(row) if "text_b" in row.values else None


def _check_unnamed(rows: Sequence[Row]) -> None:
    """Raise InputError where the first row looks like a header of unknown names, or the label stands first."""
    first_text, first = (rows[0].values[name].strip() for name in ("text", "label"))
    labels: Counter[int] = Counter()  # by their hashes: what stands for a label may be a text
    counts = np.zeros(4, dtype=np.int64)
    for own, sums in by_parts(rows, _survey):
        labels.update(own)
        counts += sums
    num_rows, num_numbers, num_words, num_label_words = counts.tolist()
    are_numbers = num_numbers == num_rows - (not _is_number(first))
    num_others, num_kinds = num_rows - 1, len(labels) - 1
    is_rare = num_others > 2 and labels[hash(first)] == 1 and 2 * num_kinds <= num_others
    is_no_number = num_others > 1 and not _is_number(first) and are_numbers
    if (is_rare and len(first_text.split()) <= 3) or is_no_number:
        raise InputError(
            f"{rows[0].location}: the label {first!r:.40} occurs in no other row. If the line is a header, name its "
            f"columns: model.dataset.columns.text={first_text[:40]!r} model.dataset.columns.label={first[:40]!r}; if "
            f"it is none: {BY_NUMBER}."
        )
    if num_label_words <= num_words:
        return
    num_texts = len({hash(row.values["text"].strip()) for row in rows})
    are_unlike = num_rows > 3 and len(labels) == num_rows and num_label_words > 2 * num_rows
    if len(labels) > num_texts or are_unlike:
        raise InputError(
            f"{rows[0].location}: the second column, the label, has {len(labels)} different values in {num_rows} "
            f"rows, the first, the text, {num_texts}. If the label stands first: model.dataset.columns.label=1 "
            f"model.dataset.columns.text=2; if not: {BY_NUMBER}."
        )


def _check_known(rows: Sequence[Row], known: Collection[str]) -> None:
    """Raise InputError where rows have labels, but none of the run's: the columns are others, such as id and text."""
    cells = (labels for row in rows if (labels := possible_labels(row.values["label"])))
    if known and (first := next(cells, None)) and not any(labels & set(known) for labels in chain([first], cells)):
        raise InputError(
            f"{rows[0].location}: {rows[0].values['label']!r:.40} is not one of the trained labels "
            f"({', '.join(sorted(known)[:5])}), nor is any other of the second column. Columns without a header are "
            "text and label: name others by their numbers, model.dataset.columns.text=2, or give a header. To train a "
            "new head on other labels, give model.head.reset=true."
        )


def _survey(rows: Iterable[Row]) -> tuple[Counter[int], list[int]]:
    """Count the labels by their hashes; the rows, the labels that are numbers, the words of texts, those of labels."""
    labels: Counter[int] = Counter()
    num_rows = num_numbers = num_words = num_label_words = 0
    for num_rows, row in enumerate(rows, start=1):  # noqa: B007  (used behind the loop)
        text, label = row.values["text"].strip(), row.values["label"].strip()
        labels[hash(label)] += 1
        num_numbers += _is_number(label)
        num_words, num_label_words = num_words + len(text.split()), num_label_words + len(label.split())
    return labels, [num_rows, num_numbers, num_words, num_label_words]


@lru_cache(maxsize=2**10)
def _is_number(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", label) is not None


def _rows_of_blanks(path: Path, lines: Sequence[str], labels: Collection[str]) -> Sequence[Row]:
    """Parse lines of words with an integer label at the end; if no line has one they are texts without labels."""
    rows = derived(lines, lambda lines: _split_labels(path, lines))
    found = Counter(row.values.get("label") for row in rows)
    num_unlabelled = found.pop(None, 0)
    if labels and (num_unlabelled or not set(found) & set(labels)):
        return derived(
            lines, lambda lines: (Row({"text": line, "id": str(n)}, place) for line, n, place in _filled(path, lines))
        )
    if num_unlabelled and found:
        unlabelled = next(row for row in rows if "label" not in row.values)
        raise InputError(
            f"{unlabelled.location}: no label at the end, as other lines have one. Write text, a tab and the label."
        )
    return rows


def _filled(path: Path, lines: Iterable[str]) -> Iterator[tuple[str, int, str]]:
    """Return the lines that are not empty, without blanks at their ends, with number and location."""
    stripped = (line.strip(" ") for line in lines)
    return ((line, number, f"{path}:{number}") for number, line in numbered(stripped) if line)


def _split_labels(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for line, number, location in _filled(path, lines):
        text, _, label = line.rpartition(" ")
        label = trimmed(label)
        values = {"text": text.rstrip(" "), "label": label} if text and label.isdecimal() else {"text": line}
        yield Row(values | {"id": str(number)}, location)


def first_name(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of the names that a row has, None if it has none."""
    return next((name for name in names if name in row.values), None)


def text_value(row: Row, names: Sequence[str]) -> str | None:
    """Return the string of the first of the names that a row has; raises InputError for another value."""
    name = first_name(row, names)
    value = None if name is None else row.values[name]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{row.location}: the text is {value!r}; expected a string.")
    return value
