"""Check that mentions stand at their offsets; recognize and convert offsets in bytes, UTF-16 units or other line ends.

A mention's own text decides: where offsets of another unit fit all mentions of a document, the message names it.
"""

import dataclasses
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from ...errors import ConfigError, InputError
from .document import Document, Entity, Passage, Relation, check_structure, is_text_at, text_at

CODE_POINTS = "code-points"
# Part of messages, since readers are also used by commands that have no such option.
SKIP = "--on-error skip of `megabert import documents` or `annotate`"
# What a character counts, given the character and the one before.
_WIDTHS: dict[str, Callable[[str, str], int]] = {
    "bytes": lambda character, _: len(character.encode("utf-8", "surrogatepass")),
    "utf-16": lambda character, _: 1 + (ord(character) > 0xFFFF),
    "crlf": lambda character, before: 1 + (character == "\n" and before != "\r"),
    "lf": lambda character, before: int(not (character == "\n" and before == "\r")),
}
UNITS = {
    CODE_POINTS: "characters (Unicode code points)",
    "bytes": "bytes of UTF-8",
    "utf-16": "UTF-16 code units (as JavaScript and Java count)",
    "crlf": "a line end as two characters (CRLF), where the text has one (LF)",
    "lf": "a line end as one character (LF), where the text has two (CRLF)",
}


def check_offsets(document: Document, fault: Callable[[str], None], unit: str = CODE_POINTS) -> Document:
    """Return the document with offsets in code points, without the entities whose text stands elsewhere.

    `fault` takes a message for each of these and may raise; relations that refer to one, or to nothing, are left out.
    """
    if unit != CODE_POINTS:
        document = convert_offsets(document, unit)
    check_structure(document)
    text = document.text()
    wrong = [entity for entity in document.entities if not is_text_at(text, entity)]
    remedy = _remedy(document) if wrong else ""
    for entity in wrong:
        fault(f"{_place(document, entity, text)}{remedy or _nearest(text, entity)}")
    names = {entity.id for entity in wrong}
    entities = tuple(entity for entity in document.entities if entity.id not in names)
    relations = complete_relations(document, entities, fault)
    if not wrong and len(relations) == len(document.relations):
        return document
    return dataclasses.replace(document, entities=entities, relations=relations)


def complete_relations(
    document: Document, entities: Sequence[Entity], fault: Callable[[str], None]
) -> tuple[Relation, ...]:
    """Leave out relations with an argument that is none of the annotations, and those that refer to them."""
    relations = list(document.relations)
    while relations:
        names = {entity.id for entity in entities} | {relation.id for relation in relations}
        kept = []
        for relation in relations:
            missing = [item.entity for item in relation.arguments if item.entity not in names and item.entity]
            if missing:
                fault(
                    f"{_location(document, relation)}: document {document.id}: relation {relation.id} refers to "
                    f"{missing[0]}, which is no annotation that is read. Correct it, or leave it out: {SKIP}."
                )
            else:
                kept.append(relation)
        if len(kept) == len(relations):
            break
        relations = kept
    return tuple(relations)


def _location(document: Document, item: Entity | Relation) -> str:
    """Return the file and line of an annotation, or of its document."""
    original = document.original
    return original.places.get(item.id, document.location) if original is not None else document.location


def _place(document: Document, entity: Entity, text: str) -> str:
    where = ", ".join(f"{start} to {end}" for start, end in entity.fragments)
    found = text_at(text, entity.fragments)
    stands = repr(found) if found else f"nothing (the text has {len(text)} characters)"
    return (
        f"{_location(document, entity)}: document {document.id}, {entity.type} {entity.id}: {entity.text!r} is "
        f"expected at {where}, where {stands} stands."
    )


def _remedy(document: Document) -> str:
    """Name the units in which all entities of a document fit their text."""
    fitting = []
    for unit in _WIDTHS:
        other = convert_offsets(document, unit)
        try:
            check_structure(other)
        except InputError:
            continue
        text = other.text()
        # Also those that fit as they are must fit in the other unit.
        if all(is_text_at(text, entity) for entity in other.entities):
            fitting.append(unit)
    if fitting:
        units = " or ".join(UNITS[unit] for unit in fitting)
        return f" All mentions of this document fit if offsets count {units}: --offsets {' or '.join(fitting)}."
    return _other_text(document)


def _other_text(document: Document) -> str:
    text = document.text()
    if len(document.entities) < 2 or any(entity.text in text for entity in document.entities):
        return ""
    return " No mention of the document stands in its text: is this the text of another document?"


def _nearest(text: str, entity: Entity) -> str:
    if not entity.text or len(entity.fragments) > 1:
        return f" Correct the offsets, or leave the annotation out: {SKIP}."
    starts = [match.start() for match in re.finditer(re.escape(entity.text), text)]
    if not starts:
        return f" The text has it nowhere. Correct it, or leave the annotation out: {SKIP}."
    nearest = min(starts, key=lambda start: abs(start - entity.start))
    return (
        f" The nearest one is at {nearest} ({nearest - entity.start:+d}). Correct the offset, or leave the annotation "
        f"out: {SKIP}."
    )


def convert_offsets(document: Document, unit: str) -> Document:
    """Convert offsets that count in `unit` to code points, also those of the passages; gaps between these stay."""
    if unit not in UNITS:
        raise ConfigError(f"--offsets {unit} does not exist; there are {', '.join(UNITS)}.")
    if unit == CODE_POINTS:
        return document
    passages: list[Passage] = []
    tables: list[tuple[int, int, array[int]]] = []  # first and last position in the file's unit, a position each
    end = file_end = 0
    for passage in document.passages:
        positions = _positions(passage.text, unit)
        offset = end + passage.offset - file_end
        tables.append((passage.offset, passage.offset + positions[-1], positions))
        passages.append(dataclasses.replace(passage, offset=offset))
        end, file_end = offset + len(passage.text), passage.offset + positions[-1]

    def point(position: int, search: Callable[..., int]) -> int:
        for passage, (first, last, positions) in zip(passages, tables, strict=True):
            if first <= position <= last:
                index = search(positions, position - first)
                return passage.offset + index if positions[index] == position - first else -1
        return -1

    # Of two characters at one position (a line end that counts one), a mention starts at the last, ends at the first.
    entities = tuple(
        dataclasses.replace(
            entity, fragments=tuple((point(start, _last), point(stop, bisect_left)) for start, stop in entity.fragments)
        )
        for entity in document.entities
    )
    # Written anew, in code points: the original has the file's own offsets.
    return dataclasses.replace(document, passages=tuple(passages), entities=entities, original=None)


def _last(positions: "array[int]", position: int) -> int:
    return max(bisect_right(positions, position) - 1, 0)


def _positions(text: str, unit: str) -> "array[int]":
    """Return the position of each character, and of the end, in a unit."""
    width, position, before = _WIDTHS[unit], 0, ""
    positions = array("q", [0])
    for character in text:
        position += width(character, before)
        positions.append(position)
        before = character
    return positions
