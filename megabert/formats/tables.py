"""Tables of tab-separated or comma-separated values, with or without a header.

A name that ends with .csv is read as CSV (RFC 4180; the separator is a comma, semicolon or tab), and so is a file with
tabs whose first line has each cell in quotes; elsewhere tabs cannot be quoted. A first line is a header if all its
cells are known names, or if it has more columns than a table without header and at least two known names. Raises
InputError with file, line and remedy.
"""

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .data_files import data_suffix
from .record_streams import derived, numbered
from .rows import Row
from .text_lines import read_lines

SEPARATORS = (",", ";", "\t")
Record = tuple[list[str], str]
"""The cells of a row, and its location."""


@dataclass(frozen=True)
class Table:
    """Rows with named values."""

    rows: Sequence[Row]
    has_header: bool


def split_rows(path: Path) -> list[Record]:
    """Read tab-separated rows, without empty lines: the columns and the location of each."""
    return list(_split(path, read_lines(path)))


def _split(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    return ((line.split("\t"), f"{path}:{number}") for number, line in numbered(lines) if line.strip())


def is_table(path: Path, lines: Sequence[str]) -> bool:
    """Return whether lines are rows of a table: by the file's name, or because one has a tab."""
    return data_suffix(path) in (".csv", ".tsv") or any("\t" in line for line in lines)


def table_records(path: Path, lines: Sequence[str], known: Collection[str]) -> Sequence[Record]:
    """Split the lines of a table into rows, by tabs or as CSV; `known` are names that a header may have."""
    if data_suffix(path) == ".csv":
        best = max(SEPARATORS, key=lambda item: _fit(lines, item, known))
        return derived(lines, lambda lines: quoted_records(path, lines, best), "file")
    first = next(line for line in lines if line.strip()).split("\t")
    if len(first) > 1 and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in map(str.strip, first)):
        return derived(lines, lambda lines: quoted_records(path, lines, "\t"), "file")
    return derived(lines, lambda lines: _split(path, lines))


def _fit(lines: Sequence[str], separator: str, known: Collection[str]) -> tuple[bool, int]:
    """Rate a separator: does it make a header of known names, and how many columns?"""
    try:
        header = next(cells for cells in _reader(lines, separator) if any(cells))
    except (csv.Error, StopIteration):
        return False, 0
    return all(name in known for name in column_names(header)), len(header)


def _reader(lines: Iterable[str], separator: str) -> Any:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KB, is less than a long text
    return csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)


def quoted_records(path: Path, lines: Iterable[str], separator: str) -> Iterator[Record]:
    """Parse rows whose cells may be in quotes, with separators and ends of lines in them; empty rows are left out."""
    reader = _reader(lines, separator)
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield cells, f"{path}:{start}"
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{start}: not CSV: {error}. Write a quote in a quoted cell twice.") from None


def column_names(cells: Sequence[str]) -> list[str]:
    """Return the names in a header's cells: in lower case, without quotes."""
    return [cell.strip("\ufeff\u200b").strip().strip('"').strip().lower() for cell in cells]


def name_columns(
    path: Path, records: Sequence[Record], order: Sequence[str], known: Collection[str], given: Mapping[str, Any]
) -> Table:
    """Name the values of each row by its header, or by `order` where there is none; the last ones may be absent.

    `given` maps names to those of the file's header, or to numbers of columns, from 1, of a table without header.
    """
    if not records:
        raise InputError(f"{path} holds no rows.")
    header = column_names(records[0][0])
    has_header = _is_header(path, header, order, known)
    if given:
        has_header = not any(isinstance(name, int) for name in given.values())
    if has_header:
        names, records = header, records[1:]
        if len(set(names)) < len(names):
            raise InputError(f"{path}:1: a column's name appears twice: {', '.join(names)}. Make each name unique.")
        if not records:
            raise InputError(f"{path} holds no rows but a header.")
    elif given:
        numbers = {number: name for name, number in given.items()}
        names = [numbers.get(number, f"column {number}") for number in range(1, len(header) + 1)]
    elif len(header) <= len(order):
        names = list(order[: len(header)])
    else:
        raise InputError(
            f"{path}:1: {len(header)} columns; expected at most {len(order)}: {', '.join(order)}, separated by tabs, "
            f"or a header line with their names; found {', '.join(header)[:100]}. Or set model.dataset.columns."
        )
    return Table(derived(records, lambda records: _named(records, names)), has_header)


def _named(records: Iterable[Record], names: Sequence[str]) -> Iterator[Row]:
    for values, location in records:
        if len(values) != len(names):
            raise InputError(
                f"{location}: {len(values)} columns where {len(names)} are expected ({', '.join(names)}). "
                "Is there a tab too many or too few?"
            )
        yield Row(dict(zip(names, values, strict=True)), location)


def _is_header(path: Path, header: Sequence[str], order: Sequence[str], known: Collection[str]) -> bool:
    if all(name in known for name in header):
        return len(header) > 1 or data_suffix(path) in (".csv", ".tsv")
    return len(header) > len(order) and len(set(known) & set(header)) > 1
