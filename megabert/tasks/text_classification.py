"""Text classification: one label a text or a pair of texts, several labels, or a number."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import best_window_spans
from ..errors import InputError
from ..formats.json_lines import JSON_SUFFIXES, read_json_lines
from ..formats.rows import Row
from ..formats.tables import table_rows
from ..formats.text_lines import read_lines
from ..metrics import classification
from ..model.config import EncoderConfig
from ..model.heads import ACTIVATIONS, Head, SequenceHead
from ..tokenizers.wordpiece import Tokenizer
from .task import LabelledTask, choice_of, class_probabilities, number_labels, require_length, text_of, unseen

TEXT_NAMES = ("text", "sentence", "sentence1", "text_a", "premise")
PAIR_NAMES = ("text_b", "sentence2", "hypothesis", "text2")
LABEL_NAMES = ("label", "labels", "gold_label", "class", "score")
KNOWN_NAMES = (*TEXT_NAMES, *PAIR_NAMES, *LABEL_NAMES, "id", "index", "idx")


@dataclass
class TextSettings:
    """How texts become tokens."""

    max_seq_length: int = 256
    """Tokens of a text or pair with its special tokens; a longer one is read in windows."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: a class counts in the loss in inverse proportion to its number of texts, where each has one."""


@dataclass
class DatasetSettings(TextSettings):
    """How texts become tokens, and what a label is."""

    problem: str = choice("single_label", "single_label", "multi_label", "regression")
    """One label a text; any number of labels (separated by commas, or a JSON list); a number."""


@dataclass
class ClassifierSettings:
    """The head that reads a text's first token."""

    num_output_layers: int = 2
    """Linear maps."""
    fc_dropout: float = 0.1
    """Dropout on the head's input."""
    activation: str = choice("tanh", *ACTIVATIONS)
    """Between linear maps; tanh makes two of them BERT's pooler and classifier."""


@dataclass
class ClassifierModel(ModelSettings):
    """The network with a head for whole texts, its data and its optimizer."""

    dataset: TextSettings = field(default_factory=TextSettings)
    classifier_head: ClassifierSettings = field(default_factory=ClassifierSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))


@dataclass
class TextClassificationModel(ClassifierModel):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)


@dataclass
class TextClassificationSettings(Settings):
    """All settings of a run."""

    model: TextClassificationModel = field(default_factory=TextClassificationModel)


@dataclass(frozen=True)
class Example:
    """A text, or two, with what is known of it; `labels` is None where the data give none."""

    id: str
    text: str
    pair: str | None
    labels: tuple[str, ...] | None
    place: str


@dataclass(frozen=True)
class Prediction:
    """The labels of a text, with the probability of every class; of a regression the value."""

    id: str
    text: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    value: float | None = None


