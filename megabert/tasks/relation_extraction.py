"""Relation extraction: which relation, if any, holds between two marked entities of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schema import Settings, choice
from ..errors import InputError
from ..formats.documents.document_formats import is_document_path
from ..formats.rows import Row
from ..metrics import classification
from .document_data import RelationTypeSettings, read_pair_rows
from .labels import require_labels
from .sequence_classification import (
    Example,
    Prediction,
    SequenceClassificationTask,
    SequenceClassifierModel,
    SequenceSettings,
)


@dataclass
class EntityPairSettings(SequenceSettings, RelationTypeSettings):
    """How examples become tokens, and how the two entities are marked in them."""

    entity_marking: str = choice("anonymize", "anonymize", "markers", "typed_markers")
    """How entities given by their positions are marked: replaced by @TYPE$ (anonymize), or with marks around them."""
    negative_label: str = "false"
    """The label of pairs without a relation: micro-F1 leaves it out."""


@dataclass
class RelationExtractionModel(SequenceClassifierModel):
    """The network, its data and its optimizer."""

    dataset: EntityPairSettings = field(default_factory=EntityPairSettings)


@dataclass
class RelationExtractionSettings(Settings):
    """All settings of a run."""

    model: RelationExtractionModel = field(default_factory=RelationExtractionModel)


@dataclass(frozen=True)
class MarkedEntity:
    """Characters [start, end) of a text, and the type of entity that they name."""

    start: int
    end: int
    type: str


class RelationExtraction(SequenceClassificationTask):
    r"""Classify the relation between two entities of a text: ChemProt, drug interactions and the like.

        megabert import chemprot --abstracts A.tsv --entities E.tsv --relations R.tsv --output train.jsonl
        megabert train relation_extraction model.train_ds.file=train.jsonl model.validation_ds.file=dev.jsonl \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-uncased
        megabert predict RUN text="Aspirin inhibits COX-2." head=Aspirin head_type=CHEMICAL tail=COX-2 tail_type=GENE

    Data: as those of text classification, with the entities already marked in the text (`id<TAB>sentence<TAB>label`
    with a header, or JSON lines); or JSON lines with the entities' positions: `{"text": "...", "head": {"start": 0,
    "end": 7, "type": "CHEMICAL"}, "tail": {...}, "label": "CPR:4"}`. Then `model.dataset.entity_marking` is how they
    are marked: `anonymize` replaces them by `@CHEMICAL$`, `markers` writes `<< head >>` and `[[ tail ]]` around them,
    `typed_markers` writes `@ * type * head @` and `# ^ type ^ tail #`. Two entities that overlap are anonymized as one,
    `@CHEMICAL-GENE$`. Annotated documents (PubTator, BioC) give the pairs of entities of their sentences, or with
    `model.dataset.scope=document` of their identifiers: all pairs whose types some relation of the file has.

    Metrics: `f1`, `precision` and `recall` over all labels but `model.dataset.negative_label` together, the published
    measure of ChemProt; also all metrics of text classification: `macro_f1`, `accuracy`, each class.
    """

    settings_type = RelationExtractionSettings
    main_score = "f1"

    def read(self, path: Path) -> list[Example]:
        """Read annotated documents, or the files of text classification."""
        if not is_document_path(path):
            return super().read(path)
        rows = read_pair_rows(path, self.dataset, self.dataset.negative_label, self.notes)
        return [self.example_of(row, number) for number, row in enumerate(rows, start=1)]

    def example_of(self, row: Row, number: int) -> Example:
        """Make an example from a row; entities that are given by position are marked."""
        if "head" in row.values or "tail" in row.values:
            marked = self._marked(row.string("text"), row.get("head"), row.get("tail"), row.location)
            row = Row(row.values | {"text": marked}, row.location)
        return super().example_of(row, number)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, already marked, or with `head` and `tail`.

        These are words that occur in the text once, with head_type and tail_type, or objects as in JSON lines.
        """
        given = {name: fields.pop(name, None) for name in ("head", "tail", "head_type", "tail_type")}
        if given["head"] is not None or given["tail"] is not None:
            text = str(fields.get("text") or "")
            head, tail = (_locate(text, given[name], given[f"{name}_type"], name) for name in ("head", "tail"))
            fields["text"] = self._marked(text, head, tail, "the text")
        return super().example(**fields)

    def _marked(self, text: str, head: Any, tail: Any, location: str) -> str:
        entities = (_entity(head, text, "head", location), _entity(tail, text, "tail", location))
        return mark_entities(text, *entities, self.dataset.entity_marking)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute micro-F1 without the negative label, and all metrics of text classification."""
        gold = [require_labels(example, "labels")[0] for example in examples]
        predicted = [item.labels[0] for item in predictions]
        micro = classification.micro_f1(gold, predicted, {self.dataset.negative_label})
        return micro | super().score(examples, predictions)


def _locate(text: str, given: Any, kind: Any, name: str) -> Any:
    """Find the words that name an entity in the text; an object with its position stays as it is."""
    if isinstance(given, Mapping):
        return given
    words = str(given or "")
    count = text.count(words) if words else 0
    if count != 1:
        raise InputError(
            f"{name}={words!r} occurs {count} times in the text. Give words that occur in it once, or characters in "
            'JSON: {"start": ..., "end": ..., "type": ...}.'
        )
    return {"start": text.index(words), "end": text.index(words) + len(words), "type": kind or name}


def _entity(value: Any, text: str, name: str, location: str) -> MarkedEntity:
    given = value if isinstance(value, Mapping) else {}
    start, end = given.get("start"), given.get("end")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
        raise InputError(
            f'{location}: the {name} is {str(value)[:80]}; expected {{"start": ..., "end": ..., "type": ...}}, '
            f"characters of the text, which has {len(text)}."
        )
    return MarkedEntity(start, end, str(given.get("type") or name))


def mark_entities(text: str, head: MarkedEntity, tail: MarkedEntity, marking: str) -> str:
    """Mark two entities in a text, in one of the ways of model.dataset.entity_marking.

    Sources: Lee et al. 2020, doi:10.1093/bioinformatics/btz682 (anonymize); Beltagy et al. 2019, arXiv:1903.10676
    (markers); Zhou and Chen 2022, arXiv:2102.01373 (typed markers in punctuation, which every vocabulary has).
    """
    if marking == "anonymize":
        first, second = sorted((head, tail), key=lambda item: item.start)
        if first.end > second.start:
            both = f"@{head.type.upper()}-{tail.type.upper()}$"
            return text[: first.start] + both + text[max(first.end, second.end) :]
        names = [f"@{item.type.upper()}$" for item in (first, second)]
        return f"{text[: first.start]}{names[0]}{text[first.end : second.start]}{names[1]}{text[second.end :]}"
    around = {
        "markers": (("<< ", " >>"), ("[[ ", " ]]")),
        "typed_markers": ((f"@ * {head.type.lower()} * ", " @"), (f"# ^ {tail.type.lower()} ^ ", " #")),
    }[marking]
    # Inserted from the end of the text, so that earlier positions stay valid. At one position the mark that ends an
    # entity precedes the one that starts another.
    marks = []
    for entity, (before, behind) in zip((head, tail), around, strict=True):
        marks += [(entity.start, 1, before), (entity.end, 0, behind)]
    for position, _, inserted in sorted(marks, reverse=True):
        text = text[:position] + inserted + text[position:]
    return text
