"""XML of sentences with entities and pairs: DDIExtraction 2013, and protein interaction corpora in their one format.

    <document id><sentence id text><entity id charOffset type text/><pair e1 e2 ddi="true" type/></sentence></document>

A passage is a sentence, a relation a pair that is true. Offsets count within the sentence; whether their ends are
inclusive (DDI) or not is found by the entity's text. Sources: Herrero-Zazo et al. 2013, doi:10.1016/j.jbi.2013.07.011;
Pyysalo et al. 2008, doi:10.1186/1471-2105-9-S3-S6.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from .document import Argument, Document, Entity, Relation, passages_of
from .sources import ReadOptions
from .xml_records import xml_records

ROOTS = ("document", "corpus")
_IS_TRUE = ("ddi", "interaction")


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the documents of a file."""
    for record in xml_records(path, file, ("document",)):
        try:
            yield _document(record.element, f"{path}:{record.line}")
        except (KeyError, ValueError) as error:
            reason = f"an element has no {error}" if isinstance(error, KeyError) else str(error)
            options.faults(f"{path}:{record.line}: no document of sentences with entities and pairs: {reason}.")


def _document(element: ElementTree.Element, location: str) -> Document:
    sentences = list(element.iter("sentence"))
    if not sentences:
        raise ValueError("it has no <sentence>")
    passages = passages_of((item.attrib["text"], {"type": "sentence", "id": item.attrib["id"]}) for item in sentences)
    entities: list[Entity] = []
    relations: list[Relation] = []
    for sentence, passage in zip(sentences, passages, strict=True):
        entities += [_entity(item, passage.text, passage.offset) for item in sentence.iter("entity")]
        for pair in sentence.iter("pair"):
            truth = next((pair.attrib[name].lower() for name in _IS_TRUE if name in pair.attrib), "")
            if truth not in ("true", "false"):
                raise ValueError(f"the pair {pair.get('id')} is neither true nor false (ddi or interaction)")
            if truth == "true":
                ends = tuple(Argument(name, entity=pair.attrib[name]) for name in ("e1", "e2"))
                relations.append(Relation(pair.attrib["id"], pair.get("type", "interaction"), ends))
    name = element.attrib["id"]
    return Document(name, passages, tuple(entities), tuple(relations), {}, location)


def _entity(item: ElementTree.Element, sentence: str, offset: int) -> Entity:
    shown = item.attrib["text"]
    places = [part.partition("-") for part in item.attrib["charOffset"].replace(",", ";").split(";")]
    spans = [(int(start), int(end)) for start, _, end in places]
    joined = "".join(sentence[start:end] for start, end in spans)
    is_exclusive = "".join(joined.split()) == "".join(shown.split())
    fragments = tuple((offset + start, offset + end + (not is_exclusive)) for start, end in spans)
    return Entity(item.attrib["id"], fragments, shown, item.get("type", "entity"))
