"""Plain text: a document a file, or a line; no annotations, out the text alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .document import Document, Passage
from .losses import Losses
from .sources import STANDARD_INPUT, ReadOptions, plain_name, read_whole, safe_file_name, text_lines, text_of

FORMAT = "text"


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read a document named like its file, or stream one a line, named by file and line; empty lines are left out."""
    name = "stdin" if path == STANDARD_INPUT else Path(plain_name(path)).stem
    if not options.lines_are_documents:
        text = text_of(path, read_whole(path, file))
        # A byte-order mark is no part of the text.
        yield Document(name, (Passage(0, text.removeprefix("\ufeff")),), location=str(path))
        return
    for number, line in text_lines(path, file):
        text = line.removeprefix("\ufeff").rstrip("\r\n")
        if text.strip():
            yield Document(f"{name}:{number}", (Passage(0, text),), location=f"{path}:{number}")


def files(document: Document, losses: Losses) -> dict[str, bytes]:
    """Return a file of the text; what else the document has is counted as lost."""
    losses["entities"] += len(document.entities)
    losses["relations"] += len(document.relations)
    losses.infons(document)
    return {f"{safe_file_name(document.id)}.txt": document.text().encode()}
