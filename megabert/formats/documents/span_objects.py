"""JSON objects of texts with spans, as doccano, spaCy, Prodigy, PubAnnotation, BigBio and our predictions have them.

Spans are [start, end, type] or objects; offsets are characters. Sources: doccano's export; spaCy's training data;
Prodigy's "Annotation interfaces"; pubannotation.org/docs/annotation-format; BigBio's schema kb (arXiv:2206.15076).
"""

import json
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from .document import Argument, Document, Entity, Passage, Relation, text_at
from .offsets import SKIP

_TEXT_KEYS = ("text", "data", "column_data")
_SPAN_KEYS = ("label", "labels", "column_label", "entities", "spans", "ents", "denotations")
_ANNOTATION_KEYS = (*_SPAN_KEYS, "annotations", "mentions", "relations")
_NAME_KEYS = ("id", "sourceid", "divid")
_START_KEYS, _END_KEYS = ("start", "begin", "start_offset"), ("end", "end_offset")
_TYPE_KEYS = ("obj", "label", "type", "labels")
# The names of a relation's ends, and of its type.
_RELATION_KEYS = (("from_id", "to_id", "type"), ("subj", "obj", "pred"), ("head_span", "child_span", "label"))
_REFUSED = ("reject", "ignore")


def has_spans(values: Mapping[str, Any]) -> bool:
    """Return whether an object has a list of spans, which may be empty, or the passages of BigBio."""
    return is_bigbio(values) or any(_are_spans(values.get(key)) for key in _SPAN_KEYS)


def is_bigbio(values: Mapping[str, Any]) -> bool:
    """Return whether an object is a document of BigBio's schema kb."""
    passages = values.get("passages")
    return isinstance(passages, list) and any(isinstance(item, dict) and "offsets" in item for item in passages)


def _are_spans(items: Any) -> bool:
    return isinstance(items, list) and all(
        (len(item) == 3 and not isinstance(item[0], str))
        if isinstance(item, list)
        else isinstance(item, dict) and (any(key in item for key in _START_KEYS) or "span" in item)
        for item in items
    )


def require_no_annotations(values: Mapping[str, Any], location: str, but: str = "") -> None:
    """Raise InputError where a value but one is a list or an object of annotations, which would be lost."""
    for key in _ANNOTATION_KEYS:
        value = values.get(key)
        items = [*value.values()] if isinstance(value, dict) else value
        if key != but and isinstance(items, list) and any(isinstance(item, dict | list) for item in items):
            raise InputError(
                f"{location}: {key!r} has annotations that are not read: {json.dumps(value)[:80]}. Give spans as "
                '[start, end, type] or {"start": ..., "end": ..., "label": ...}, under one key; to read the text '
                "without them: --text-column."
            )


def document_of(values: Mapping[str, Any], location: str, number: int) -> Document:
    """Make a document of an object that has spans; without an identifier it is named by its place."""
    if values.get("answer") in _REFUSED:
        raise InputError(
            f"{location}: the answer is {values['answer']}: its spans were not accepted. Leave it out: {SKIP}."
        )
    try:
        return _bigbio(values, location) if is_bigbio(values) else _document(values, location, number)
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error) or "there is no text, or no type"
        raise InputError(
            f"{location}: no text with spans: {reason}. Expected text, and spans as [start, end, type] or "
            '{"start": ..., "end": ..., "label": ...}.'
        ) from None


def _document(values: Mapping[str, Any], location: str, number: int) -> Document:
    text = next(values[key] for key in _TEXT_KEYS if isinstance(values.get(key), str))
    lists = [key for key in _SPAN_KEYS if _are_spans(values.get(key))]
    key = next((key for key in lists if values[key]), lists[0])
    require_no_annotations({**values, "relations": ()}, location, key)
    entities = tuple(_span(item, text, index) for index, item in enumerate(values[key], start=1))
    places = {(entity.start, entity.end): entity.id for entity in reversed(entities)}
    relations = tuple(
        _relation(item, places, index) for index, item in enumerate(values.get("relations") or [], start=1)
    )
    name = "-".join(str(values[part]) for part in _NAME_KEYS[1:] if part in values)
    known = (*_TEXT_KEYS, *_NAME_KEYS, key, "relations")
    infons = {own: value for own, value in values.items() if own not in known and value not in (None, [], {})}
    return Document(name or str(values.get("id", number)), (Passage(0, text),), entities, relations, infons, location)


