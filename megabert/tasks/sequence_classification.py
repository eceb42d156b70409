"""What tasks that classify sequences or pairs share: settings, data files, windows, head, loss, decoding, metrics."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import pool_windows, sequence_windows
from ..errors import ConfigError, ExamplesWarning, InputError
from ..formats.class_labels import marked_labels, parse_label, parse_labels, separated_labels, vector_labels
from ..formats.record_streams import derived
from ..formats.rows import Row
from ..formats.text_rows import (
    LABEL_COLUMNS,
    NO_GOLD_LABEL,
    PAIR_COLUMNS,
    ROLES,
    TEXT_COLUMNS,
    check_ids,
    first_name,
    read_text_rows,
    text_value,
)
from ..metrics import classification
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .head_settings import head_options
from .labels import LabelKind, LabelledTask, class_probabilities, label_indices, multi_hot, require_labels
from .prediction_rows import read_labels
from .task import Logits, by_example, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass(frozen=True)
class Example:
    """A text, or a pair, and its labels, None where they are unknown."""

    id: str
    text: str
    pair: str | None
    labels: tuple[str, ...] | None
    location: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Other fields of the data, which rows of predictions repeat."""


@dataclass(frozen=True)
class Prediction:
    """The labels of a text and the probability of every class; of a regression the value."""

    id: str
    text: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    value: float | None = None
    windows: int = 1
    """Number of windows that were read."""


