"""Punctuation and capitalization: restore the marks and capitals that speech recognition leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.schema import ModelSettings, OptimizerSettings, Settings, linear_decay
from ..data.packing import Batch, Features
from ..errors import ConfigError, InputError
from ..formats.json_lines import has_objects, object_rows
from ..formats.punctuation import ALL_CAPITALS, CAPITALIZED, NONE, Word, find_words, restore
from ..formats.record_streams import derived
from ..formats.rows import Row
from ..formats.tagged_words import Sentence
from ..formats.text_lines import data_lines, require_raw_text
from ..metrics import classification
from ..model.config import EncoderConfig
from ..tokenizers.words import joined_words
from .head_settings import TokenHeadSettings, head_options
from .labels import LabelKind
from .task import Logits
from .word_labeling import (
    WordDataSettings,
    WordLabelingTask,
    WordTargetSettings,
    WordTrainSettings,
    require_word_labels,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class PunctuatedTextSettings(WordTargetSettings):
    """What is restored, and how texts become tokens."""

    data_dir: str | None = None
    """Folder of text_file and labels_file; their names in it are text_train.txt and so on, unless given."""
    marks: str = ".,?"
    """The marks that are learnt from plain text; all others are removed from it."""
    max_seq_length: int = 128
    """Tokens of a window with its special tokens; a longer text is read in overlapping windows."""
    margin: int = 16
    """Least number of tokens of context on both sides of each word, as far as the text has so many."""


@dataclass
class PunctuationModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: PunctuatedTextSettings = field(default_factory=PunctuatedTextSettings)
    punct_head: TokenHeadSettings = field(default_factory=TokenHeadSettings)
    capit_head: TokenHeadSettings = field(default_factory=TokenHeadSettings)
    train_ds: WordTrainSettings = field(default_factory=WordTrainSettings)
    validation_ds: WordDataSettings = field(default_factory=WordDataSettings)
    test_ds: WordDataSettings = field(default_factory=WordDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(1e-4))


@dataclass
class PunctuationSettings(Settings):
    """All settings of a run."""

    model: PunctuationModel = field(default_factory=PunctuationModel)


@dataclass(frozen=True)
class Example:
    """A text and its words with their marks and cases."""

    id: str
    text: str
    words: tuple[Word, ...]
    location: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Other fields of the data, which rows of predictions repeat."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Each word's mark."""
        return tuple(word.mark for word in self.words)

    @property
    def cases(self) -> tuple[str, ...]:
        """Each word's case."""
        return tuple(word.case for word in self.words)


@dataclass(frozen=True)
class Prediction:
    """The text with its marks and capitals restored, and each word's mark and case."""

    id: str
    text: str
    restored: str
    marks: tuple[str, ...]
    cases: tuple[str, ...]
    windows: int = 1
    """Number of windows that were read."""


