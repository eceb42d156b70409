"""BioC XML: a collection of documents of passages, annotations with locations, and relations; versions 1 and 2 of its DTD.

A document is written back with all that it had: infons, sentences, annotations without location, comments; only what
has changed since is written anew. Source: Comeau et al. 2013, doi:10.1093/database/bat064, BioC.dtd.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from .bioc_items import by_passage, entity_infons, entity_of, register, relation_infons, relation_of
from .document import Document, Entity, Original, Passage, Relation
from .losses import Losses
from .sources import ReadOptions
from .xml_records import XmlHead, element_bytes, inner_text, parse_element, xml_records

FORMAT = "bioc"
_HEAD = ("source", "date", "key", "version", "infon")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TAIL = b"</collection>\n"


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the documents of a collection."""
    head: list[bytes] = []
    start = b""
    for record in xml_records(path, file, (*_HEAD, "document")):
        if record.element.tag != "document":
            head.append(element_bytes(record.element))
            continue
        start = start or _start(record.head) + b"".join(head)
        location = f"{path}:{record.line}"
        try:
            yield _document(record.element, location, start)
        except _NotBioC as error:
            options.faults(f"{location}: {error}")


class _NotBioC(Exception):
    pass


def _start(head: XmlHead) -> bytes:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    if head.doctype:
        name, system, public = head.doctype
        identifiers = f" PUBLIC {quoteattr(public)}" if public else " SYSTEM" if system else ""
        lines.append(f"<!DOCTYPE {name}{identifiers}{f' {quoteattr(system)}' if system else ''}>\n")
    attributes = "".join(f" {name}={quoteattr(value)}" for name, value in (head.attributes or {}).items())
    return "".join([*lines, f"<{head.root or 'collection'}{attributes}>"]).encode()


def _document(element: ElementTree.Element, location: str, head: bytes) -> Document:
    name = inner_text(element.find("id")) or element.get("id") or ""
    if not name:
        raise _NotBioC("a document without <id>. Give each its identifier.")
    passages: list[Passage] = []
    for part in element.iter("passage"):
        passages += _passages(part, name)
    names: dict[str, str] = {}
    items: list[Entity | Relation | None] = []
    for child in element.iter("annotation"):
        items.append(_annotation(child, names, name))
    for child in element.iter("relation"):
        nodes = [(node.get("refid", ""), node.get("role", "")) for node in child.iter("node")]
        items.append(relation_of(child.get("id") or f"R{len(items)}", nodes, _infons(child), names))
    items = _distinct(items)
    infons = _infons(element)
    original = Original(FORMAT, element_bytes(element), tuple(items), tuple(passages), infons, head)
    entities = tuple(item for item in items if isinstance(item, Entity))
    relations = tuple(item for item in items if isinstance(item, Relation))
    return Document(name, tuple(passages), entities, relations, infons, location, original)


def _distinct(items: list[Entity | Relation | None]) -> list[Entity | Relation | None]:
    """Number relations of the same identifier."""
    seen: set[str] = set()
    for index, item in enumerate(items):
        if isinstance(item, Relation):
            if item.id in seen:
                items[index] = item = _renamed(item, f"{item.id}.{index}")
            seen.add(item.id)
    return items


def _renamed(item: Relation, name: str) -> Relation:
    return Relation(name, item.type, item.arguments, item.score, item.source, item.infons)


def _passages(part: ElementTree.Element, name: str) -> list[Passage]:
    """Return a passage; one of sentences, whose text is theirs, is joined with the gaps that its offsets leave."""
    infons = _infons(part)
    text = part.find("text")
    if text is not None:
        return [Passage(_number(part, "offset", name), inner_text(text), infons)]
    sentences = [(_number(item, "offset", name), inner_text(item.find("text"))) for item in part.iter("sentence")]
    if not sentences:
        return [Passage(_number(part, "offset", name), "", infons)]
    joined, start = "", sentences[0][0]
    for offset, sentence in sentences:
        joined += " " * (offset - start - len(joined)) + sentence
    return [Passage(start, joined, infons)]


def _number(element: ElementTree.Element, key: str, name: str) -> int:
    value = element.get(key)
    value = inner_text(element.find(key)) if value is None else value
    if not value.strip().isdecimal() or len(value) > 15:
        raise _NotBioC(f"document {name}: the {key} of a <{element.tag}> is {value!r}; expected a number.")
    return int(value)


def _infons(element: ElementTree.Element) -> dict[str, str]:
    return {item.get("key", ""): inner_text(item) for item in element.findall("infon")}


