"""What the two pre-training tasks share: corpora as data, losses instead of logits, perplexity as metric.

Data are Megatron-LM's token files (`megabert corpus build` writes them), one or several blended, or, to evaluate, text
files. This module defines no task of its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    TrainDataSettings,
    TrainerSettings,
    choice,
)
from ..data.packing import Batch, Features
from ..errors import ConfigError, InputError
from ..formats.corpus_documents import KINDS, corpus_files, read_documents
from ..formats.data_files import COMPRESSED, data_suffix, expand_names, expansion_limit
from ..formats.json_lines import read_json_lines
from ..model.config import HAS_ORDER, HAS_TARGET, IS_CORRECT, IS_ORDER_CORRECT, LOSS, NUM_PREDICTIONS, ORDER_LOSS
from ..pretraining.blend import Blend, SequenceCorpus, parse_blend
from ..pretraining.indexed_dataset import IndexedDataset, files_of
from ..pretraining.sample_mapping import split_documents
from ..tokenizers.wordpiece import Tokenizer
from .corpus_data import Corpora, DocumentRange, EvenlySpaced, Example
from .task import Logits, Task, by_example, require_text

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass
class CorpusSettings:
    """The corpora."""

    data_prefix: list[Any] = field(default_factory=list)
    """Token files, without .bin and .idx, for sets without a file: [PREFIX, ...], or blended [WEIGHT, PREFIX, ...]."""
    splits_string: str = "949,50,1"
    """Shares of data_prefix's documents for training, validation and test."""


@dataclass
class SplitSettings:
    """The part of data_prefix that a set is."""

    split: str | None = choice("validation", *SPLITS)
    """The part of data_prefix if no file is given; null: none."""
    num_samples: int = 2000
    """Number of sequences, evenly spaced over all; -1: all."""


@dataclass
class EvaluationCorpusSettings(SplitSettings, DataSettings):
    """One set of data: `file` is the prefix of token files, or a text file."""


@dataclass
class TrainCorpusSettings(TrainDataSettings):
    """The training data: `file` is the prefix of token files."""

    split: str = choice("train", *SPLITS)
    """The part of data_prefix if no file is given."""


@dataclass
class CorpusModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: CorpusSettings = field(default_factory=CorpusSettings)
    train_ds: TrainCorpusSettings = field(default_factory=TrainCorpusSettings)
    validation_ds: EvaluationCorpusSettings = field(default_factory=EvaluationCorpusSettings)
    # Evaluated only if the settings name it, by split=test or a file.
    test_ds: EvaluationCorpusSettings = field(default_factory=lambda: EvaluationCorpusSettings(split=None))


@dataclass
class PretrainingSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=1, gradient_clip_val=1.0))
    model: CorpusModel = field(default_factory=CorpusModel)


def pretraining_optimizer(lr: float, sched: str) -> OptimizerSettings:
    """Make the defaults of an optimizer block: those of Megatron-LM for BERT and GPT-2."""
    schedule = ScheduleSettings(name=sched, warmup_ratio=0.01, min_lr=1e-5)
    return OptimizerSettings(lr=lr, weight_decay=0.01, sched=schedule)


@dataclass(frozen=True)
class Measured:
    """Sums over a document's or sequence's masked (or next) tokens: losses in nats, number, correct predictions.

    `order_loss`, `has_order` and `is_order_right` are sums over its sequences with sentence-order prediction.
    """

    id: str
    loss: float
    num_asked: int
    num_right: int
    order_loss: float
    has_order: int
    is_order_right: int
    num_words: int
    """Words of a document of a text file; 0 for token files."""


