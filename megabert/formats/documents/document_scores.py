"""Scores of annotated documents as BioCreative V's CDR evaluator counts them: mentions, identifiers, relations.

Each is a set over all documents: (document, start, end) of the mentions of a type, (document, identifier) of a type,
and (document, arguments) of the relations of a type between identifiers. Source: bc5cdr_eval.jar 0.0.3.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Any

from ...metrics.counts import MatchCounts
from .document import Document

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
        named = {entity.id: entity for entity in document.entities}
        for entity in document.entities:
            items[f"mention/{entity.type}"].add((document.id, entity.start, entity.end))
            items[f"id/{entity.type}"].update((document.id, name.removeprefix(prefix)) for name in entity.identifiers)
        for relation in document.relations:
            ends: list[str | None] = [
                argument.identifier or (named[argument.entity].identifier if argument.entity in named else None)
                for argument in relation.arguments
            ]
            key = (document.id, *(str(end).removeprefix(prefix) for end in ends))
            items[f"relation/{relation.type}"].add(key)
    return items