class TextClassification(LabelledTask[Example, Prediction]):
    r"""Classify texts or pairs of texts: one label, several, or a number.

        megabert train text_classification model.train_ds.file=train.tsv model.validation_ds.file=dev.tsv \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=test.tsv output_dir=OUT
        megabert predict RUN text="..."
        megabert predict RUN text="..." text_b="..."

    Data: tab-separated `text<TAB>label`; or with a header that names the columns: `text` or `sentence`; `sentence1`
    and `sentence2` (or `text_a` and `text_b`, `premise` and `hypothesis`) for pairs; `label`; `id`; or JSON lines
    (*.jsonl) with the same names; or NeMo's lines of blanks with an integer label last. Labels are words or numbers,
    taken from the training data and kept with the run. `model.dataset.problem` says what a label is: `single_label`;
    `multi_label` (separated by commas, or a JSON list); `regression`.

    A text longer than `max_seq_length` is read in windows that overlap by half, which count as one text together;
    their probabilities are averaged. Of a pair the longer text is cut, the shorter one stands beside each of its
    windows.

    Answers: the label with its probability and those of all classes; of several labels those of probability 0.5 and
    more; of a number its value.

    Scores: `accuracy`, precision, recall and F1 of each class, their macro and weighted means, Matthews' correlation;
    several labels: micro and macro F1 and the share of texts with exactly the right ones; a number: Pearson's and
    Spearman's correlation.

    The head is BERT's pooler and classifier, and starts from the checkpoint's pooler where it has one; `megabert
    convert RUN DEST --to huggingface` gives transformers the same probabilities. NeMo 1.x has relu in it.
    """

    settings_type: ClassVar[type[Settings]] = TextClassificationSettings
    main_score = "accuracy"

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.dataset = settings.model.dataset
        if self.problem != "single_label":
            self.main_score = {"regression": "pearson", "multi_label": "f1"}[self.problem]
        require_length(self.dataset.max_seq_length)

    @property
    def row_length(self) -> int:
        """Tokens of a window."""
        return self.dataset.max_seq_length

    @property
    def problem(self) -> str:
        """Say what a text's target is: single_label, multi_label or regression."""
        return str(self.dataset.problem)

    def state(self) -> dict[str, Any]:
        """Give labels, weights and what they mean."""
        return super().state() | {"problem": self.problem}

    @property
    def is_regression(self) -> bool:
        """Whether a text's target is a number."""
        return self.problem == "regression"

    def read(self, path: Path) -> list[Example]:
        """Read a table or JSON lines."""
        if path.suffix in JSON_SUFFIXES:
            rows = read_json_lines(path)
        else:
            lines = read_lines(path)
            if not any("\t" in line for line in lines):
                return self._of_blanks(path, lines)
            rows = table_rows(path, lines, ("text", "label"), KNOWN_NAMES)
        seen: dict[Any, str] = {}
        for row in rows:
            name = row.values.get("id")
            if isinstance(name, str | int) and seen.setdefault(str(name), row.place) != row.place:
                raise InputError(
                    f"{row.place}: the id {name!r} is that of {seen[str(name)]} too. Give each text its own."
                )
        return [self.example_of(row, number) for number, row in enumerate(rows, start=1)]

    def _of_blanks(self, path: Path, all_lines: Sequence[str]) -> list[Example]:
        """Take NeMo's lines: words, and an integer label at the end. Without any such line they are texts alone."""
        lines = [(number, line.strip(" ")) for number, line in enumerate(all_lines, start=1) if line.strip(" ")]
        parts = [line.rpartition(" ") for _, line in lines]
        has_label = [bool(text) and label.isdecimal() for text, _, label in parts]
        if not any(has_label):
            return [Example(str(number), line, None, None, f"{path}:{number}") for number, line in lines]
        examples = []
        for (number, _), (text, _, label), labelled in zip(lines, parts, has_label, strict=True):
            if not labelled:
                raise InputError(
                    f"{path}:{number}: no label at the end, as other lines have one. Write text, a tab and the label."
                )
            examples.append(Example(str(number), text.rstrip(" "), None, (label,), f"{path}:{number}"))
        return examples

    def example_of(self, row: Row, number: int) -> Example:
        """Make an example of a row of a table or a JSON object."""
        text = self._column(row, TEXT_NAMES)
        if text is None or not text.strip():
            raise InputError(f"{row.place}: there is no text. Name its column {', '.join(TEXT_NAMES)}.")
        pair = self._column(row, PAIR_NAMES)
        name = next((name for name in LABEL_NAMES if name in row.values), None)
        labels = None if name is None else self._labels(row.values[name], row.place)
        return Example(str(row.values.get("id", number)), text, pair, labels, row.place)

    def _column(self, row: Row, names: Sequence[str]) -> str | None:
        value = next((row.values[name] for name in names if name in row.values), None)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{row.place}: the text is {value!r}; expected a string.")
        return value

    def _labels(self, value: Any, place: str) -> tuple[str, ...]:
        if self.is_regression:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise InputError(f"{place}: the value is {value!r}; expected a number.")
            return (repr(number),)
        if self.problem == "multi_label":
            items = value if isinstance(value, list) else [item for item in str(value).split(",") if item.strip()]
            return tuple(str(item).strip() for item in items)
        if isinstance(value, list | dict) or not str(value).strip():
            raise InputError(f"{place}: the label is {value!r}; expected one word or number.")
        return (str(value).strip(),)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text` and, for pairs, `text_b`."""
        text, pair = text_of(fields, "text_b"), fields.get("text_b")
        return Example(str(fields.get("id", "text")), text, pair and str(pair), None, "the text")

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List the labels: numbers in their order, words alphabetically; weigh them if that is asked for."""
        if self.is_regression:
            return
        counts = Counter(label for example in examples for label in example.labels or ())
        if not counts:
            raise InputError("the training data have no labels. Add a label to each text.")
        self.take_labels(self.ordered(counts), counts, self.dataset.class_balancing)

    def ordered(self, labels: Collection[str]) -> list[str]:
        """Put the labels of the training data in the order of the head's outputs."""
        are_numbers = all(label.lstrip("-").isdecimal() for label in labels)
        return sorted(labels, key=int if are_numbers else str)

    def unseen_labels(self, examples: Sequence[Example]) -> dict[str, str]:
        """List labels that were not trained."""
        return {} if self.is_regression else unseen(self.labels, ((item.labels or (), item.place) for item in examples))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize texts, long ones in several windows that count as one together."""
        texts = tokenizer.encode_ids([example.text for example in examples])
        pairs = iter(tokenizer.encode_ids([example.pair for example in examples if example.pair is not None]))
        features = []
        for index, (example, ids) in enumerate(zip(examples, texts, strict=True)):
            pair_ids = None if example.pair is None else next(pairs)
            windows = list(self._windows(ids, pair_ids, tokenizer, example))
            targets, weight = self._targets(example, len(windows)) if with_targets else ({}, 1.0)
            for token_ids, segment_ids in windows:
                features.append(Features(token_ids, segment_ids, targets, weight=weight, notes=index))
        return features

    def _windows(
        self, ids: NDArray[np.int64], pair: NDArray[np.int64] | None, tokenizer: Tokenizer, example: Example
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Cut the longer of two texts so that the shorter one fits beside each of its windows."""
        cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
        room = self.dataset.max_seq_length - (2 if pair is None else 3)
        short = 0 if pair is None else min(len(ids), len(pair))
        if short > room // 2 and len(ids) + (0 if pair is None else len(pair)) > room:
            raise InputError(
                f"{example.place}: both texts are too long to be read together ({len(ids)} and "
                f"{0 if pair is None else len(pair)} tokens). Raise model.dataset.max_seq_length."
            )
        is_first_long = pair is None or len(ids) >= len(pair)
        long = ids if is_first_long or pair is None else pair
        windows = []
        for start, end in best_window_spans(len(long), room - short):
            first = ids[start:end] if is_first_long else ids
            parts = [cls, first, sep]
            if pair is not None:
                parts += [pair if is_first_long else pair[start:end], sep]
            token_ids = np.concatenate(parts)
            windows.append((token_ids, (np.arange(len(token_ids)) >= len(first) + 2).astype(np.int64)))
        return windows

    def _targets(self, example: Example, count: int) -> tuple[dict[str, Any], float]:
        if example.labels is None:
            raise InputError(f"{example.place}: the text has no label. Add one, or predict instead.")
        if self.is_regression:
            return {"value": np.float32(example.labels[0]), "weight": np.float32(1 / count)}, 1 / count
        if self.problem == "multi_label":
            return {"chosen": choice_of(self.labels, example.labels), "weight": np.float32(1 / count)}, 1 / count
        numbers = number_labels(self.labels, example.labels)
        weight = 0.0 if numbers[0] == NO_TARGET else self.weights[numbers[0]] / count
        return {"label": numbers[0], "weight": np.float32(weight)}, weight

    def head(self, config: EncoderConfig) -> Head:
        """Score the classes from a text's first token."""
        settings = self.settings.model.classifier_head
        return SequenceHead(
            config.hidden_size,
            1 if self.is_regression else len(self.labels),
            num_layers=settings.num_output_layers,
            dropout=settings.fc_dropout,
            activation=settings.activation,
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the texts' weighted cross-entropy, binary cross-entropy (mean over classes) or squared error."""
        weights_N = batch.targets["weight"].nan_to_num()
        if self.is_regression:
            values_N = torch.where(weights_N > 0, batch.targets["value"], 0.0)
            losses_N = (logits[:, 0] - values_N) ** 2
        elif self.problem == "multi_label":
            chosen_NC = batch.targets["chosen"].nan_to_num()
            losses_N = F.binary_cross_entropy_with_logits(logits, chosen_NC, reduction="none").mean(1)
        else:
            losses_N = F.cross_entropy(logits, batch.targets["label"], reduction="none")
        return (losses_N * weights_N).sum()

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Average each text's windows and choose."""
        found: list[list[NDArray[np.float64]]] = [[] for _ in examples]
        for feature, scores in zip(features, logits, strict=True):
            found[feature.notes].append(self._probabilities(scores.astype(np.float64)))
        return [
            self._predict(example, np.mean(windows, axis=0)) for example, windows in zip(examples, found, strict=True)
        ]

    def _probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.is_regression:
            return scores
        return class_probabilities(scores, is_multi_label=self.problem == "multi_label")

    def _predict(self, example: Example, numbers: NDArray[np.float64]) -> Prediction:
        if self.is_regression:
            return Prediction(example.id, example.text, (), {}, float(numbers[0]))
        probabilities = dict(zip(self.labels, numbers.tolist(), strict=True))
        if self.problem == "multi_label":
            labels = tuple(label for label, probability in probabilities.items() if probability >= 0.5)
        else:
            labels = (self.labels[int(numbers.argmax())],)
        return Prediction(example.id, example.text, labels, probabilities)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score against the examples' labels."""
        gold = [known_labels(example) for example in examples]
        if self.is_regression:
            return _correlations([float(labels[0]) for labels in gold], [item.value or 0.0 for item in predictions])
        if self.problem == "multi_label":
            return classification.multi_label_scores(
                [set(item) for item in gold], [set(item.labels) for item in predictions]
            )
        found = [item.labels[0] for item in predictions]
        return classification.classification_scores([item[0] for item in gold], found, self.labels)

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give the label or labels with all probabilities, or the value."""
        plain: dict[str, Any] = {"id": prediction.id, "text": prediction.text}
        if prediction.value is not None:
            return plain | {"value": prediction.value}
        if self.problem == "multi_label":
            return plain | {"labels": list(prediction.labels), "probabilities": prediction.probabilities}
        label = prediction.labels[0]
        probability = prediction.probabilities[label]
        return plain | {"label": label, "probability": probability, "probabilities": prediction.probabilities}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score a file with one label a line, or of JSON lines as `megabert predict` writes them."""
        rows = read_predictions(predictions)
        task = cls(cls.settings_type())
        if rows and "value" in rows[0].values:
            task.dataset.problem = "regression"
        elif rows and "labels" in rows[0].values:
            task.dataset.problem = "multi_label"
        return task.score_rows(task.read(gold), rows, f"{predictions}")

    def score_rows(self, examples: Sequence[Example], rows: Sequence[Row], source: str) -> dict[str, float]:
        """Score predictions from a file, one a text in the same order."""
        if len(rows) != len(examples):
            raise InputError(f"{source} has {len(rows)} lines for {len(examples)} texts. Give one each.")
        name = {"regression": "value", "multi_label": "labels"}.get(self.problem, "label")
        found = [self._labels(row.get(name), row.place) for row in rows]
        if not self.is_regression:
            self.labels = self.labels or sorted({label for item in examples for label in known_labels(item)})
        return self.score(
            examples,
            [
                Prediction(item.id, item.text, labels, {}, float(labels[0]) if self.is_regression else None)
                for item, labels in zip(examples, found, strict=True)
            ],
        )

    def label_pairs(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Give each text's label and the predicted one."""
        if self.problem != "single_label":
            return {}
        golds = [known_labels(item)[0] for item in examples]
        return {"label": [(gold, item.labels[0]) for gold, item in zip(golds, predictions, strict=True)]}


def read_predictions(path: Path) -> list[Row]:
    """Read predictions: JSON lines as `megabert predict` writes them, or a label a line."""
    lines = read_lines(path)
    if lines[0].lstrip().startswith(("{", "[")):
        return read_json_lines(path)
    return [Row({"label": line.strip()}, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def known_labels(example: Example) -> tuple[str, ...]:
    """Give an example's labels; raises InputError where it has none."""
    if example.labels is None:
        raise InputError(f"{example.place}: the text has no label to score against. Add one.")
    return example.labels


def _correlations(gold: Sequence[float], found: Sequence[float]) -> dict[str, float]:
    return {
        "pearson": 100 * classification.pearson(gold, found),
        "spearman": 100 * classification.spearman(gold, found),
    }
