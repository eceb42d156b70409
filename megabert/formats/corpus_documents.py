"""Stream the documents of pre-training corpora from text, JSON lines or PubMed XML, compressed or not.

Recognized by suffix: .jsonl and .json, .xml, all else is text; compressed files by their first bytes. No file is read
into memory as a whole, and a line or document has a longest size. Raises InputError with file and line.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import InputError
from ..tokenizers.characters import require_characters
from .data_files import COMPRESSED, data_suffix, open_data
from .documents.pubmed_xml import read_texts

KINDS = (".txt", ".jsonl", ".json", ".xml")
LONGEST_DOCUMENT_MB = 100.0
_LINE_BYTES = 64  # that a line takes in memory besides its characters, about


def corpus_files(paths: Sequence[Path]) -> list[Path]:
    """List files and, sorted by name, the supported files in folders."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and data_suffix(file) in KINDS)
            if not inside:
                raise InputError(
                    f"{path} holds no {', '.join(KINDS)} file, compressed ({', '.join(COMPRESSED)}) or not."
                )
            files += inside
        elif not path.exists():
            raise InputError(f"{path} does not exist. Give a text file, JSON lines, PubMed XML or a folder of them.")
        else:
            files.append(path)
    return files


def read_documents(path: Path, json_key: str = "text", *, max_mb: float = LONGEST_DOCUMENT_MB) -> Iterator[str]:
    """Stream the documents of a corpus file.

    Text: documents separated by blank lines. JSON lines: the string under `json_key` of each object. PubMed or MEDLINE
    XML: title and abstract of each article. Raises InputError for a document or line of more than `max_mb` megabytes.
    """
    reader: Callable[[_Input], Iterator[str]] = {
        ".jsonl": _read_json,
        ".json": _read_json,
        ".xml": _read_pubmed,
    }.get(data_suffix(path), _read_text)
    with open_data(path) as file:
        yield from reader(_Input(path, file, json_key, max_mb))


@dataclass(frozen=True)
class _Input:
    path: Path
    file: IO[bytes]
    json_key: str
    max_mb: float

    @property
    def most_bytes(self) -> int:
        return int(self.max_mb * 1_000_000)

    def too_long(self, line: int, what: str) -> InputError:
        return InputError(
            f"{self.path}:{line}: {what} of more than {self.max_mb:g} MB. If that is right: --max_document_mb."
        )


def _lines(source: _Input) -> Iterator[tuple[int, str]]:
    for number in itertools.count(1):
        line = source.file.readline(source.most_bytes + 1)
        if not line:
            return
        if len(line) > source.most_bytes:
            raise source.too_long(number, "a line")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source.path}:{number}: not UTF-8 text: byte {line[error.start]:#04x}.") from None
        if "\0" in text:
            raise InputError(f"{source.path}:{number}: a NUL character. Is this a text file?")
        yield number, text.strip()


def _read_text(source: _Input) -> Iterator[str]:
    paragraphs: list[str] = []
    size = 0
    for number, line in _lines(source):
        if line:
            paragraphs.append(line)
            size += len(line) + _LINE_BYTES
            if size > source.most_bytes:
                raise source.too_long(number, "a document, which blank lines would end,")
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs, size = [], 0
    if paragraphs:
        yield "\n".join(paragraphs)


def _read_json(source: _Input) -> Iterator[str]:
    for number, line in _lines(source):
        if not line:
            continue
        location = f"{source.path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{location}: not JSON. Write one JSON object a line.") from None
        text = row.get(source.json_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{location}: there is no string under {source.json_key!r}. Name its key: --json_key.")
        if "\\u" in line:
            require_characters(text, location)
        if text.strip():
            yield text.strip()


def _read_pubmed(source: _Input) -> Iterator[str]:
    yield from read_texts(source.path, source.file, source.most_bytes, " If that is right: --max_document_mb.")
