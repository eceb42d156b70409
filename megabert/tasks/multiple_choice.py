"""Multiple choice: which of the choices answers a question on a passage, as in RACE, DREAM, MCTest and MedQA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, ModelSettings, OptimizerSettings, Settings, choice, linear_decay
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import POOLED_LOGITS, half_overlapping_spans, pool_windows
from ..errors import ConfigError, ExamplesWarning, InputError
from ..formats.choices import Example, choice_files, example_of, read_choices
from ..formats.rows import Row
from ..metrics.classification import choice_scores
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .head_settings import OutputHeadSettings, head_options
from .labels import class_probabilities
from .task import Logits, Task, parse_json_field, require_texts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class ChoiceSettings:
    """How questions, choices and passages become tokens."""

    max_seq_length: int = 512
    """Tokens of a choice's sequence: question and choice, the passage or a window of it, and three special tokens."""
    max_qa_length: int = 128
    """Tokens of the question with a choice; the rest is cut."""
    long_texts: str = choice("truncate", "truncate", "windows")
    """truncate: read the passage's first tokens, as Megatron-LM does; windows: all of it, in overlapping windows."""
    window_pooling: str = choice("mean", *POOLED_LOGITS)
    """A choice's score from those of its windows: the mean of their logits, or the largest one."""


@dataclass
class MultipleChoiceModel(ModelSettings):
    """The network with a head that scores a sequence, its data and its optimizer."""

    dataset: ChoiceSettings = field(default_factory=ChoiceSettings)
    classifier_head: OutputHeadSettings = field(default_factory=OutputHeadSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))


@dataclass
class MultipleChoiceSettings(Settings):
    """All settings of a run."""

    model: MultipleChoiceModel = field(default_factory=MultipleChoiceModel)


@dataclass(frozen=True)
class Prediction:
    """The index of the chosen choice, the probability of each, and the number of windows that were read."""

    id: str
    label: int
    probabilities: list[float]
    windows: int


@dataclass(frozen=True)
class ChoiceWindow:
    """Which sequences of an example a feature has: one window of the passage with one choice or with all of them."""

    example: int
    window: int
    choice: int | None


