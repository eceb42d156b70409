"""JSON lines: one object a line, in UTF-8. Recognized by its suffix: .jsonl, .json or .ndjson."""

import json
from pathlib import Path

from ..errors import InputError
from ..tokenizers.characters import require_characters
from .data_files import data_suffix
from .rows import Row
from .text_lines import read_lines

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def is_json_lines(path: Path) -> bool:
    """Return whether a file's name is that of JSON lines, compressed or not."""
    return data_suffix(path) in JSON_SUFFIXES


def read_json_lines(path: Path) -> list[Row]:
    """Read a row from each line; empty lines are left out."""
    lines = enumerate(read_lines(path), start=1)
    return [json_row(line, f"{path}:{number}") for number, line in lines if line.strip()]


def json_row(line: str, location: str) -> Row:
    """Parse a line's JSON object."""
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InputError(f"{location}: not JSON: {reason}. Write one JSON object a line.") from None
    if not isinstance(values, dict):
        raise InputError(f"{location}: a JSON {type(values).__name__}; expected an object, one a line.")
    if "\\u" in line:  # only an escape can be half of a character
        require_characters(values, location)
    return Row(values, location)
