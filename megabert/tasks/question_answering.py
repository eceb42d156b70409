"""Extractive question answering on SQuAD 1.1 and 2.0."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config.schema import ModelSettings, OptimizerSettings, ScheduleSettings, Settings, TrainerSettings, choice
from ..data.packing import Batch, Features
from ..data.windows import best_contexts, window_spans
from ..errors import ConfigError, InputError
from ..formats.squad import Answer, Example, read_squad
from ..metrics import squad
from ..model.config import EncoderConfig
from ..model.heads import ACTIVATIONS, Head, TokenHead
from ..tokenizers.wordpiece import Encoded, Tokenizer
from .task import Task

# Candidates in the output for a person or program; write_predictions gives all n best.
SHOWN = 3


@dataclass
class DatasetSettings:
    """How questions and contexts become token windows, and logits answers."""

    version_2_with_negative: bool = False
    """SQuAD 2.0: questions may have no answer."""
    max_seq_length: int = 384
    """Tokens of a window: question, part of the context and three special tokens."""
    doc_stride: int = 128
    """Tokens by which a window starts after the one before it."""
    max_query_length: int = 64
    """Tokens of a question; the rest of a longer one is not seen."""
    max_answer_length: int = 30
    """Tokens of an answer."""
    n_best_size: int = 20
    """Answers that are kept, with probabilities, for each question."""
    null_score_diff_threshold: float = 0.0
    """With version_2_with_negative: answer "" where the null score exceeds the best answer's by more than this."""


@dataclass
class HeadSettings:
    """The head that scores each token as start and as end."""

    num_layers: int = 1
    """Linear maps."""
    dropout: float = 0.0
    """Dropout on the head's input."""
    activation: str = choice("relu", *ACTIVATIONS)
    """Between linear maps."""


@dataclass
class QuestionAnsweringModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    token_classifier: HeadSettings = field(default_factory=HeadSettings)
    optim: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            lr=3e-5, weight_decay=0.0, sched=ScheduleSettings(name="SquareRootAnnealing")
        )
    )


@dataclass
class QuestionAnsweringSettings(Settings):
    """All settings of a run."""

    trainer: TrainerSettings = field(default_factory=lambda: TrainerSettings(max_epochs=2))
    model: QuestionAnsweringModel = field(default_factory=QuestionAnsweringModel)


@dataclass(frozen=True)
class Candidate:
    """One possible answer: the characters [start, end) of the context; an empty one is "no answer"."""

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answers to one question, best first. `null_score_diff` is None for SQuAD 1.1.

    text is "" where the question is held to have no answer.
    """

    id: str
    question: str
    text: str
    start: int
    end: int
    probability: float
    n_best: list[Candidate]
    null_score_diff: float | None


@dataclass(frozen=True)
class Window:
    """Where a feature's tokens come from: the example, the place of its context tokens, their characters."""

    example: int
    context_start: int
    """Place of the first context token in the feature."""
    offsets: NDArray[np.int64]
    """Characters [start, end) of each context token, [T, 2]."""
    is_best_context: NDArray[np.bool_]
    """For each context token, whether no other window shows more of what is around it."""


