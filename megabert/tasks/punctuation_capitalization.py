"""Punctuation and capitalization: the marks and capitals that speech recognition leaves out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import word_logits, word_windows
from ..errors import ConfigError, InputError
from ..formats.columns import Sentence, read_parallel
from ..formats.json_lines import JSON_SUFFIXES, read_json_lines
from ..formats.punctuation import NONE, Word, find_words, restore
from ..formats.text_lines import read_lines
from ..metrics import classification
from ..model.config import EncoderConfig
from ..model.heads import ACTIVATIONS, Head, JointHead, TokenHead
from ..tokenizers.wordpiece import Tokenizer
from ..tokenizers.words import joined_words
from .task import Task, number_labels, text_of, unseen
from .token_classification import TokenDataSettings, TokenTrainSettings, word_files


@dataclass
class DatasetSettings:
    """What is restored, and how long texts are read."""

    data_dir: str | None = None
    """Folder of text_file and labels_file."""
    marks: str = ".,?"
    """The marks that are learnt from plain text; the others are left out of it."""
    max_seq_length: int = 128
    """Tokens of a window with its special tokens; longer texts are read in windows that overlap."""
    margin: int = 16
    """Tokens that each word sees on both sides at least, as far as the text has so many."""
    ignore_extra_tokens: bool = True
    """Learn a word's mark and case at its first token only; false: at each of them."""
    ignore_start_end: bool = True
    """Learn nothing at [CLS] and [SEP]; false: O."""


@dataclass
class PunctuationHeadSettings:
    """A head that reads each token."""

    num_fc_layers: int = 1
    """Linear maps."""
    fc_dropout: float = 0.1
    """Dropout on the head's input."""
    activation: str = choice("relu", *ACTIVATIONS)
    """Between linear maps."""


@dataclass
class PunctuationModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    punct_head: PunctuationHeadSettings = field(default_factory=PunctuationHeadSettings)
    capit_head: PunctuationHeadSettings = field(default_factory=PunctuationHeadSettings)
    train_ds: TokenTrainSettings = field(default_factory=TokenTrainSettings)
    validation_ds: TokenDataSettings = field(default_factory=TokenDataSettings)
    test_ds: TokenDataSettings = field(default_factory=TokenDataSettings)
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
    place: str


@dataclass(frozen=True)
class Prediction:
    """The text with its marks and capitals, and what was chosen for each word."""

    id: str
    text: str
    restored: str
    marks: tuple[str, ...]
    cases: tuple[str, ...]


