"""JSON lines: one object a line, in UTF-8. Recognized by its suffix: .jsonl, .json or .ndjson."""

import json
from pathlib import Path

from ..errors import InputError
from .rows import Row
from .text_lines import read_lines

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def read_json_lines(path: Path) -> list[Row]:
    """Read a row from each line; empty lines are left out."""
    lines = enumerate(read_lines(path), start=1)
    return [json_row(line, f"{path}:{number}") for number, line in lines if line.strip()]


def json_row(line: str, location: str) -> Row:
    """Parse a line's JSON object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise InputError(f"{location}: not JSON: {reason}. Write one JSON object a line.") from None
    if not isinstance(values, dict):
        raise InputError(f"{location}: a JSON {type(values).__name__}; expected an object, one a line.")
    return Row(values, location)
