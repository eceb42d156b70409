"""What the two pre-training tasks share: corpora as data, losses instead of logits, perplexity as score.

Data are Megatron-LM's token files (`megabert corpus build` makes them), one or several blended, or plain text to
measure. This module holds no task of its own.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config.schema import DataSettings, OptimizerSettings, ScheduleSettings, TrainDataSettings, choice
from ..data.packing import Batch, Features, ResampledFeatures
from ..errors import ConfigError, InputError
from ..formats.corpus_documents import corpus_files, read_documents
from ..formats.json_lines import read_json_lines
from ..model.heads import HAS_ORDER, HAS_TARGET, IS_CORRECT, IS_ORDER_CORRECT, LOSS, NUM_PREDICTIONS, ORDER_LOSS
from ..pretraining.blend import Blend, SequenceCorpus, parse_blend
from ..pretraining.indexed_dataset import IndexedDataset, TokenDataset, files_of
from ..pretraining.sample_mapping import split_documents
from ..tokenizers.wordpiece import Tokenizer
from .task import Task, text_of

SPLITS = ("train", "validation", "test")
# What has one of these endings is text; everything else is the prefix of a pair of token files.
TEXT_SUFFIXES = (".txt", ".jsonl", ".json", ".xml", ".gz", ".xz")


@dataclass
class CorpusSettings:
    """The corpora."""

    data_prefix: list[Any] = field(default_factory=list)
    """Token files to blend, without .bin and .idx: [PREFIX, ...], each text once an epoch, or
    [WEIGHT, PREFIX, WEIGHT, PREFIX, ...]. Used for each set that names no file of its own."""
    splits_string: str = "949,50,1"
    """Shares of data_prefix's documents for training, validation and test."""


@dataclass
class SplitSettings:
    """Which part of data_prefix a set is."""

    split: str | None = choice("validation", *SPLITS)
    """The part of data_prefix to take where no file is given; null: none."""
    num_samples: int = 2000
    """Measure only so many texts, spread evenly over all; -1: all."""


@dataclass
class MeasuredSettings(SplitSettings, DataSettings):
    """One set of data: `file` is the prefix of token files, or a text file."""


@dataclass
class CorpusTrainSettings(TrainDataSettings):
    """The training data: `file` is the prefix of token files."""

    split: str = choice("train", *SPLITS)
    """The part of data_prefix to take where no file is given."""


def test_settings() -> MeasuredSettings:
    """Make the defaults of test_ds: nothing is measured unless it is asked for, by split=test or a file."""
    return MeasuredSettings(split=None)


def long_training(lr: float, sched: str) -> OptimizerSettings:
    """Make the defaults of an optimizer block: Megatron-LM's for BERT and GPT-2."""
    schedule = ScheduleSettings(name=sched, warmup_ratio=0.01, min_lr=1e-5)
    return OptimizerSettings(lr=lr, weight_decay=0.01, sched=schedule)


@dataclass(frozen=True)
class Example:
    """A text: a document, or what a person asks about."""

    id: str
    text: str


@dataclass(frozen=True)
class Part:
    """Documents [first, end) of a pair of token files."""

    tokens: TokenDataset
    first: int
    end: int
    source: str


@dataclass(frozen=True)
class Corpora(Sequence[Example]):
    """Parts of one corpus or several, and how they are blended; the documents are read when their texts are made."""

    parts: Sequence[Part]
    weights: Sequence[float] | None
    limit: int
    """The number of texts to take, spread evenly; -1: all."""

    def __len__(self) -> int:
        """Count the documents."""
        return sum(part.end - part.first for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: Any) -> Any:
        """Name a document; its text is not kept in token files."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        for part in self.parts:
            if index < part.end - part.first:
                return Example(f"{part.source}:{part.first + index}", "")
            index -= part.end - part.first
        raise IndexError(index)


@dataclass(frozen=True)
class Spread(ResampledFeatures):
    """Some of a blend's texts."""

    texts: ResampledFeatures
    indices: NDArray[np.int64]

    def resampled(self, epoch: int) -> "Spread":
        """Give the same places of another epoch."""
        return Spread(self.texts.resampled(epoch), self.indices)

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.indices)

    def sequence(self, index: int) -> Features:
        """Make a sequence."""
        return self.texts[int(self.indices[index])]

    def lengths(self) -> NDArray[np.int64]:
        """Count each text's tokens."""
        return self.texts.lengths()[self.indices]

    def fingerprint(self) -> str:
        """Digest what the texts are drawn from."""
        return f"{self.texts.fingerprint()} {len(self)}"


