"""BioC JSON: a collection as BioC XML's, a document alone (PubTator's interface), or a list of collections (PMC's).

A file is parsed whole; a document is written back with all keys that it had. Source: the package bioc's schema; Comeau
et al. 2019, doi:10.1093/bioinformatics/btz070.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from .bioc_items import by_passage, entity_infons, entity_of, register, relation_infons, relation_of
from .document import Document, Entity, Original, Passage, Relation
from .losses import Losses
from .sources import ReadOptions, read_whole, text_of

FORMAT = "bioc-json"
SEPARATOR = b",\n"
TAIL = b"\n]}\n"


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read the documents of a file; one object a line (JSON lines) is read line by line."""
    content = text_of(path, read_whole(path, file)).removeprefix("\ufeff")
    for collection in _objects(path, content):
        documents = collection.get("documents", [collection])
        head = {key: value for key, value in collection.items() if key != "documents"} if documents else {}
        for number, values in enumerate(documents if isinstance(documents, list) else [], start=1):
            try:
                yield _document(values, str(path), head if "documents" in collection else None)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                name = values.get("id", "?") if isinstance(values, dict) else "?"
                options.faults(f"{path}: document {number} ({name}) is no BioC: {type(error).__name__}: {error}.")


def _objects(path: Path, content: str) -> Iterator[dict[str, Any]]:
    """Return the collections or documents at the top of a file."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(content.rstrip()):
        position += len(content[position:]) - len(content[position:].lstrip())
        try:
            value, position = decoder.raw_decode(content, position)
        except (json.JSONDecodeError, RecursionError) as error:
            place = getattr(error, "lineno", 1)
            raise InputError(f"{path}:{place}: not JSON: {getattr(error, 'msg', 'nested too deeply')}.") from None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict) or not {"documents", "passages", "PubTator3"} & item.keys():
                raise InputError(f"{path}: no BioC: expected an object with documents or passages.")
            if "PubTator3" in item:
                yield {"documents": item["PubTator3"]}
            else:
                yield item


def _document(values: dict[str, Any], location: str, head: Any) -> Document:
    name = str(values["id"])
    names: dict[str, str] = {}
    passages = [_passage(part) for part in values["passages"]]
    items: list[Entity | Relation | None] = [_annotation(item, names) for item in annotations_of(values)]
    related = [(f"{item.get('id', '')}#{number}", item) for number, item in enumerate(relations_of(values), len(items))]
    names = {str(item.get("id", "")): own for own, item in reversed(related)} | names
    for own, item in related:
        nodes = [(str(node["refid"]), str(node["role"])) for node in item.get("nodes", [])]
        items.append(relation_of(own, nodes, item.get("infons") or {}, names))
    infons = values.get("infons") or {}
    original = Original(FORMAT, values, tuple(items), tuple(passages), infons, head)
    entities = tuple(item for item in items if isinstance(item, Entity))
    relations = tuple(item for item in items if isinstance(item, Relation))
    return Document(name, tuple(passages), entities, relations, infons, location, original)


def _parts(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a document, its passages and their sentences."""
    yield values
    for part in values["passages"]:
        yield part
        yield from part.get("sentences") or []


def annotations_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """List the annotations of a document wherever they stand."""
    return [item for part in _parts(values) for item in part.get("annotations") or []]


def relations_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """List the relations of a document wherever they stand."""
    return [item for part in _parts(values) for item in part.get("relations") or []]


def _passage(part: dict[str, Any]) -> Passage:
    infons = part.get("infons") or {}
    text = part.get("text")
    if not text and part.get("sentences"):
        start, text = int(part["sentences"][0]["offset"]), ""
        for sentence in part["sentences"]:
            text += " " * (int(sentence["offset"]) - start - len(text)) + sentence["text"]
        return Passage(start, text, infons)
    if text is not None and not isinstance(text, str):
        raise TypeError("the text of a passage is no string")
    return Passage(int(part["offset"]), text or "", infons)


def _annotation(item: dict[str, Any], names: dict[str, str]) -> Entity | None:
    places = item.get("locations") or []
    if not places:
        return None
    name = str(item.get("id", ""))
    known = register(name, names)
    fragments = tuple((int(part["offset"]), int(part["offset"]) + int(part["length"])) for part in places)
    return entity_of(known, fragments, item["text"], item.get("infons") or {})


def head(document: Document | None) -> bytes:
    """Return what stands before the documents: that of the first document's own collection, or a new one."""
    original = document.original if document else None
    values = original.head if original is not None and original.format == FORMAT else None
    values = {"source": "megabert", "date": "", "key": "megabert.key", "infons": {}} if values is None else values
    opening = json.dumps(values, ensure_ascii=False)[:-1]
    return f'{opening}{", " if values else ""}"documents": [\n'.encode()


def render(document: Document, losses: Losses) -> bytes:
    """Write a document; all keys of one of a BioC JSON file are kept."""
    original = document.original_of(FORMAT)
    if original is None:
        return _dump(_values(document))
    kept, entities, relations = document.changes(original)
    values = original.content
    if kept != list(original.items) or entities or relations or document.infons != original.infons:
        values = json.loads(_dump(values))
        _edit(values, original, kept)
        values["infons"] = dict(document.infons)
        for part, (_, inside) in zip(values["passages"], by_passage(document, entities), strict=True):
            if inside:
                part["annotations"] = [*(part.get("annotations") or []), *map(_entity, inside)]
        if relations:
            values["relations"] = [*(values.get("relations") or []), *map(_relation, relations)]
    return _dump(values)


def _dump(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _edit(values: dict[str, Any], original: Original, kept: list[Entity | Relation | None]) -> None:
    """Remove and replace the annotations and relations that are no longer what they were read as."""
    states = iter(zip(original.items, kept, strict=True))
    for key in ("annotations", "relations"):
        for part in _parts(values):
            items = []
            for item in part.get(key) or []:
                old, new = next(states)
                if old is None or old == new:
                    items.append(item)
                elif new is not None:
                    items.append(_entity(new) if isinstance(new, Entity) else _relation(new))
            if part.get(key):
                part[key] = items


def _values(document: Document) -> dict[str, Any]:
    passages = []
    for passage, entities in by_passage(document, document.entities):
        values = {"offset": passage.offset, "infons": dict(passage.infons), "text": passage.text, "sentences": []}
        passages.append(values | {"annotations": [_entity(entity) for entity in entities], "relations": []})
    relations = [_relation(relation) for relation in document.relations]
    infons = dict(document.infons)
    return {"id": document.id, "infons": infons, "passages": passages, "annotations": [], "relations": relations}


def _entity(entity: Entity) -> dict[str, Any]:
    places = [{"offset": start, "length": end - start} for start, end in entity.fragments]
    return {"id": entity.id, "infons": entity_infons(entity), "text": entity.text, "locations": places}


def _relation(relation: Relation) -> dict[str, Any]:
    nodes = [{"refid": item.entity, "role": item.role} for item in relation.arguments if item.entity is not None]
    return {"id": relation.id, "infons": relation_infons(relation), "nodes": nodes}