class MultipleChoice(Task[Example, Prediction]):
    r"""Choose the answer to a question on a passage: RACE, DREAM, MCTest, MedMCQA, MedQA, MMLU.

        megabert train multiple_choice model.train_ds.file=RACE/train model.validation_ds.file=RACE/dev \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=RACE/test output_dir=OUT
        megabert predict RUN question="Who found _ ?" choices='["radium", "tin"]' passage="Marie Curie found radium."

    Data: JSON lines with any number of choices, `{"question": "...", "choices": ["...", "..."], "passage": "...",
    "label": "B"}`; the passage is optional, the label a letter, an index from 0, or the right choice's text. Read as
    they are: RACE's folders (`{middle,high}/ID.txt`), DREAM's JSON, MCTest's `.tsv` with the `.ans` beside it,
    MedMCQA's and MedQA's JSON lines, MMLU's CSV, ARC's JSON lines.

    A choice's sequence is Megatron-LM's: `[CLS] question choice [SEP] passage [SEP]`; where the question has a `_`, the
    choice stands in its place. Question and choice are cut to `max_qa_length` tokens, and the passage to what is left
    of `max_seq_length`; `model.dataset.long_texts=windows` reads all of it, in windows that overlap by half and have
    the weight of one question together. The head gives each sequence one number, of which the softmax over the choices
    is taken. All choices of a question are in one step; `batch_size` counts questions.

    Predictions: the chosen choice, its letter and the probability of each; `windows` is their number.

    Metrics: `accuracy`; beside it that of each group of questions, `middle_accuracy` and `high_accuracy` of RACE (m and
    h), `one_accuracy` and `multiple_accuracy` of MCTest; `chance`, the accuracy of guessing.

    The head is BERT's pooler and a linear layer: after `megabert convert RUN DEST --to huggingface` it is the head of
    transformers' MultipleChoice classes.
    """

    settings_type: ClassVar[type[Settings]] = MultipleChoiceSettings
    main_score = "accuracy"
    input_fields: ClassVar[Mapping[str, type]] = {"question": str, "passage": str, "choices": list}

    def __init__(self, settings: Any) -> None:
        self.dataset = settings.model.dataset
        super().__init__(settings)
        if not 1 <= self.dataset.max_qa_length <= self.row_length - 4:
            raise ConfigError(
                f"model.dataset.max_qa_length={self.dataset.max_qa_length} leaves no token of a passage in sequences "
                f"of {self.row_length} (model.dataset.max_seq_length) with 3 special tokens. Make it smaller."
            )

    def read(self, path: Path) -> list[Example]:
        """Read a file, or RACE's folder."""
        return read_choices(path)

    def file_groups(self, data: DataSettings) -> list[list[str]]:
        """List the files of a set of data; a folder stands for the *.txt in it."""
        groups = super().file_groups(data)
        return [
            [file] for group in groups for name in group
            for file in (choice_files(Path(name)) if Path(name).is_dir() else [name])
        ]  # fmt: skip

    def example(self, **fields: Any) -> Example:
        """Make an example from `question`, `choices` (a list, or its JSON) and, if there is one, `passage`."""
        choices = fields.pop("choices", None)
        names = ("question", "passage") if fields.get("passage") else ("question",)
        require_texts(fields, *names, optional=("passage",))
        if choices is None:
            raise InputError("choices is missing. Give question=... and choices=[...], perhaps passage=...")
        if isinstance(choices, str):
            choices = parse_json_field("choices", choices)
        values = {"question": fields["question"], "passage": fields.get("passage") or "", "choices": choices}
        return replace(example_of(Row(values, "the question"), 1), id=str(fields.get("id", "question")))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Make a sequence of each window of a passage and each choice; with targets a window's are one unit."""
        passages = {text: number for number, text in enumerate(dict.fromkeys(item.passage for item in examples))}
        passage_ids = tokenizer.encode_ids(list(passages))
        texts = [fill_in(item.question, option) for item in examples for option in item.choices]
        choice_ids = iter(tokenizer.encode_ids(texts))
        features: list[Features] = []
        cut = []
        for number, example in enumerate(examples):
            if with_targets:
                _require_label(example)
            whole = [next(choice_ids) for _ in example.choices]
            options = [ids[: self.dataset.max_qa_length] for ids in whole]
            windows, num_cut = self._windows(options, passage_ids[passages[example.passage]], tokenizer)
            if num_cut:
                cut.append(example.location)
            first = len(features)
            for index, sequences in enumerate(windows):
                features += self._unit(number, index, sequences, example, len(windows), with_targets=with_targets)
            num_cut += sum(map(len, whole)) - sum(map(len, options))
            features[first] = replace(features[first], num_cut=num_cut)
        if cut:
            text = (
                f"{{count}} of {{total}} passages are truncated, since a sequence has {self.row_length} tokens; the "
                "first is {first}. To read all: model.dataset.long_texts=windows."
            )
            warnings.warn(ExamplesWarning(text, cut[0], len(examples), count=len(cut)), stacklevel=2)
        return features

    def _windows(
        self, options: Sequence[NDArray[np.int64]], passage: NDArray[np.int64], tokenizer: Tokenizer
    ) -> tuple[list[list[tuple[NDArray[np.int64], int]]], int]:
        """Return for each window each choice's token ids and the length of its first segment; the tokens cut."""
        longest = max(map(len, options))
        if self.dataset.long_texts == "windows":
            spans, num_cut = half_overlapping_spans(len(passage), self.row_length - 3 - longest), 0
        else:
            spans, num_cut = [(0, len(passage))], max(longest + len(passage) + 3 - self.row_length, 0)
        cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
        return [
            [
                (
                    np.concatenate([cls, ids, sep, passage[start:end][: self.row_length - 3 - len(ids)], sep]),
                    len(ids) + 2,
                )
                for ids in options
            ]
            for start, end in spans
        ], num_cut

    def _unit(
        self, number: int, window: int, sequences: Sequence[tuple[NDArray[np.int64], int]], example: Example,
        num_windows: int, *, with_targets: bool,
    ) -> list[Features]:  # fmt: skip
        segments = [(np.arange(len(ids)) >= first).astype(np.int64) for ids, first in sequences]
        if not with_targets:
            return [
                Features(ids, segment_ids, notes=ChoiceWindow(number, window, option))
                for option, ((ids, _), segment_ids) in enumerate(zip(sequences, segments, strict=True))
            ]
        share = 1 / num_windows
        is_first, weights = np.zeros(len(sequences), dtype=np.int64), np.zeros(len(sequences), dtype=np.float32)
        is_first[0] = 1
        weights[example.label] = share
        return [
            Features(
                np.concatenate([ids for ids, _ in sequences]),
                np.concatenate(segments),
                {"is_first": is_first, "weight": weights},
                weight=share,
                notes=ChoiceWindow(number, window, None),
                parts=tuple(len(ids) for ids, _ in sequences),
            )
        ]

    def head(self, config: EncoderConfig) -> Head:
        """Score a sequence by its first token."""
        from ..model.heads import SequenceHead

        return SequenceHead(config.hidden_size, 1, **head_options(self.settings.model.classifier_head))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the weighted cross-entropy over the choices of each question; only a right choice has a weight."""
        import torch

        is_first_N, scores_N = batch.targets["is_first"], logits.float()[:, 0]
        questions_N = (is_first_N == 1).cumsum(0) - 1
        # The scores of all sequences of the batch for each question, those of others masked: the sizes are static.
        rows_Q1 = torch.arange(len(scores_N), device=scores_N.device)[:, None]
        is_own_QN = (questions_N == rows_Q1) & (is_first_N != NO_TARGET)
        lowest = torch.finfo(torch.float32).min
        sums_Q = scores_N.expand(len(scores_N), -1).masked_fill(~is_own_QN, lowest).logsumexp(1)
        losses_N = sums_Q[questions_N.clamp(min=0)] - scores_N
        return (losses_N * batch.targets["weight"].nan_to_num()).sum()

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Pool the scores of each choice over the windows, and choose."""
        scores: list[dict[int, list[float]]] = [{} for _ in examples]
        for feature, values in zip(features, logits, strict=True):
            by_window = scores[feature.notes.example].setdefault(feature.notes.window, [])
            by_window.extend(map(float, np.ravel(values)))  # choices come in their order
        return list(map(self._predict, examples, scores))

    def _predict(self, example: Example, scores: Mapping[int, Sequence[float]]) -> Prediction:
        pooled = pool_windows([np.array(values) for values in scores.values()], self.dataset.window_pooling)
        probabilities = class_probabilities(pooled, is_multi_label=False)
        return Prediction(example.id, int(pooled.argmax()), probabilities.tolist(), len(scores))

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute the accuracy, also of each group, and that of guessing."""
        gold = [_require_label(example) for example in examples]
        return choice_scores(
            gold, [item.label for item in predictions], [len(item.choices) for item in examples],
            [item.group for item in examples],
        )  # fmt: skip

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the index and the letter of the choice, its probability and that of each."""
        return {
            "id": prediction.id,
            "label": prediction.label,
            "letter": _letter(prediction.label),
            "probability": prediction.probabilities[prediction.label],
            "probabilities": prediction.probabilities,
            "windows": prediction.windows,
        }

    def gold(self, example: Example) -> dict[str, Any]:
        """Return the index and the letter of the right choice."""
        return {} if example.label is None else {"label": example.label, "letter": _letter(example.label)}

    def to_row(self, example: Example, prediction: Prediction) -> dict[str, Any]:
        """Return also the question, its choices, the chosen one and the passage."""
        row = super().to_row(example, prediction)
        shown = {"question": example.question, "choices": list(example.choices), "context": example.passage}
        return {"id": row["id"], **shown, "answer": example.choices[prediction.label]} | row

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the index of a choice, or its letter."""
        label = row.get("label")
        number = ord(label) - ord("A") if isinstance(label, str) and len(label) == 1 else label
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(example.choices):
            raise InputError(f"{row.location}: the label {label!r:.40} is none of {len(example.choices)} choices.")
        return Prediction(example.id, number, [], 0)


def fill_in(question: str, option: str) -> str:
    """Join a question and a choice: where the question has `_` the choice is put there. Source: Megatron-LM's RACE."""
    return question.replace("_", option) if "_" in question else f"{question} {option}"


def _letter(label: int) -> str:
    return chr(ord("A") + label) if label < 26 else str(label)


def _require_label(example: Example) -> int:
    if example.label is None:
        raise InputError(f"{example.location}: the question has no answer to train on or to score against. Add it.")
    return example.label