class SequenceClassificationTask(LabelledTask[Example, Prediction]):
    """A task whose examples have one label, several (`multi_label`), or a number (`regression`)."""

    main_score = "accuracy"
    state_names: ClassVar[tuple[str, ...]] = ("labels", "weights", "problem")
    input_fields: ClassVar[Mapping[str, type]] = {"text": str, "text_b": str}

    def __init__(self, settings: Any, problem: str = "single_label") -> None:
        self.dataset = settings.model.dataset
        self.problem = problem
        kinds = [] if self.is_regression else [LabelKind("label", "labels", is_set=problem == "multi_label")]
        super().__init__(settings, *kinds, class_balancing=self.dataset.class_balancing)
        unknown = sorted(set(self.dataset.columns) - set(ROLES))
        if unknown:
            raise ConfigError(f"model.dataset.columns.{unknown[0]} is none of {', '.join(ROLES)}.")

    @property
    def is_regression(self) -> bool:
        """Whether an example's target is a number."""
        return self.problem == "regression"

    @property
    def is_single(self) -> bool:
        """Whether an example has one label."""
        return self.problem == "single_label"

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; labels are written as those of data are read: 1.0 as 1."""
        # Folders of transformers may not state the problem, which then is that of the settings.
        super().restore_state({"problem": self.problem} | dict(state))
        labels = [re.sub(r"^(-?\d+)\.0+$", r"\1", label) for label in self.labels]
        self.labels = labels if len(set(labels)) == len(labels) else self.labels

    def read(self, path: Path) -> Sequence[Example]:
        """Read a table, JSON lines, or NeMo's lines of words with an integer label at the end."""
        rows = read_text_rows(path, self.columns_of(path), self.known_labels)
        if self.problem == "multi_label":
            rows = separated_labels(path, vector_labels(path, marked_labels(path, rows)))
        check_ids(path, rows)
        return derived(rows, lambda rows: map(self.example_of, rows, itertools.count(1)))

    @property
    def known_labels(self) -> Sequence[str]:
        """The labels that data may have, none before they are learnt."""
        return self.labels

    def columns_of(self, path: Path) -> Mapping[str, Any]:
        """Return the file's names of text, text_b, label and id, none where they are found by their usual names."""
        columns: Mapping[str, Any] = self.dataset.columns
        return columns

    def read_data(self, data: DataSettings) -> Sequence[Example]:
        """Read the examples of a set of data, without those that have no gold label."""
        examples = super().read_data(data)
        if not self.is_single:
            return examples
        return derived(examples, lambda examples: (item for item in examples if item.labels != NO_GOLD_LABEL))

    def example_of(self, row: Row, number: int) -> Example:
        """Make an example from a row of a table or a JSON object."""
        text, pair = text_value(row, TEXT_COLUMNS), text_value(row, PAIR_COLUMNS)
        if text is None:
            names, found = ", ".join(TEXT_COLUMNS), ", ".join(row.values)[:100]
            raise InputError(f"{row.location}: there is no text. Name its column {names}; found {found}.")
        if not text.strip():
            raise InputError(f"{row.location}: the text is empty. Leave the row out.")
        name = first_name(row, LABEL_COLUMNS)
        labels = None if name is None else self.parse_labels(row.values[name], row.location)
        given = row.others("id", name, *(first_name(row, names) for names in (TEXT_COLUMNS, PAIR_COLUMNS)))
        return Example(row.identifier(number), text, pair, labels, row.location, given=given)

    def parse_labels(self, value: Any, location: str) -> tuple[str, ...]:
        """Convert a label, labels or number from a file; raises InputError if it is none."""
        if self.is_regression:
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise InputError(f"{location}: the value is {value!r}; expected a number.")
            return (repr(number),)
        if value == NO_GOLD_LABEL:
            return ()
        if self.problem == "multi_label":
            return parse_labels(value, location)
        return (parse_label(value, location),)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text` and, for pairs, `text_b`."""
        names = ("text", "text_b") if fields.get("text_b") else ("text",)
        text, *pair = require_texts(fields, *names, optional=("text_b",))
        return Example(str(fields.get("id", "text")), text, pair[0] if pair else None, None, "the text")

    def ordered(self, kind: LabelKind, labels: Collection[str]) -> list[str]:
        """Sort labels: numbers by value, words alphabetically."""
        are_numbers = all(label.lstrip("-").isdecimal() for label in labels)
        return sorted(labels, key=int if are_numbers else str)

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize examples, long ones in several windows whose weights add up to that of one example."""
        texts = tokenizer.encode_ids([example.text for example in examples])
        pairs = iter(tokenizer.encode_ids([example.pair for example in examples if example.pair is not None]))
        features, num_cut = [], {}
        indices = {label: index for index, label in enumerate(self.labels)}
        for index, (example, ids) in enumerate(zip(examples, texts, strict=True)):
            pair_ids = None if example.pair is None else next(pairs)
            is_truncated = self.dataset.long_texts == "truncate"
            windows, num_cut[example.location] = sequence_windows(
                ids, pair_ids, self.row_length, tokenizer, is_truncated=is_truncated
            )
            targets, weight = self._targets(example, indices, len(windows)) if with_targets else ({}, 1.0)
            for number, ids_of_window in enumerate(windows):
                cut_here = 0 if number else num_cut[example.location]
                features.append(Features(*ids_of_window, targets, weight=weight, notes=index, num_cut=cut_here))
        cut = [location for location, count in num_cut.items() if count]
        if cut:
            text = (
                f"{{count}} of {{total}} examples are truncated to {self.row_length} tokens, by {{tokens:,}} tokens "
                "together; the first is {first}. To read more raise model.dataset.max_seq_length."
            )
            counts = {"count": len(cut), "tokens": sum(num_cut.values())}
            warnings.warn(ExamplesWarning(text, cut[0], len(examples), **counts), stacklevel=2)
        return features

    def _targets(self, example: Example, indices: Mapping[str, int], num_windows: int) -> tuple[dict[str, Any], float]:
        labels, share = require_labels(example, "labels"), 1 / num_windows
        if self.is_regression:
            return {"value": np.float32(labels[0]), "weight": np.float32(share)}, share
        if self.problem == "multi_label":
            return {"chosen": multi_hot(self.labels, labels), "weight": np.float32(share)}, share
        index = label_indices(indices, labels)[0]
        weight = 0.0 if index == NO_TARGET else self.weights[index] / num_windows
        return {"label": index, "weight": np.float32(weight)}, weight

    def head(self, config: EncoderConfig) -> Head:
        """Score the classes at a sequence's first token."""
        from ..model.heads import SequenceHead

        num_classes = 1 if self.is_regression else len(self.labels)
        return SequenceHead(config.hidden_size, num_classes, **head_options(self.settings.model.classifier_head))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the examples' weighted cross-entropy, binary cross-entropy (mean over classes) or squared error."""
        import torch
        from torch.nn import functional as F

        weights_N = batch.targets["weight"].nan_to_num()
        if self.is_regression:
            values_N = torch.where(weights_N > 0, batch.targets["value"], 0.0)
            losses_N = (logits[:, 0] - values_N) ** 2
        elif self.problem == "multi_label":
            targets_NC = batch.targets["chosen"].nan_to_num()
            losses_N = F.binary_cross_entropy_with_logits(logits, targets_NC, reduction="none").mean(1)
        else:
            losses_N = F.cross_entropy(logits, batch.targets["label"], reduction="none")
        return (losses_N * weights_N).sum()

    def aligned_logits(
        self, examples: Sequence[Example], own: Sequence[Features], logits: Logits, student: Sequence[Features]
    ) -> list[NDArray[np.float32]]:
        """Return the logits of each window, or their mean over an example's windows where the student has others."""
        before = by_example(len(examples), own, logits)
        after = by_example(len(examples), student, range(len(student)))
        aligned: list[Any] = [None] * len(student)
        for windows, numbers in zip(before, after, strict=True):
            if len(windows) != len(numbers):
                windows = [np.mean(windows, axis=0)] * len(numbers)
            for number, window in zip(numbers, windows, strict=True):
                aligned[number] = window
        return aligned

    def distillation_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Sum the divergences of the classes, or squared errors of the value, weighted as the examples."""
        from ..model.distillation_loss import binary_divergences, divergences, squared_errors

        if self.is_regression:
            losses_N = squared_errors(logits, teacher)
        elif self.problem == "multi_label":
            losses_N = binary_divergences(logits, teacher, temperature)
        else:
            losses_N = divergences(logits, teacher, temperature)
        return (losses_N * batch.targets["weight"].nan_to_num(nan=1.0)).sum()  # NaN: unlabelled, or a filler

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Pool the probabilities, or logits, of each example's windows and choose."""
        windows = by_example(len(examples), features, [item.astype(np.float64) for item in logits])
        predictions = map(self.predict, examples, map(self.pooled, windows))
        return [replace(item, windows=len(own)) for item, own in zip(predictions, windows, strict=True)]

    def pooled(self, windows: Sequence[Any]) -> NDArray[np.float64]:
        """Pool the logits of an example's windows by `window_pooling`, and convert them as `outputs` does."""
        if self.dataset.window_pooling == "probabilities":
            return pool_windows([self.outputs(logits_C) for logits_C in windows], "mean")
        return self.outputs(pool_windows(windows, self.dataset.window_pooling))

    def outputs(self, logits_C: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert logits to the probabilities of the classes; the value of a regression stays as it is."""
        if self.is_regression:
            return logits_C
        return class_probabilities(logits_C, is_multi_label=self.problem == "multi_label")

    def predict(self, example: Example, outputs_C: NDArray[np.float64]) -> Prediction:
        """Choose the labels of an example, or its value."""
        if self.is_regression:
            return Prediction(example.id, example.text, (), {}, float(outputs_C[0]))
        probabilities = dict(zip(self.labels, outputs_C.tolist(), strict=True))
        if self.problem == "multi_label":
            labels = tuple(label for label, probability in probabilities.items() if probability >= 0.5)
        else:
            labels = (self.labels[int(outputs_C.argmax())],)
        return Prediction(example.id, example.text, labels, probabilities)

    def label_pairs(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return pairs of gold and predicted label of the examples that have a gold label."""
        return super().label_pairs(*self.labelled(examples, predictions))

    def labelled(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> tuple[list[Example], list[Prediction]]:
        """Leave out examples without a gold label, and their predictions."""
        pairs = [pair for pair in zip(examples, predictions, strict=True) if pair[0].labels != () or not self.is_single]
        return [example for example, _ in pairs], [prediction for _, prediction in pairs]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute the metrics of the examples' kind of label."""
        examples, predictions = self.labelled(examples, predictions)
        gold = [require_labels(example, "labels") for example in examples]
        if self.is_regression:
            values = [float(labels[0]) for labels in gold], [item.value or 0.0 for item in predictions]
            return {
                "pearson": 100 * classification.pearson(*values),
                "spearman": 100 * classification.spearman(*values),
            }
        if self.problem == "multi_label":
            return classification.multi_label_scores(
                [set(labels) for labels in gold], [set(item.labels) for item in predictions]
            )
        golds, predicted = [item[0] for item in gold], [item.labels[0] for item in predictions]
        labels = dict.fromkeys((*self.labels, *sorted({*golds, *predicted})))  # the run's, and of either side alone
        return classification.classification_scores(golds, predicted, list(labels))

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the label or labels with all probabilities, or the value."""
        values: dict[str, Any] = {"id": prediction.id, "text": prediction.text, "windows": prediction.windows}
        if prediction.value is not None:
            return values | {"value": prediction.value}
        if self.problem == "multi_label":
            return values | {"labels": list(prediction.labels), "probabilities": prediction.probabilities}
        label = prediction.labels[0]
        probability = prediction.probabilities[label]
        return values | {"label": label, "probability": probability, "probabilities": prediction.probabilities}

    def gold(self, example: Example) -> dict[str, Any]:
        """Return an example's label, labels or value."""
        if example.labels is None or (self.is_single and not example.labels):
            return {}
        if self.problem == "multi_label":
            return {"labels": list(example.labels)}
        return {"value": float(example.labels[0])} if self.is_regression else {"label": example.labels[0]}

    def to_row(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """Return also the second text of a pair."""
        row = super().to_row(example, prediction)
        return row if example.pair is None else {"id": row["id"], "text": row["text"], "text_b": example.pair} | row

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the label, labels or value of an example."""
        name = {"regression": "value", "multi_label": "labels"}.get(self.problem, "label")
        labels = self.parse_labels(row.get(name), row.location)
        return Prediction(example.id, example.text, labels, {}, float(labels[0]) if self.is_regression else None)

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read JSON lines as `megabert predict` writes them, a label a line, or PubMedQA's answers."""
        return read_labels(path)
