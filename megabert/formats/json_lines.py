"""Read JSON lines: one object a line."""

import json
from pathlib import Path

from ..errors import InputError
from .rows import Row
from .text_lines import read_lines

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


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
