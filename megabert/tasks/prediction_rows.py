"""Files of predictions: rows in the order of the examples, fields of the input beside them, formats that are scored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..formats.data_files import data_suffix
from ..formats.json_lines import read_json_lines
from ..formats.pubmedqa import read_answers as read_pubmedqa
from ..formats.rows import Row
from ..formats.text_lines import read_lines


def rows_by_id(examples: Sequence[Any], rows: Sequence[Row], source: Path) -> list[Row]:
    """Sort rows into the order of the examples with the same ids; rows that all lack an id are in order already.

    Raises InputError if an example has no row or several, or a row has no example.
    """
    if not any("id" in row.values for row in rows):
        if len(rows) != len(examples):
            raise InputError(f"{source} has {len(rows)} predictions for {len(examples)} examples. Give one for each.")
        return list(rows)
    by_id: dict[str, Row] = {}
    for row in rows:
        name = str(row.get("id"))
        if by_id.setdefault(name, row) is not row:
            raise InputError(
                f"{row.location}: the id {name!r} is that of {by_id[name].location} too. Give each its own."
            )
    names = [str(example.id) for example in examples]
    for problem, extra in (
        ("has no prediction for", set(names) - set(by_id)),
        ("has unknown", set(by_id) - set(names)),
    ):
        if extra:
            raise InputError(f"{source} {problem} id {min(extra)!r}. Predict the file that is scored against.")
    if len(set(names)) < len(names):
        raise InputError(f"{source}: several examples that are scored against have the same id. Give each its own.")
    return [by_id[name] for name in names]


def pass_through(row: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Add fields of the input to a prediction's row; those that the row has already are its gold labels."""
    gold = {name: value for name, value in given.items() if name in row and name != "gold"} | row.get("gold", {})
    others = {name: value for name, value in given.items() if name not in row}
    return {**row, **others, **({"gold": gold} if gold else {})}


def read_labels(path: Path) -> list[Row]:
    """Read predicted labels: JSON lines as `megabert predict` writes them, a label a line, or PubMedQA's answers."""
    if data_suffix(path) == ".json" and not read_lines(path)[0].rstrip().endswith("}"):
        return read_pubmedqa(path)
    lines = read_lines(path)
    if lines[0].lstrip().startswith(("{", "[")):
        return read_json_lines(path)
    return [Row({"label": line.strip()}, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def read_answers(path: Path) -> dict[str, str]:
    """Read the answers to questions by their ids: SQuAD's {id: answer}, or JSON lines of `megabert predict`."""
    if path.suffix == ".jsonl":
        return {str(row.get("id")): str(row.get("answer")) for row in read_json_lines(path)}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise InputError(f'{path} is not a file of predictions: expected {{"question id": "answer", ...}}.')
    return content