@dataclass(frozen=True)
class Measured:
    """How well a text was guessed: the sum of the tokens' losses (in nats), how many were asked for, how many right.

    `order_loss`, `has_order` and `is_order_right` are sums over its parts that were asked for their segments' order.
    """

    id: str
    loss: float
    num_asked: int
    num_right: int
    order_loss: float
    has_order: int
    is_order_right: int
    num_words: int
    """Of a text that was given as text; 0 for one of token files."""


@dataclass(frozen=True)
class Guess:
    """A token that may stand at a place, and how likely it is."""

    token: str
    probability: float


@dataclass(frozen=True)
class Place:
    """A place that was asked for: characters [start, end) of the text, and the likeliest tokens."""

    start: int
    end: int
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Filled:
    """The likeliest tokens at the places that a text asks for."""

    id: str
    text: str
    places: tuple[Place, ...]


Prediction = Measured | Filled


class PretrainingTask(Task[Example, Prediction]):
    """A task that learns from plain text. What a text asks for, its own class says: `corpus`, `questions`."""

    main_score = "lm_loss"
    caches_features: ClassVar[bool] = False

    @property
    def row_length(self) -> int:
        """Tokens of the longest text."""
        return int(self.settings.model.dataset.max_seq_length)

    @abstractmethod
    def corpus(self, part: Part, tokenizer: Tokenizer) -> SequenceCorpus:
        """Cut a part of a corpus into texts."""

    @abstractmethod
    def documents(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Sequence[Features]:
        """Tokenize documents to measure; notes are a document's number. A text is of one document."""

    @abstractmethod
    def questions(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Features]:
        """Tokenize texts of which tokens are asked for; notes are an example's number and its `Asked` places."""

    def files(self, data: Any) -> list[str]:
        """List the files of a set: its own, or those of data_prefix."""
        if data.file is None and data.split is None:
            return []
        names = [data.file] if data.file is not None else self._blend()[0]
        return [
            str(path)
            for name in names
            for path in ([Path(name)] if name.endswith(TEXT_SUFFIXES) else files_of(Path(name)))
        ]

    def read_data(self, data: Any) -> Sequence[Example]:
        """Read a set of data."""
        if data.file is None:
            prefixes, weights = self._blend()
            shares = self._shares()
            parts = []
            for prefix in prefixes:
                tokens = IndexedDataset(Path(prefix))
                first, end = split_documents(tokens.num_documents, shares)[SPLITS.index(data.split)]
                parts.append(Part(tokens, first, end, prefix))
            return Corpora(parts, weights, data.num_samples)
        examples = self.read(Path(data.file))
        return Corpora(examples.parts, None, data.num_samples) if isinstance(examples, Corpora) else examples

    def read(self, path: Path) -> Sequence[Example]:
        """Read token files (by their prefix), or the documents of a text file."""
        if not path.name.endswith(TEXT_SUFFIXES):
            name = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
            tokens = IndexedDataset(name)
            return Corpora([Part(tokens, 0, tokens.num_documents, str(name))], None, -1)
        if path.suffix == ".jsonl":
            rows = read_json_lines(path)
            return [
                Example(str(row.values.get("id", number)), row.text("text")) for number, row in enumerate(rows, start=1)
            ]
        documents = (text for file in corpus_files([path]) for text in read_documents(file))
        examples = [Example(str(number), text) for number, text in enumerate(documents, start=1)]
        if not examples:
            raise InputError(f"{path} holds no text.")
        return examples

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`, and `id`."""
        return Example(str(fields.get("id", "")), text_of(fields))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> Sequence[Features]:
        """Cut corpora into texts that are drawn anew each epoch; tokenize documents to measure, or questions."""
        if isinstance(examples, Corpora):
            texts = Blend([self.corpus(part, tokenizer) for part in examples.parts], examples.weights, self._seed())
            if not len(texts):
                raise InputError(
                    f"{', '.join(part.source for part in examples.parts)}: this part of the documents "
                    f"({len(examples)}) makes no text of {self.row_length} tokens. Give more text, or change "
                    "model.dataset.splits_string or model.dataset.max_seq_length."
                )
            if 0 <= examples.limit < len(texts):
                return Spread(texts, np.arange(examples.limit) * len(texts) // max(examples.limit, 1))
            return texts
        if not examples:
            return []
        if not with_targets:
            return self.questions(examples, tokenizer)
        found = self.documents(examples, tokenizer)
        if not len(found):
            raise InputError("the texts are too short to ask for anything in them.")
        return found

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the losses of the tokens that are asked for; the order of two segments counts as much as they do."""
        total = logits[:, LOSS].sum()
        if "order_weight" in batch.token_targets:
            total = total + (logits[:, ORDER_LOSS] * batch.token_targets["order_weight"].clamp(min=0)).sum()
        return total

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Add up each document's figures; of corpora each text's. Where nothing was known, give the guesses."""
        if isinstance(examples, Corpora):
            return [_measured(str(number), [columns], "") for number, columns in enumerate(logits)]
        notes = [item.notes for item in features]
        of_example: list[list[int]] = [[] for _ in examples]
        for index, note in enumerate(notes):
            of_example[note.example if isinstance(note, Asked) else note].append(index)
        if not any(isinstance(note, Asked) for note in notes):
            return [
                _measured(example.id, [logits[index] for index in own], example.text)
                for example, own in zip(examples, of_example, strict=True)
            ]
        return [
            Filled(example.id, example.text, tuple(
                Place(start, end, _guesses(logits[index][place], notes[index].tokens))
                for index in own for place, start, end in notes[index].places
            ))
            for example, own in zip(examples, of_example, strict=True)
        ]  # fmt: skip

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Average over all tokens that were asked for, and over all texts that were asked for their order."""
        items = [item for item in predictions if isinstance(item, Measured)]
        num_asked = sum(item.num_asked for item in items)
        if not num_asked:
            raise InputError("nothing is asked for in these texts, so there is nothing to score.")
        loss = sum(item.loss for item in items) / num_asked
        scores = {
            "lm_loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "lm_accuracy": 100 * sum(item.num_right for item in items) / num_asked,
        }
        num_orders = sum(item.has_order for item in items)
        if num_orders:
            scores["order_loss"] = sum(item.order_loss for item in items) / num_orders
            scores["order_accuracy"] = 100 * sum(item.is_order_right for item in items) / num_orders
        return scores | {"total": float(num_asked)}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give a prediction as plain values."""
        return asdict(prediction)

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """There is no file of predictions to score: `megabert evaluate` measures."""
        raise ConfigError(f"{cls.name()} has no predictions to score. Use `megabert evaluate RUN file={gold}`.")

    def _seed(self) -> int:
        return int(self.settings.seed)

    def _blend(self) -> tuple[list[str], list[float] | None]:
        return parse_blend(self.settings.model.dataset.data_prefix, "model.dataset.data_prefix")

    def _shares(self) -> tuple[float, ...]:
        text = self.settings.model.dataset.splits_string
        try:
            shares = tuple(float(item) for item in str(text).split(","))
        except ValueError:
            shares = ()
        if len(shares) != len(SPLITS) or min(shares) < 0 or not sum(shares):
            raise ConfigError(f"model.dataset.splits_string={text}: give three shares, such as 949,50,1.")
        return shares


@dataclass(frozen=True)
class Asked:
    """Of a question's window: its example, and (token's place, start, end) of what it answers for."""

    example: int
    places: tuple[tuple[int, int, int], ...]
    tokens: Sequence[str]
    """The vocabulary, to name what is guessed."""


def _guesses(columns: NDArray[np.float32], tokens: Sequence[str]) -> tuple[Guess, ...]:
    pairs = zip(columns[:NUM_PREDICTIONS], columns[NUM_PREDICTIONS:], strict=True)
    return tuple(Guess(tokens[int(token)], float(share)) for token, share in pairs)


def _measured(identity: str, columns: Sequence[NDArray[np.float32]], text: str) -> Measured:
    sums = sum((item.astype(np.float64).sum(0) for item in columns), np.zeros(6))
    return Measured(
        id=identity,
        loss=float(sums[LOSS]),
        num_asked=round(sums[HAS_TARGET]),
        num_right=round(sums[IS_CORRECT]),
        order_loss=float(sums[ORDER_LOSS]),
        has_order=round(sums[HAS_ORDER]),
        is_order_right=round(sums[IS_ORDER_CORRECT]),
        num_words=len(text.split()),
    )


def spans_of(text: str, mark: str) -> list[tuple[int, int]]:
    """List where a mark stands in a text, as [start, end) characters."""
    found, start = [], text.find(mark)
    while start >= 0:
        found.append((start, start + len(mark)))
        start = text.find(mark, start + len(mark))
    return found
