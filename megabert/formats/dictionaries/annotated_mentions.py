"""Annotated documents as a dictionary: the mentions that have identifiers, with their abbreviations written out.

BioSyn's test dictionaries have the training mentions in addition to the vocabulary's names. A mention of several
identifiers is a name of none of them: it is read where its parts can be told apart, and otherwise dropped.
"""

from collections.abc import Iterator
from pathlib import Path

from ..documents.abbreviations import abbreviations_of, written_out
from ..documents.composites import split_composite
from ..documents.convert_documents import read_documents
from ..documents.document import Entity
from ..documents.sources import Faults, ReadOptions
from .concept import Concept, DictionaryOptions
from .curies import to_curie


def read_mentions(path: Path, options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the mentions of a file's documents as concepts of one or two names: as written, and written out.

    What is wrong in the documents is dropped.
    """
    faults = Faults(lambda _: options.dropped.update({"faults in documents": 1}))
    for document in read_documents([path], ReadOptions(faults)):
        definitions = abbreviations_of(document)
        for entity in document.entities:
            if options.types and entity.type not in options.types:
                options.dropped["mentions of other types"] += 1
                continue
            yield from _concepts(entity, definitions, document.location, options)


def _concepts(
    entity: Entity, definitions: dict[str, str], location: str, options: DictionaryOptions
) -> Iterator[Concept]:
    identifiers = [found for item in entity.identifiers if (found := to_curie(item, options.prefix))]
    if not identifiers:
        options.dropped["mentions without identifier"] += 1
        return
    parts = [entity.text]
    if len(identifiers) > 1:
        parts = split_composite(written_out(entity.text, definitions))
        if len(parts) != len(identifiers):
            options.dropped["mentions of several identifiers"] += 1
            return
    for identifier, part in zip(identifiers, parts, strict=True):
        yield Concept(identifier, tuple(dict.fromkeys((part, written_out(part, definitions)))), (), 0, location)
