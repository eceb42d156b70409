"""Stream the records of an XML file as small element trees, by the standard library's expat, safely and in flat memory.

Declarations of entities are refused (no billion laughs, no external files), so are unknown entities, deep nesting and
records above a size; nothing is fetched. Names keep their prefixes. Raises InputError with file and line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from ...errors import InputError
from .sources import MAX_RECORD_BYTES

MAX_DEPTH = 200
CHUNK_BYTES = 2**16


@dataclass
class XmlHead:
    """What an XML file has around its records."""

    doctype: tuple[str, str | None, str | None] | None = None
    """Name, system and public identifier."""
    root: str = ""
    attributes: dict[str, str] | None = None


@dataclass
class XmlRecord:
    """An element with all that it holds, and the line on which it starts."""

    element: ElementTree.Element
    line: int
    head: XmlHead
    raw: bytes | None = None
    """Its bytes in the file if these are UTF-8; None: serialize the element."""


def xml_records(
    path: Path, file: IO[bytes], names: Sequence[str], max_bytes: int | None = None, remedy: str = ""
) -> Iterator[XmlRecord]:
    """Stream the outermost elements of the given names; those below the root of other names are left out.

    One of more than `max_bytes` (MAX_RECORD_BYTES) is an error, whose message ends with `remedy`.
    """
    max_bytes = MAX_RECORD_BYTES if max_bytes is None else max_bytes
    reader = _Reader(path, frozenset(names))
    while True:
        chunk = file.read(CHUNK_BYTES)
        reader.keep(chunk)
        try:
            reader.parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            raise InputError(
                f"{path}:{error.lineno}: not XML: {expat.ErrorString(error.code)}. Get it again."
            ) from None
        except (LookupError, ValueError) as error:
            raise InputError(f"{path}:{reader.parser.CurrentLineNumber}: not XML: {error}.") from None
        if reader.builder is not None and reader.parser.CurrentByteIndex - reader.start_byte > max_bytes:
            raise InputError(f"{path}:{reader.line}: an element of more than {max_bytes / 1e6:g} MB.{remedy}")
        yield from reader.complete
        reader.complete.clear()
        if not chunk:
            return


class _Reader:
    """Expat's handlers: builds a tree for each record and nothing for the rest."""

    def __init__(self, path: Path, names: frozenset[str]) -> None:
        self.path, self.names = path, names
        self.depth = self.record_depth = self.start_byte = self.line = 0
        self.head = XmlHead()
        self.complete: list[XmlRecord] = []
        self.builder: ElementTree.TreeBuilder | None = None
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.kept, self.kept_from, self.is_utf8 = bytearray(), 0, True
        self.parser.XmlDeclHandler = self._declaration
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._entity
        self.parser.SkippedEntityHandler = self._unknown_entity
        self.parser.ExternalEntityRefHandler = self._unknown_entity
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _fail(self, message: str) -> NoReturn:
        raise InputError(f"{self.path}:{self.parser.CurrentLineNumber}: {message}")

    def keep(self, chunk: bytes) -> None:
        """Keep the bytes of the record that is open, or of the last chunk, in which a start tag may be incomplete."""
        first = self.start_byte if self.builder is not None else self.kept_from + len(self.kept) - CHUNK_BYTES
        if first > self.kept_from:
            del self.kept[: first - self.kept_from]
            self.kept_from = first
        self.kept += chunk
        if self.kept_from == 0 and bytes(self.kept[:2]) in (b"\xff\xfe", b"\xfe\xff"):
            self.is_utf8 = False

    def _raw(self) -> bytes | None:
        """Return the bytes of the record that ends at the present end tag."""
        start, end_tag = (index - self.kept_from for index in (self.start_byte, self.parser.CurrentByteIndex))
        end = self.kept.find(b">", end_tag) + 1
        return bytes(self.kept[start:end]) if self.is_utf8 and 0 <= start < end_tag < end else None

    def _declaration(self, _: str, encoding: str | None, __: int) -> None:
        self.is_utf8 = self.is_utf8 and (encoding or "utf-8").lower() in ("utf-8", "utf8", "us-ascii", "ascii")

    def _doctype(self, name: str, system: str | None, public: str | None, _: bool) -> None:
        self.head.doctype = (name, system, public)

    def _entity(self, name: str, *_: object) -> None:
        self._fail(f"the file declares the entity &{name};. Declarations of entities are not read: replace it.")

    def _unknown_entity(self, name: str | None, *_: object) -> int:
        self._fail(f"the entity &{name}; is not defined in the file. Replace it by its character.")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"elements are nested more than {MAX_DEPTH} deep.")
        if self.depth == 1:
            self.head.root, self.head.attributes = name, attributes
        if self.builder is None:
            if name not in self.names:
                return
            self.builder = ElementTree.TreeBuilder(insert_comments=True)
            self.record_depth, self.line = self.depth, self.parser.CurrentLineNumber
            self.start_byte = self.parser.CurrentByteIndex
            self.parser.CharacterDataHandler = self.builder.data
            self.parser.CommentHandler = self.builder.comment
        self.builder.start(name, attributes)

    def _end(self, name: str) -> None:
        self.depth -= 1
        if self.builder is None:
            return
        self.builder.end(name)
        if self.depth < self.record_depth:
            self.complete.append(XmlRecord(self.builder.close(), self.line, self.head, self._raw()))
            self.builder = None
            self.parser.CharacterDataHandler = self.parser.CommentHandler = None


def inner_text(element: ElementTree.Element | None) -> str:
    """Return all text within an element, without that of comments; "" for None."""
    return "" if element is None else "".join(element.itertext())


def flat_text(element: ElementTree.Element | None) -> str:
    """Return all text within an element with single blanks."""
    return " ".join(inner_text(element).split())


def element_bytes(element: ElementTree.Element) -> bytes:
    """Serialize an element in UTF-8, without what follows it."""
    tail, element.tail = element.tail, None
    try:
        # A carriage return as such would be read back as a line feed.
        return ElementTree.tostring(element, encoding="utf-8", xml_declaration=False).replace(b"\r", b"&#13;")
    finally:
        element.tail = tail


def parse_element(content: bytes) -> ElementTree.Element:
    """Parse an element alone, as a record has its bytes; no document type, so no entities."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))  # noqa: S314  (without a document type)
    parser.feed(content)
    element: ElementTree.Element = parser.close()
    return element