def _annotation(element: ElementTree.Element, names: dict[str, str], document: str) -> Entity | Relation | None:
    infons = _infons(element)
    places = [
        (_number(item, "offset", document), _number(item, "length", document)) for item in element.iter("location")
    ]
    name = element.get("id", "")
    if not places:  # some tools write relations so
        return relation_of(name or f"R{len(names)}", [], infons, {}) if "relation" in infons else None
    known = register(name, names)
    fragments = tuple((start, start + length) for start, length in places)
    return entity_of(known, fragments, inner_text(element.find("text")), infons)


def head(document: Document | None) -> bytes:
    """Return what stands before the documents: that of the first document's own collection, or a new one."""
    original = document.original if document else None
    if original is not None and original.format == FORMAT:
        return bytes(original.head)
    return (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n'
        b"<collection><source>megabert</source><date></date><key>megabert.key</key>"
    )


def render(document: Document, losses: Losses) -> bytes:
    """Write a <document>; one of a BioC file that has not changed is written as it was."""
    original = document.original_of(FORMAT)
    if original is None:
        return element_bytes(_element(document, losses)) + b"\n"
    kept, entities, relations = document.changes(original)
    if kept == list(original.items) and not entities and not relations and document.infons == original.infons:
        return bytes(original.content) + b"\n"
    element = parse_element(original.content)
    _edit(element, original, kept, losses)
    for key, value in document.infons.items():
        if key not in original.infons:
            element.insert(_place_of_infons(element), _infon(key, value, losses))
    parts = list(element.iter("passage"))
    for part, (_, inside) in zip(parts, by_passage(document, entities), strict=True):
        at = max((index for index, child in enumerate(part) if child.tag != "relation"), default=-1) + 1
        part[at:at] = [_entity(entity, losses) for entity in inside]
    element.extend(_relation(relation, losses) for relation in relations)
    return element_bytes(element) + b"\n"


def _place_of_infons(element: ElementTree.Element) -> int:
    return next((index for index, child in enumerate(element) if child.tag == "passage"), len(element))


def _edit(
    element: ElementTree.Element, original: Original, kept: list[Entity | Relation | None], losses: Losses
) -> None:
    """Remove and replace the annotations and relations that are no longer what they were read as."""
    parents = {child: parent for parent in element.iter() for child in parent}
    children = [*element.iter("annotation"), *element.iter("relation")]
    for child, old, new in zip(children, original.items, kept, strict=True):
        if old is None or old == new:
            continue
        parent = parents[child]
        if new is not None:
            other = _entity(new, losses) if isinstance(new, Entity) else _relation(new, losses)
            other.tail = child.tail
            parent.insert(list(parent).index(child), other)
        parent.remove(child)


def _element(document: Document, losses: Losses) -> ElementTree.Element:
    element = ElementTree.Element("document")
    _child(element, "id", document.id, losses)
    element.extend(_infon(key, value, losses) for key, value in document.infons.items())
    for passage, entities in by_passage(document, document.entities):
        part = ElementTree.SubElement(element, "passage")
        part.extend(_infon(key, value, losses) for key, value in passage.infons.items())
        _child(part, "offset", str(passage.offset), losses)
        _child(part, "text", passage.text, losses)
        part.extend(_entity(entity, losses) for entity in entities)
    element.extend(_relation(relation, losses) for relation in document.relations)
    return element


def _entity(entity: Entity, losses: Losses) -> ElementTree.Element:
    element = ElementTree.Element("annotation", id=_clean(entity.id, losses))
    element.extend(_infon(key, value, losses) for key, value in entity_infons(entity).items())
    for start, end in entity.fragments:
        ElementTree.SubElement(element, "location", offset=str(start), length=str(end - start))
    _child(element, "text", entity.text, losses)
    return element


def _relation(relation: Relation, losses: Losses) -> ElementTree.Element:
    element = ElementTree.Element("relation", id=_clean(relation.id, losses))
    element.extend(_infon(key, value, losses) for key, value in relation_infons(relation).items())
    for argument in relation.arguments:
        if argument.entity is not None:
            reference, role = _clean(argument.entity, losses), _clean(argument.role, losses)
            ElementTree.SubElement(element, "node", refid=reference, role=role)
    return element


def _infon(key: str, value: object, losses: Losses) -> ElementTree.Element:
    element = ElementTree.Element("infon", key=_clean(key, losses))
    if not isinstance(value, str):
        losses["infons that are no strings (their JSON is written)"] += 1
    element.text = _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), losses)
    return element


def _child(element: ElementTree.Element, name: str, text: str, losses: Losses) -> None:
    ElementTree.SubElement(element, name).text = _clean(text, losses)


def _clean(text: str, losses: Losses) -> str:
    """Replace the characters that XML cannot hold, one for one, so that offsets stay."""
    cleaned, count = _NOT_XML.subn("\ufffd", text)
    if count:
        losses["control characters (U+FFFD is written)"] += count
    return cleaned
