"""doccano JSON lines as they are written: `text` with `label` triples, or `entities` and `relations`.

Offsets are characters. span_objects.py reads them. Source: doccano's import of sequence labelling and relations.
"""

import json
from typing import Any

from .document import Document
from .losses import Losses


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
