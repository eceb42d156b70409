"""Documents as JSON objects, above all JSON lines of our own: everything that a Document holds, one a line.

    {"id", "passages": [{"offset", "text", "infons"}], "entities": [{"id", "fragments": [[start, end]], "text", "type",
    "identifier", "score", "source", "infons"}], "relations": [{"id", "type", "arguments": [{"role", "entity" or
    "identifier"}], "score", ...}], "infons"}

Keys without a value are left out. An object without such passages has spans of other programs (span_objects), or is a
row with a column of texts (row_documents). Objects may stand on several lines, or in a list.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ...tokenizers.characters import require_characters
from ..json_lines import json_row
from . import span_objects
from .document import Argument, Document, Entity, Passage, Relation
from .losses import Losses
from .row_documents import row_document
from .sources import ReadOptions, peek, read_whole, text_lines, text_of

FORMAT = "jsonl"


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the documents of a file, a JSON object a line; or read it whole if an object is on several."""
    start, _, rest = peek(file).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    is_lines = start.startswith(b"{") and not (rest and start.rstrip().endswith((b"{", b"[", b",")))
    objects = _lines(path, file) if is_lines else _objects(path, text_of(path, read_whole(path, file)))
    for number, (content, location) in enumerate(objects, start=1):
        try:
            values = json_row(content, location).values if isinstance(content, str) else _values(content, location)
            yield _document(values, location, number, options)
        except InputError as error:
            options.faults(str(error))


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, str]]:
    for number, line in text_lines(path, file):
        content = line.removeprefix("\ufeff") if number == 1 else line
        if content.strip():
            yield content, f"{path}:{number}"


def _objects(path: Path, content: str) -> Iterator[tuple[Any, str]]:
    """Return the objects of a file, also those of lists, with the locations where they start."""
    decoder, position = json.JSONDecoder(), 0
    content = content.removeprefix("\ufeff").rstrip()
    while position < len(content):
        position += len(content[position:]) - len(content[position:].lstrip())
        line = content.count("\n", 0, position) + 1
        try:
            values, position = decoder.raw_decode(content, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise InputError(f"{path}:{line}: not JSON: {getattr(error, 'msg', 'nested too deeply')}.") from None
        is_list = isinstance(values, list)
        for number, item in enumerate(values if is_list else [values], start=1):
            yield item, f"{path}, object {number}" if is_list else f"{path}:{line}"


def _values(item: Any, location: str) -> dict[str, Any]:
    if isinstance(item, list) and len(item) == 2 and isinstance(item[1], dict):  # spaCy 2: [text, {"entities"}]
        item = {"text": item[0], **item[1]}
    if not isinstance(item, dict):
        raise InputError(f"{location}: {str(item)[:40]!r}; expected an object with a text.")
    require_characters(item, location)
    return item


def _document(values: dict[str, Any], location: str, number: int, options: ReadOptions) -> Document:
    if "passages" in values and not span_objects.is_bigbio(values):
        return document_of(values, location)
    if "passages" in values or (options.text_column is None and span_objects.has_spans(values)):
        return span_objects.document_of(values, location, number)
    if options.text_column is None:
        span_objects.require_no_annotations(values, location)
    return row_document(values, location, options)


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
    return Entity(
        _string(item["id"]),
        fragments,
        _string(item["text"]),
        _string(item["type"]),
        _string(item.get("identifier", "")),
        _score(item.get("score")),
        item.get("source"),
        item.get("infons", {}),
    )


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