class PunctuationCapitalization(WordLabelingTask[Example, Prediction]):
    r"""Restore punctuation and capitals in text without them, such as the output of speech recognition.

        megabert train punctuation_capitalization model.train_ds.file=train.txt model.validation_ds.file=dev.txt \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN text="hello how are you i am fine"

    Data: plain text in `file`, a paragraph a line: its words are lower-cased, and marks and cases are the labels; or
    NeMo's two files, `text_file` with lower-cased words and `labels_file` with two letters for each, its mark (O for
    none) and its case (U for a capital, O for none), which `megabert import punctuation` makes from plain text. Cases
    learnt from plain text are U and A, all capitals; marks are those of `model.dataset.marks`.

    Texts of any length are read in windows that overlap by twice `model.dataset.margin`; each word is labelled in the
    window with the most context around it. Marks and capitals that a text has already are kept. In Python:
    `megabert.load(RUN).predict(text=...).restored`.

    Metrics: `punct_f1` and `capit_f1`, over all marks and all cases but "none" together, with precision, recall, macro
    F1 and accuracy; each mark's and case's precision, recall and F1; `f1`, the mean of the two.
    """

    settings_type = PunctuationSettings
    main_score = "f1"
    state_names = ("marks", "cases")

    def __init__(self, settings: PunctuationSettings) -> None:
        self.dataset = settings.model.dataset
        self.marks: list[str] = []
        self.cases: list[str] = []
        if self.dataset.max_seq_length - 2 - 2 * self.dataset.margin < 1 or self.dataset.margin < 0:
            raise ConfigError(
                f"model.dataset.margin={self.dataset.margin} does not fit model.dataset.max_seq_length="
                f"{self.dataset.max_seq_length}: a window is two margins, two special tokens and at least one more."
            )
        kinds = [
            LabelKind("mark", "marks", "marks", None, first=NONE),
            LabelKind("case", "cases", "cases", None, first=NONE),
        ]
        super().__init__(settings, *kinds, target_settings=self.dataset)

    @property
    def margin(self) -> int:
        """Least number of tokens of context of each word on both sides."""
        return self.dataset.margin

    def read(self, path: Path) -> Sequence[Example]:
        """Read plain text, a paragraph a line, or JSON lines with `text`."""
        if has_objects(path):
            rows = object_rows(path)
            return derived(rows, lambda rows: (self.unlabelled_row(row, n) for n, row in enumerate(rows, start=1)))
        lines = data_lines(path)
        require_raw_text(path, lines)
        return self.unlabelled_lines(path, lines)

    def labelled(self, sentences: Sequence[Sentence]) -> Sequence[Example]:
        """Make examples from sentences with labels of two letters for each word."""
        return derived(sentences, lambda items: (_labelled(item, n) for n, item in enumerate(items, start=1)))

    def unlabelled(self, text: str, name: str, location: str) -> Example:
        """Split a text into words with marks and cases; the marks are those that the head has, if it has any."""
        marks = "".join(self.marks).replace(NONE, "") or self.dataset.marks
        return Example(name, text, tuple(find_words(text, marks)), location)

    def tokenized(self, words: Sequence[str], name: str, location: str) -> Example:
        """Join words by blanks, and split them as text is split."""
        return self.unlabelled(" ".join(words), name, location)

    def words(self, example: Example) -> list[str]:
        """Return the words in lower case."""
        return [word.lower() for word in super().words(example)]

    def spans(self, example: Example) -> list[tuple[int, int]]:
        """Return the [start, end) characters of the words."""
        return [(word.start, word.end) for word in example.words]

    def head(self, config: EncoderConfig) -> Head:
        """Score marks and cases at each token."""
        from ..model.heads import JointHead, TokenHead

        model = self.settings.model
        return JointHead(
            punct=TokenHead(config.hidden_size, len(self.marks), **head_options(model.punct_head)),
            capit=TokenHead(config.hidden_size, len(self.cases), **head_options(model.capit_head)),
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum both cross-entropies over the words."""
        mark, case = self.word_kinds
        marks, cases = logits[:, : len(self.marks)], logits[:, len(self.marks) :]
        return self.word_loss(marks, batch, mark) + self.word_loss(cases, batch, case)

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Choose each word's mark and case, and restore the texts with them."""
        predictions = []
        for example, logits_WC in zip(examples, self.word_logits(examples, features, logits), strict=True):
            known_WC = np.nan_to_num(logits_WC)  # equal logits choose the first of each kind, O
            marks = tuple(self.marks[number] for number in known_WC[:, : len(self.marks)].argmax(axis=1))
            cases = tuple(self.cases[number] for number in known_WC[:, len(self.marks) :].argmax(axis=1))
            restored = restore(example.text, example.words, marks, cases)
            predictions.append(Prediction(example.id, example.text, restored, marks, cases))
        return self.with_windows(predictions, features)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score the marks and cases of words."""
        pairs = self.label_pairs(examples, predictions)
        scores: dict[str, float] = {}
        for prefix, kind in (("punct", "mark"), ("capit", "case")):
            gold, predicted = zip(*pairs[kind], strict=True) if pairs[kind] else ((), ())
            micro = classification.micro_f1(gold, predicted, {NONE})
            by_class = classification.classification_scores(gold, predicted, sorted({*gold, *predicted} - {NONE}))
            scores |= {f"{prefix}_{name}": value for name, value in micro.items()}
            scores |= {f"{prefix}_{name}": by_class[name] for name in ("accuracy", "macro_f1")}
            scores |= {name: value for name, value in by_class.items() if "/" in name}
        return {"f1": (scores["punct_f1"] + scores["capit_f1"]) / 2} | scores | {"total": len(pairs["mark"])}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the restored text, and NeMo's labels of two letters a word."""
        labels = " ".join(map("".join, zip(prediction.marks, prediction.cases, strict=True)))
        values = {"id": prediction.id, "text": prediction.text, "restored": prediction.restored, "labels": labels}
        return values | {"windows": prediction.windows}

    def gold(self, example: Example) -> dict[str, Any]:
        """Return the text's own marks and cases as labels of two letters a word; empty if it has none."""
        labels = [word.mark + word.case for word in example.words]
        return {"labels": " ".join(labels)} if set(labels) - {2 * NONE} else {}

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the labels of two letters of an example's words."""
        labels = require_word_labels(example, row, str(row.get("labels")).split())
        _require_two_letters(labels, row.location)
        marks, cases = (tuple(label[letter] for label in labels) for letter in (0, 1))
        return Prediction(example.id, example.text, "", marks, cases)


def _labelled(sentence: Sentence, number: int) -> Example:
    tags = sentence.tags or ()
    _require_two_letters(tags, sentence.location)
    words = tuple(Word(*span, *tag) for span, tag in zip(joined_words(sentence.words), tags, strict=True))
    return Example(str(number), " ".join(sentence.words), words, sentence.location)


def _require_two_letters(labels: Sequence[str], location: str) -> None:
    for label in labels:
        is_mark = label[:1] == NONE or not label[:1].isalnum()
        if len(label) != 2 or not is_mark or label[1] not in (NONE, CAPITALIZED, ALL_CAPITALS):
            raise InputError(
                f"{location}: the label {label!r}; expected two letters for each word, its mark ({NONE} for none) and "
                f"its case ({NONE}, {CAPITALIZED} or {ALL_CAPITALS}): .U."
            )
