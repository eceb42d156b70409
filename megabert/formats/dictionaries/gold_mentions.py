"""Mentions with gold identifiers, to tune and score a linker: those of annotated documents, or names `id||name`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError
from ..documents.abbreviations import abbreviations_of
from ..documents.convert_documents import read_documents
from ..documents.document import Document
from ..documents.sources import Faults, ReadOptions
from ..documents.training_examples import contexts_of
from .concept import DictionaryOptions
from .curies import to_curie
from .dictionary_formats import MENTIONS, detect, read_concepts


@dataclass(frozen=True)
class GoldMention:
    """A mention and what it should be linked to; without identifiers it is NIL."""

    id: str
    text: str
    identifiers: frozenset[str]
    type: str = ""
    definitions: Mapping[str, str] = field(default_factory=dict)
    """Abbreviations that its document defines."""
    context: str = ""
    """The sentence of the document that it stands in."""


def read_gold(
    paths: Sequence[Path], types: Sequence[str] = (), prefix: str | None = None, dropped: Counter[str] | None = None
) -> Iterator[GoldMention]:
    """Stream the mentions of files; of documents those of given types, () for all. What is faulty is dropped.

    Types that no document has raise InputError with those that there are.
    """
    dropped = Counter() if dropped is None else dropped
    found = Counter[str]()
    for path in paths:
        name = detect(path)
        if name != MENTIONS:
            options = DictionaryOptions(prefix, dropped=dropped)
            names = ((concept, text) for concept in read_concepts(path, name, options) for text in concept.names)
            for number, (concept, text) in enumerate(names, start=1):
                yield GoldMention(str(number), text, frozenset((concept.id, *concept.alternatives)))
            continue
        faults = Faults(lambda _: dropped.update({"faults in documents": 1}))
        for document in read_documents([path], ReadOptions(faults)):
            found.update(entity.type for entity in document.entities)
            yield from gold_of(document, types, prefix)
    require_types(found, types, paths)


def require_types(found: Counter[str], types: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise InputError if documents have mentions, but none of the given types, () for all."""
    if types and found and not any(map(found.__contains__, types)):
        there = ", ".join(f"{name} ({count:,})" for name, count in found.most_common(10))
        files = ", ".join(map(str, paths))
        raise InputError(f"{files}: no mention has the type {' or '.join(types)}. There are: {there}.")


def gold_of(document: Document, types: Sequence[str] = (), prefix: str | None = None) -> Iterator[GoldMention]:
    """List the mentions of a document."""
    definitions, contexts = abbreviations_of(document), contexts_of(document)
    for entity, context in zip(document.entities, contexts, strict=True):
        if not types or entity.type in types:
            identifiers = frozenset(found for item in entity.identifiers if (found := to_curie(item, prefix)))
            name = f"{document.id}:{entity.id}"
            yield GoldMention(name, entity.text, identifiers, entity.type, definitions, context)
