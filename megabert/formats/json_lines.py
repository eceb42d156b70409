"""JSON lines, one object a line, recognized by the suffix .jsonl, .json or .ndjson; files that are one JSON value.

A .json file may be a list of objects. Rows of Parquet and Arrow are read as objects, too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tokenizers.characters import require_characters
from .data_files import data_suffix, largest_expansion, open_data
from .json_reader import JsonReader
from .parquet_rows import TABLE_SUFFIXES, parquet_rows
from .record_streams import RecordStream, derived, is_held, numbered
from .rows import Row
from .text_lines import data_lines, read_lines

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def is_json_lines(path: Path) -> bool:
    """Return whether a file's name is that of JSON lines, compressed or not."""
    return data_suffix(path) in JSON_SUFFIXES


def has_objects(path: Path) -> bool:
    """Return whether a file's name is that of objects which `object_rows` reads."""
    return is_json_lines(path) or data_suffix(path) in TABLE_SUFFIXES


def read_json_lines(path: Path) -> list[Row]:
    """Read a row from each line; empty lines are left out."""
    return list(_rows(path, read_lines(path)))


def object_rows(path: Path) -> Sequence[Row]:
    """Read a row from each line, object of a list, or row of Parquet or Arrow; of a large file as a stream."""
    if data_suffix(path) in TABLE_SUFFIXES:
        return parquet_rows(path)
    if data_suffix(path) == ".json" and is_list(path):
        expansion = largest_expansion()
        rows: Sequence[Row] = RecordStream(lambda: _items(path, expansion))
        rows = list(rows) if is_held(path) else rows
        if not rows:
            raise InputError(f"{path} holds no objects.")
        return rows
    return derived(data_lines(path), lambda lines: _rows(path, lines))


def is_list(path: Path) -> bool:
    """Return whether a JSON file is a list, by its first characters."""
    with open_data(path) as file:
        return file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _items(path: Path, max_expansion: int) -> Iterator[Row]:
    with open_data(path, max_expansion) as file:
        reader = JsonReader(path, file)
        for number in reader.items():
            values, location = reader.value(), f"{path}, object {number + 1}"
            if not isinstance(values, dict):
                raise InputError(f"{location}: a JSON {type(values).__name__}; expected an object.")
            yield Row(values, location)
        reader.end()


def _rows(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    return (json_row(line, f"{path}:{number}") for number, line in numbered(lines) if line.strip())


def to_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format objects as lines of JSON."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace").decode()  # only half a surrogate pair has no UTF-8: \\ud800


def read_json(path: Path) -> Any:
    """Read a file that is one JSON value."""
    text = "\n".join(read_lines(path))

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):  # the last would be read only
            name = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
            raise InputError(f"{path}: not JSON: an object has the name {name[:60]!r} twice. Leave one out.")
        return values

    try:
        content = json.loads(text, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{path}: not JSON: nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{path}: not JSON: {str(error).partition(';')[0]}.") from None
    if "\\u" in text:
        require_characters(content, str(path))
    return content


def json_row(line: str, location: str) -> Row:
    """Parse a line's JSON object."""
    try:
        values = json.loads(line)
    except RecursionError:
        raise InputError(f"{location}: not JSON: nested too deeply. Write one JSON object a line.") from None
    except ValueError as error:  # integers of thousands of digits are one, too
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
        raise InputError(f"{location}: not JSON: {reason}. Write one JSON object a line.") from None
    if not isinstance(values, dict):
        raise InputError(f"{location}: a JSON {type(values).__name__}; expected an object, one a line.")
    if "\\u" in line:  # only an escape can be half of a character
        require_characters(values, location)
    return Row(values, location)
