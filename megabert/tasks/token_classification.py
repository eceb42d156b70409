"""Token classification: a tag for each word, as in named-entity recognition."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import ModelSettings, OptimizerSettings, Settings, TrainerSettings, choice, linear_decay
from ..data.packing import Batch, Features
from ..data.windows import POOLED_LOGITS
from ..errors import InputError
from ..formats.columns import (
    ColumnLayout,
    are_columns,
    column_sentences,
    find_columns,
)
from ..formats.json_lines import has_objects, is_json_lines, object_rows, read_json_lines
from ..formats.record_streams import derived
from ..formats.rows import Row
from ..formats.tag_schemes import (
    TagScheme,
    chosen_tags,
    find_scheme,
    has_entities,
    other_scheme,
    single_word_tags,
    to_iob2,
)
from ..formats.tagged_words import TAG_KEYS, WORD_KEYS, Sentence, has_words, sentence_of, without_empty
from ..formats.text_lines import data_lines, read_lines, require_raw_text
from ..metrics import tagging
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .document_data import EntityTypeSettings, are_documents, read_tagged_sentences, starts_as_pubtator
from .head_settings import TagHeadSettings, head_options
from .iob_tags import Span, decode_tags, find_spans
from .labels import LabelKind, class_probabilities, require_labels
from .task import Logits, require_text
from .word_labeling import (
    RawTextSettings,
    WordDataSettings,
    WordExample,
    WordLabelingTask,
    WordTargetSettings,
    WordTrainSettings,
    require_word_labels,
    standard_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class TaggedWordSettings(WordTargetSettings, RawTextSettings, EntityTypeSettings):
    """How words become tokens, and tags labels."""

    data_dir: str | None = None
    """Folder of text_file and labels_file; their names in it are text_train.txt and so on, unless given."""
    max_seq_length: int = 128
    """Tokens of a sentence with its special tokens; a longer one is read in overlapping windows."""
    window_pooling: str = choice("best_context", "best_context", *POOLED_LOGITS)
    """A word's logits: of the window with the most context around it, the mean of windows, or the largest."""
    format: str | None = choice(None, "columns", "json", "text")
    """columns, json (lines) or text (a sentence a line); null: by the file's ending, else by what is in it."""
    word_column: int | None = None
    """Column of the words, counted from 1; null: the first, or the second where the first numbers the words."""
    tag_column: int | None = None
    """Column of the tags, counted from 1, from the last if negative; null: the last."""
    tag_names: list[str] = field(default_factory=list)
    """Names of tags that are numbers in JSON lines, in order: [O,B-Disease,I-Disease]."""
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
    windows: int = 1
    """Number of windows that were read."""


