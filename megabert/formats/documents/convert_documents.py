"""Read documents of any format, checked, and write them in any other: a stream from files to a file or a folder."""

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from ...errors import ConfigError, InputError
from ...storage import atomic_file, atomic_folder
from ..data_files import COMPRESSED, import_zstd
from . import i2b2
from .brat import ANNOTATION_ENDINGS
from .document import Document
from .document_formats import INPUT_ENDINGS, DocumentFormat, detect_format, find_format
from .losses import Losses
from .mention_table import ParquetRows
from .offsets import CODE_POINTS, check_offsets
from .pubmed_xml import Versions
from .pubmed_xml import read as read_pubmed
from .sources import STANDARD_INPUT, ReadOptions, find_inputs, open_binary

STANDARD_OUTPUT = Path("-")


def read_documents(
    paths: Sequence[str | Path],
    options: ReadOptions | None = None,
    *,
    format_name: str | None = None,
    unit: str = CODE_POINTS,
    log: Callable[[str], None] = lambda _: None,
) -> Iterator[Document]:
    """Stream the documents of files, folders and globs; offsets are checked, and in code points.

    What is wrong with a document goes to `options.faults`. `log` takes notes about what the files were read as.
    """
    options = options or ReadOptions()
    given = find_format(format_name) if format_name else None
    files = find_inputs(paths, INPUT_ENDINGS, log)
    texts = {file for file in files if file.suffix == ".txt"}  # annotations of brat come with their text
    if len(set(files)) < len(files):
        log(f"{len(files) - len(set(files)):,} files are given twice. Each is read once.")
    notes = {i2b2.companion(file, ".txt") for file in files if file.suffix == i2b2.ENDING}
    files = [
        file
        for file in dict.fromkeys(files)
        if not (file.suffix in ANNOTATION_ENDINGS and file.with_suffix(".txt") in texts) and file not in notes
    ]
    found = {file: given or _detected(file, options) for file in files}
    formats = {file: item for file, item in found.items() if item is not None}
    versions = _versions([file for file, item in formats.items() if item.name == "pubmed"], log)
    for name in dict.fromkeys(item.name for item in formats.values()):
        own = [file for file, item in formats.items() if item.name == name]
        log(f"Reading {len(own):,} file{'s' * (len(own) > 1)} as {name}: {own[0]}{' ...' * (len(own) > 1)}")
    for file, item in formats.items():
        yield from _checked(_read(file, item, options, versions), options, unit)


def _detected(path: Path, options: ReadOptions) -> DocumentFormat | None:
    """Detect a file's format; a file of none is a fault, None."""
    with open_binary(path) as file:
        try:
            return detect_format(path, file)
        except InputError as error:
            options.faults(str(error))
            return None


def _versions(files: Sequence[Path], log: Callable[[str], None]) -> Versions | None:
    """Find the last version of each PMID, in a pass of its own over files that can be read twice."""
    if not files:
        return None
    if STANDARD_INPUT in files:
        log("Standard input is read once: of a PMID that occurs twice both versions are kept.")
        return None
    versions = Versions()
    for path in files:
        with open_binary(path) as file:
            versions.add(path, file)
    if versions.num_replaced or versions.num_deleted:
        log(f"{versions.num_replaced:,} citations are older versions of others, {versions.num_deleted:,} are deleted.")
    versions.num_read = 0
    return versions


def _read(path: Path, item: DocumentFormat, options: ReadOptions, versions: Versions | None) -> Iterator[Document]:
    if item.read is None:
        raise ConfigError(f"{item.name} is written, not read.")
    with open_binary(path) as file:
        if item.name == "pubmed":
            yield from read_pubmed(path, file, options, versions)
        else:
            yield from item.read(path, file, options)


def _checked(documents: Iterator[Document], options: ReadOptions, unit: str) -> Iterator[Document]:
    while True:
        try:
            document = next(documents)
        except StopIteration:
            return
        except InputError as error:
            options.faults(str(error))  # the rest of the file cannot be read
            return
        try:
            document = check_offsets(document, options.faults, unit)
        except InputError as error:
            options.faults(str(error))
            continue
        yield document


class DocumentWriter:
    """Write documents of a format of one stream to an opened file, one after the other."""

    def __init__(self, item: DocumentFormat, file: IO[bytes], losses: Losses) -> None:
        self.item, self.file, self.losses = item, file, losses
        self.num_documents = 0
        self.rows = ParquetRows(file) if item.name == "parquet" else None

    def write(self, document: Document) -> None:
        """Write a document."""
        if self.rows is not None:
            self.rows.write(document, self.losses)
        else:
            assert self.item.render is not None
            start = self.item.separator if self.num_documents else self.item.head(document)
            self.file.write(start + self.item.render(document, self.losses))
        self.num_documents += 1

    def close(self) -> None:
        """Write the end of the file, which stays open."""
        if self.rows is not None:
            self.rows.close()
        else:
            self.file.write((b"" if self.num_documents else self.item.head(None)) + self.item.tail)


def write_documents(documents: Iterable[Document], output: Path, format_name: str, losses: Losses) -> int:
    """Write documents to a file, compressed by its ending, or to a new folder; complete or not there.

    `losses` counts what the format cannot hold. Returns the number of documents.
    """
    item = find_format(format_name)
    if item.files is not None:
        return _write_folder(documents, output, item, losses)
    if item.render is None and item.name != "parquet":
        raise ConfigError(f"{item.name} is read, not written.")
    with _output_file(output) as file:
        writer = DocumentWriter(item, file, losses)
        for document in documents:
            writer.write(document)
        writer.close()
    return writer.num_documents


@contextmanager
def _output_file(output: Path) -> Iterator[IO[bytes]]:
    if output == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with ExitStack() as stack:
        file = stack.enter_context(atomic_file(output))
        yield stack.enter_context(_compressed(output.suffix.lower(), file)) if _compresses(output) else file


def _compresses(output: Path) -> bool:
    return output.suffix.lower() in COMPRESSED


def _compressed(ending: str, file: IO[bytes]) -> Any:
    if ending == ".gz":
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)  # the same bytes at any time
    if ending == ".bz2":
        return bz2.BZ2File(file, "wb")
    if ending == ".xz":
        return lzma.LZMAFile(file, "wb")
    return import_zstd(Path("output.zst")).ZstdFile(file, "wb")


def _write_folder(documents: Iterable[Document], output: Path, item: DocumentFormat, losses: Losses) -> int:
    assert item.files is not None
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"{output} exists and is not empty. {item.name} is written to a new folder: give another name."
        )
    count = 0
    with atomic_folder(output) as folder:
        for document in documents:
            for name, content in item.files(document, losses).items():
                path = folder / name
                if path.exists():
                    raise InputError(
                        f"{document.location}: a second document has the file name {name}. {item.name} needs a name of "
                        "its own for each: convert to jsonl, or rename one."
                    )
                path.write_bytes(content)
            count += 1
    return count
