"""Annotate documents with the predictions of runs: entities of each passage, then relations between entities.

Passages go through the same Predictor as any other text. A passage is one sequence; a longer one than the network takes
is read in windows that overlap, so nothing is cut, and windows are counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from ..formats.documents.document import Argument, Document, Entity, Relation
from ..formats.documents.training_examples import EntityPair, PairOptions, entity_pairs
from ..inference import Predictor
from ..tasks.iob_tags import Span

SCORE_DIGITS = 4


@dataclass(frozen=True)
class Annotated:
    """A document with predictions, and the number of windows that it was read in."""

    document: Document
    windows: int = 0


_Found = tuple[int, Span]
"""The offset of a passage, and an entity that was found in it."""


class Annotator(Protocol):
    """One run's part of the annotation."""

    def __call__(self, items: Sequence[Annotated]) -> list[Annotated]:
        """Annotate documents together, so that their passages and pairs share batches."""


@dataclass
class EntityAnnotator:
    """Add the entities that a token classification run finds."""

    predictor: Predictor

    def __call__(self, items: Sequence[Annotated]) -> list[Annotated]:
        """Annotate each passage."""
        passages = [(number, passage) for number, item in enumerate(items) for passage in item.document.passages]
        passages = [(number, passage) for number, passage in passages if passage.text.strip()]
        task = self.predictor.task
        texts = [passage.text for _, passage in passages]
        examples, features = task.examples_of_texts(texts, self.predictor.tokenizer)
        predictions = self.predictor.predict_examples(examples, features=features)
        windows = [0] * len(items)
        found: list[list[_Found]] = [[] for _ in items]
        for (number, passage), prediction in zip(passages, predictions, strict=True):
            windows[number] += prediction.windows
            found[number] += [(passage.offset, span) for span in prediction.spans]
        return [
            Annotated(self._with_entities(item.document, new), item.windows + count)
            for item, new, count in zip(items, found, windows, strict=True)
        ]

    def _with_entities(self, document: Document, found: Sequence[_Found]) -> Document:
        """Add entities under new names, without those of the same characters and type as one of the document's."""
        if not found:
            return document
        present = {(entity.fragments, entity.type) for entity in document.entities}
        names = free_names("T", (entity.id for entity in document.entities))
        entities, source = list(document.entities), self.predictor.digest
        for offset, span in found:
            fragments, kind = ((offset + span.start, offset + span.end),), span.type
            if not present or (fragments, kind) not in present:
                score = round(span.score, SCORE_DIGITS)
                entities.append(Entity(next(names), fragments, span.text, kind, "", score, source))
        return replace(document, entities=tuple(entities))


@dataclass
class RelationAnnotator:
    """Add the relations that a relation extraction run finds between the entities of a document."""

    predictor: Predictor
    pairs: PairOptions
    """Which pairs of entities are classified."""
    use_predicted: bool = True
    """Whether predicted entities take part, or only those that the document had."""

    def __call__(self, items: Sequence[Annotated]) -> list[Annotated]:
        """Classify the pairs of all documents."""
        pairs = [(number, pair) for number, item in enumerate(items) for pair in self._pairs_of(item.document)]
        task = self.predictor.task
        examples = [task.example(**_without_label(pair)) for _, pair in pairs]
        features = task.features(examples, self.predictor.tokenizer, with_targets=False)
        predictions = self.predictor.predict_examples(examples, features=features)
        found: list[list[tuple[EntityPair, str, float]]] = [[] for _ in items]
        windows = Counter(number for number, _ in pairs)
        for (number, pair), prediction in zip(pairs, predictions, strict=True):
            if prediction.labels[0] != self.pairs.negative_label:
                label = prediction.labels[0]
                found[number].append((pair, label, prediction.probabilities[label]))
        return [
            Annotated(self._with_relations(item.document, found[number]), item.windows + windows[number])
            for number, item in enumerate(items)
        ]

    def _pairs_of(self, document: Document) -> Iterator[EntityPair]:
        entities = document.entities
        if not self.use_predicted:
            entities = tuple(entity for entity in entities if entity.source is None)
        return entity_pairs([replace(document, entities=entities, relations=())], self.pairs)

    def _with_relations(self, document: Document, found: Sequence[tuple[EntityPair, str, float]]) -> Document:
        names = free_names("R", (relation.id for relation in document.relations))
        kind = "entity" if self.pairs.scope == "sentence" else "identifier"
        relations = []
        for (pair, label, probability), name in zip(found, names, strict=False):
            arguments = tuple(
                Argument(role, **{kind: end}) for role, end in zip(("head", "tail"), pair.ends, strict=True)
            )
            score = round(probability, SCORE_DIGITS)
            relations.append(Relation(name, label, arguments, score=score, source=self.predictor.digest))
        return replace(document, relations=(*document.relations, *relations))


def annotate(annotators: Iterable[Annotator], documents: Iterable[Document]) -> list[Annotated]:
    """Annotate documents by one run after the other."""
    items = [Annotated(document) for document in documents]
    for annotator in annotators:
        items = annotator(items)
    return items


def without_annotations(document: Document) -> Document:
    """Remove the entities and relations of a document."""
    return replace(document, entities=(), relations=())


def _without_label(pair: EntityPair) -> dict[str, object]:
    return {name: value for name, value in pair.values().items() if name != "label"}


def free_names(prefix: str, taken: Iterable[str]) -> Iterator[str]:
    """Yield names such as T1, T2, ... behind the largest number that is taken."""
    numbers = [int(name[1:]) for name in taken if name[:1] == prefix and name[1:].isdecimal()]
    return (f"{prefix}{number}" for number in count(max(numbers, default=0) + 1))