class PunctuationCapitalization(Task[Example, Prediction]):
    r"""Restore punctuation and capitals in text that has none, such as speech recognition gives.

        megabert train punctuation_capitalization model.train_ds.file=train.txt model.validation_ds.file=dev.txt \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN text="hello how are you i am fine"

    Data: plain text in `file`, a paragraph a line, from which words are lower-cased and marks taken off and learnt; or
    NeMo's two files, `text_file` with lower-cased words and `labels_file` with two letters for each, its mark (O for
    none) and its case (U for a capital, O for none), which `megabert import punctuation` makes of plain text. Cases
    learnt from plain text are U and A, all capitals; marks are those of `model.dataset.marks`.

    Texts of any length are read in windows that overlap by twice `model.dataset.margin`, each word where it sees more
    of its surroundings. What a text has of marks and capitals already it keeps. In Python:
    `megabert.load(RUN).predict(text=...).restored`.

    Scores: `punct_f1` and `capit_f1`, over all marks and all cases but "none" together, with precision, recall, macro
    F1 and accuracy; each mark's and case's precision, recall and F1; `f1`, the mean of the two.
    """

    settings_type = PunctuationSettings
    main_score = "f1"

    def __init__(self, settings: PunctuationSettings) -> None:
        super().__init__(settings)
        self.dataset = settings.model.dataset
        self.marks: list[str] = []
        self.cases: list[str] = []
        if self.dataset.max_seq_length - 2 - 2 * self.dataset.margin < 1 or self.dataset.margin < 0:
            raise ConfigError(
                f"model.dataset.margin={self.dataset.margin} leaves nothing of model.dataset.max_seq_length="
                f"{self.dataset.max_seq_length}: a window is two margins, two special tokens and at least one more."
            )

    @property
    def row_length(self) -> int:
        """Tokens of a window."""
        return self.dataset.max_seq_length

    def state(self) -> dict[str, Any]:
        """Give marks and cases."""
        return {"marks": self.marks, "cases": self.cases}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take marks and cases back."""
        self.marks, self.cases = list(state["marks"]), list(state["cases"])

    def files(self, data: Any) -> list[str]:
        """Give `file`, or the two files."""
        return word_files(data, self.dataset.data_dir)

    def read_files(self, files: Sequence[str]) -> list[Example]:
        """Read plain text, or words and their labels in parallel."""
        if len(files) == 1:
            return self.read(Path(files[0]))
        sentences = read_parallel(Path(files[0]), Path(files[1]))
        return [self._labelled(sentence, number) for number, sentence in enumerate(sentences, start=1)]

    def read(self, path: Path) -> list[Example]:
        """Read plain text, a paragraph a line, or JSON lines with `text`."""
        if path.suffix in JSON_SUFFIXES:
            rows = enumerate(read_json_lines(path), start=1)
            return [self._raw(row.text("text"), str(row.values.get("id", n)), row.place) for n, row in rows]
        lines = enumerate(read_lines(path), start=1)
        return [self._raw(line, str(number), f"{path}:{number}") for number, line in lines if line.strip()]

    def _raw(self, text: str, name: str, place: str) -> Example:
        # A trained run looks for the marks that it knows.
        known = "".join(self.marks).replace(NONE, "") or self.dataset.marks
        return Example(name, text, tuple(find_words(text, known)), place)

    def _labelled(self, sentence: Sentence, number: int) -> Example:
        wrong = next((tag for tag in sentence.tags or () if len(tag) != 2), None)
        if sentence.tags is None or wrong is not None:
            raise InputError(
                f"{sentence.place}: the label {wrong!r}; expected two letters for each word, its mark and its case: .U."
            )
        places = joined_words(sentence.words)
        words = [Word(*place, *tag) for place, tag in zip(places, sentence.tags, strict=True)]
        return Example(str(number), " ".join(sentence.words), tuple(words), sentence.place)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`."""
        return self._raw(text_of(fields), str(fields.get("id", "text")), "the text")

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List marks and cases, O first."""
        marks = Counter(word.mark for example in examples for word in example.words)
        cases = Counter(word.case for example in examples for word in example.words)
        if not marks:
            raise InputError("the training data hold no words.")
        self.marks, self.cases = ([NONE, *sorted(set(found) - {NONE})] for found in (marks, cases))

    def unseen_labels(self, examples: Sequence[Example]) -> dict[str, str]:
        """List marks and cases that were not trained."""
        marks = unseen(self.marks, (([word.mark for word in item.words], item.place) for item in examples))
        return marks | unseen(self.cases, (([word.case for word in item.words], item.place) for item in examples))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize lower-cased words, long texts in several windows; each word is asked for in one of them."""
        texts = [[item.text[word.start : word.end].lower() for word in item.words] for item in examples]
        targets = [self._numbers(item) for item in examples] if with_targets else None
        edge = NO_TARGET if self.dataset.ignore_start_end else 0
        features = []
        for window in word_windows(texts, tokenizer, self.dataset.max_seq_length, self.dataset.margin):
            if targets is None:
                features.append(window.features())
                continue
            own = {
                name: window.targets(numbers, first_only=self.dataset.ignore_extra_tokens, edge=edge)
                for name, numbers in targets[window.text].items()
            }
            weight = float((own["mark"] != NO_TARGET).sum())
            features.append(window.features({}, own, weight))
        return features

    def _numbers(self, example: Example) -> dict[str, NDArray[np.int64]]:
        return {
            "mark": number_labels(self.marks, [word.mark for word in example.words]),
            "case": number_labels(self.cases, [word.case for word in example.words]),
        }

    def head(self, config: EncoderConfig) -> Head:
        """Score marks and cases at each token."""
        heads = {
            name: TokenHead(
                config.hidden_size,
                num_classes,
                num_layers=settings.num_fc_layers,
                dropout=settings.fc_dropout,
                activation=settings.activation,
            )
            for name, num_classes, settings in (
                ("punct", len(self.marks), self.settings.model.punct_head),
                ("capit", len(self.cases), self.settings.model.capit_head),
            )
        }
        return JointHead(**heads)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum both cross-entropies over the words."""
        count = len(self.marks)
        marks = F.cross_entropy(logits[:, :count], batch.token_targets["mark"], reduction="sum")
        return marks + F.cross_entropy(logits[:, count:], batch.token_targets["case"], reduction="sum")

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Choose each word's mark and case, and write the texts with them."""
        counts = [len(example.words) for example in examples]
        found = word_logits([feature.notes for feature in features], logits, counts)
        predictions = []
        for example, scores in zip(examples, found, strict=True):
            # A word without a token has -inf everywhere: the first label then, O.
            marks = tuple(self.marks[number] for number in scores[:, : len(self.marks)].argmax(axis=1))
            cases = tuple(self.cases[number] for number in scores[:, len(self.marks) :].argmax(axis=1))
            restored = restore(example.text, example.words, marks, cases)
            predictions.append(Prediction(example.id, example.text, restored, marks, cases))
        return predictions

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score the marks and cases of words."""
        pairs = self.label_pairs(examples, predictions)
        scores: dict[str, float] = {}
        for name, kind in (("punct", "mark"), ("capit", "case")):
            golds, founds = zip(*pairs[kind], strict=True) if pairs[kind] else ((), ())
            micro = classification.micro_f1(golds, founds, {NONE})
            by_class = classification.classification_scores(golds, founds, sorted({*golds, *founds} - {NONE}))
            scores |= {f"{name}_{figure}": value for figure, value in micro.items()}
            scores |= {f"{name}_accuracy": by_class["accuracy"], f"{name}_macro_f1": by_class["macro_f1"]}
            scores |= {figure: value for figure, value in by_class.items() if "/" in figure}
        return {"f1": (scores["punct_f1"] + scores["capit_f1"]) / 2} | scores | {"total": len(pairs["mark"])}

    def label_pairs(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Give each word's mark and case beside the predicted ones."""
        marks, cases = [], []
        for example, found in zip(examples, predictions, strict=True):
            marks += list(zip([word.mark for word in example.words], found.marks, strict=True))
            cases += list(zip([word.case for word in example.words], found.cases, strict=True))
        return {"mark": marks, "case": cases}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give the restored text, and NeMo's labels of two letters a word."""
        labels = " ".join(map("".join, zip(prediction.marks, prediction.cases, strict=True)))
        return {"id": prediction.id, "text": prediction.text, "restored": prediction.restored, "labels": labels}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score JSON lines as `megabert predict` writes them against plain text."""
        task = cls(cls.settings_type())
        examples, rows = task.read(gold), read_json_lines(predictions)
        found = [row.text("labels").split() if str(row.get("labels")).strip() else [] for row in rows]
        if [len(example.words) for example in examples] != [len(labels) for labels in found]:
            raise InputError(f"{predictions} has other texts or words than {gold}. Predict the same file.")
        answers = [
            Prediction(item.id, item.text, "", tuple(label[0] for label in labels), tuple(label[1] for label in labels))
            for item, labels in zip(examples, found, strict=True)
        ]
        return task.score(examples, answers)