class QuestionAnswering(Task[Example, Prediction]):
    r"""Answer questions by a span of a given context.

        megabert train question_answering model.train_ds.file=train.json model.validation_ds.file=dev.json \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=dev.json output_dir=OUT
        megabert predict RUN question="Who ...?" context="..."

    Data: SQuAD JSON, version 1.1 or 2.0. The question and a window of the context are read together, `[CLS] question
    [SEP] context [SEP]`; a context that does not fit is read in windows that overlap. Each token gets a score as start
    and as end of the answer. The answer is a span of characters of the untouched context.

    Scores: exact match and F1 as the official scripts compute them; for 2.0 also of the questions with and without
    answer. The null threshold that would have been best on the evaluated file is reported beside the scores, as
    best_exact and best_f1, and is never part of them.

    More: [how an answer is found, what the scores are, differences from NeMo](../question_answering.md).
    """

    settings_type = QuestionAnsweringSettings
    main_score = "f1"

    def __init__(self, settings: QuestionAnsweringSettings) -> None:
        super().__init__(settings)
        self.dataset = settings.model.dataset
        room = self.dataset.max_seq_length - self.dataset.max_query_length - 3
        if min(room, self.dataset.doc_stride, self.dataset.max_query_length, self.dataset.max_answer_length) < 1:
            raise ConfigError(
                f"model.dataset: {self.dataset.max_seq_length} tokens (max_seq_length) leave no room for a context "
                f"beside a question of {self.dataset.max_query_length} (max_query_length) and 3 special tokens, or a "
                "length is less than 1."
            )
        if self.dataset.doc_stride > room:
            raise ConfigError(
                f"model.dataset.doc_stride={self.dataset.doc_stride} skips tokens: a window shows as few as {room} "
                "context tokens. Make it smaller, or max_seq_length larger."
            )

    @property
    def row_length(self) -> int:
        """Tokens of a window."""
        return self.dataset.max_seq_length

    def read(self, path: Path) -> list[Example]:
        """Read SQuAD JSON."""
        return read_squad(path)

    def example(self, **fields: Any) -> Example:
        """Make an example from `question` and `context`."""
        unknown = sorted(set(fields) - {"question", "context", "id"})
        lacking = [name for name in ("question", "context") if not str(fields.get(name) or "").strip()]
        if unknown or lacking:
            raise InputError(
                "; ".join([f"{name} is missing" for name in lacking] + [f"{name} is not asked for" for name in unknown])
                + ". Give question=... and context=...."
            )
        return Example(str(fields.get("id", "question")), str(fields["question"]), str(fields["context"]), None)

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Cut each example into windows."""
        questions = tokenizer.encode_ids([example.question.strip() for example in examples])
        places = {text: number for number, text in enumerate(dict.fromkeys(item.context for item in examples))}
        contexts = tokenizer.encode(list(places))
        features = []
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            question_ids = question[: self.dataset.max_query_length]
            answer = self._training_answer(example) if with_targets else None
            context = contexts[places[example.context]]
            features += self._windows(number, question_ids, context, tokenizer, answer, with_targets)
        return features

    def _training_answer(self, example: Example) -> Answer | None:
        if example.answers is None:
            raise InputError(f"question {example.id!r} has no answer to learn from. Add one to the training file.")
        if not example.answers and not self.dataset.version_2_with_negative:
            raise InputError(
                f"question {example.id!r} has no answer in its context, as questions of SQuAD 2.0 may. "
                "Set model.dataset.version_2_with_negative=true, or remove the question."
            )
        if example.answers and example.answers[0].start is None:
            raise InputError(f"question {example.id!r}: its answer has no answer_start, which training needs. Add it.")
        return example.answers[0] if example.answers else None

    def _windows(
        self,
        number: int,
        question_ids: NDArray[np.int64],
        context: Encoded,
        tokenizer: Tokenizer,
        answer: Answer | None,
        with_targets: bool,
    ) -> list[Features]:
        cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
        context_start = len(question_ids) + 2
        room = self.dataset.max_seq_length - context_start - 1
        spans = window_spans(len(context.token_ids), room, self.dataset.doc_stride)
        best = best_contexts(len(context.token_ids), spans)
        features = []
        for (start, end), is_best in zip(spans, best, strict=True):
            window = Window(number, context_start, context.offsets[start:end], is_best)
            token_ids = np.concatenate([cls, question_ids, sep, context.token_ids[start:end], sep])
            segment_ids = (np.arange(len(token_ids)) >= context_start).astype(np.int64)
            targets = {"span": _target_span(window, answer)} if with_targets else {}
            features.append(Features(token_ids, segment_ids, targets, notes=window))
        return features

    def head(self, config: EncoderConfig) -> Head:
        """Two scores a token."""
        settings = self.settings.model.token_classifier
        return TokenHead(
            config.hidden_size,
            2,
            num_layers=settings.num_layers,
            dropout=settings.dropout,
            activation=settings.activation,
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum over windows the mean of the start's and the end's cross-entropy over the window's tokens."""
        # Not -inf: a document that only fills the batch up has no token at all, and its softmax would be NaN.
        lowest = torch.finfo(torch.float32).min
        logits_NL2 = batch.by_sequence(logits.float(), fill=lowest, max_seqlen=self.row_length)
        return nn.functional.cross_entropy(logits_NL2, batch.targets["span"], reduction="sum") / 2

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Choose the best spans of each question over all its windows."""
        found: list[list[tuple[float, int, int]]] = [[] for _ in examples]
        null_scores = np.full(len(examples), np.inf)
        for feature, scores in zip(features, logits, strict=True):
            window: Window = feature.notes
            found[window.example] += self._best_spans(window, scores)
            # A question has no answer only if none of its windows shows one.
            null_scores[window.example] = min(null_scores[window.example], float(scores[0].sum()))
        return [
            self._predict(example, spans, float(null))
            for example, spans, null in zip(examples, found, null_scores, strict=True)
        ]

    def _best_spans(self, window: Window, scores: NDArray[np.float32]) -> list[tuple[float, int, int]]:
        """List the n best spans of a window as (score, first character, end character)."""
        num_tokens = len(window.offsets)
        if not num_tokens:
            return []
        inside = slice(window.context_start, window.context_start + num_tokens)
        starts, ends = scores[inside, 0].astype(np.float64), scores[inside, 1].astype(np.float64)
        longest = min(self.dataset.max_answer_length, num_tokens)
        # sums[s, d] is the score of the span of d + 1 tokens that starts at token s.
        padded = np.concatenate([ends, np.full(longest, -np.inf)])
        sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)[:num_tokens]
        sums[~window.is_best_context] = -np.inf
        flat = sums.ravel()
        count = min(self.dataset.n_best_size, flat.size)
        top = np.argpartition(flat, -count)[-count:]
        spans = []
        for place in top[np.isfinite(flat[top])]:
            first, length = divmod(int(place), longest)
            spans.append((float(flat[place]), int(window.offsets[first, 0]), int(window.offsets[first + length, 1])))
        return spans

    def _predict(self, example: Example, spans: list[tuple[float, int, int]], null_score: float) -> Prediction:
        spans = sorted(spans, key=lambda span: (-span[0], span[1:]))
        by_text = {example.context[start:end]: (score, start, end) for score, start, end in reversed(spans)}
        # dicts keep the first place of a key: take the order anew, best first
        kept = sorted(by_text.items(), key=lambda item: (-item[1][0], item[1][1:]))[: self.dataset.n_best_size]
        best_score = kept[0][1][0] if kept else -np.inf
        null_score_diff = None
        if self.dataset.version_2_with_negative:
            null_score_diff = null_score - best_score
            kept.append(("", (null_score, 0, 0)))
            kept.sort(key=lambda item: -item[1][0])
        n_best = _with_probabilities(kept)
        answers = [candidate for candidate in n_best if candidate.text]
        says_null = null_score_diff is not None and null_score_diff > self.dataset.null_score_diff_threshold
        nothing = next((item for item in n_best if not item.text), Candidate("", 0, 0, 0.0, 0.0))
        chosen = nothing if says_null or not answers else answers[0]
        return Prediction(
            example.id,
            example.question,
            chosen.text,
            chosen.start,
            chosen.end,
            chosen.probability,
            n_best,
            null_score_diff,
        )

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score as the official script of the data's version does."""
        gold = _gold_answers(examples)
        texts = {item.id: item.text for item in predictions}
        if not any(not answers for answers in gold.values()):
            return squad.squad_v1(gold, texts)
        scores = squad.squad_v2(gold, texts)
        if self.dataset.version_2_with_negative:
            # What the model would answer if it had to, for the sweep over thresholds.
            answers = {item.id: next((c.text for c in item.n_best if c.text), "") for item in predictions}
            differences = {item.id: item.null_score_diff or 0.0 for item in predictions}
            scores |= squad.squad_best_threshold(gold, answers, differences)
        return scores

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give the answer, its characters in the context, its probability and the best few candidates."""
        plain = {
            "id": prediction.id,
            "question": prediction.question,
            "answer": prediction.text,
            "start": prediction.start,
            "end": prediction.end,
            "probability": prediction.probability,
        }
        if prediction.null_score_diff is not None:
            plain["null_score_diff"] = prediction.null_score_diff
        return plain | {"n_best": [vars(candidate) for candidate in prediction.n_best[:SHOWN]]}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score a file {id: answer}; the gold file tells the version."""
        answers = _gold_answers(read_squad(gold))
        texts = _read_predictions(predictions)
        if any(not answer for answer in answers.values()):
            return squad.squad_v2(answers, texts)
        return squad.squad_v1(answers, texts)

    def write_predictions(
        self, folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, str]:
        """Give predictions.json (the official scorers' format), nbest.json and, for 2.0, null_odds.json."""
        files: dict[str, Any] = {
            "predictions.json": {item.id: item.text for item in predictions},
            "nbest.json": {item.id: [vars(candidate) for candidate in item.n_best] for item in predictions},
        }
        if self.dataset.version_2_with_negative:
            files["null_odds.json"] = {item.id: item.null_score_diff for item in predictions}
        return {name: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for name, content in files.items()}


