"""Documents as JSON lines, the format of our own: everything that a Document holds, one a line.

    {"id", "passages": [{"offset", "text", "infons"}], "entities": [{"id", "fragments": [[start, end]], "text", "type",
    "identifier", "score", "source", "infons"}], "relations": [{"id", "type", "arguments": [{"role", "entity" or
    "identifier"}], "score", ...}], "infons"}

Keys without a value are left out. An object without passages is a row with a column of texts (row_documents), or of
doccano.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..json_lines import json_row
from . import doccano
from .document import Argument, Document, Entity, Passage, Relation
from .losses import Losses
from .row_documents import row_document
from .sources import ReadOptions, text_lines

FORMAT = "jsonl"


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the documents of a file, a JSON object a line."""
    for number, line in text_lines(path, file):
        if not line.strip("\ufeff \t\r\n"):
            continue
        location = f"{path}:{number}"
        try:
            values = json_row(line.removeprefix("\ufeff"), location).values
            if "passages" in values:
                yield document_of(values, location)
            elif options.text_column is None and doccano.is_doccano(values):
                yield doccano.document_of(values, location, number)
            else:
                yield row_document(values, location, options)
        except InputError as error:
            options.faults(str(error))


def document_of(values: Mapping[str, Any], location: str) -> Document:
    """Make a document of a JSON object."""
    try:
        passages = tuple(
            Passage(_integer(item["offset"]), _string(item["text"]), item.get("infons", {}))
            for item in values["passages"]
        )
        entities = tuple(_entity(item) for item in values.get("entities", ()))
        relations = tuple(_relation(item) for item in values.get("relations", ()))
        return Document(_string(values["id"]), passages, entities, relations, values.get("infons", {}), location)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{location}: no document: {reason}.") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no string")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]!r} is no whole number")
    return value


def _score(value: Any) -> float | None:
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"the score {str(value)[:40]!r} is no number")
    return value


def _entity(item: Mapping[str, Any]) -> Entity:
    fragments = tuple((_integer(start), _integer(end)) for start, end in item["fragments"])
    if not fragments:
        raise ValueError(f"entity {item['id']} has no fragments")
    strings = (_string(item[key]) for key in ("text", "type"))
    more = (_string(item.get("identifier", "")), _score(item.get("score")), item.get("source"), item.get("infons", {}))
    return Entity(_string(item["id"]), fragments, *strings, *more)


def _relation(item: Mapping[str, Any]) -> Relation:
    arguments = tuple(Argument(part["role"], part.get("entity"), part.get("identifier")) for part in item["arguments"])
    more = (_score(item.get("score")), item.get("source"), item.get("infons", {}))
    return Relation(_string(item["id"]), _string(item["type"]), arguments, *more)


def values_of(document: Document) -> dict[str, Any]:
    """Return a document as the object of its line."""
    values = {
        "id": document.id,
        "infons": dict(document.infons),
        "passages": [_present(passage) for passage in document.passages],
        "entities": [_present(entity) for entity in document.entities],
        "relations": [
            _present(relation) | {"arguments": [_present(item) for item in relation.arguments]}
            for relation in document.relations
        ],
    }
    return {key: value for key, value in values.items() if value or key in ("id", "passages")}


def _present(item: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies deeply, which takes most of the time of a corpus.
    required = ("id", "offset", "text", "type", "role")
    return {key: value for key, value in vars(item).items() if key in required or value not in (None, "", {})}


def render(document: Document, losses: Losses) -> bytes:
    """Write a document as a line."""
    return json.dumps(values_of(document), ensure_ascii=False).encode() + b"\n"
