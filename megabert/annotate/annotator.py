"""Annotate documents with the predictions of runs: entities of each passage, then relations between entities.

Passages go through the same Predictor as any other text. A passage is one sequence, longer ones several windows that
overlap; nothing is cut, and windows are counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from ..errors import MegabertError
from ..formats.documents.document import Argument, Document, Entity, Relation
from ..inference import Predictor, Session


@dataclass(frozen=True)
class Annotated:
    """A document with predictions, and the number of windows that it was read in."""

    document: Document
    windows: int = 0


@dataclass(frozen=True)
class EntityAnnotator:
    """Add the entities that a token classification run finds."""

    predictor: Predictor
    source: str
    """Digest of the run, the `source` of its entities."""

    def __call__(self, items: Sequence[Annotated]) -> list[Annotated]:
        """Annotate documents together: their passages share batches."""
        task = self.predictor.task
        places = [
            (number, passage)
            for number, item in enumerate(items)
            for passage in item.document.passages
            if passage.text.strip()
        ]
        examples = [task.example(text=passage.text, id=str(number)) for number, passage in places]
        features = task.features(examples, self.predictor.tokenizer, with_targets=False)
        windows = Counter(places[feature.notes.example][0] for feature in features)
        predictions = self.predictor.predict_examples(examples, features=features)
        found: list[list[Entity]] = [[] for _ in items]
        for (number, passage), prediction in zip(places, predictions, strict=True):
            for span in prediction.spans:
                extent = ((passage.offset + span.start, passage.offset + span.end),)
                score = round(span.score, SCORE_DIGITS)
                found[number].append(Entity("", extent, span.text, span.type, score=score, source=self.source))
        return [
            Annotated(with_entities(item.document, entities), item.windows + windows[number])
            for number, (item, entities) in enumerate(zip(items, found, strict=True))
        ]


def with_entities(document: Document, found: Iterable[Entity]) -> Document:
    """Add entities under new names, those left out that the document has already (the same characters and type)."""
    present = {(entity.fragments, entity.type) for entity in document.entities}
    names = _free_names("T", (entity.id for entity in document.entities))
    added = [entity for entity in found if (entity.fragments, entity.type) not in present]
    named = tuple(replace(entity, id=name) for entity, name in zip(added, names, strict=False))
    return replace(document, entities=(*document.entities, *named))


def _free_names(prefix: str, taken: Iterable[str]) -> Iterator[str]:
    """Yield T1, T2, ... behind the largest number that is taken."""
    numbers = [int(name[1:]) for name in taken if name[:1] == prefix and name[1:].isdecimal()]
    return (f"{prefix}{number}" for number in count(max(numbers, default=0) + 1))
