"""Relation extraction: which relation, if any, holds between two marked entities of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.schema import Settings, choice
from ..errors import InputError
from ..formats.rows import Row
from ..metrics import classification
from .text_classification import ClassifierModel, Example, Prediction, TextClassification, TextSettings, known_labels


@dataclass
class DatasetSettings(TextSettings):
    """How texts become tokens, and how the network sees which two entities are meant."""

    entity_marking: str = choice("anonymize", "anonymize", "markers", "typed_markers")
    """Of texts that come with their entities: anonymize writes @TYPE$ in their place, markers << head >> and [[ tail ]]
    around them, typed_markers "@ * type * head @" and "# ^ type ^ tail #"."""
    negative_label: str = "false"
    """The label of pairs without a relation: micro-F1 leaves it out."""


@dataclass
class RelationExtractionModel(ClassifierModel):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)


@dataclass
class RelationExtractionSettings(Settings):
    """All settings of a run."""

    model: RelationExtractionModel = field(default_factory=RelationExtractionModel)


@dataclass(frozen=True)
class Entity:
    """Characters [start, end) of a text, and what kind of thing they name."""

    start: int
    end: int
    type: str


class RelationExtraction(TextClassification):
    r"""Say which relation holds between two entities of a text: ChemProt, drug interactions and the like.

        megabert import chemprot --abstracts A.tsv --entities E.tsv --relations R.tsv --output train.jsonl
        megabert train relation_extraction model.train_ds.file=train.jsonl model.validation_ds.file=dev.jsonl \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-uncased
        megabert predict RUN text="Aspirin inhibits COX-2." head=Aspirin head_type=CHEMICAL tail=COX-2 tail_type=GENE

    Data: as text classification's, with the entities marked in the text already (`id<TAB>sentence<TAB>label` with a
    header, or JSON lines); or JSON lines that say where they stand: `{"text": "...", "head": {"start": 0, "end": 7,
    "type": "CHEMICAL"}, "tail": {...}, "label": "CPR:4"}`. Then `model.dataset.entity_marking` chooses how the network
    sees them: `@CHEMICAL$` in their place, or marks around them. Two entities that overlap are anonymized as one,
    `@CHEMICAL-GENE$`.

    Scores: `f1`, `precision` and `recall` over all labels but `model.dataset.negative_label` together, the published
    measure of ChemProt; beside them all that text classification gives: `macro_f1`, `accuracy`, each class.
    """

    settings_type = RelationExtractionSettings
    main_score = "f1"

    @property
    def problem(self) -> str:
        """One relation a pair."""
        return "single_label"

    def example_of(self, row: Row, number: int) -> Example:
        """Take a row, and mark the entities that it tells."""
        if "head" in row.values or "tail" in row.values:
            text = row.text("text")
            marked = self._marked(text, row.get("head"), row.get("tail"), row.place)
            row = Row(row.values | {"text": marked}, row.place)
        return super().example_of(row, number)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, marked already or with `head` and `tail`.

        These are words that stand in the text once, with head_type and tail_type, or objects as in JSON lines.
        """
        found = {name: fields.pop(name, None) for name in ("head", "tail", "head_type", "tail_type")}
        if found["head"] is not None or found["tail"] is not None:
            text = str(fields.get("text") or "")
            head, tail = (self._found(text, found[name], found[f"{name}_type"], name) for name in ("head", "tail"))
            fields["text"] = self._marked(text, head, tail, "the text")
        return super().example(**fields)

    def _found(self, text: str, given: Any, kind: Any, name: str) -> Any:
        if isinstance(given, Mapping):
            return given
        words = str(given or "")
        if not words or text.count(words) != 1:
            raise InputError(
                f"{name}={words!r} stands {text.count(words) if words else 0} times in the text. Give words that stand "
                'in it once, or characters in JSON: {"start": ..., "end": ..., "type": ...}.'
            )
        return {"start": text.index(words), "end": text.index(words) + len(words), "type": kind or name}

    def _marked(self, text: str, head: Any, tail: Any, place: str) -> str:
        return mark(text, _entity(head, text, "head", place), _entity(tail, text, "tail", place), self._marking)

    @property
    def _marking(self) -> str:
        return str(self.dataset.entity_marking)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score relations: micro-F1 without the negative label, and all that text classification gives."""
        gold, found = [known_labels(item)[0] for item in examples], [item.labels[0] for item in predictions]
        without = {self.dataset.negative_label}
        return classification.micro_f1(gold, found, without) | classification.classification_scores(
            gold, found, self.labels
        )


def _entity(value: Any, text: str, name: str, place: str) -> Entity:
    given = value if isinstance(value, Mapping) else {}
    start, end = given.get("start"), given.get("end")
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
        raise InputError(
            f'{place}: the {name} is {str(value)[:80]}; expected {{"start": ..., "end": ..., "type": ...}}, characters '
            f"of the text, which has {len(text)}."
        )
    return Entity(start, end, str(given.get("type") or name))


def mark(text: str, head: Entity, tail: Entity, marking: str) -> str:
    """Write a text so that its two entities stand out, as model.dataset.entity_marking names the ways.

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
    # From the end of the text, so that places before stay right; what ends at a place stands before what starts there.
    marks = []
    for entity, (before, behind) in zip((head, tail), around, strict=True):
        marks += [(entity.start, 1, before), (entity.end, 0, behind)]
    for place, _, words in sorted(marks, reverse=True):
        text = text[:place] + words + text[place:]
    return text
