"""Texts and pairs of texts with labels: which columns of a table, or keys of JSON lines, are what.

Files are JSON lines (by their name), tables (tables.py) or NeMo's lines of words with an integer label at the end.
Without a header a table has text and label, in this order; a first line that is a header of unknown names, and columns
that are swapped, are errors. Labels are strings: 1, 1.0 and "1" are one class, null and NaN are none.
"""

import json
import math
import re
import unicodedata
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, InputWarning
from .json_lines import is_json_lines, read_json_lines
from .pubmedqa import is_pubmedqa, read_pubmedqa
from .rows import Row
from .tables import is_table, name_columns, table_records
from .text_lines import read_lines

TEXT_COLUMNS = ("text", "sentence", "sentence1", "text_a", "premise")
PAIR_COLUMNS = ("text_b", "sentence2", "hypothesis", "text2")
LABEL_COLUMNS = ("label", "labels", "gold_label", "class", "score")
ROLES: Mapping[str, Sequence[str]] = {
    "text": TEXT_COLUMNS, "text_b": PAIR_COLUMNS, "label": LABEL_COLUMNS, "id": ("id",)}  # fmt: skip
COLUMNS = (*TEXT_COLUMNS, *PAIR_COLUMNS, *LABEL_COLUMNS, "id", "index", "idx")
NO_GOLD_LABEL = ()
"""Stands for the label of a pair in a labelled file that has none."""
BY_NUMBER = "model.dataset.columns.text=1 model.dataset.columns.label=2"


def read_text_rows(path: Path, columns: Mapping[str, Any], labels: Collection[str] = ()) -> list[Row]:
    """Read rows with `text`, and where the file has them `text_b`, `label` and `id`; other values keep their names.

    `columns` maps these four to the file's names or numbers of columns. Where `labels` are known, numbers at the ends
    of lines belong to the texts unless each line has one and some are labels.
    """
    if is_pubmedqa(path):
        return read_pubmedqa(path)
    if is_json_lines(path):
        return _without_gold(path, [by_role(row, columns) for row in read_json_lines(path)])
    lines = read_lines(path)
    if not is_table(path, lines):
        return _rows_of_blanks(path, lines, labels)
    table = name_columns(path, table_records(path, lines, COLUMNS), ("text", "label"), COLUMNS, columns)
    if not table.has_header and not columns and "label" in table.rows[0].values:
        _check_unnamed(table.rows)
    names = {role: role if isinstance(name, int) else str(name).lower() for role, name in columns.items()}
    return _without_gold(path, [by_role(row, names) for row in table.rows])


def by_role(row: Row, columns: Mapping[str, Any]) -> Row:
    """Rename a row's values to text, text_b, label and id, by `columns` or else by the known names."""
    values = dict(row.values)
    found: dict[str, Any] = {}
    for role, names in ROLES.items():
        name = columns.get(role) if columns else next((name for name in names if name in values), None)
        if name in values:
            found[role] = values.pop(name)
        elif name is not None and role != "label":
            raise InputError(
                f"{row.location}: there is no {name!r} (model.dataset.columns.{role}); found {', '.join(values)[:100]}."
            )
    # What the setting leaves out is not taken for a text or a label.
    others = {name: value for name, value in values.items() if not columns or name not in COLUMNS}
    return Row(others | found, row.location)


def _without_gold(path: Path, rows: list[Row]) -> list[Row]:
    """Mark pairs on which annotators did not agree, with the label - or -1 as in SNLI; report how many."""
    labels = [str(row.values.get("label")) if "text_b" in row.values else None for row in rows]
    others = set(labels) - {"-", "-1", None}
    missing = ("-", "-1") if others in ({"0", "1", "2"}, set()) else ("-",)
    num_missing = sum(label in missing for label in labels)
    if num_missing == len(rows):  # the file is unlabelled
        return [Row({name: row.values[name] for name in row.values if name != "label"}, row.location) for row in rows]
    if num_missing:
        warnings.warn(
            f"{path}: {num_missing} of {len(rows)} pairs have no gold label ({' or '.join(missing)}). They are not "
            "trained on, and not scored.",
            InputWarning,
            stacklevel=2,
        )
    return [
        Row(row.values | {"label": NO_GOLD_LABEL}, row.location) if label in missing else row
        for row, label in zip(rows, labels, strict=True)
    ]


