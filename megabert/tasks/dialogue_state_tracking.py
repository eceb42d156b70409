"""Dialogue state tracking on Schema-Guided Dialogue: intents, requested slots and slot values, by NeMo's SGD-QA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import DataSettings, Settings, TrainDataSettings
from ..data.packing import Batch, Features
from ..errors import InputError, InputWarning
from ..formats.dialogues import (
    SCHEMA_FILE,
    Dialogue,
    dialogue_files,
    dialogue_of,
    read_dialogues,
    read_schema,
    schema_of,
    to_dialogues,
)
from ..formats.rows import Row
from ..model.config import EncoderConfig
from ..tokenizers.wordpiece import Tokenizer
from .dialogue_questions import (
    ANSWER_COLUMNS,
    CATEGORICAL,
    COLUMNS,
    FREE,
    NUM_KINDS,
    SPANS,
    STATUS,
    Note,
    QuestionFeatures,
    answer_frame,
    loss_weights,
)
from .dialogue_scores import NEW, ONLY_SCHEMA, TRAINED, dialogue_scores, require_states, score_dialogue_files
from .dialogue_settings import DialogueStateSettings, is_of_part
from .dialogue_tracker import Relations, learn_relations, track
from .task import Logits, Task, parse_json_field

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass(frozen=True)
class Prediction:
    """A dialogue's turns, the user's with predicted states, and how the training data has each of its services."""

    id: str
    services: tuple[str, ...]
    turns: Sequence[Mapping[str, Any]]
    training: Mapping[str, str]


class DialogueStateTracking(Task[Dialogue, Prediction]):
    r"""Track the state of a dialogue by its services' schemas: intent, requested slots, slot values (SGD).

        megabert train dialogue_state_tracking model.dataset.data_dir=dstc8-schema-guided-dialogue \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=dstc8-schema-guided-dialogue/test output_dir=OUT
        megabert predict RUN turns='["My savings, please.", "Which amount?", "100 dollars"]' services=Banks_1

    Data: the JSON of Schema-Guided Dialogue, a folder of `dialogues_NNN.json` beside `schema.json`, or one such file;
    labels are optional. `model.dataset.data_dir` and `ds_item` name files of splits, as in NeMo; with
    `task_name=sgd_all_single` all for training, and otherwise those about one service. A dialogue, also as a line of
    JSON lines, may have its own `schema`: services need no training, their names and descriptions are read. With
    `model.dataset.schema_file` they are read in the words of another schema, such as SGD-X's variants; names in
    predictions stay those of the dialogues.

    The model is NeMo's SGD-QA. For each turn of the user and service of its frames there is a sequence for each intent
    (and none), each slot that may be requested (with the user's utterance alone), the status of each slot (not filled
    anew, filled, "dontcare"), each value of a categorical slot, and the span of any other slot, in the system's last
    and the user's utterance. Each kind has the same share of the loss. A slot's value that is in neither utterance is
    the last that the system named in its `actions`; else, with `model.dataset.state_tracker=carry_over`, that of the
    slot of another service that it came from in the training data most often, or that has the same name. With right
    answers to all questions the golden states follow, of all dialogues of the dataset that tests read.

    Predictions are dialogues of the dataset with `state` in the user's frames; `output_dir` gets them as files for the
    official scorer. `megabert score dialogue_state_tracking GOLD PREDICTIONS` scores such files or a folder of them;
    services of `train/schema.json` beside the folder GOLD are seen ones.

    Metrics, equal to the official scorer's, in per cent: `joint_goal_accuracy` (the product over a frame's slots, of
    which similar values count in part), `average_goal_accuracy`, `active_intent_accuracy`, `requested_slots_f1`; of
    services with training dialogues (`trained/...`), of others in the training schema (`schema_only/...`), of both
    (`seen/...`) and others (`unseen/...`); of each domain and service. Beside them stands what the official scorer
    passes over: missing dialogues and frames, the accuracy if these are wrong (`joint_goal_accuracy_of_all`), second
    values, unknown slots, and the share of frames that are right without similar values
    (`exact_joint_goal_accuracy`). Official figures depend on whether python-Levenshtein was installed:
    `model.dataset.similarity`.
    """

    settings_type: ClassVar[type[Settings]] = DialogueStateSettings
    main_score = "joint_goal_accuracy"
    caches_features = False
    state_names = ("schema", "trained", "relations", "loss_weights")
    input_fields: ClassVar[Mapping[str, type]] = {"turns": list, "services": list, "schema": list}

    def __init__(self, settings: Any) -> None:
        self.dataset = settings.model.dataset
        self.schema: dict[str, Mapping[str, Any]] = {}
        self.trained: list[str] = []
        self.relations: Relations = {}
        self.loss_weights = [1.0] * (NUM_KINDS + 1)
        super().__init__(settings)

    def file_groups(self, data: Any) -> list[list[str]]:
        """List the files of `file`, or of splits in data_dir."""
        if data.file is not None:
            return [[str(file)] for group in super().file_groups(data) for file in dialogue_files(Path(group[0]))]
        if data.ds_item is None or self.dataset.data_dir is None:
            return []
        splits = [data.ds_item] if isinstance(data.ds_item, str) else data.ds_item
        return [
            [str(file)] for split in splits for file in dialogue_files(Path(self.dataset.data_dir) / split)
            if is_of_part(self.dataset.task_name, split, file)
        ]  # fmt: skip

    def read(self, path: Path) -> list[Dialogue]:
        """Read a file of dialogues, or those of a folder."""
        other = self.dataset.schema_file
        return read_dialogues(path, schema_file=None if other is None else Path(other), known=self.schema or None)

    def read_data(self, data: DataSettings) -> Sequence[Dialogue]:
        """Read the dialogues of a set of data; those of the training data keep their questions with answers only."""
        is_training = isinstance(data, TrainDataSettings)
        return [replace(item, is_training=is_training) for item in super().read_data(data)]

    def example(self, **fields: Any) -> Dialogue:
        """Make a dialogue from `turns`, `services` and, unless they are those of the training data, their `schema`.

        Turns are as in the dataset, or utterances, the user's first; a user's utterance has a frame of each service.
        """
        values = {name: _parsed(name, fields.get(name)) for name in self.input_fields if fields.get(name) is not None}
        for name in [*fields, "turns", "services"]:
            if name not in (*self.input_fields, "id") or (name != "id" and name not in values):
                raise InputError(
                    f"{name} is missing or unexpected. Give turns=... and services=..., schema=... is possible."
                )
        services = values["services"]
        if isinstance(values["turns"], list):
            values["turns"] = [
                {"speaker": ("USER", "SYSTEM")[number % 2], "utterance": turn,
                 "frames": [] if number % 2 else [{"service": name} for name in services]}
                if isinstance(turn, str) else turn
                for number, turn in enumerate(values["turns"])
            ]  # fmt: skip
        schema = schema_of(values["schema"], "the schema") if "schema" in values else self.schema
        if not schema:
            raise InputError("there is no schema of the services. Give schema=[...], a list as in schema.json.")
        row = Row({"dialogue_id": str(fields.get("id", "dialogue")), **values}, "the dialogue")
        return dialogue_of(row, schema)

    def learn_labels(self, examples: Sequence[Dialogue]) -> None:
        """Keep the schema, the services of dialogues, which slots values are carried over from, and weigh losses."""
        require_states(examples)
        data = self.settings.model.train_ds
        beside = {Path(file).with_name(SCHEMA_FILE) for file in self.files(data)}
        own = [{name: item.schema[name]} for item in examples for name in item.services]
        read = [read_schema(file) for file in sorted(beside) if file.is_file()]
        self.schema = {name: service for services in [*own, *read] for name, service in services.items()}
        self.trained = sorted({name for item in examples for name in item.services})
        self.relations = learn_relations(examples)
        self.loss_weights = loss_weights(examples, subsample=self.dataset.subsample)

    def features(self, examples: Sequence[Dialogue], tokenizer: Tokenizer, *, with_targets: bool) -> Sequence[Features]:
        """Ask all questions on the user's turns."""
        if with_targets:
            require_states(examples)
        features = QuestionFeatures(
            examples, tokenizer, length=self.row_length, weights=self.loss_weights, subsample=self.dataset.subsample
        )
        if features.num_cut():
            warnings.warn(
                f"{features.num_cut()} of {len(features)} sequences lack the first tokens of their utterances: they "
                f"have more than {self.row_length} tokens. Make model.dataset.max_seq_length larger.",
                InputWarning,
                stacklevel=2,
            )
        return features

    def head(self, config: EncoderConfig) -> Head:
        """Score a sequence's first token for each kind of question, and each token as start and end of a value."""
        from ..model.question_head import QuestionHead

        return QuestionHead(config.hidden_size, ANSWER_COLUMNS, dropout=self.settings.model.encoder.dropout)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the weighted cross-entropies of binary questions, of status, and of starts and ends (their mean)."""
        import torch
        from torch.nn import functional as F

        targets = batch.targets
        kinds_N, labels_N = targets["kind"], targets["label"].clamp(min=0)
        starts_N = batch.cu_seqlens_N1[:-1].clamp(max=len(logits) - 1)
        first_N8 = logits.float().index_select(0, starts_N)
        statuses_N = F.cross_entropy(first_N8[:, STATUS], labels_N, reduction="none")
        losses_N = torch.where((kinds_N == CATEGORICAL) | (kinds_N == FREE), statuses_N, 0.0)
        for kind, column in COLUMNS.items():
            binary_N = F.binary_cross_entropy_with_logits(
                first_N8[:, column], labels_N.clamp(max=1).float(), reduction="none"
            )
            losses_N = torch.where(kinds_N == kind, binary_N, losses_N)
        spans_NL2 = batch.by_sequence(
            logits[:, SPANS].float(), fill=torch.finfo(torch.float32).min, max_seqlen=self.row_length
        )
        ends = ((0, targets["start"]), (1, targets["end"]))
        spans_N = sum(
            F.cross_entropy(spans_NL2[..., column], places_N.clamp(min=0), reduction="none") / 2
            for column, places_N in ends
        )
        # Not a product: the loss of a filler may be no number.
        weights_N, span_weights_N = targets["weight"].nan_to_num(), targets["span_weight"].nan_to_num()
        losses_N = torch.where(weights_N > 0, losses_N * weights_N, 0.0)
        return (losses_N + torch.where(span_weights_N > 0, spans_N * span_weights_N, 0.0)).sum()

    def decode(self, examples: Sequence[Dialogue], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Answer the questions of each frame, and track the states."""
        frames: list[dict[tuple[int, str], list[tuple[Note, NDArray[np.float32]]]]] = [{} for _ in examples]
        for feature, logits_T8 in zip(features, logits, strict=True):
            note: Note = feature.notes
            frames[note.example].setdefault((note.turn, note.service), []).append((note, logits_T8))
        options = {"tracker": self.dataset.state_tracker, "relations": self.relations}
        return [
            Prediction(
                item.id, item.services, track(item, {key: answer_frame(rows) for key, rows in own.items()}, **options),
                {name: self._training(name) for name in item.services},
            )
            for item, own in zip(examples, frames, strict=True)
        ]  # fmt: skip

    def _training(self, service: str) -> str:
        return TRAINED if service in self.trained else ONLY_SCHEMA if service in self.schema else NEW

    def score(self, examples: Sequence[Dialogue], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score the states as the official scorer does, in per cent."""
        gold = {str(number): item for number, item in enumerate(examples)}
        found = {str(number): vars(item) for number, item in enumerate(predictions)}
        training = {name: kind for item in predictions for name, kind in item.training.items()}
        return dialogue_scores(gold, found, training, self.dataset)[0]

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the dialogue as in the dataset, and how the training data has its services."""
        return {
            "id": prediction.id, "dialogue_id": prediction.id, "services": list(prediction.services),
            "turns": list(prediction.turns), "training": dict(prediction.training),
        }  # fmt: skip

    def gold(self, example: Dialogue) -> dict[str, Any]:
        """Return the dialogue's turns, with the right states."""
        return {"turns": list(example.turns)} if example.is_labelled else {}

    def to_row(self, example: Dialogue, prediction: Prediction) -> dict[str, Any]:
        """Return also the utterances, a line each."""
        return super().to_row(example, prediction) | {"text": example.text}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path, words: Sequence[str] = ()) -> dict[str, Any]:
        """Score dialogues with states, a file or a folder of them, as the official scorer does."""
        task = cls.scorer(gold, (), words)
        return score_dialogue_files(task.read(gold), gold, predictions, task.settings.model.dataset)

    def write_predictions(self, examples: Sequence[Dialogue], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return the dialogues with predicted states, in files of the same names."""
        files: dict[str, list[dict[str, Any]]] = {}
        for example, prediction in zip(examples, predictions, strict=True):
            name = example.file if example.file.endswith(".json") else "dialogues.json"
            files.setdefault(name, []).append(example.to_json(prediction.turns))
        return {name: to_dialogues(dialogues) for name, dialogues in files.items()}


def _parsed(name: str, value: Any) -> Any:
    """Parse a list that is given as JSON; a name alone is one service."""
    if not isinstance(value, str):
        return value
    if name == "services" and not value.lstrip().startswith("["):
        return value.split(",")
    return parse_json_field(name, value)
