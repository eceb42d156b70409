"""Biomedical questions of BioASQ: yes or no, one answer (factoid) or several (list), from snippets of abstracts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.packing import Batch, Features
from ..errors import ConfigError, ExamplesWarning, InputError
from ..formats.bioasq import KINDS, Question, exact_answers, question_rows, read_bioasq, to_submission
from ..formats.choices import check_question_ids
from ..formats.json_lines import read_json_lines
from ..formats.rows import Row
from ..formats.squad import read_squad
from ..formats.text_lines import read_text
from ..metrics.bioasq import ExactAnswer, bioasq_scores
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .answer_spans import WindowedContext, best_spans, context_windows, rank_answers, target_span, word_edges
from .bioasq_answers import answer_places, distinct_answers, named_number, without_crossings
from .head_settings import head_options
from .question_settings import QuestionSettings, SpanHeadSettings
from .task import Logits, Task, by_example, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head

NUM_FACTOIDS, MAX_LIST_ANSWERS = 5, 100
"""Answers that the challenge takes for a question of each kind."""
# Columns of the logits.
START, END, NO, YES = range(4)


@dataclass
class BioASQDatasetSettings(QuestionSettings):
    """How questions and snippets become windows of tokens, and logits answers."""

    list_answers: str = choice("count", "count", "threshold")
    """Answers of a list: as many as training lists have on average or the question names; or those above threshold."""
    list_threshold: float = 0.1
    """With list_answers=threshold: the least probability, as a share of that of the best answer."""


@dataclass
class BioASQModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: BioASQDatasetSettings = field(default_factory=BioASQDatasetSettings)
    token_classifier: SpanHeadSettings = field(default_factory=SpanHeadSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(3e-5))


@dataclass
class BioASQSettings(Settings):
    """All settings of a run."""

    model: BioASQModel = field(default_factory=BioASQModel)


@dataclass(frozen=True)
class Prediction:
    """The answers to a question, best first, the probability of each, and the number of windows that were read."""

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]
    windows: int


class BioASQ(Task[Question, Prediction]):
    r"""Answer the questions of BioASQ's task B: yes or no, factoids, lists.

        megabert train bioasq model.train_ds.file='"golden/[78]B*.json"' model.validation_ds.file='golden/9B*.json' \
            model.language_model.pretrained_model_name=biomegatron-bert-345m-cased
        megabert evaluate RUN file=9B1_golden.json output_dir=OUT
        megabert predict RUN question="Is aspirin an antibiotic?" context="Aspirin is a ..." type=yesno

    Data: BioASQ's JSON, golden or without answers; SQuAD's JSON is read as factoids. The snippets of a question are its
    context, read in overlapping windows as in question answering. Summary questions have no
    exact answer and are left out. Training marks every place where a snippet has one of the answers or a synonym, in
    any case; questions of which none is found are left out, and counted.

    Each token has four logits: an answer starts here, ends here, and at the first token no and yes. The mean over
    windows decides yes or no. A factoid has its five best answers, a list those of `model.dataset.list_answers`.
    Answers of more than 100 characters, which the challenge does not take, are left out.

    First SQuAD, then BioASQ, with one head: train this task on SQuAD, then on BioASQ with `pretrained_model=RUN`
    (`recipes/bioasq_squad.yaml`, `recipes/bioasq.yaml`).

    `output_dir` gets `bioasq.json`, a file of answers as the challenge takes it; `megabert score bioasq GOLD ANSWERS`
    scores one.

    Metrics, as BioASQ's evaluator computes them, in per cent: `yesno_accuracy`, `yesno_f1` (macro), that of yes and of
    no; `factoid_strict`, `factoid_lenient`, `factoid_mrr`; `list_precision`, `list_recall`, `list_f1`, means over
    questions; `bioasq`, the mean of macro F1, reciprocal rank and list F1. Where the evaluator departs from the
    challenge's rules the right number stands beside as `corrected_...`: it takes "unknown" for no, counts more than
    five answers of a factoid, and forgives a missed answer of a list that shares a synonym with one found.
    """

    settings_type: ClassVar[type[Settings]] = BioASQSettings
    main_score = "bioasq"
    state_names = ("list_count",)
    input_fields: ClassVar[Mapping[str, type]] = {"question": str, "context": str, "type": str}

    def __init__(self, settings: Any) -> None:
        self.dataset = settings.model.dataset
        self.list_count = 3
        super().__init__(settings)
        room = self.row_length - self.dataset.max_query_length - 3
        if not 1 <= self.dataset.doc_stride <= room:
            raise ConfigError(
                f"model.dataset.doc_stride={self.dataset.doc_stride}: a window shows as few as {room} tokens of a "
                "context. Make it smaller, or max_seq_length larger."
            )

    def read(self, path: Path) -> list[Question]:
        """Read BioASQ's or SQuAD's JSON."""
        if '"paragraphs"' in read_text(path)[: 2**16]:
            return [
                Question(item.id, "factoid", item.question, item.context, tuple((a.text,) for a in item.answers or ()),
                         f"{path} (id {item.id!r})")
                for item in read_squad(path)
            ]  # fmt: skip
        return read_bioasq(path)

    def read_data(self, data: DataSettings) -> Sequence[Question]:
        """Read the questions of a set of data; their ids are unique across its files."""
        questions = super().read_data(data)
        check_question_ids(questions)
        return questions

    def example(self, **fields: Any) -> Question:
        """Make an example from `question`, `context` and `type`: yesno, factoid (if not given) or list."""
        question, context = require_texts(fields, "question", "context", optional=("type",))
        kind = str(fields.get("type") or "factoid")
        if kind not in KINDS:
            raise InputError(f"type={kind} is none of {', '.join(KINDS)}.")
        return Question(str(fields.get("id", "question")), kind, question, context, None, "the question")

    def learn_labels(self, examples: Sequence[Question]) -> None:
        """Learn how many answers a list has on average."""
        counts = [len(item.answers) for item in examples if item.kind == "list" and item.answers]
        if counts:
            self.list_count = max(round(sum(counts) / len(counts)), 2)

    def features(self, examples: Sequence[Question], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Cut the context of each question into windows."""
        questions = tokenizer.encode_ids([example.question.strip() for example in examples])
        contexts = tokenizer.encode([example.context for example in examples])
        features, lost = [], []
        for number, (example, ids, tokens) in enumerate(zip(examples, questions, contexts, strict=True)):
            context = WindowedContext(tokens, word_edges(example.context, tokens.offsets))
            windows = context_windows(number, ids, context, tokenizer, self.dataset)
            if with_targets:
                places = answer_places(example)
                if example.kind != "yesno" and not places:
                    lost.append(example)
                windows = [self._with_targets(item, example, places, len(windows)) for item in windows]
            features += windows
        if lost:
            text = (
                "the answers of {count} of {total} questions are not in their snippets: they are not trained on; the "
                "first is {first}."
            )
            warnings.warn(ExamplesWarning(text, lost[0].location, len(examples), count=len(lost)), stacklevel=2)
        return features

    def _with_targets(
        self, item: Features, example: Question, places: Sequence[tuple[int, int]], num_windows: int
    ) -> Features:
        """Mark the first and last tokens of all answers that a window shows, its first token if it shows none."""
        starts, ends = np.zeros((2, len(item)), dtype=np.int64)
        spans = [target_span(item.notes, (start, end)) for start, end in places]
        shown = [(int(first), int(last)) for first, last in spans if first]
        for first, last in shown or [(0, 0)]:
            starts[first] = ends[last] = 1
        has_target = example.kind == "yesno" or bool(places)
        share = (1 / num_windows if example.kind == "yesno" else 1.0) if has_target else 0.0
        is_yes = example.answers is not None and example.answers[0] == ("yes",)
        targets = {"is_yes": int(is_yes), "is_yesno": int(example.kind == "yesno"), "weight": np.float32(share)}
        return replace(item, targets=targets, token_targets={"start": starts, "end": ends}, weight=share)

    def head(self, config: EncoderConfig) -> Head:
        """Score each token as start, end, no and yes."""
        from ..model.heads import TokenHead

        return TokenHead(config.hidden_size, 4, **head_options(self.settings.model.token_classifier))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the weighted cross-entropy of yes/no, or the mean of the starts' and ends' over a window's answers."""
        import torch
        from torch.nn import functional as F

        lowest = torch.finfo(torch.float32).min
        weights_N = batch.targets["weight"].nan_to_num()
        logits_NL4 = batch.by_sequence(logits.float(), fill=lowest, max_seqlen=self.row_length)
        losses_N = torch.zeros_like(weights_N)
        for column, name in ((START, "start"), (END, "end")):
            marks_T = batch.token_targets[name].clamp(min=0).float()
            marks_NL = batch.by_sequence(marks_T, fill=0.0, max_seqlen=self.row_length)
            shares_NL = marks_NL / marks_NL.sum(1, keepdim=True).clamp(min=1)
            losses_N = losses_N - (shares_NL * F.log_softmax(logits_NL4[..., column], dim=1)).sum(1) / 2
        is_yes_N = batch.targets["is_yes"].clamp(min=0)
        answer_N = F.cross_entropy(logits_NL4[:, 0, NO:], is_yes_N, reduction="none")
        losses_N = torch.where(batch.targets["is_yesno"] == 1, answer_N, losses_N)
        # Not a product: the loss of a filler may be no number.
        return torch.where(weights_N > 0, losses_N * weights_N, 0.0).sum()

    def decode(self, examples: Sequence[Question], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Decide yes or no, or choose the best spans over all windows."""
        windows = by_example(len(examples), features, list(zip(features, logits, strict=True)))
        return list(map(self._predict, examples, windows))

    def _predict(self, example: Question, windows: Sequence[tuple[Features, NDArray[np.float32]]]) -> Prediction:
        if example.kind == "yesno":
            difference = float(np.mean([logits[0, YES] - logits[0, NO] for _, logits in windows], dtype=np.float64))
            probability = 1 / (1 + np.exp(-abs(difference)))
            answers: tuple[str, ...] = ("yes" if difference > 0 else "no",)
            probabilities: tuple[float, ...] = (float(probability),)
        else:
            data = self.dataset
            limits: dict[str, Any] = {"max_length": data.max_answer_length, "whole_words": data.whole_words}
            found = (best_spans(item.notes, out[:, :NO], count=data.n_best_size, **limits) for item, out in windows)
            n_best, _ = rank_answers(example.context, list(chain(*found)), count=data.n_best_size, null_score=None)
            if example.kind == "list":
                n_best = without_crossings(n_best)
            chosen = self._choose(example, distinct_answers(n_best))
            answers = tuple(text for text, _ in chosen)
            probabilities = tuple(probability for _, probability in chosen)
        return Prediction(example.id, example.kind, example.question, answers, probabilities, len(windows))

    def _choose(self, example: Question, n_best: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        if example.kind == "factoid" or not n_best:
            return list(n_best[:NUM_FACTOIDS])
        if self.dataset.list_answers == "threshold":
            least = self.dataset.list_threshold * n_best[0][1]
            return [item for item in n_best if item[1] >= least][:MAX_LIST_ANSWERS]
        return list(n_best[: named_number(example.question) or self.list_count])

    def score(self, examples: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score as the challenge's evaluator does."""
        return _scores(examples, [_exact(item.kind, item.answers) for item in predictions])

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the answer in BioASQ's form and the probability of each."""
        return {
            "id": prediction.id,
            "type": prediction.kind,
            "question": prediction.question,
            "exact_answer": _exact(prediction.kind, prediction.answers),
            "probabilities": list(prediction.probabilities),
            "windows": prediction.windows,
        }

    def gold(self, example: Question) -> dict[str, Any]:
        """Return the answers."""
        if example.answers is None:
            return {}
        return {"exact_answer": _gold(example)}

    def to_row(self, example: Question, prediction: Prediction) -> dict[str, Any]:
        """Return also the snippets."""
        return super().to_row(example, prediction) | {"context": example.context}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path, words: Sequence[str] = ()) -> dict[str, Any]:
        """Score a file of answers as the challenge takes it, or rows as `megabert predict` writes them."""
        examples = read_bioasq(gold)
        is_json_lines = predictions.suffix == ".jsonl"
        rows = read_json_lines(predictions) if is_json_lines else question_rows(predictions)
        by_id = {str(row.get("id")): row for row in rows}
        missing = [item.id for item in examples if item.id not in by_id]
        if missing:
            raise InputError(f"{predictions} has no answer to question {missing[0]!r} and {len(missing) - 1} others.")
        return _scores(examples, [_submitted(item, by_id[item.id]) for item in examples])

    def write_predictions(self, examples: Sequence[Question], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return bioasq.json, the challenge's format."""
        rows = [
            {"id": item.id, "type": item.kind, "body": item.question, "ideal_answer": "",
             "exact_answer": _exact(item.kind, item.answers)}
            for item in predictions
        ]  # fmt: skip
        return {"bioasq.json": to_submission(rows)}


def _exact(kind: str, answers: Sequence[str]) -> Any:
    return answers[0] if kind == "yesno" else [[answer] for answer in answers]


def _gold(example: Question) -> Any:
    answers = example.answers or ()
    return answers[0][0] if example.kind == "yesno" else [list(names) for names in answers]


def _submitted(example: Question, row: Row) -> ExactAnswer:
    answer = row.values.get("exact_answer")
    if answer is None or example.kind == "yesno":
        return answer if isinstance(answer, str) else None
    return exact_answers("list", answer, row.location) if answer else []


def _scores(examples: Sequence[Question], answers: Sequence[ExactAnswer]) -> dict[str, float]:
    for example in examples:
        if example.answers is None:
            raise InputError(f"{example.location}: the question has no exact answer to score against. Add it.")
    return bioasq_scores([item.kind for item in examples], list(map(_gold, examples)), answers)