class TokenClassification(WordLabelingTask[Example, Prediction]):
    r"""Tag the words of a text, above all to find named entities.

        megabert train token_classification model.train_ds.file=train.conll model.validation_ds.file=dev.conll \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
        megabert evaluate RUN file=test.conll output_dir=OUT
        megabert predict RUN text="BRCA1 and IL-2 in breast cancer."

    Data: CoNLL's columns in `file`, a word a line with its tag in the last column (tabs or blanks) and an empty line
    between sentences; or NeMo's two files, `text_file` and `labels_file`, with a sentence and its tags on the same
    line of each; or JSON lines with `tokens` and `tags`. To predict: raw text, a sentence or paragraph a line, or JSON
    lines with `text` or `tokens`. [Data formats](../formats.md#words-with-tags-token_classification) has how a file is
    recognized. Tags of all schemes (IOB1, IOBES, BILOU, BMES, suffixes) are converted to IOB2; parts of speech and
    other tags without prefixes are kept, and each word is scored. `megabert import iob` converts columns to the two
    files. Annotated documents (PubTator, BioC, `megabert import documents`) are read as sentences.

    A word is tagged by the logits of its first token. A sentence longer than `max_seq_length` is read in windows that
    overlap by half; each word is tagged in the window with the most context around it, and none is lost. Raw text is
    cut into words as those of the training data are, or at `model.dataset.split_at`; punctuation on their ends is cut
    off: `(p53)` is three words, `IL-2` one, unless the training data separate the hyphen.

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
    can_distil = True
    state_names = ("labels", "weights", "cuts")
    example_type = Example

    def __init__(self, settings: TokenClassificationSettings) -> None:
        self.dataset = settings.model.dataset
        tags = LabelKind("tag", "tags", first=self.dataset.pad_label)
        super().__init__(settings, tags, target_settings=self.dataset, class_balancing=self.dataset.class_balancing)

    def reads_folder(self, path: Path) -> bool:
        """Return whether it has annotations of brat."""
        return are_documents(path)

    def read(self, path: Path) -> Sequence[Example]:
        """Read columns, JSON lines or raw text: by `format`, else by the file's ending, else by what is in it."""
        if are_documents(path):
            sentences = read_tagged_sentences(path, self.dataset.entity_types)
            return [Example(item.id, item.text, item.words, item.location, item.tags) for item in sentences]
        kind = self.dataset.format
        if kind == "json" or (kind is None and has_objects(path)):
            return self._read_rows(without_empty(path, object_rows(path)))
        lines = data_lines(path)
        if kind is None and starts_as_pubtator(lines):
            raise InputError(f"{path} has PubTator's documents. Give it that ending, .pubtator.")
        if kind is None and not are_columns(path, lines, self.dataset.pad_label):
            require_raw_text(path, lines)
            kind = "text"
        if kind == "text":
            return self.unlabelled_lines(path, lines)
        layout = ColumnLayout(self.dataset.word_column, self.dataset.tag_column, self.dataset.pad_label)
        columns = find_columns(path, lines, layout)
        return self._labelled(columns.sentences(), columns.tags)

    def _read_rows(self, rows: Sequence[Row]) -> Sequence[Example]:
        tags = (tag for row in rows if has_words(row) for tag in self._sentence(row).tags or ())
        scheme = find_scheme(tags, self.dataset.pad_label)
        return derived(rows, lambda rows: (self._of_row(row, scheme, number) for number, row in enumerate(rows, 1)))

    def _sentence(self, row: Row, name: str = "") -> Sentence:
        return sentence_of(row, name, self.dataset.tag_names)

    def _of_row(self, row: Row, scheme: TagScheme | None, number: int) -> Example:
        if has_words(row):
            example = self._tagged(self._sentence(row, row.identifier(number)), scheme, number)
            return replace(example, given=row.others("id", "text", *WORD_KEYS, *TAG_KEYS))
        return self.unlabelled_row(row, number)

    def examples_of_texts(self, texts: Sequence[str], tokenizer: Tokenizer) -> tuple[list[Example], Sequence[Features]]:
        """Split texts into words and tokens at once."""
        for text in texts:
            require_text({"text": text})
        words, features = self.split_texts(texts, tokenizer)
        named = zip(texts, words, strict=True)
        return [Example("text", text, own, "the text") for text, own in named], features

    def labelled(self, sentences: Sequence[Sentence]) -> Sequence[Example]:
        """Make examples from sentences; tags of entities are converted to IOB2."""
        return self._labelled(sentences, None)

    def _labelled(self, sentences: Sequence[Sentence], tags: Collection[str] | None) -> Sequence[Example]:
        """Make examples from sentences, of which all tags may be known."""
        found = (tag for item in sentences for tag in item.tags or ()) if tags is None else tags
        scheme = find_scheme(found, self.dataset.pad_label)
        return derived(sentences, lambda items: (self._tagged(item, scheme, n) for n, item in enumerate(items, 1)))

    def _tagged(self, sentence: Sentence, scheme: TagScheme | None, number: int) -> Example:
        tags = sentence.tags
        if tags is not None:
            tags = to_iob2(tags, scheme, self.dataset.pad_label, sentence.location)
            tags = chosen_tags(tags, self.dataset.entity_types, self.dataset.pad_label)
        return replace(self.tokenized(sentence.words, sentence.id or str(number), sentence.location), tags=tags)

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List the tags, and learn how raw text is cut into words."""
        if all(example.tags is None for example in examples):
            remedy = "Where columns have other tags than O, B-TYPE and I-TYPE, set model.dataset.format=columns."
            if fields := ", ".join(examples[0].given)[:100]:
                remedy = f"Of the fields {fields} none is `tags`, one for each of `tokens` (spans: *.documents.jsonl)."
            place = examples[0].location
            raise InputError(f"{place}: the training data have no tags: they are raw text, or words alone. {remedy}")
        super().learn_labels(examples)
        self.learn_word_cuts(examples)

    def warnings_about(self, kind: LabelKind, counts: Mapping[str, int], examples: Sequence[Example]) -> Sequence[str]:
        """Warn where the tags mark no entities, too: then each word with a tag counts as one."""
        warnings = list(super().warnings_about(kind, counts, examples))
        if not has_entities(counts, self.dataset.pad_label):
            warnings.append(
                "no tag has a prefix, B- or I-: each word is scored by itself, as for parts of speech. Entities need "
                "tags such as B-TYPE and I-TYPE."
            )
        return warnings

    def head(self, config: EncoderConfig) -> Head:
        """Score the tags at each token."""
        from ..model.heads import TokenHead

        return TokenHead(config.hidden_size, len(self.labels), **head_options(self.settings.model.head))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the cross-entropy over tokens with a tag, weighted by tag."""
        return self.word_loss(logits, batch, self.word_kinds[0])

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Tag each word by the logits of its first token."""
        predictions, foreign = [], other_scheme(self.labels, self.dataset.pad_label)
        word_logits = self.word_logits(examples, features, logits)
        decoded = decode_tags(word_logits, self.labels, constrained=self.dataset.constrained_decoding)
        for example, (tags, scores) in zip(examples, decoded, strict=True):
            if foreign is not None:
                tags = to_iob2(tags, foreign, self.dataset.pad_label, example.location)
            spans = find_spans(example.text, example.words, tags, scores)
            predictions.append(Prediction(example.id, example.text, tags, spans))
        return self.with_windows(predictions, features)

    def word_probabilities(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Logits
    ) -> list[NDArray[np.float64]]:
        """Return the probabilities of each word's tags, [W, C] by `labels`; NaN where a word has no tokens."""
        gathered = self.word_logits(examples, features, logits)
        return [class_probabilities(logits_WC, is_multi_label=False) for logits_WC in gathered]

    @property
    def window_pooling(self) -> str:
        """Return the setting of this name."""
        return str(self.dataset.window_pooling)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score entities and words."""
        gold = [require_labels(example, "tags") for example in examples]
        predicted = [item.tags for item in predictions]
        outside = self.dataset.pad_label
        if other_scheme(self.labels, outside) or has_entities(
            self.labels or {tag for tags in (*gold, *predicted) for tag in tags}, outside
        ):
            scores = tagging.entity_scores(gold, predicted)
        else:
            scores = tagging.entity_scores(
                *([single_word_tags(tags, outside) for tags in side] for side in (gold, predicted))
            )
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
            "windows": prediction.windows,
        }

    def gold(self, example: Example) -> dict[str, Any]:
        """Return an example's tags and entities."""
        if example.tags is None:
            return {}
        spans = find_spans(example.text, example.words, example.tags, np.ones(len(example.tags)))
        return {"entities": [vars(span) for span in spans], "tags": list(example.tags)}

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the tags of an example's words."""
        return Prediction(example.id, example.text, require_word_labels(example, row, row.strings("tags")), ())

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read JSON lines as `megabert predict` writes them, or CoNLL's columns."""
        if is_json_lines(path):
            return standard_rows(read_json_lines(path))
        sentences = column_sentences(path, read_lines(path), ColumnLayout(tag=-1))
        return standard_rows([Row({"tags": list(item.tags or ())}, item.location) for item in sentences])

    def write_predictions(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return predictions.txt: word, gold tag and predicted tag, the input of conlleval."""
        sentences = []
        for example, prediction in zip(examples, predictions, strict=True):
            # conlleval separates columns by blanks, so that a word has none.
            words = ["_".join(word.split()) or "_" for word in self.words(example)]
            rows = zip(words, example.tags or prediction.tags, prediction.tags, strict=True)
            sentences.append("".join(" ".join(row) + "\n" for row in rows))
        return {"predictions.txt": "\n".join(sentences)}
