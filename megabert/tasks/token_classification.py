"""Token classification: a tag for each word, as in named-entity recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.schema import ModelSettings, OptimizerSettings, Settings, TrainerSettings, choice, linear_decay
from ..data.packing import Batch, Features
from ..formats.columns import Sentence, column_sentences, sentence_of
from ..formats.json_lines import JSON_SUFFIXES, read_json_lines
from ..formats.rows import Row
from ..formats.text_lines import read_lines
from ..metrics import tagging
from ..model.config import EncoderConfig
from ..tokenizers.words import joined_words, split_words
from .head_settings import TagHeadSettings, head_options
from .iob_tags import Span, decode_tags, find_spans, is_entity_tag, to_iob2
from .labels import LabelKind, require_labels
from .task import Logits
from .word_labeling import (
    WordDataSettings,
    WordExample,
    WordLabelingTask,
    WordTargetSettings,
    WordTrainSettings,
    require_word_labels,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class TaggedWordSettings(WordTargetSettings):
    """How words become tokens, and tags labels."""

    data_dir: str | None = None
    """Folder of text_file and labels_file; their names in it are text_train.txt and so on, unless given."""
    max_seq_length: int = 128
    """Tokens of a sentence with its special tokens; a longer one is read in overlapping windows."""
    pad_label: str = "O"
    """The tag of words outside of all entities."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: weight a tag in the loss in inverse proportion to its number of words."""
    constrained_decoding: bool = False
    """Predict the most likely valid sequence of tags, in which an I- always continues an entity."""


@dataclass
class TokenClassificationModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: TaggedWordSettings = field(default_factory=TaggedWordSettings)
    head: TagHeadSettings = field(default_factory=TagHeadSettings)
    train_ds: WordTrainSettings = field(default_factory=WordTrainSettings)
    validation_ds: WordDataSettings = field(default_factory=WordDataSettings)
    test_ds: WordDataSettings = field(default_factory=WordDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(5e-5))


@dataclass
class TokenClassificationSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=5))
    model: TokenClassificationModel = field(default_factory=TokenClassificationModel)


@dataclass(frozen=True)
class Example(WordExample):
    """A string, its words, and their tags, None where they are unknown."""

    tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """The tag of each word and the entities that the tags mark."""

    id: str
    text: str
    tags: tuple[str, ...]
    spans: tuple[Span, ...]


class TokenClassification(WordLabelingTask[Example, Prediction]):
    r"""Tag the words of a text, above all to find named entities.

        megabert train token_classification model.train_ds.file=train.conll model.validation_ds.file=dev.conll \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
        megabert evaluate RUN file=test.conll output_dir=OUT
        megabert predict RUN text="BRCA1 and IL-2 in breast cancer."

    Data: CoNLL's columns in `file`, a word a line with its tag in the last column (tabs or blanks) and an empty line
    between sentences; or NeMo's two files, `text_file` and `labels_file`, with a sentence and its tags on the same
    line of each; or JSON lines with `tokens` and `tags`. Tags in IOB1, IOB2 or IOBES are converted to IOB2; tags of
    another kind are kept as they are. To predict: a *.txt file of raw text, a sentence or paragraph a line, or JSON
    lines with `text`. `megabert import iob` converts columns to the two files.

    A word is tagged by the logits of its first token. A sentence longer than `max_seq_length` is read in windows that
    overlap by half; each word is tagged in the window with the most context around it, and none is lost. Raw text is
    split into words at blanks, and at punctuation on the ends of what stands between: `(p53)` is three words, `IL-2`
    one.

    Predictions: entities with type, mean probability of their words' tags, and characters of the original text; also
    the text with tags in brackets as NeMo writes it, and the tags of all words. With
    `model.dataset.constrained_decoding=true` an I- always continues an entity.

    Metrics: `f1`, `precision` and `recall` of entities as conlleval counts them: type and all words agree, and an I-
    that cannot continue an entity opens one. The `strict_` metrics count only entities that a B- opens. Also the
    metrics of each type, `macro_f1` over types, and `word_accuracy`. NeMo 1.x reports single tags, O included: that
    report is written to `report_tag.txt`.
    """

    settings_type = TokenClassificationSettings
    main_score = "f1"
    state_names = ("labels", "weights")

    def __init__(self, settings: TokenClassificationSettings) -> None:
        self.dataset = settings.model.dataset
        tags = LabelKind("tag", "tags", first=self.dataset.pad_label)
        super().__init__(settings, tags, target_settings=self.dataset, class_balancing=self.dataset.class_balancing)

    def read(self, path: Path) -> list[Example]:
        """Read CoNLL's columns or JSON lines; a *.txt or *.raw of lines without tabs is raw text, a sentence a line."""
        if path.suffix in JSON_SUFFIXES:
            rows = read_json_lines(path)
            if any("text" not in row.values for row in rows):
                return self.labelled([sentence_of(row) for row in rows])
            return self.unlabelled_rows(rows)
        lines = read_lines(path)
        is_raw = path.suffix in (".txt", ".raw") and not any("\t" in line for line in lines)
        if is_raw and not _are_columns(lines):
            return self.unlabelled_lines(path, lines)
        return self.labelled(column_sentences(path, lines))

    def unlabelled(self, text: str, name: str, location: str) -> Example:
        """Split raw text into words."""
        return Example(name, text, split_words(text), location)

    def labelled(self, sentences: Sequence[Sentence]) -> list[Example]:
        """Make examples from sentences; tags of entities are converted to IOB2."""
        are_entities = any(is_entity_tag(tag) for item in sentences for tag in item.tags or ())
        examples = []
        for number, sentence in enumerate(sentences, start=1):
            tags = sentence.tags
            if tags is not None and are_entities:
                tags = to_iob2(tags, self.dataset.pad_label, sentence.location)
            text, words = " ".join(sentence.words), joined_words(sentence.words)
            examples.append(Example(str(number), text, words, sentence.location, tags))
        return examples

    def head(self, config: EncoderConfig) -> Head:
        """Score the tags at each token."""
        from ..model.heads import TokenHead

        return TokenHead(config.hidden_size, len(self.labels), **head_options(self.settings.model.head))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the cross-entropy over tokens with a tag, weighted by tag."""
        return self.word_loss(logits, batch, self.word_kinds[0])

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Tag each word by the logits of its first token."""
        predictions = []
        for example, logits_WC in zip(examples, self.word_logits(examples, features, logits), strict=True):
            tags, scores = decode_tags(logits_WC, self.labels, constrained=self.dataset.constrained_decoding)
            spans = find_spans(example.text, example.words, tags, scores)
            predictions.append(Prediction(example.id, example.text, tags, spans))
        return predictions

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score entities and words."""
        gold = [require_labels(example, "tags") for example in examples]
        scores = tagging.entity_scores(gold, [item.tags for item in predictions])
        pairs = self.label_pairs(examples, predictions)["tag"]
        accuracy = 100.0 * sum(a == b for a, b in pairs) / len(pairs)
        return scores | {"word_accuracy": accuracy, "total": len(gold)}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the entities, NeMo's text with tags in brackets, and the tags."""
        parts, end = [], 0
        for span in prediction.spans:
            parts += [prediction.text[end : span.start], f"{span.text}[{span.type}]"]
            end = span.end
        return {
            "id": prediction.id,
            "text": prediction.text,
            "entities": [vars(span) for span in prediction.spans],
            "tagged": "".join([*parts, prediction.text[end:]]),
            "tags": list(prediction.tags),
        }

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the tags of an example's words."""
        return Prediction(example.id, example.text, require_word_labels(example, row, row.strings("tags")), ())

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read JSON lines as `megabert predict` writes them, or CoNLL's columns."""
        if path.suffix in JSON_SUFFIXES:
            return read_json_lines(path)
        examples = cls(cls.settings_type()).read(path)
        return [Row({"tags": list(require_labels(example, "tags"))}, example.location) for example in examples]

    def write_predictions(
        self, folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, str]:
        """Return predictions.txt: word, gold tag and predicted tag, the input of conlleval."""
        sentences = []
        for example, prediction in zip(examples, predictions, strict=True):
            rows = zip(self.words(example), example.tags or prediction.tags, prediction.tags, strict=True)
            sentences.append("".join(" ".join(row) + "\n" for row in rows))
        return {"predictions.txt": "\n".join(sentences)}


def _are_columns(lines: Sequence[str]) -> bool:
    """Tell columns from raw text: all lines have the same small number of fields, and there are empty lines."""
    widths = {len(line.split()) for line in lines if line.strip()}
    return len(widths) == 1 and widths <= {2, 3, 4} and any(not line.strip() for line in lines)
