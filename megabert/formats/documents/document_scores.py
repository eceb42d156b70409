"""Scores of annotated documents as BioCreative V's CDR evaluator counts them: mentions, identifiers, relations.

Each is a set over all documents: (document, start, end) of the mentions of a type, (document, identifier) of a type,
and (document, arguments) of the relations of a type between identifiers, or mentions that have none. Source:
bc5cdr_eval.jar 0.0.3.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from ...metrics.counts import MatchCounts
from .document import NO_IDENTIFIERS, Argument, Document, Entity, Relation

Items = dict[str, set[Hashable]]


def document_scores(gold: Iterable[Document], predicted: Iterable[Document], prefix: str = "") -> dict[str, Any]:
    """Score documents, in per cent, with counts: mention/TYPE_, id/TYPE_ and relation/TYPE_ of what either side has.

    A `prefix` of identifiers, such as MESH, is left out on both sides.
    """
    golds, found = (_items(documents, f"{prefix}:") for documents in (gold, predicted))
    scores: dict[str, Any] = {}
    for name in sorted(golds.keys() | found.keys()):
        counts = MatchCounts.of_sets([golds[name]], [found[name]])
        scores[f"{name}_tp"] = counts.num_correct
        scores[f"{name}_fp"] = counts.num_predicted - counts.num_correct
        scores[f"{name}_fn"] = counts.num_gold - counts.num_correct
        scores |= counts.scores(f"{name}_")
    return scores


def _items(documents: Iterable[Document], prefix: str) -> Items:
    items: Items = defaultdict(set)
    for document in documents:
        named: dict[str, Entity | Relation] = {item.id: item for item in (*document.relations, *document.entities)}
        for entity in document.entities:
            items[f"mention/{entity.type}"].add((document.id, entity.start, entity.end))
            items[f"id/{entity.type}"].update((document.id, name.removeprefix(prefix)) for name in entity.identifiers)
        for relation in document.relations:
            ends = (_end(argument, named, prefix) for argument in relation.arguments)
            items[f"relation/{relation.type}"].add((document.id, *ends))
    return items


def _end(argument: Argument, named: Mapping[str, Entity | Relation], prefix: str) -> Hashable:
    """Return an argument's identifier, else the type and place of its mention, or the type of a relation."""
    item = named.get(str(argument.entity))
    identifier = item.identifier if isinstance(item, Entity) else str(argument.identifier)
    if identifier in NO_IDENTIFIERS or isinstance(item, Relation):
        return (item.type, item.start, item.end) if isinstance(item, Entity) else (item and item.type, identifier)
    return identifier.removeprefix(prefix)
