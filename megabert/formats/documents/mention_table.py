"""One row a mention, as CSV or Parquet: document, passage, start, end, text, type, identifier, score, source, ...

Offsets are characters of the document; `passage` is the passage's type. A gap of a discontinuous mention is in
`fragments`, the concept's name and the link's score in `name` and `link_score`. Parquet needs the extra `documents`.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import IO, Any

from ..parquet_rows import import_pyarrow
from .document import Document
from .losses import Losses
from .row_documents import render_csv

CSV_FORMAT, PARQUET_FORMAT = "csv", "parquet"
LINKED = ("name", "link_score")  # infons of entities that have been linked
COLUMNS = (
    "document",
    "passage",
    "start",
    "end",
    "text",
    "type",
    "identifier",
    "score",
    "source",
    "fragments",
    "name",
    "link_score",
)
ROWS_OF_A_GROUP = 100_000


def mention_rows(document: Document, losses: Losses) -> Iterator[dict[str, Any]]:
    """Return a row for each mention of a document."""
    losses["documents without mentions (they have no row)"] += not document.entities
    losses["relations"] += len(document.relations)
    losses["texts of documents"] += 1
    losses.infons(document, LINKED)
    starts = [passage.offset for passage in document.passages]
    for entity in document.entities:
        index = bisect_right(starts, entity.start) - 1
        pieces = [list(fragment) for fragment in entity.fragments] if len(entity.fragments) > 1 else None
        kind = str(document.passages[index].infons.get("type", "")) if index >= 0 else ""
        values = (entity.start, entity.end, entity.text, entity.type, entity.identifier, entity.score, entity.source)
        linked = (entity.infons.get(name) for name in LINKED)
        yield dict(zip(COLUMNS, (document.id, kind, *values, pieces, *linked), strict=True))


def head(document: Document | None) -> bytes:
    """Return the header of the CSV."""
    return (",".join(COLUMNS) + "\r\n").encode()


def render(document: Document, losses: Losses) -> bytes:
    """Write the rows of a document as CSV."""
    return render_csv(mention_rows(document, losses), COLUMNS)


class ParquetRows:
    """Writer of the rows of documents to an opened Parquet file, in row groups."""

    def __init__(self, file: IO[bytes]) -> None:
        self.parquet = import_pyarrow().parquet
        import pyarrow

        self.arrow = pyarrow
        text, number = pyarrow.string(), pyarrow.int64()
        kinds = (text, text, number, number, text, text, text, pyarrow.float64(), text)
        pieces = pyarrow.list_(pyarrow.list_(number))
        linked = (pieces, text, pyarrow.float64())
        self.schema = pyarrow.schema(list(zip(COLUMNS, (*kinds, *linked), strict=True)))
        self.writer = self.parquet.ParquetWriter(file, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def write(self, document: Document, losses: Losses) -> None:
        """Add the rows of a document."""
        self.rows += mention_rows(document, losses)
        if len(self.rows) >= ROWS_OF_A_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and the index; the file itself stays open."""
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(self.arrow.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []
