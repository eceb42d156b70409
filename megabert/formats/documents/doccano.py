"""doccano JSON lines: `text` with `label` triples, or `entities` and `relations`; offsets are characters.

Source: doccano's import and export of sequence labelling and relation extraction.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from .document import Argument, Document, Entity, Passage, Relation
from .losses import Losses
from .sources import ReadOptions, read_whole, text_of

FORMAT = "doccano"
_TEXT_KEYS = ("text", "data", "column_data")
_LABEL_KEYS = ("label", "labels", "column_label")


def is_doccano(values: Mapping[str, Any]) -> bool:
    """Whether an object has labels with offsets as doccano writes them."""
    entities = values.get("entities")
    if isinstance(entities, list) and entities and isinstance(entities[0], dict):
        return "start_offset" in entities[0]
    labels = next((values[key] for key in _LABEL_KEYS if key in values), None)
    return isinstance(labels, list) and all(isinstance(item, list) and len(item) == 3 for item in labels)


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read the objects of a file, each on one line or on several (as doccano's own example has it)."""
    content = text_of(path, read_whole(path, file)).removeprefix("\ufeff")
    for number, (item, location) in enumerate(_objects(path, content), start=1):
        try:
            yield document_of(item, location, number)
        except InputError as error:
            options.faults(str(error))


def _objects(path: Path, content: str) -> Iterator[tuple[Any, str]]:
    """Return the objects of a file, also those of lists, with the locations where they start."""
    decoder, position = json.JSONDecoder(), 0
    while True:
        position += len(content[position : position + 1024]) - len(content[position : position + 1024].lstrip())
        if position >= len(content):
            return
        if content[position].isspace():
            continue
        line = content.count("\n", 0, position) + 1
        try:
            values, position = decoder.raw_decode(content, position)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{path}:{line}: not JSON. doccano writes a JSON object a line.") from None
        for item in values if isinstance(values, list) else [values]:
            yield item, f"{path}:{line}"


def document_of(values: Any, location: str, number: int) -> Document:
    """Make a document of one object; without an `id` it is named by its place."""
    try:
        text = next(values[key] for key in _TEXT_KEYS if isinstance(values.get(key), str))
        entities: list[Entity] = []
        for label in next((values[key] for key in _LABEL_KEYS if key in values), None) or []:
            start, end, kind = label
            entities.append(Entity(f"T{len(entities) + 1}", ((start, end),), text[start:end], str(kind)))
        for item in values.get("entities") or []:
            start, end = item["start_offset"], item["end_offset"]
            entities.append(Entity(str(item["id"]), ((start, end),), text[start:end], str(item["label"])))
        relations = tuple(
            Relation(
                str(item["id"]),
                str(item["type"]),
                (Argument("from", str(item["from_id"])), Argument("to", str(item["to_id"]))),
            )
            for item in values.get("relations") or []
        )
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{location}: no text with doccano's labels: expected text, and label: [[start, end, type]] or entities "
            "with start_offset, end_offset and label."
        ) from None
    known = (*_TEXT_KEYS, *_LABEL_KEYS, "entities", "relations", "id")
    infons = {key: value for key, value in values.items() if key not in known and value not in (None, [], {})}
    return Document(str(values.get("id", number)), (Passage(0, text),), tuple(entities), relations, infons, location)


def render(document: Document, losses: Losses) -> bytes:
    """Write a line for doccano's project type relation extraction, or sequence labelling if there are no relations."""
    if len(document.passages) > 1:
        losses["borders of passages (a line end is written)"] += 1
    losses.infons(document, of_document=False)
    spans = [(entity, *losses.fragments(entity)) for entity in document.entities]
    losses["identifiers"] += sum(bool(entity.identifier) for entity in document.entities)
    numbers = {entity.id: number for number, entity in enumerate(document.entities)}
    relations: list[dict[str, Any]] = []
    for relation in document.relations:
        ends = [numbers[item.entity] for item in relation.arguments if item.entity in numbers]
        if len(ends) == 2 == len(relation.arguments):
            pair = {"from_id": ends[0], "to_id": ends[1]}
            relations.append({"id": len(relations), **pair, "type": relation.type})
        else:
            losses["relations other than between two mentions"] += 1
    values: dict[str, Any] = {"id": document.id, "text": document.text(), **document.infons}
    if relations:
        values["entities"] = [
            {"id": number, "start_offset": start, "end_offset": end, "label": entity.type}
            for number, (entity, start, end) in enumerate(spans)
        ]
        values["relations"] = relations
    else:
        values["label"] = [[start, end, entity.type] for entity, start, end in spans]
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