@dataclass(frozen=True)
class Guess:
    """A token and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class FilledMask:
    """The most likely tokens in place of characters [start, end)."""

    start: int
    end: int
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Filled:
    """A string with its masks filled in, or continued by a token."""

    id: str
    text: str
    places: tuple[FilledMask, ...]


@dataclass(frozen=True)
class MaskPositions:
    """Notes of a window without targets: its example, and (token position, start, end) of the masks to fill in."""

    example: int
    positions: tuple[tuple[int, int, int], ...]
    tokens: Sequence[str]
    """The vocabulary."""


Prediction = Measured | Filled


class PretrainingTask(Task[Example, Prediction]):
    """Self-supervised training on corpora; subclasses define what of a sequence is predicted."""

    main_score = "lm_loss"
    input_fields: ClassVar[Mapping[str, type]] = {"text": str}
    caches_features: ClassVar[bool] = False

    @abstractmethod
    def corpus(self, part: DocumentRange, tokenizer: Tokenizer) -> SequenceCorpus:
        """Cut documents of token files into sequences."""

    @abstractmethod
    def document_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Sequence[Features]:
        """Tokenize documents to evaluate, with targets; a sequence is of one document, its notes are its index."""

    @abstractmethod
    def mask_features(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize strings whose masks are to be filled in; notes are `MaskPositions`."""

    def file_groups(self, data: Any) -> list[list[str]]:
        """List the files of a set: its own, or those of data_prefix."""
        if data.file is None and data.split is None:
            return []
        names = map(Path, expand_names(data.file) if data.file is not None else self._blend()[0])
        return [[str(name)] if _is_text(name) else [str(path) for path in files_of(_prefix(name))] for name in names]

    def read_data(self, data: Any) -> Sequence[Example]:
        """Read a set of data."""
        if data.file is not None:
            with expansion_limit(data.max_expansion):
                sets = [self.read(Path(name)) for name in expand_names(data.file)]
            corpora = [item for item in sets if isinstance(item, Corpora)]
            if corpora and len(corpora) < len(sets):
                raise ConfigError("file names token files and text files. Give files of one kind.")
            if corpora:
                return Corpora([part for item in corpora for part in item.parts], None, data.num_samples)
            return [example for item in sets for example in item]
        prefixes, weights = self._blend()
        shares = self._shares()
        parts = []
        for prefix in prefixes:
            tokens = IndexedDataset(Path(prefix))
            first, end = split_documents(tokens.num_documents, shares)[SPLITS.index(data.split)]
            parts.append(DocumentRange(tokens, first, end, prefix))
        return Corpora(parts, weights, data.num_samples)

    def read(self, path: Path) -> Sequence[Example]:
        """Read token files (by their prefix), or the documents of a text file."""
        if not _is_text(path):
            tokens = IndexedDataset(_prefix(path))
            return Corpora([DocumentRange(tokens, 0, tokens.num_documents, str(_prefix(path)))], None, -1)
        if data_suffix(path) == ".jsonl":
            rows = enumerate(read_json_lines(path), start=1)
            return [
                Example(row.identifier(number), row.string("text"), given=row.others("id", "text"))
                for number, row in rows
            ]
        documents = (text for file in corpus_files([path]) for text in read_documents(file))
        examples = [Example(str(number), text) for number, text in enumerate(documents, start=1)]
        if not examples:
            raise InputError(f"{path} holds no text.")
        return examples

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, and `id`."""
        return Example(str(fields.get("id", "")), require_text(fields))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> Sequence[Features]:
        """Cut corpora into sequences that are resampled each epoch; tokenize documents, or strings with masks."""
        if isinstance(examples, Corpora):
            sequences = Blend([self.corpus(part, tokenizer) for part in examples.parts], examples.weights, self._seed)
            if not len(sequences):
                raise InputError(
                    f"{', '.join(part.source for part in examples.parts)}: this part of the documents "
                    f"({len(examples)}) makes no sequence of {self.row_length} tokens. Give more text, or change "
                    "model.dataset.splits_string or model.dataset.max_seq_length."
                )
            return EvenlySpaced.choose(sequences, examples.limit) if 0 <= examples.limit < len(sequences) else sequences
        if not examples:
            return []
        if not with_targets:
            return self.mask_features(examples, tokenizer)
        features = self.document_features(examples, tokenizer)
        if not len(features):
            raise InputError("the documents are too short: no token of them can be predicted.")
        return features

    def to_rows(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterable[dict[str, Any]]:
        """Convert the sums of each document, or of each sequence of corpora, which have no text."""
        if isinstance(examples, Corpora):
            return map(self.to_json, predictions)
        return super().to_rows(examples, predictions)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the losses of the predicted tokens; a sentence-order loss has the weight of all of its sequence's."""
        total = logits[:, LOSS].sum()
        if "order_weight" in batch.token_targets:
            total = total + (logits[:, ORDER_LOSS] * batch.token_targets["order_weight"].clamp(min=0)).sum()
        return total

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Sum the losses of each document, or of each sequence of corpora; without targets fill in the masks."""
        if isinstance(examples, Corpora):
            return [_measure(str(number), [columns], 0) for number, columns in enumerate(logits)]
        notes = [item.notes for item in features]
        indices = by_example(len(examples), features, range(len(features)))
        pairs = zip(examples, indices, strict=True)
        if not any(isinstance(note, MaskPositions) for note in notes):
            return [
                _measure(item.id, [logits[index] for index in own], self.count_words(item.text)) for item, own in pairs
            ]
        return [
            Filled(item.id, item.text, tuple(mask for index in own for mask in _fill(notes[index], logits[index])))
            for item, own in pairs
        ]

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Average over all predicted tokens, and over all sequences with sentence-order prediction."""
        items = [item for item in predictions if isinstance(item, Measured)]
        total = sum(item.num_asked for item in items)
        if not total:
            raise InputError("no token of these documents is predicted, so there is nothing to score.")
        loss = sum(item.loss for item in items) / total
        scores = {
            "lm_loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "lm_accuracy": 100 * sum(item.num_right for item in items) / total,
        }
        num_orders = sum(item.has_order for item in items)
        if num_orders:
            scores["order_loss"] = sum(item.order_loss for item in items) / num_orders
            scores["order_accuracy"] = 100 * sum(item.is_order_right for item in items) / num_orders
        return scores | {"total": float(total)}

    def count_words(self, text: str) -> int:
        """Count the words of a document, by which the perplexity of a word is computed."""
        return len(text.split())

    @property
    def _seed(self) -> int:
        return int(self.settings.seed)

    def _blend(self) -> tuple[list[str], list[float] | None]:
        return parse_blend(self.settings.model.dataset.data_prefix, "model.dataset.data_prefix")

    def _shares(self) -> tuple[float, ...]:
        given = self.settings.model.dataset.splits_string
        try:
            shares = tuple(float(item) for item in str(given).split(","))
        except ValueError:
            shares = ()
        if len(shares) != len(SPLITS) or min(shares) < 0 or not sum(shares):
            raise ConfigError(f"model.dataset.splits_string={given}: give three shares, such as 949,50,1.")
        return shares


def _fill(notes: MaskPositions, columns: NDArray[np.float32]) -> list[FilledMask]:
    filled = []
    for position, start, end in notes.positions:
        pairs = zip(columns[position, :NUM_PREDICTIONS], columns[position, NUM_PREDICTIONS:], strict=True)
        guesses = tuple(Guess(notes.tokens[int(token)], float(probability)) for token, probability in pairs)
        filled.append(FilledMask(start, end, guesses))
    return filled


def _measure(name: str, columns: Sequence[NDArray[np.float32]], num_words: int) -> Measured:
    sums = sum((item.astype(np.float64).sum(0) for item in columns), np.zeros(6))
    return Measured(
        id=name,
        loss=float(sums[LOSS]),
        num_asked=round(sums[HAS_TARGET]),
        num_right=round(sums[IS_CORRECT]),
        order_loss=float(sums[ORDER_LOSS]),
        has_order=round(sums[HAS_ORDER]),
        is_order_right=round(sums[IS_ORDER_CORRECT]),
        num_words=num_words,
    )


def _is_text(path: Path) -> bool:
    """Return whether a name is that of a text file; every other one is the prefix of a pair of token files."""
    return data_suffix(path) in KINDS or path.suffix.lower() in COMPRESSED


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path