def _target_span(window: Window, answer: Answer | None) -> NDArray[np.int64]:
    """Find the answer's first and last token in the feature; 0 and 0, the [CLS], if the window cuts it."""
    if answer is None or answer.start is None or not len(window.offsets):
        return np.zeros(2, dtype=np.int64)
    start, end = answer.start, answer.start + len(answer.text)
    if window.offsets[0, 0] > start or window.offsets[-1, 1] < end:
        return np.zeros(2, dtype=np.int64)
    # The first token that ends behind the answer's start, the last that starts before its end.
    first = int(np.searchsorted(window.offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(window.offsets[:, 0], end, side="left")) - 1
    if last < first:
        return np.zeros(2, dtype=np.int64)
    return np.array([first, last], dtype=np.int64) + window.context_start


def _with_probabilities(kept: list[tuple[str, tuple[float, int, int]]]) -> list[Candidate]:
    if not kept:
        return []
    scores = np.array([item[1][0] for item in kept])
    weights = np.exp(scores - scores.max())
    return [
        Candidate(text, start, end, score, float(weight / weights.sum()))
        for (text, (score, start, end)), weight in zip(kept, weights, strict=True)
    ]


def _gold_answers(examples: Sequence[Example]) -> dict[str, list[str]]:
    gold = {}
    for example in examples:
        if example.answers is None:
            raise InputError(f"question {example.id!r} has no answers to score against. Add them to the file.")
        gold[example.id] = [answer.text for answer in example.answers]
    return gold


def _read_predictions(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise InputError(f'{path} is not a file of predictions: expected {{"question id": "answer", ...}}.')
    return content
