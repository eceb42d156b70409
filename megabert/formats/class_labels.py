"""Labels of classes as files write them: one, several in a string, or a mark for each class.

Labels are strings: 1, 1.0 and "1" are one class, null and NaN are none.
"""

import json
import math
import re
import unicodedata
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError, InputWarning
from .record_streams import derived
from .rows import Row

# What separates several labels of a string, the first one that a file has.
LABEL_SEPARATORS = (",", ";", "|")
MAX_LABEL_KEPT = 64
_MARKED = re.compile("(.+)_([01])")


def marked_labels(path: Path, rows: Sequence[Row]) -> Sequence[Row]:
    """Read labels that state each class as present or not, 0_1,1_0 (BLUE's Hallmarks of Cancer), as those present."""
    names = _marks(rows[0]).keys()
    if len(names) < 2 or any(_marks(row).keys() != names for row in rows):
        return rows
    warnings.warn(
        f"{path}: each row has a mark for all of {len(names)} labels "
        f"({rows[0].values['label']:.60}). Those marked _1 are its labels.",
        InputWarning,
        stacklevel=2,
    )
    return derived(
        rows,
        lambda rows: (
            Row(row.values | {"label": [name for name, mark in _marks(row).items() if mark == "1"]}, row.location)
            for row in rows
        ),
    )


def vector_labels(path: Path, rows: Sequence[Row]) -> Sequence[Row]:
    """Read labels that are a 0 or 1 for each class, [0, 1, 1], as the numbers of the classes that have 1, from 0.

    Two numbers a row are such marks if some row repeats one; else each row is a set of the labels 0 and 1.
    """
    size = len(_vector(rows[0]))
    num_rows, is_repeated = 0, False
    for num_rows, row in enumerate(rows if size > 1 else (), start=1):  # noqa: B007  (used behind the loop)
        vector = _vector(row)
        if len(vector) != size:
            return rows
        is_repeated = is_repeated or len(set(vector)) < size
    if not is_repeated or (size == 2 and num_rows == 1):
        return rows
    warnings.warn(
        f"{path}: each row has 0 or 1 for each of {size} labels ({rows[0].values['label']!s:.60}). Those with 1 are "
        "its labels, named by their numbers from 0.",
        InputWarning,
        stacklevel=2,
    )
    return derived(
        rows,
        lambda rows: (
            Row(row.values | {"label": [str(number) for number, mark in enumerate(_vector(row)) if mark]}, row.location)
            for row in rows
        ),
    )


def possible_labels(cell: str) -> set[str]:
    """Return all labels that a cell may stand for, as one, a list, parts at a separator, or marks of each class."""
    items = _parse_list(trimmed(cell))
    if items is None:
        parts = {trimmed(part) for part in (cell, *re.split("[,;|]", cell))}
    else:
        parts = {str(item) for item in (*items, *(range(len(items)) if set(map(str, items)) <= {"0", "1"} else ()))}
    parts |= {match[1] for part in parts if (match := _MARKED.fullmatch(part))}
    return {_whole(part) for part in parts if part}


def _whole(label: str) -> str:
    return re.sub(r"^(-?\d+)\.0+$", r"\1", label)


def _vector(row: Row) -> list[Any]:
    """Return a label that is a list of 0 and 1, [] if it is none."""
    label = row.values.get("label")
    items = _parse_list(trimmed(label)) if isinstance(label, str) else label
    return items if isinstance(items, list) and all(item in (0, 1) for item in items) else []


def separated_labels(path: Path, rows: Sequence[Row]) -> Sequence[Row]:
    """Split labels at the separator that the file has, where it is no comma: Treatment;Mechanism, as in LitCovid."""
    strings = derived(rows, lambda rows: (label for row in rows if (label := _joined_labels(row))))
    found = {sign for label in strings for sign in LABEL_SEPARATORS if sign in label}
    separator = next((sign for sign in LABEL_SEPARATORS if sign in found), ",")
    if separator == ",":
        return rows
    shown = next(label for label in strings if separator in label)
    text = f"{path}: labels are separated at {separator!r}, {shown[:60]!r}. To keep them whole give lists in JSON."
    warnings.warn(text, InputWarning, stacklevel=2)
    return derived(
        rows,
        lambda rows: (
            Row(row.values | {"label": label.replace(separator, ",")}, row.location)
            if (label := _joined_labels(row))
            else row
            for row in rows
        ),
    )


def _joined_labels(row: Row) -> str:
    """Return a label that is a string and no list in JSON, else an empty string."""
    label = row.values.get("label")
    return label if isinstance(label, str) and not label.lstrip().startswith("[") else ""


def _marks(row: Row) -> dict[str, str]:
    """Return the mark of each label, {} where a row has none or repeats a label."""
    label = row.values.get("label")
    found = [_MARKED.fullmatch(trimmed(item)) for item in label.split(",")] if isinstance(label, str) else []
    marks = {match[1]: match[2] for match in found if match}
    return marks if len(marks) == len(found) else {}


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
    label = _known_label(value) if isinstance(value, str) and len(value) <= MAX_LABEL_KEPT else None
    return _parse_label(value, location) if label is None else label


@lru_cache(maxsize=2**12)
def _known_label(value: str) -> str | None:
    try:
        return _parse_label(value, "")
    except InputError:
        return None


def _parse_label(value: Any, location: str) -> str:
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
    return _whole(label)


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