def _check_unnamed(rows: Sequence[Row]) -> None:
    """Raise InputError where the first row looks like a header of unknown names, or the label stands first."""
    texts, labels = ([row.values[name].strip() for row in rows] for name in ("text", "label"))
    first, others = labels[0], labels[1:]
    is_rare = len(others) > 2 and first not in others and 2 * len(set(others)) <= len(others)
    is_no_number = len(others) > 1 and not _is_number(first) and all(map(_is_number, others))
    if (is_rare and len(texts[0].split()) <= 3) or is_no_number:
        raise InputError(
            f"{rows[0].location}: the label {first!r:.40} occurs in no other row. If the line is a header, name its "
            f"columns: model.dataset.columns.text={texts[0][:40]!r} model.dataset.columns.label={first[:40]!r}; if it "
            f"is none: {BY_NUMBER}."
        )
    num_words, num_label_words = (sum(len(item.split()) for item in items) for items in (texts, labels))
    are_unlike = len(rows) > 3 and len(set(labels)) == len(rows) and num_label_words > max(num_words, 2 * len(rows))
    if (len(set(labels)) > len(set(texts)) and num_label_words > num_words) or are_unlike:
        raise InputError(
            f"{rows[0].location}: the second column, the label, has {len(set(labels))} different values in {len(rows)} "
            f"rows, the first, the text, {len(set(texts))}. If the label stands first: model.dataset.columns.label=1 "
            f"model.dataset.columns.text=2; if not: {BY_NUMBER}."
        )


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", label) is not None


def _rows_of_blanks(path: Path, lines: Sequence[str], labels: Collection[str]) -> list[Row]:
    """Parse lines of words with an integer label at the end; if no line has one they are texts without labels."""
    rows, texts = [], []
    for number, line in enumerate((line.strip(" ") for line in lines), start=1):
        text, _, label = line.rpartition(" ")
        label = trimmed(label)
        values = {"text": text.rstrip(" "), "label": label} if text and label.isdecimal() else {"text": line}
        if line:
            rows.append(Row(values | {"id": str(number)}, f"{path}:{number}"))
            texts.append(Row({"text": line, "id": str(number)}, f"{path}:{number}"))
    found = [row.values["label"] for row in rows if "label" in row.values]
    if labels and (len(found) < len(rows) or not set(found) & set(labels)):
        return texts
    unlabelled = [row for row in rows if "label" not in row.values]
    if unlabelled and found:
        raise InputError(
            f"{unlabelled[0].location}: no label at the end, as other lines have one. Write text, a tab and the label."
        )
    return rows


def trimmed(text: str) -> str:
    """Remove white space and invisible characters from both ends."""
    start, end = 0, len(text)
    while start < end and _is_invisible(text[start]):
        start += 1
    while end > start and _is_invisible(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_invisible(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf")


def parse_label(value: Any, location: str) -> str:
    """Convert a label to a string; raises InputError if it is none.

    Numbers without a fraction are whole, 1.0 is 1; true and false are words.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{location}: the label is {json.dumps(value)}. Give one, or leave the row out.")
    label = "" if isinstance(value, list | dict) else trimmed(str(value))
    if not label or (isinstance(value, str) and _parse_list(label) is not None):
        raise InputError(
            f"{location}: the label is {value!r:.80}; expected one word or number (any number of them: "
            "model.dataset.problem=multi_label)."
        )
    if label in ("nan", "NaN", "null", "NULL"):
        raise InputError(f"{location}: the label is {label}, a missing value. Leave the row out, or rename the label.")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", label)


def parse_labels(value: Any, location: str) -> tuple[str, ...]:
    """Convert any number of labels, a list, JSON's notation of one, or a string with commas, to strings."""
    items = value
    if isinstance(value, str):
        items = _parse_list(trimmed(value))
        if items is None and trimmed(value).startswith("["):
            raise InputError(f'{location}: the labels {value!r:.80} are no list in JSON, such as ["a", "b"].')
        items = [item for item in value.split(",") if trimmed(item)] if items is None else items
    return tuple(parse_label(item, location) for item in (items if isinstance(items, list) else [items]))


def _parse_list(text: str) -> list[Any] | None:
    """Parse JSON's notation of a list; None if it is none."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if isinstance(items, list) else None


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
