"""Tab-separated tables, with or without a header.

A first line is a header if it has two columns or more, all of known names, or if it has more columns than a table
without header and at least two known names. Tabs cannot be quoted. Raises InputError with file, line and remedy.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .rows import Row
from .text_lines import read_lines


def table_rows(path: Path, lines: Sequence[str], columns: Sequence[str], known: Sequence[str]) -> list[Row]:
    """Parse a file's lines as a table; `known` are the column names that a header may have.

    `columns` names the columns of a table without header, in order; the last ones may be absent in all rows.
    """
    rows = split_lines(path, lines)
    header = [name.strip().lower() for name in rows[0][0]]
    is_known = len(header) > 1 and all(name in known for name in header)
    if is_known or (len(header) > len(columns) and len(set(known) & set(header)) > 1):
        names, rows = header, rows[1:]
        if len(set(names)) < len(names):
            raise InputError(f"{path}:1: a column's name appears twice: {', '.join(names)}. Make each name unique.")
    else:
        width = len(rows[0][0])
        if not 1 <= width <= len(columns):
            raise InputError(
                f"{path}:1: {width} columns; expected at most {len(columns)}: {', '.join(columns)}, separated by tabs, "
                "or a header line with their names."
            )
        names = list(columns[:width])
    if not rows:
        raise InputError(f"{path} holds no rows but a header.")
    for values, location in rows:
        if len(values) != len(names):
            raise InputError(
                f"{location}: {len(values)} columns where {len(names)} are expected ({', '.join(names)}). "
                "Is there a tab too many or too few?"
            )
    return [Row(dict(zip(names, values, strict=True)), location) for values, location in rows]


def split_rows(path: Path) -> list[tuple[list[str], str]]:
    """Read tab-separated rows, without empty lines: the columns and the location of each."""
    return split_lines(path, read_lines(path))


def split_lines(path: Path, lines: Sequence[str]) -> list[tuple[list[str], str]]:
    """Split a file's lines at tabs, as `split_rows` does."""
    return [(line.split("\t"), f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
