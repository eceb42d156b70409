"""Review of a document's entities: a state, and what each decision of a person makes of it.

An entity is open until it is accepted, changed or rejected; one that a person decided has no score and no source.
Offsets are code points of the document's text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..annotate.annotator import free_names
from ..errors import InputError
from ..formats.documents.document import Document, Entity, text_at


@dataclass(frozen=True)
class ReviewState:
    """A document under review. `revision` counts the decisions."""

    document: Document
    """As it was given; its entities are the suggestions."""
    entities: tuple[Entity, ...]
    open: frozenset[str]
    """Identifiers of the entities that are not decided."""
    revision: int = 0
    is_finished: bool = False

    @classmethod
    def of(cls, document: Document) -> "ReviewState":
        """Begin a review."""
        return cls(document, document.entities, frozenset(entity.id for entity in document.entities))

    def corrected(self) -> Document:
        """Return the document with the entities as they are now, and the relations whose mentions are still there."""
        names = {entity.id for entity in self.entities}
        relations = tuple(
            relation
            for relation in self.document.relations
            if all(item.entity is None or item.entity in names for item in relation.arguments)
        )
        return replace(self.document, entities=self.entities, relations=relations)


@dataclass(frozen=True)
class Decision:
    """What a person decided: the kind, the entity that it is about, and its new type and place where these change."""

    kind: str
    entity: str | None = None
    type: str | None = None
    start: int | None = None
    end: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}


def decide(state: ReviewState, decision: Decision) -> ReviewState:
    """Apply a decision; raises InputError for one that does not fit the document. `undo` needs the log instead."""
    if decision.kind not in DECISIONS:
        raise InputError(f"{decision.kind!r} is no decision. There are {', '.join(DECISIONS)}.")
    if state.is_finished and decision.kind != "reopen":
        raise InputError("The document is finished. Reopen it to change it.")
    changed = DECISIONS[decision.kind](state, decision)
    return replace(changed, revision=state.revision + 1)


def _accept(state: ReviewState, decision: Decision) -> ReviewState:
    return _with(state, _decided(_find(state, decision)))


def _reject(state: ReviewState, decision: Decision) -> ReviewState:
    name = _find(state, decision).id
    return replace(state, entities=tuple(item for item in state.entities if item.id != name), open=state.open - {name})


def _change(state: ReviewState, decision: Decision) -> ReviewState:
    """Change type, place or both. An identifier stays with its type: that of another one does not fit."""
    entity = _find(state, decision)
    start = entity.start if decision.start is None else decision.start
    end = entity.end if decision.end is None else decision.end
    if (start, end) != (entity.start, entity.end):
        entity = replace(entity, fragments=((start, end),), text=_text(state, start, end))
    if decision.type not in (None, entity.type):
        entity = replace(entity, type=_type(decision), identifier="")
    return _with(state, _unique(state, _decided(entity)))


def _add(state: ReviewState, decision: Decision) -> ReviewState:
    if decision.start is None or decision.end is None:
        raise InputError("An entity that is added needs start and end.")
    names = free_names("T", (item.id for item in (*state.document.entities, *state.entities)))
    start, end = decision.start, decision.end
    entity = Entity(next(names), ((start, end),), _text(state, start, end), _type(decision))
    return _with(state, _unique(state, entity))


def _finish(state: ReviewState, decision: Decision) -> ReviewState:
    """Accept what is open: a person has seen the whole document."""
    entities = tuple(_decided(item) if item.id in state.open else item for item in state.entities)
    return replace(state, entities=entities, open=frozenset(), is_finished=True)


def _reopen(state: ReviewState, decision: Decision) -> ReviewState:
    return replace(state, is_finished=False)


DECISIONS = {
    "accept": _accept,
    "reject": _reject,
    "change": _change,
    "add": _add,
    "finish": _finish,
    "reopen": _reopen,
}
UNDO = "undo"


def _find(state: ReviewState, decision: Decision) -> Entity:
    found = next((item for item in state.entities if item.id == decision.entity), None)
    if found is None:
        raise InputError(f"The document has no entity {decision.entity!r} any more.")
    return found


def _decided(entity: Entity) -> Entity:
    return replace(entity, score=None, source=None)


def _with(state: ReviewState, entity: Entity) -> ReviewState:
    """Replace the entity of a name, or add it."""
    others = tuple(entity if item.id == entity.id else item for item in state.entities)
    entities = others if entity in others else (*others, entity)
    return replace(state, entities=entities, open=state.open - {entity.id})


def _unique(state: ReviewState, entity: Entity) -> Entity:
    """Raise InputError where another entity has the place and type of one."""
    for item in state.entities:
        if item.id != entity.id and (item.fragments, item.type) == (entity.fragments, entity.type):
            raise InputError(f"There is a {entity.type} {entity.text!r} at {entity.start} already.")
    return entity


def _text(state: ReviewState, start: int, end: int) -> str:
    """Return the text of an extent; it must lie in one passage and neither begin nor end with a blank."""
    if not any(passage.offset <= start < end <= passage.end for passage in state.document.passages):
        raise InputError(f"{start} to {end} does not lie within one passage of the document.")
    text = text_at(state.document.text(), ((start, end),))
    if text != text.strip():
        raise InputError(f"{text!r} begins or ends with a blank.")
    return text


def _type(decision: Decision) -> str:
    if not decision.type:
        raise InputError("An entity needs a type.")
    return decision.type


def decision_of(values: Mapping[str, Any]) -> Decision:
    """Make a decision of plain values, others left out."""
    names = ("entity", "type", "start", "end")
    return Decision(str(values.get("decision")), *(values.get(name) for name in names))
