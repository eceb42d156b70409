"""Scores of annotated documents as BioCreative V's CDR evaluator counts them: mentions, identifiers, relations.

Each is a set over all documents: (document, start, end) of the mentions of a type, (document, identifier) of a type,
and (document, arguments) of the relations of a type between identifiers, or mentions that have none. Source:
bc5cdr_eval.jar 0.0.3.
"""

import warnings
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

from ...errors import InputError, InputWarning
from ...metrics.counts import MatchCounts
from .document import NO_IDENTIFIERS, Argument, Document, Entity, Relation

Items = dict[str, set[Hashable]]


def document_scores(gold: Iterable[Document], predicted: Iterable[Document], prefix: str = "") -> dict[str, Any]:
    """Score documents, in per cent, with counts: mention/TYPE_, id/TYPE_ and relation/TYPE_ of what either side has.

    A `prefix` of identifiers, such as MESH, is left out on both sides. Documents are those of the same identifier;
    raises InputError where two of a side have one, or where the sides share none. Warns of predicted ones without gold.
    """
    places: list[dict[str, str]] = [{}, {}]
    golds, found = (
        _items(documents, f"{prefix}:", seen) for documents, seen in zip((gold, predicted), places, strict=True)
    )
    _check_documents(*places)
    warn_of_other_types(*([name[8:] for name in side if name.startswith("mention/")] for side in (golds, found)))
    scores: dict[str, Any] = {}
    for name in sorted(golds.keys() | found.keys()):
        counts = MatchCounts.of_sets([golds[name]], [found[name]])
        scores[f"{name}_tp"] = counts.num_correct
        scores[f"{name}_fp"] = counts.num_predicted - counts.num_correct
        scores[f"{name}_fn"] = counts.num_gold - counts.num_correct
        scores |= counts.scores(f"{name}_")
    return scores


def warn_of_other_types(gold: Collection[str], predicted: Collection[str]) -> None:
    """Warn where gold and predicted mentions have no type in common, so that all scores are 0."""
    if gold and predicted and not set(gold) & set(predicted):
        warnings.warn(
            f"Gold mentions have the types {', '.join(sorted(gold))}, predicted ones {', '.join(sorted(predicted))}: "
            "none is the same, so nothing is right. Rename types by `megabert import documents FILE -o COPY "
            "--entity-types OLD:NEW,...`.",
            InputWarning,
            stacklevel=3,
        )


def _check_documents(gold: Mapping[str, str], predicted: Mapping[str, str]) -> None:
    if not gold:
        raise InputError("There are no gold documents to score against.")
    others = predicted.keys() - gold.keys()
    if predicted and len(others) == len(predicted):
        raise InputError(
            f"None of the {len(predicted)} predicted documents has the identifier of a gold one: {min(others)} and "
            f"{min(gold)}. Predict the documents that are scored against."
        )
    if others:
        text = f"{len(others)} predicted documents, such as {min(others)}, are no gold documents. All in them is wrong."
        warnings.warn(text, InputWarning, stacklevel=3)


def _items(documents: Iterable[Document], prefix: str, seen: dict[str, str]) -> Items:
    """Collect the items of documents, and where each document is. Raises InputError if two have one identifier."""
    items: Items = defaultdict(set)
    for document in documents:
        if document.id in seen:
            raise InputError(
                f"{document.location}: document {document.id} is at {seen[document.id]}, too. Leave one out, or give "
                "each its own identifier."
            )
        seen[document.id] = document.location
        named: dict[str, Entity | Relation] = {relation.id: relation for relation in document.relations}
        named |= {entity.id: entity for entity in document.entities}
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
