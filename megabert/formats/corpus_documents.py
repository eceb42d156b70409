"""Stream the documents of pre-training corpora from text, JSON lines or PubMed XML, compressed or not.

Recognized by suffix: .jsonl and .json, .xml, all else is text; compressed files by their first bytes. No file is read
into memory as a whole. Raises InputError with file and line.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from ..errors import InputError
from ..tokenizers.characters import require_characters
from .data_files import COMPRESSED, data_suffix, open_data

KINDS = (".txt", ".jsonl", ".json", ".xml")


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


def read_documents(path: Path, json_key: str = "text") -> Iterator[str]:
    """Stream the documents of a corpus file.

    Text: documents separated by blank lines. JSON lines: the string under `json_key` of each object. PubMed or MEDLINE
    XML: title and abstract of each article.
    """
    reader: Callable[[Path, IO[bytes], str], Iterator[str]] = {
        ".jsonl": _read_json,
        ".json": _read_json,
        ".xml": _read_pubmed,
    }.get(data_suffix(path), _read_text)
    with open_data(path) as file:
        yield from reader(path, file, json_key)


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text: byte {line[error.start]:#04x}.") from None
        if "\0" in text:
            raise InputError(f"{path}:{number}: a NUL character. Is this a text file?")
        yield number, text.strip()


def _read_text(path: Path, file: IO[bytes], _: str) -> Iterator[str]:
    paragraphs: list[str] = []
    for _number, line in _lines(path, file):
        if line:
            paragraphs.append(line)
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)


def _read_json(path: Path, file: IO[bytes], key: str) -> Iterator[str]:
    for number, line in _lines(path, file):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{path}:{number}: not JSON. Write one JSON object a line.") from None
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{path}:{number}: there is no string under {key!r}. Name its key: --json_key.")
        if "\\u" in line:
            require_characters(text, f"{path}:{number}")
        if text.strip():
            yield text.strip()


def _read_pubmed(path: Path, file: IO[bytes], _: str) -> Iterator[str]:
    try:
        root: ElementTree.Element | None = None
        # Expat itself stops at entities that grow (from 2.4.1 on), and external ones are not fetched.
        for event, element in ElementTree.iterparse(file, events=("start", "end")):  # noqa: S314
            root = element if root is None else root
            if event == "end" and element.tag in ("PubmedArticle", "MedlineCitation") and element is not root:
                if element.tag == "MedlineCitation" and root.tag == "PubmedArticleSet":
                    continue  # part of a PubmedArticle, whose end comes later
                parts = [*element.iterfind(".//ArticleTitle"), *element.iterfind(".//Abstract/AbstractText")]
                paragraphs = [" ".join("".join(part.itertext()).split()) for part in parts]
                if any(paragraphs):
                    yield "\n".join(filter(None, paragraphs))
                root.clear()  # keeps memory flat
    except ElementTree.ParseError as error:
        raise InputError(f"{path}:{error.position[0]}: not XML: {error}. Download the file again.") from None
