"""Dictionaries of a server: mentions, entities that were found, and those of documents get identifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from ..annotate.entity_linker import NAME, SCORE, EntityLinker
from ..formats.documents.abbreviations import abbreviations_of
from ..formats.documents.document import Document, Entity, Passage, split_identifier
from ..linking.linker import NIL, Link, LinkQuery
from .model_queue import ComputeQueue, Lane, Work
from .queued_session import NEAREST, QueuedSession, lane_name
from .refusals import invalid

if TYPE_CHECKING:  # it imports torch
    from ..linking.dense import DenseIndex

MAX_CANDIDATES = 64


def linker_lanes(linkers: Sequence[EntityLinker]) -> dict[str, Lane]:
    """Return the lanes of the searches by embeddings, which share batches over requests."""
    return {
        lane_name(item.type, NEAREST): Lane(dense.session, dense.max_length, dense.tokenizer.pad_id)
        for item in linkers
        if (dense := cast("DenseIndex | None", item.linker.dense)) is not None
    }


@dataclass(frozen=True)
class HostedLinker:
    """A dictionary under the type of its entities. Its methods compute, in the thread of a request."""

    entity_linker: EntityLinker
    queue: ComputeQueue
    part_tokens: int

    @property
    def name(self) -> str:
        """The type of entities that it links, and its name for clients."""
        return self.entity_linker.type

    @property
    def digest(self) -> str:
        """The dictionary's digest."""
        return self.entity_linker.linker.dictionary.digest

    def description(self) -> dict[str, Any]:
        """Describe it as a model, for clients."""
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "megabert",
            "task": "dictionary",
            "fields": {"text": "string", "context": "string"},
            "labels": [],
            "route": "linking",
            "ranked_by": None,
            "max_input_length": None,
            "sha256": self.digest,
        }

    def of_request(self, work: Work) -> EntityLinker:
        """Return the linker with its embeddings computed in the queue, for one request."""
        linker, sessions = self.entity_linker.linker, []
        if linker.dense is not None:
            positions = linker.dense.session.max_positions
            sessions.append(QueuedSession(self.queue, self.name, work, self.part_tokens, positions, NEAREST))
        return replace(self.entity_linker, linker=linker.with_sessions(iter(sessions)))

    def link(self, inputs: Sequence[Mapping[str, Any]], k: int, work: Work) -> list[dict[str, Any]]:
        """Link mentions, each with k candidates."""
        if not 1 <= k <= MAX_CANDIDATES:
            raise invalid(f"k is not between 1 and {MAX_CANDIDATES}.", "k")
        queries = [_query(item, number, self.entity_linker.species) for number, item in enumerate(inputs)]
        links = self.of_request(work).linker.link(queries, k=k)
        return [{"text": link.text, **link.described(), "is_nil": link.is_nil} for link in links]


def _query(item: Mapping[str, Any], number: int, species: Sequence[int]) -> LinkQuery:
    unknown = next((name for name in item if name not in ("id", "text", "context", "species")), None)
    if unknown is not None:
        raise invalid(f"inputs[{number}].{unknown[:40]} is no field of linking: text, context, species.", "inputs")
    text, context, taxa = item.get("text"), item.get("context", ""), item.get("species", list(species))
    if not isinstance(text, str) or not text.strip():
        raise invalid(f"inputs[{number}].text is no mention.", "text")
    if not isinstance(context, str):
        raise invalid(f"inputs[{number}].context is no string.", "context")
    if not isinstance(taxa, list) or not all(isinstance(taxon, int) for taxon in taxa):
        raise invalid(f"inputs[{number}].species is no list of taxa.", "species")
    return LinkQuery(text, abbreviations_of(_document(context)), tuple(taxa))


def _document(text: str) -> Document:
    return Document("text", (Passage(0, text),))


def link_rows(rows: Sequence[dict[str, Any]], linkers: Sequence[HostedLinker], work: Work) -> None:
    """Add identifiers to the entities of rows, whose texts define their abbreviations."""
    for linker in linkers:
        found = [
            (span, LinkQuery(span["text"], definitions, linker.entity_linker.species))
            for row in rows
            if (spans := [span for span in row["entities"] if span["type"] == linker.name])
            for definitions in (abbreviations_of(_document(row["text"])),)
            for span in spans
        ]
        links = linker.of_request(work).linker.link([query for _, query in found])
        for (span, _), link in zip(found, links, strict=True):
            span |= {"identifiers": list(split_identifier(link.identifier)), "link": _link_json(link)}


def _link_json(link: Link) -> dict[str, Any]:
    return {"name": link.name, "score": round(link.score, 4), "is_nil": link.is_nil}


def entity_link(entity: Entity) -> dict[str, Any] | None:
    """Return what the link of a document's entity is; None for one that was not linked."""
    if SCORE not in entity.infons:
        return None
    name, score = entity.infons.get(NAME, ""), entity.infons[SCORE]
    return {"name": name, "score": score, "is_nil": entity.identifier == NIL}
