"""Identifiers of documents' entities, for scores: as CURIEs, mention by mention."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..formats.dictionaries.curies import to_curie
from ..formats.documents.document import Document
from ..metrics.linking import LinkedMention


def linked_mentions(document: Document, types: Sequence[str] = (), prefix: str | None = None) -> list[LinkedMention]:
    """List a document's mentions with their identifiers; one whose identifier is empty was not linked, - is NIL.

    A mention of type Gene may have numbers of NCBI Gene without a prefix.
    """
    mentions = []
    for entity in document.entities:
        if entity.identifier and (not types or entity.type in types):
            known = prefix or {"gene": "ncbigene", "species": "ncbitaxon"}.get(entity.type.lower())
            found = frozenset(name for item in entity.identifiers if (name := to_curie(item, known)))
            mentions.append(LinkedMention(entity.start, entity.end, entity.type, found))
    return mentions


def named_as(
    gold: Sequence[LinkedMention], mentions: Sequence[LinkedMention], equivalents: Mapping[str, frozenset[str]]
) -> list[LinkedMention]:
    """Name concepts as gold mentions of the document do: as one that overlaps, else as any, else as they are."""
    anywhere = frozenset[str]().union(*(item.identifiers for item in gold))
    renamed = []
    for item in mentions:
        near = (other.identifiers for other in gold if other.start < item.end and item.start < other.end)
        here = frozenset[str]().union(*near)
        concepts = [equivalents.get(own, frozenset()) | {own} for own in sorted(item.identifiers)]
        found = (
            names & here or names & anywhere or {own}
            for own, names in zip(sorted(item.identifiers), concepts, strict=True)
        )
        renamed.append(replace(item, identifiers=frozenset[str]().union(*found)))
    return renamed