def _span(item: Any, text: str, number: int) -> Entity:
    if isinstance(item, list):
        item = {"start": item[0], "end": item[1], "label": item[2]}
    parts = item.get("span", item)
    fragments = tuple(
        (_integer(_first(part, _START_KEYS)), _integer(_first(part, _END_KEYS)))
        for part in (parts if isinstance(parts, list) else [parts])
    )
    kind = _first(item, _TYPE_KEYS)
    score = item.get("score")
    shown = item["text"] if isinstance(item.get("text"), str) else text_at(text, fragments)
    return Entity(
        str(item.get("id", f"T{number}")),
        fragments,
        shown,
        str(kind[0] if isinstance(kind, list) else kind),
        str(item.get("kb_id") or item.get("identifier") or ""),
        score if isinstance(score, int | float) else None,
    )


def _first(item: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return item[next((key for key in keys if item.get(key) is not None), keys[0])]


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"the offset {str(value)[:40]!r} is no whole number")
    return value


def _relation(item: Mapping[str, Any], places: Mapping[tuple[int, int], str], number: int) -> Relation:
    found = [keys for keys in _RELATION_KEYS if set(keys) <= item.keys()]
    if not found:
        raise ValueError(f"the relation {str(item)[:80]} names no spans: from_id, subj or head_span")
    first, second, kind = found[0]
    ends = [item[name] for name in (first, second)]
    if isinstance(ends[0], dict):  # Prodigy's refer to spans by their places
        spots = [(_integer(end["start"]), _integer(end["end"])) for end in ends]
        ends = [places.get(spot, f"a span from {spot[0]} to {spot[1]}") for spot in spots]
    roles = [name.partition("_")[0] for name in (first, second)]
    arguments = tuple(Argument(role, str(end)) for role, end in zip(roles, ends, strict=True))
    return Relation(str(item.get("id", f"R{number}")), str(item[kind]), arguments)


def _bigbio(values: Mapping[str, Any], location: str) -> Document:
    passages = [
        Passage(_integer(start), text, {"type": str(item["type"])})
        for item in values["passages"]
        for text, (start, _) in zip(item["text"], item["offsets"], strict=True)
    ]
    entities = [_mention(str(item["id"]), item, item.get("normalized") or ()) for item in values.get("entities") or ()]
    relations = []
    for item in values.get("relations") or ():
        ends = tuple(Argument(end, str(item[f"{end}_id"])) for end in ("arg1", "arg2"))
        relations.append(Relation(str(item["id"]), str(item["type"]), ends))
    for item in values.get("events") or ():
        name = str(item["id"])
        entities.append(_mention(f"{name}.trigger", {"type": item["type"], **item["trigger"]}, ()))
        roles = [Argument(str(part["role"]), str(part["ref_id"])) for part in item.get("arguments") or ()]
        relations.append(Relation(name, str(item["type"]), (Argument("trigger", entities[-1].id), *roles)))
    for item in values.get("coreferences") or ():
        mentions = tuple(Argument("", str(name)) for name in item["entity_ids"])
        relations.append(Relation(str(item["id"]), "coreference", mentions))
    passages.sort(key=lambda passage: passage.offset)
    name = str(_first(values, ("document_id", "id")))
    return Document(name, tuple(passages), tuple(entities), tuple(relations), {}, location)


def _mention(name: str, item: Mapping[str, Any], normalized: Any) -> Entity:
    fragments = tuple((_integer(start), _integer(end)) for start, end in item["offsets"])
    identifiers = [":".join(part[key] for key in ("db_name", "db_id") if part.get(key)) for part in normalized]
    return Entity(name, fragments, " ".join(item["text"]), str(item["type"]), "|".join(identifiers))
