"""Annotated documents as a dictionary: the mentions that have identifiers, with their abbreviations written out.

BioSyn's test dictionaries have the training mentions in addition to the vocabulary's names. A mention of several
identifiers is a name of them together, a concept of its own, a+b: in which order its parts have them is not known.
"""

from collections.abc import Iterator
from pathlib import Path

from ..documents.abbreviations import abbreviations_of, written_out
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
    names = tuple(dict.fromkeys((entity.text, written_out(entity.text, definitions))))
    yield Concept("+".join(sorted(identifiers)), names, (), 0, location)
