"""What BioC's XML and JSON mean alike: which infons are types, identifiers, scores and the arguments of relations.

Source: Comeau et al. 2013, doi:10.1093/database/bat064; the keys are those of PubTator, BC5CDR, BioRED and GNorm2.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from .document import Argument, Document, Entity, Passage, Relation

IDENTIFIER_KEYS = ("identifier", "MESH", "NCBI Gene", "NCBIGene", "Gene", "NCBI Homologene", "OMIM", "CHEBI", "Species")
RELATION_TYPE_KEYS = ("type", "relation", "relation type")
_NO_ARGUMENTS = frozenset((*RELATION_TYPE_KEYS, "novel", "score", "source", "relation id"))


def entity_of(name: str, fragments: Sequence[tuple[int, int]], text: str, infons: Mapping[str, Any]) -> Entity:
    """Make an entity from an annotation with locations."""
    key = next((key for key in IDENTIFIER_KEYS if isinstance(infons.get(key), str)), "")
    identifier = str(infons.get(key) or "")
    kind = str(infons.get("type") or "")
    rest = {name: value for name, value in infons.items() if name not in ("type", key, "score")}
    if key not in ("", "identifier"):
        rest["identifier key"] = key
    score = _score(infons)
    if score is None and "score" in infons:
        rest["score"] = infons["score"]
    source = rest.pop("source", None) if isinstance(rest.get("source"), str) else None
    return Entity(name, tuple(fragments), text, kind, identifier, score, source, rest)


def relation_of(
    name: str, nodes: Sequence[tuple[str, str]], infons: Mapping[str, Any], entities: Mapping[str, str]
) -> Relation:
    """Make a relation; without nodes that are annotations, its infons name the identifiers of its arguments.

    `entities` are the identifiers of the document's annotations and relations, by their names in the file.
    """
    key = next((key for key in RELATION_TYPE_KEYS if isinstance(infons.get(key), str)), "")
    by_infons = _infon_arguments(infons)
    arguments = by_infons or tuple(Argument(role, entity=entities.get(ref, ref)) for ref, role in nodes)
    roles = {argument.role for argument in by_infons}
    rest = {name: value for name, value in infons.items() if name not in (key, "score") and name not in roles}
    source = rest.pop("source", None) if isinstance(rest.get("source"), str) else None
    return Relation(name, str(infons.get(key) or ""), arguments, _score(infons), source, rest)


def _infon_arguments(infons: Mapping[str, Any]) -> tuple[Argument, ...]:
    for names in (("entity1", "entity2"), ("role1", "role2")):
        values = [infons.get(name) for name in names]
        values = [value.get("identifier") if isinstance(value, dict) else value for value in values]
        if all(isinstance(value, str) and value for value in values):
            return tuple(Argument(name, identifier=str(value)) for name, value in zip(names, values, strict=True))
    if "relation" not in infons:
        return ()
    others = [(name, value) for name, value in infons.items() if name not in _NO_ARGUMENTS and isinstance(value, str)]
    return tuple(Argument(name, identifier=value) for name, value in others)


def _score(infons: Mapping[str, Any]) -> float | None:
    try:
        return float(infons["score"]) if "score" in infons else None
    except (TypeError, ValueError):
        return None


def entity_infons(entity: Entity) -> dict[str, Any]:
    """Return the infons of an entity's annotation."""
    rest = {name: value for name, value in entity.infons.items() if name != "identifier key"}
    named = {"type": entity.type}
    if entity.identifier:
        named[str(entity.infons.get("identifier key", "identifier"))] = entity.identifier
    if entity.score is not None:
        named["score"] = f"{entity.score:.6g}"
    return named | ({"source": entity.source} if entity.source else {}) | rest


def relation_infons(relation: Relation) -> dict[str, Any]:
    """Return the infons of a relation; arguments that are identifiers are infons, too."""
    infons: dict[str, Any] = {"type": relation.type}
    infons |= {argument.role: argument.identifier for argument in relation.arguments if argument.entity is None}
    if relation.score is not None:
        infons["score"] = f"{relation.score:.6g}"
    return infons | ({"source": relation.source} if relation.source else {}) | dict(relation.infons)


def by_passage(document: Document, entities: Sequence[Entity]) -> list[tuple[Passage, list[Entity]]]:
    """Sort entities into the passages in which they start."""
    parts: list[tuple[Passage, list[Entity]]] = [(passage, []) for passage in document.passages]
    starts = [passage.offset for passage in document.passages]
    for entity in entities:
        parts[max(bisect_right(starts, entity.start) - 1, 0)][1].append(entity)
    return parts


def register(name: str, names: dict[str, str]) -> str:
    """Return an identifier that no other annotation of the document has, as files use some twice; add it to `names`."""
    known, number = name or "A", 2
    while known in names:
        known, number = f"{name or 'A'}.{number}", number + 1
    names.setdefault(name, known)
    names[known] = known
    return known
