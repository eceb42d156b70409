"""Tables of documents, one a row: CSV, TSV, JSON lines and Parquet, with a column of identifiers and one of texts.

So do clinical notes come. Other columns become infons of the document; spans, in CSV as JSON (Label Studio), its
entities. Parquet needs the extra `documents`.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..parquet_rows import parquet_rows
from .document import Document, Passage
from .sources import MAX_RECORD_BYTES, STANDARD_INPUT, ReadOptions, text_lines
from .span_objects import document_of, has_spans, require_no_annotations, with_parsed_spans

ID_COLUMN, TEXT_COLUMN = "id", "text"


def read_csv(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the rows of a CSV file with a header; quoted fields may hold line ends."""
    yield from _table(path, file, options, ",")


def read_tsv(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the rows of a TSV file with a header."""
    yield from _table(path, file, options, "\t")


def _table(path: Path, file: IO[bytes], options: ReadOptions, delimiter: str) -> Iterator[Document]:
    # Notes are longer than the csv module's limit of a field, 128 KiB.
    csv.field_size_limit(MAX_RECORD_BYTES)
    first, reader = 1, csv.DictReader(_decoded(path, file), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            location, first = f"{path}:{first + 1}", reader.line_num
            if None in row or None in row.values():
                options.faults(f"{location}: not as many columns as the header's {len(reader.fieldnames or ())}.")
                continue
            yield _spans_or_row(with_parsed_spans(row), location, number, options)
    except csv.Error as error:
        raise InputError(f"{path}:{first + 1}: not {'CSV' if delimiter == ',' else 'TSV'}: {error}.") from None


def _decoded(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in text_lines(path, file):
        yield line.removeprefix("\ufeff") if number == 1 else line


def row_document(row: Mapping[str, Any], location: str, options: ReadOptions) -> Document:
    """Make a document of a row."""
    if options.id_column is None and len(row) == 1:  # texts alone are named by their rows
        row = {**row, ID_COLUMN: Path(location).name}
    names = {"--id-column": options.id_column or ID_COLUMN, "--text-column": options.text_column or TEXT_COLUMN}
    for option, name in names.items():
        if name not in row:
            found = ", ".join(map(str, row))[:200]
            raise InputError(f"{location}: there is no column {name!r}; there are {found}. Name one: {option}.")
    id_column, text_column = names.values()
    text, name = row[text_column], row[id_column]
    if not isinstance(text, str):
        raise InputError(f"{location}: column {text_column!r} is {text!r}; expected a string.")
    if name is None or str(name) == "":
        raise InputError(f"{location}: column {id_column!r} is empty. Give each document an identifier.")
    infons = {key: value for key, value in row.items() if key not in (id_column, text_column) and value is not None}
    return Document(str(name), (Passage(0, text),), infons=infons, location=location)


def _spans_or_row(row: Mapping[str, Any], location: str, number: int, options: ReadOptions) -> Document:
    """Make a document of a row with its spans, if it has any and no column of texts is named."""
    own_id = options.id_column
    if options.text_column is not None or own_id not in (None, *row):
        return row_document(row, location, options)
    if has_spans(row):
        if own_id is not None:
            row = {key: value for key, value in row.items() if key != own_id} | {ID_COLUMN: row[own_id]}
        return document_of(row, location, number)
    require_no_annotations(row, location)
    return row_document(row, location, options)


def read_parquet(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the rows of a Parquet file."""
    if path == STANDARD_INPUT:
        raise InputError("Parquet is not read from standard input, since its index stands at the end. Give a file.")
    for number, row in enumerate(parquet_rows(path), start=1):
        yield _spans_or_row(row.values, row.location, number, options)


def render_csv(rows: Iterator[Mapping[str, Any]], columns: tuple[str, ...]) -> bytes:
    """Write rows as CSV in RFC 4180's way, lists and objects as JSON."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\r\n")
    for row in rows:
        values = (row[name] for name in columns)
        writer.writerow(
            json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in values
        )
    return output.getvalue().encode()
