"""Relation extraction: which relation, if any, holds between two marked entities of a text."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ..config.schema import DataSettings, Settings, choice
from ..data.packing import Features
from ..errors import ConfigError, ExamplesWarning, InputError, InputWarning
from ..formats.entity_pairs import entity_pair
from ..formats.rows import Row
from ..metrics import classification
from ..tokenizers.wordpiece import Tokenizer
from .document_data import RelationTypeSettings, are_documents, read_pair_rows, related_entity_types
from .labels import require_labels
from .sequence_classification import Example, Prediction, SequenceClassificationTask
from .sequence_settings import SequenceClassifierModel, SequenceSettings

# The field of an example with entities by position for its text without marks.
UNMARKED = "unmarked"
# How texts mark entities.
MARKS = {
    "@TYPE$": re.compile(r"@[^\s@$]+\$"),
    "<< >>": re.compile(r"<<.+>>", re.DOTALL),
    "[[ ]]": re.compile(r"\[\[.+\]\]", re.DOTALL),
    "@ * * @": re.compile(r"@ \* .+ \* .+ @", re.DOTALL),
    "# ^ ^ #": re.compile(r"# \^ .+ \^ .+ #", re.DOTALL),
    "[E1] [/E1]": re.compile(r"\[/?E[12]\]", re.IGNORECASE),
    "<e1> </e1>": re.compile(r"</?e[12]>", re.IGNORECASE),
}
# Usual names of the negative class, without punctuation, the likeliest first.
NEGATIVE_NAMES = ("false", "norelation", "none", "na", "negative", "other", "0", "no", "unrelated", "notrelated")


@dataclass
class EntityPairSettings(SequenceSettings, RelationTypeSettings):
    """How examples become tokens, and how the two entities are marked in them."""

    entity_marking: str = choice("anonymize", "anonymize", "markers", "typed_markers")
    """How entities given by their positions are marked: replaced by @TYPE$ (anonymize), or with marks around them."""
    negative_label: str | None = "false"
    """The label of pairs without a relation, which micro-F1 leaves out; null: each label is a relation."""


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
    "end": 7, "type": "CHEMICAL", "text": "Aspirin"}, "tail": {...}, "label": "CPR:4"}`; the text of an entity is
    optional, and is checked; objects of TACRED and OpenNRE are read as such pairs. Then
    `model.dataset.entity_marking` is how they are marked: `anonymize` replaces them by `@CHEMICAL$`, `markers` writes
    `<< head >>` and `[[ tail ]]` around them, `typed_markers` writes `@ * type * head @` and `# ^ type ^ tail #`. Two
    entities that overlap are anonymized as one, `@CHEMICAL-GENE$`. Annotated documents (PubTator, BioC) give the pairs
    of entities of their sentences, or with `model.dataset.scope=document` of their identifiers: all pairs whose types
    some relation of the training data has, or of the file.

    Metrics: `f1`, `precision` and `recall` over all labels but `model.dataset.negative_label` together (null: over all
    labels), the published measure of ChemProt; also all metrics of text classification: `macro_f1`, `accuracy`, each
    class. A negative label that is none of the labels is an error.
    """

    settings_type = RelationExtractionSettings
    main_score = "f1"
    can_distil = True
    state_names = (*SequenceClassificationTask.state_names, "marks", "pair_types")
    input_fields: ClassVar[Mapping[str, type]] = {
        **SequenceClassificationTask.input_fields,
        **dict.fromkeys(("head", "tail", "head_type", "tail_type"), str),
    }

    def __init__(self, settings: RelationExtractionSettings) -> None:
        super().__init__(settings)
        self.marks: list[str] = []
        self.pair_types: list[list[str]] = []
        """Of documents: the types of head and tail that make pairs."""

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List the labels, check the negative one, and find how most texts mark their entities."""
        if not examples:
            raise InputError(
                "the training data have no pair of entities. model.dataset.scope=document pairs identifiers, "
                "scope=sentence pairs mentions of a sentence, and entity_types may leave all out."
            )
        super().learn_labels(examples)
        self._check_negative_label(self.labels)
        shares = {name: sum(bool(mark.search(item.text)) for item in examples) for name, mark in MARKS.items()}
        self.marks = [name for name, count in shares.items() if 2 * count > len(examples)]

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; runs of the first version do not have the marks and the types of pairs."""
        super().restore_state({"marks": [], "pair_types": [], **state})

    def read_data(self, data: DataSettings) -> Sequence[Example]:
        """Read a set of data; all documents of the first one, the training data, show which types make pairs."""
        documents = [Path(name) for name in self.files(data) if are_documents(Path(name))]
        if not self.pair_types and documents:
            self.pair_types = related_entity_types(documents, self.dataset)
        examples = super().read_data(data)
        if documents and any(item.labels for item in examples):  # a file of a labelled set may have no relation
            outside = (str(self.dataset.negative_label),)
            examples = [item if item.labels is not None else replace(item, labels=outside) for item in examples]
        return examples

    def _check_negative_label(self, labels: Collection[str]) -> None:
        negative = self.dataset.negative_label
        if negative is None or negative in labels:
            return
        likely = min((item for item in labels if _negative_rank(item) >= 0), key=_negative_rank, default=None)
        remedy = "" if likely is None else f"model.dataset.negative_label={likely}, or "
        raise ConfigError(
            f"model.dataset.negative_label={negative} is none of the labels ({', '.join(sorted(labels)[:12])}). Set "
            f"{remedy}model.dataset.negative_label=null if each label is a relation."
        )

    def reads_folder(self, path: Path) -> bool:
        """Return whether it has annotations of brat."""
        return are_documents(path)

    def read(self, path: Path) -> Sequence[Example]:
        """Read what text classification reads, or documents; positions that cut words are reported."""
        if are_documents(path):
            rows = read_pair_rows(path, self.dataset, self.dataset.negative_label, self.pair_types)
            return [self.example_of(row, number) for number, row in enumerate(rows, start=1)]
        examples = super().read(path)
        spans = [
            (example.given[UNMARKED], example.given[name]["start"], example.given[name]["end"], example.location)
            for example in examples
            if UNMARKED in example.given
            for name in ("head", "tail")
        ]
        cut = [span for span in spans if any(_is_in_word(span[0], edge) for edge in span[1:3])]
        if 10 * len(cut) > len(spans):
            text, start, end, location = cut[0]
            warnings.warn(
                f"{location}: {len(cut)} of {len(spans)} entities begin or end inside a word, such as "
                f"{text[start:end]!r:.60}. Positions are characters from 0, the end exclusive. Give the text of each "
                "entity, too, so that it is checked.",
                InputWarning,
                stacklevel=2,
            )
        return examples

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize examples; reports texts whose entities are not marked as those of the training data."""
        patterns = [MARKS[name] for name in self.marks]
        unmarked = [item for item in examples if any(not mark.search(item.text) for mark in patterns)]
        if unmarked:
            text = (
                "{first}: {count} of {total} texts lack marked entities, which the training data have "
                f"({', '.join(self.marks)}). Mark them, or give head and tail."
            )
            warning = ExamplesWarning(text, unmarked[0].location, len(examples), count=len(unmarked))
            warnings.warn(warning, stacklevel=2)
        return super().features(examples, tokenizer, with_targets=with_targets)

    def example_of(self, row: Row, number: int) -> Example:
        """Make an example from a row; entities that are given by position are marked."""
        row = entity_pair(row)
        if "head" in row.values or "tail" in row.values:
            text = row.string("text")
            marked = self._marked(text, row.get("head"), row.get("tail"), row.location)
            row = Row(row.values | {"text": marked, UNMARKED: text}, row.location)
        return super().example_of(row, number)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, already marked, or with `head` and `tail`.

        These are words that occur in the text once, with head_type and tail_type, or objects as in JSON lines.
        """
        given = {name: fields.pop(name, None) for name in ("head", "tail", "head_type", "tail_type")}
        if given["head"] is None and given["tail"] is None:
            return super().example(**fields)
        text = str(fields.get("text") or "")
        head, tail = (_locate(text, given[name], given[f"{name}_type"], name) for name in ("head", "tail"))
        fields["text"] = self._marked(text, head, tail, "the text")
        return replace(super().example(**fields), given={UNMARKED: text, "head": head, "tail": tail})

    def to_row(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """Return the text and its entities as they were given, and the marked text."""
        row = super().to_row(example, prediction)
        text = row.pop(UNMARKED, None)
        return row if text is None else row | {"text": text, "marked": row["text"]}

    def _marked(self, text: str, head: Any, tail: Any, location: str) -> str:
        entities = (_entity(head, text, "head", location), _entity(tail, text, "tail", location))
        return mark_entities(text, *entities, self.dataset.entity_marking)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute micro-F1 without the negative label, and all metrics of text classification."""
        gold = [require_labels(example, "labels")[0] for example in examples]
        predicted = [item.labels[0] for item in predictions]
        self._check_negative_label(self.labels or {*gold, *predicted})
        micro = classification.micro_f1(gold, predicted, {self.dataset.negative_label} - {None})
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
    _check_text(given, text, name, location)
    return MarkedEntity(start, end, str(given.get("type") or name))


def _check_text(entity: Mapping[str, Any], text: str, name: str, location: str) -> None:
    """Raise InputError where an entity's own text does not stand at its characters."""
    start, end, words = entity["start"], entity["end"], entity.get("text")
    if not isinstance(words, str) or text[start:end] == words:
        return
    places = [match.start() for match in re.finditer(re.escape(words), text)]
    found = " and ".join(f"{place} to {place + len(words)}" for place in places[:3])
    where = f"it is at {found}" if places else "nor is it elsewhere"
    counted = {
        "UTF-16 code units": text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * end].decode(
            "utf-16-le", "replace"
        ),
        "bytes": text.encode()[start:end].decode(errors="replace"),
        "an end that is the last character": text[start : end + 1],
    }
    hint = next((f" The positions count {unit}." for unit, part in counted.items() if part == words), "")
    raise InputError(
        f"{location}: the {name} {words!r:.80} is not at characters {start} to {end}, where {text[start:end]!r:.80} "
        f"is; {where}.{hint} Give characters, the end exclusive."
    )


def _is_in_word(text: str, edge: int) -> bool:
    return 0 < edge < len(text) and text[edge - 1].isalnum() and text[edge].isalnum()


def _negative_rank(label: str) -> int:
    """Rank a label as the name of the negative class, -1 if it is no usual one."""
    letters = re.sub(r"[\W_]", "", label.lower())
    names = enumerate(NEGATIVE_NAMES)
    return next((rank for rank, name in names if letters == name or (rank < 2 and letters.endswith(name))), -1)


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
    # Inserted from the end of the text, so that earlier positions stay valid. At one position a mark that ends an
    # entity precedes one that starts another, and of two entities the longer one is outside, else the head.
    marks = []
    for rank, (entity, (before, behind)) in enumerate(zip((head, tail), around, strict=True)):
        length = entity.end - entity.start
        marks += [(entity.start, 1, -length, rank, before), (entity.end, 0, length, -rank, behind)]
    for position, *_, inserted in sorted(marks, reverse=True):
        text = text[:position] + inserted + text[position:]
    return text
