"""Extractive question answering on SQuAD 1.1 and 2.0."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.parser import compose
from ..config.schema import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    Settings,
    TrainerSettings,
)
from ..data.packing import Batch, Features
from ..errors import ConfigError, InputError
from ..formats.squad import Example, read_squad, require_unique_ids
from ..metrics import squad
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .answer_spans import (
    NO_MASS,
    Candidate,
    ContextWindow,
    ScoredSpan,
    WindowedContext,
    aligned_spans,
    best_spans,
    context_windows,
    draw_null_windows,
    log_probabilities,
    rank_answers,
    shared_characters,
    target_span,
    word_edges,
)
from .head_settings import head_options
from .prediction_rows import read_answers
from .question_settings import QuestionSettings, SpanHeadSettings
from .task import Logits, Task, by_example, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head

# Number of candidates in the JSON of a prediction; write_predictions returns all n best.
NUM_SHOWN = 3


@dataclass
class QuestionAnsweringModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: QuestionSettings = field(default_factory=QuestionSettings)
    token_classifier: SpanHeadSettings = field(default_factory=SpanHeadSettings)
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
class Prediction:
    """The answer to a question, "" for none, and the n best, best first. `null_score_diff` is None for SQuAD 1.1.

    `windows` is the number of windows in which the context was read.
    """

    id: str
    question: str
    text: str
    start: int
    end: int
    probability: float
    n_best: list[Candidate]
    null_score_diff: float | None
    windows: int = 1


class QuestionAnswering(Task[Example, Prediction]):
    r"""Answer questions with a span of a given context.

        megabert train question_answering model.train_ds.file=train.json model.validation_ds.file=dev.json \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=dev.json output_dir=OUT
        megabert predict RUN question="Who ...?" context="..."

    Data: SQuAD JSON, version 1.1 or 2.0. A sequence is the question and a window of the context, `[CLS] question [SEP]
    context [SEP]`; a context that does not fit is read in overlapping windows. Each token has a logit as start and as
    end of the answer. The answer is a span of characters of the original context.

    Metrics: exact match and F1 as the official scripts compute them; for 2.0 also of the questions with and without
    answer. The null threshold that would have been best on the evaluated file is reported beside them, as best_exact
    and best_f1, and is never part of them.

    More: [how an answer is found, what the metrics are, differences from NeMo](../question_answering.md).
    """

    settings_type = QuestionAnsweringSettings
    main_score = "f1"
    can_distil = True
    input_fields: ClassVar[Mapping[str, type]] = {"question": str, "context": str}

    def __init__(self, settings: QuestionAnsweringSettings) -> None:
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
        super().__init__(settings)

    def read(self, path: Path) -> Sequence[Example]:
        """Read SQuAD JSON."""
        return read_squad(path)

    def read_data(self, data: DataSettings) -> Sequence[Example]:
        """Read the examples of a set of data; their ids are unique across its files."""
        examples, files = super().read_data(data), self.files(data)
        if len(files) > 1:
            require_unique_ids(examples, ", ".join(files))
        return examples

    def example(self, **fields: Any) -> Example:
        """Make an example from `question` and `context`."""
        question, context = require_texts(fields, "question", "context")
        return Example(str(fields.get("id", "question")), question, context, None)

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Cut each example into windows."""
        answers = [self._training_answer(example) if with_targets else None for example in examples]
        questions = tokenizer.encode_ids([example.question.strip() for example in examples])
        indices = {text: number for number, text in enumerate(dict.fromkeys(item.context for item in examples))}
        contexts = tokenizer.encode(list(indices))
        edges = [word_edges(text, context.offsets) for text, context in zip(indices, contexts, strict=True)]
        features = []
        for number, (example, question, answer) in enumerate(zip(examples, questions, answers, strict=True)):
            index = indices[example.context]
            context = WindowedContext(contexts[index], edges[index])
            for item in context_windows(number, question, context, tokenizer, self.dataset):
                if with_targets:
                    item.targets["span"] = target_span(item.notes, answer)
                features.append(item)
        return features

    def _training_answer(self, example: Example) -> tuple[int, int] | None:
        """Return the characters of the first answer, None if there is none."""
        if example.answers is None:
            raise InputError(f"question {example.id!r} has no answer to train on. Add one to the training file.")
        if not example.answers and not self.dataset.version_2_with_negative:
            raise InputError(
                f"question {example.id!r} has no answer in its context, as in SQuAD 2.0. "
                "Set model.dataset.version_2_with_negative=true, or remove the question."
            )
        if example.answers and example.answers[0].start is None:
            raise InputError(f"question {example.id!r}: its answer has no answer_start, which training needs. Add it.")
        first = example.answers[0] if example.answers else None
        return None if first is None or first.start is None else (first.start, first.start + len(first.text))

    def drawn(self, features: Sequence[Features]) -> Sequence[Features]:
        """Draw some of the windows that do not show the answer."""
        share = self.dataset.null_windows
        return features if share < 0 else draw_null_windows(features, share, self.settings.seed)

    def head(self, config: EncoderConfig) -> Head:
        """Score each token as start and as end."""
        from ..model.heads import TokenHead

        return TokenHead(config.hidden_size, 2, **head_options(self.settings.model.token_classifier))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum over windows the mean of the start's and the end's cross-entropy over the window's tokens."""
        import torch
        from torch.nn import functional as F

        # Not -inf: a document that only pads a static batch may have no token, and its softmax would be NaN.
        lowest = torch.finfo(torch.float32).min
        logits_NL2 = batch.by_sequence(logits.float(), fill=lowest, max_seqlen=self.row_length)
        return F.cross_entropy(logits_NL2, batch.targets["span"], reduction="sum") / 2

    def aligned_logits(
        self, examples: Sequence[Example], own: Sequence[Features], logits: Logits, student: Sequence[Features]
    ) -> list[NDArray[np.float32]]:
        """Return the logits of the same tokens, or by characters those of the window that shows most of the same."""
        windows = by_example(len(examples), own, range(len(own)))
        aligned = []
        for item in student:
            numbers = windows[item.notes.example]
            same = [number for number in numbers if np.array_equal(own[number].token_ids, item.token_ids)]
            if not same and logits[numbers[0]].shape[1] != 2:
                raise ConfigError(
                    "Hidden states of question answering are compared token by token, but teacher and student read "
                    "other tokens. Set model.distillation.hidden_weight=0, or give both one vocabulary and length."
                )
            best = same[0] if same else max(numbers, key=lambda number: shared_characters(own[number], item))
            aligned.append(logits[best] if same else aligned_spans(own[best], logits[best], item))
        return aligned

    def distillation_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Sum over windows the mean of the start's and the end's divergence over the window's tokens."""
        from ..model.distillation_loss import divergences

        both = [batch.by_sequence(item.float(), NO_MASS, self.row_length).transpose(1, 2) for item in (logits, teacher)]
        return divergences(both[0], both[1], temperature).sum() / 2

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Choose the best spans of each question over all its windows."""
        spans: list[list[ScoredSpan]] = [[] for _ in examples]
        null_scores = [float("inf")] * len(examples)
        counts = Counter(feature.notes.example for feature in features)
        data = self.dataset
        limits: dict[str, Any] = {"max_length": data.max_answer_length, "whole_words": data.whole_words}
        for feature, logits_T2 in zip(features, logits, strict=True):
            window: ContextWindow = feature.notes
            if data.span_score == "log_probability":
                logits_T2 = log_probabilities(logits_T2)
            spans[window.example] += best_spans(window, logits_T2, count=data.n_best_size, **limits)
            # A question has no answer only if none of its windows shows one.
            null_scores[window.example] = min(null_scores[window.example], float(logits_T2[0].sum()))
        may_be_null = data.version_2_with_negative
        answers = [
            rank_answers(example.context, own, count=data.n_best_size, null_score=null if may_be_null else None)
            for example, own, null in zip(examples, spans, null_scores, strict=True)
        ]
        windows = [counts[number] for number in range(len(examples))]
        return list(map(self._choose, examples, answers, null_scores, windows))

    def _choose(
        self, example: Example, ranked: tuple[list[Candidate], float], null_score: float, windows: int
    ) -> Prediction:
        may_be_null, (n_best, best_score) = self.dataset.version_2_with_negative, ranked
        null_score_diff = null_score - best_score if may_be_null else None
        is_null = null_score_diff is not None and null_score_diff > self.dataset.null_score_diff_threshold
        answers = [candidate for candidate in n_best if candidate.text]
        nothing = next((item for item in n_best if not item.text), Candidate("", 0, 0, 0.0, 0.0))
        chosen = nothing if is_null or not answers else answers[0]
        answer = (chosen.text, chosen.start, chosen.end, chosen.probability)
        return Prediction(example.id, example.question, *answer, n_best, null_score_diff, windows)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score as the official script of the data's version does."""
        scores, is_version_2 = _official_scores(examples, {item.id: item.text for item in predictions})
        if is_version_2 and self.dataset.version_2_with_negative:
            # The best answers that are not null, for the search over thresholds.
            answers = {item.id: next((c.text for c in item.n_best if c.text), "") for item in predictions}
            differences = {item.id: item.null_score_diff or 0.0 for item in predictions}
            scores |= squad.squad_best_threshold(_gold_answers(examples), answers, differences)
        return scores

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the answer, its characters in the context, its probability and the best few candidates."""
        values = vars(prediction) | {"answer": prediction.text}
        names = ["id", "question", "answer", "start", "end", "probability"]
        if prediction.null_score_diff is not None:
            names.append("null_score_diff")
        n_best = [vars(candidate) for candidate in prediction.n_best[:NUM_SHOWN]]
        return {name: values[name] for name in names} | {"n_best": n_best, "windows": prediction.windows}

    def gold(self, example: Example) -> dict[str, Any]:
        """Return the answers."""
        return {} if example.answers is None else {"answers": [vars(answer) for answer in example.answers]}

    def to_row(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """Return also the context."""
        row = super().to_row(example, prediction)
        return {"id": row["id"], "question": row["question"], "context": example.context} | row

    @classmethod
    def score_files(cls, gold: Path, predictions: Path, words: Sequence[str] = ()) -> dict[str, Any]:
        """Score a file {id: answer}, the official scripts' format, or rows as `megabert predict` writes them.

        The gold file determines the version; no setting changes the scores.
        """
        compose(cls.settings_type, words, owner=cls.name())
        return _official_scores(read_squad(gold), read_answers(predictions))[0]

    def write_predictions(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return predictions.json (the official scripts' format), nbest.json and, for 2.0, null_odds.json."""
        files: dict[str, Any] = {
            "predictions.json": {item.id: item.text for item in predictions},
            "nbest.json": {item.id: [vars(candidate) for candidate in item.n_best] for item in predictions},
        }
        if self.dataset.version_2_with_negative:
            files["null_odds.json"] = {item.id: item.null_score_diff for item in predictions}
        return {name: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for name, content in files.items()}


def _official_scores(examples: Sequence[Example], answers: Mapping[str, str]) -> tuple[dict[str, float], bool]:
    """Score answers by the script of the data's version; also returns whether it is 2.0."""
    gold = _gold_answers(examples)
    is_version_2 = any(not texts for texts in gold.values())
    return (squad.squad_v2 if is_version_2 else squad.squad_v1)(gold, answers), is_version_2


def _gold_answers(examples: Sequence[Example]) -> dict[str, list[str]]:
    gold = {}
    for example in examples:
        if example.answers is None:
            raise InputError(f"question {example.id!r} has no answers to score against. Add them to the file.")
        gold[example.id] = [answer.text for answer in example.answers]
    return gold
