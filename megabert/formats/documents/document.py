"""Document: text in passages, entities, identifiers and relations; what every reader returns and every writer takes.

All offsets are Unicode code points of the document's text, ends exclusive, whatever the file counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError

NO_IDENTIFIERS = frozenset(("", "-", "-1"))
# Variants are written with bars of their own: c|DEL|1314_1328|, tmVar:p|SUB|M|327|V;HGVS:p.M327V.
_VARIANT = re.compile(r"(?:tmVar:)?\W?(?:[cgmnpr]\||\|(?:Allele|[A-Z]{2,})\|)")
_SPACES = re.compile(r"\s")


@dataclass(frozen=True)
class Passage:
    """A title, an abstract or a paragraph; `offset` is where its text starts in the document."""

    offset: int
    text: str
    infons: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Where its text ends in the document."""
        return self.offset + len(self.text)


@dataclass(frozen=True, init=False)
class Entity:
    """A mention; one of several fragments is discontinuous. `identifier` is as the file writes it, "" without one."""

    id: str
    fragments: tuple[tuple[int, int], ...]
    text: str
    type: str
    identifier: str
    score: float | None
    source: str | None
    """Digest of the run that predicted it; None: the file had it."""
    infons: Mapping[str, Any]

    # The generated one of a frozen class takes four times as long, and a corpus has tens of millions of mentions.
    def __init__(
        self, id: str, fragments: tuple[tuple[int, int], ...], text: str, type: str, identifier: str = "",
        score: float | None = None, source: str | None = None, infons: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        values = self.__dict__
        values["id"], values["fragments"], values["text"], values["type"] = id, fragments, text, type
        values["identifier"], values["score"], values["source"] = identifier, score, source
        values["infons"] = {} if infons is None else infons

    @property
    def start(self) -> int:
        """Its first character."""
        return self.fragments[0][0]

    @property
    def end(self) -> int:
        """The end of its last character."""
        return self.fragments[-1][1]

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Its identifiers, () without any."""
        return split_identifier(self.identifier)


@dataclass(frozen=True)
class Argument:
    """What takes part in a relation: an entity, by its `id` in the document, or all mentions of an identifier."""

    role: str
    entity: str | None = None
    identifier: str | None = None


@dataclass(frozen=True)
class Relation:
    """A relation or an event between two or more arguments."""

    id: str
    type: str
    arguments: tuple[Argument, ...]
    score: float | None = None
    source: str | None = None
    infons: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Original:
    """A document as its file had it, from which the format's writer restores it.

    `content` is the format's own; `items` are what its annotations were read as, in their order, None for the rest.
    """

    format: str
    content: Any
    items: tuple[Entity | Relation | None, ...]
    passages: tuple[Passage, ...]
    infons: Mapping[str, Any]
    head: Any = None
    places: Mapping[str, str] = field(default_factory=dict)
    """File and line of annotations, by their identifiers, where a line has each."""


@dataclass(frozen=True)
class Document:
    """One document; `location` is its file and line, for messages."""

    id: str
    passages: tuple[Passage, ...]
    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()
    infons: Mapping[str, Any] = field(default_factory=dict)
    location: str = ""
    original: Original | None = field(default=None, compare=False, repr=False)

    def text(self) -> str:
        """Return the text in the document's offsets; gaps between passages are line ends and blanks."""
        parts, end = [], 0
        for passage in self.passages:
            gap = passage.offset - end
            parts += ["\n" + " " * (gap - 1) if gap > 0 else "", passage.text]
            end = passage.end
        return "".join(parts)

    def original_of(self, name: str) -> Original | None:
        """Return the original if it is of a format and its text still stands."""
        kept = self.original
        return kept if kept and kept.format == name and kept.passages == self.passages else None

    def changes(self, original: Original) -> tuple[list[Entity | Relation | None], list[Entity], list[Relation]]:
        """Compare with the original: what each of its items has become (None: removed), new entities, new relations."""
        if not any(original.items):
            return list(original.items), list(self.entities), list(self.relations)
        now: dict[tuple[type, str], Entity | Relation] = {(Entity, item.id): item for item in self.entities}
        now |= {(Relation, item.id): item for item in self.relations}
        old = {(type(item), item.id) for item in original.items if item is not None}
        kept = [None if item is None else now.get((type(item), item.id)) for item in original.items]
        entities = [item for item in self.entities if (Entity, item.id) not in old]
        return kept, entities, [item for item in self.relations if (Relation, item.id) not in old]


def split_identifier(identifier: str) -> tuple[str, ...]:
    """Split a composite identifier at | + ; and comma; variants, which have bars of their own, stay whole."""
    if identifier in NO_IDENTIFIERS:
        return ()
    if _VARIANT.match(identifier):
        return (identifier,)
    listed = (part.strip() for part in re.split("[;,]", identifier))
    # Within a list a variant has the prefix of its database: NCBI Gene:51196,dbSNP:c|DEL||4.
    parts = ([part] if _VARIANT.match(part.rpartition(":")[2]) else re.split(r"[|+]", part) for part in listed)
    return tuple(own for part in parts for item in part if (own := item.strip()) not in NO_IDENTIFIERS)


def passages_of(parts: Iterator[tuple[str, Mapping[str, Any]]]) -> tuple[Passage, ...]:
    """Place texts one after the other, with one character, a line end, between them."""
    passages, offset = [], 0
    for text, infons in parts:
        passages.append(Passage(offset, text, infons))
        offset += len(text) + 1
    return tuple(passages)


def is_text_at(text: str, entity: Entity) -> bool:
    """Whether an entity's text stands at its fragments.

    A line end and a blank count as equal; fragments may be joined with a blank or without.
    """
    found = text_at(text, entity.fragments)
    if found == entity.text:
        return bool(entity.text)
    blank = " " if len(entity.fragments) == 1 else ""
    return bool(found) and _SPACES.sub(blank, found) == _SPACES.sub(blank, entity.text)


def text_at(text: str, fragments: tuple[tuple[int, int], ...]) -> str:
    """Return the text of fragments, joined by blanks; "" where they lie outside of the text."""
    if any(not 0 <= start < end <= len(text) for start, end in fragments):
        return ""
    return " ".join(text[start:end] for start, end in fragments)


def check_structure(document: Document) -> None:
    """Raise InputError for passages that overlap, identifiers used twice, and text that UTF-8 cannot hold."""
    end = 0
    for number, passage in enumerate(document.passages, start=1):
        if passage.offset < end:
            raise InputError(
                f"{document.location}: passage {number} of document {document.id} starts at {passage.offset}, but the "
                f"passage before ends at {end}. Correct the passages' offsets (or name their unit: --offsets)."
            )
        end = passage.end
        is_plain = passage.text.isascii() and "\0" not in passage.text  # most
        bad = None if is_plain else re.search("[\ud800-\udfff\0]", passage.text)
        if bad:
            raise InputError(
                f"{document.location}: document {document.id} has {bad[0]!r} at {passage.offset + bad.start()}, which "
                "is no character of a text. Replace it."
            )
    _check_names(document)


def _check_names(document: Document) -> None:
    for items in (document.entities, document.relations):
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise InputError(f"{document.location}: document {document.id} has two annotations named {item.id}.")
            seen.add(item.id)
