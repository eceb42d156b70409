"""Distillation: a trained network's logits become targets of a student's features; and the loss that reads them.

The teacher is frozen and has no dropout, and features stay the same in every epoch, so its logits are constants: they
are computed once, before the training, and kept in the feature cache. That is one pass of the teacher and not one an
epoch, its memory is free before the first step, and steps are what they always are: packed, captured, sharded,
accumulated, resumed exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .build import load_run
from .checkpoints.trained_model import trained_documents
from .config.schema import DistillationSettings, Settings
from .data.packing import STATE_WEIGHT, STATES, TEACHER, Batch, Features, no_target
from .errors import ConfigError, InputError
from .formats.data_files import expand_names
from .inference import Predictor
from .model.distillation_loss import squared_errors
from .model.heads import TaskModel
from .tasks import registry
from .tasks.restore_task import restore_task
from .tasks.task import Task
from .torch_session import TorchSession


def open_teacher(task_name: str, settings: Settings, device: torch.device) -> "Teacher | None":
    """Open the teacher that the settings name, without its weights; None where they name none.

    Raises ConfigError where it cannot teach this task.
    """
    wanted = settings.model.distillation
    _check_settings(wanted)
    if wanted.student_layers is not None and settings.pretrained_model is not None:
        raise ConfigError("model.distillation.student_layers takes the teacher's layers: leave out pretrained_model.")
    if wanted.teacher is None:
        return None
    if not registry.find(task_name).can_distil:
        able = ", ".join(name for name in registry.NAMES if registry.find(name).can_distil)
        raise ConfigError(f"A student of {task_name} cannot learn from a teacher; those of {able} can.")
    place = f"model.distillation.teacher={wanted.teacher}"
    if not Path(wanted.teacher).exists():
        raise ConfigError(f"{place} does not exist. Give the folder of a finished run of {task_name}.")
    documents, digest = trained_documents(Path(wanted.teacher))
    trained = documents.get("run", {}).get("task")
    if trained != task_name:
        raise ConfigError(f"{place} is a run of {trained}. Give one of {task_name}, which its student learns.")
    task = restore_task(documents, Path(wanted.teacher), task_name)
    if wanted.hidden_weight and task.is_embedding:
        raise ConfigError(f"{task_name} compares similarities of embeddings. Set model.distillation.hidden_weight=0.")
    is_float32 = settings.trainer.precision in ("32", "32-true") or device.type == "cpu"
    precision = "32" if is_float32 else "auto"
    return Teacher(Path(wanted.teacher), digest, task, documents["encoder"]["hidden_size"], wanted, device, precision)


def _check_settings(wanted: DistillationSettings) -> None:
    if wanted.teacher is None and (wanted.unlabelled or wanted.student_layers is not None):
        raise ConfigError("model.distillation has no teacher. Give a finished run: model.distillation.teacher=RUN.")
    if not 0 <= wanted.weight <= 1:
        raise ConfigError(f"model.distillation.weight={wanted.weight:g}: give a share from 0 to 1.")
    if not 0 < wanted.temperature < np.inf:
        raise ConfigError(f"model.distillation.temperature={wanted.temperature:g}: give more than 0.")
    if not 0 <= wanted.hidden_weight < np.inf:
        raise ConfigError(f"model.distillation.hidden_weight={wanted.hidden_weight:g}: give 0 or more.")


@dataclass(frozen=True)
class Teacher:
    """A trained network that a student learns from; its weights are loaded while it computes logits, and no longer."""

    path: Path
    digest: str
    task: Task[Any, Any]
    hidden_size: int
    settings: DistillationSettings
    device: torch.device
    precision: str

    @property
    def key(self) -> str:
        """Digest of the network and of what is taught of it."""
        return f"{self.digest} {self.precision} {self.device.type} states={self.settings.hidden_weight > 0}"

    def unlabelled_files(self) -> list[str]:
        """List the files whose labels are not read. Raises InputError where one is missing."""
        files = expand_names(self.settings.unlabelled)
        for file in files:
            if not Path(file).is_file():
                raise InputError(f"model.distillation.unlabelled: {file} is not a file. Give data of the task.")
        return files

    def _check_problem(self, task: Task[Any, Any]) -> None:
        kinds = [(item.label_sets().keys(), getattr(item, "problem", None)) for item in (task, self.task)]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"The teacher {self.path} solves another problem ({kinds[1][1]}) than the student ({kinds[0][1]}). "
                "Train the teacher with the settings of the student's model.dataset."
            )

    def check_labels(self, task: Task[Any, Any], *, is_new: bool) -> None:
        """Give a task with a new head the teacher's labels. Raises ConfigError where the two differ otherwise."""
        self._check_problem(task)
        own, theirs = task.label_sets(), self.task.label_sets()
        for kind, labels in own.items():
            if lacking := [label for label in labels if label not in theirs[kind]]:
                raise ConfigError(
                    f"The teacher {self.path} lacks {kind} {', '.join(lacking[:6])} of the student; it has "
                    f"{', '.join(theirs[kind][:12])}. Give a teacher of these labels, or data of the teacher's."
                )
        if own == theirs:
            return
        if not is_new:
            raise ConfigError(
                f"The student's head has not all labels of the teacher {self.path}, or another order of them. "
                "model.head.reset=true makes a new one."
            )
        task.restore_state(self.task.state())

    def teach(
        self, task: Task[Any, Any], tokenizer: Any, examples: Sequence[Any], features: Sequence[Features]
    ) -> list[Features]:
        """Return the features, and those of the unlabelled files, with the teacher's logits as targets."""
        files = self.unlabelled_files()
        unlabelled = [example for file in files for example in task.read(Path(file))]
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        predictor = load_run(self.path, accelerator=accelerator, precision=self.precision)
        taught = self._with_logits(predictor, examples, features)
        if unlabelled:
            task.notes.append(f"the teacher alone teaches {len(unlabelled)} examples, whose labels are not read")
            more = task.unlabelled_features(unlabelled, tokenizer)
            more = [_with_empty_targets(item, features[0]) for item in more]
            taught += self._with_logits(predictor, unlabelled, more)
        return taught

    def _with_logits(
        self, predictor: Predictor, examples: Sequence[Any], student: Sequence[Features]
    ) -> list[Features]:
        """Add the teacher's logits, and its hidden states where they count, to a student's features."""
        task, session = predictor.task, predictor.session
        assert isinstance(session, TorchSession), "a run is loaded with its network"
        own = task.features(examples, predictor.tokenizer, with_targets=False)
        is_per_sequence = session.model.head.is_per_sequence
        targets = [{TEACHER: item} for item in task.aligned_logits(examples, own, predictor.run(own).logits, student)]
        if self.settings.hidden_weight:
            states = replace(predictor, session=session.token_states()).run(own).logits
            states = [item[0] for item in states] if is_per_sequence else states
            aligned = task.aligned_logits(examples, own, states, student)
            for item, target, array in zip(student, targets, aligned, strict=True):
                target[STATES] = array.astype(np.float16)
                target[STATE_WEIGHT] = _state_weights(array, item.weight)
        if is_per_sequence:
            return [replace(item, targets=item.targets | new) for item, new in zip(student, targets, strict=True)]
        pairs = zip(student, targets, strict=True)
        return [replace(item, token_targets={**item.token_targets, **new}) for item, new in pairs]

    def loss(self, task: Task[Any, Any], model: TaskModel) -> "DistillationLoss":
        """Return the loss of a student. Raises ConfigError where hidden states that are compared differ in size."""
        size = model.encoder.config.hidden_size
        if self.settings.hidden_weight and size != self.hidden_size:
            raise ConfigError(
                f"Hidden states have {size} dimensions, those of the teacher {self.hidden_size}: they cannot be "
                "compared. Set model.distillation.hidden_weight=0."
            )
        model.adds_states = self.settings.hidden_weight > 0
        return DistillationLoss(task, self.settings)


def _state_weights(states: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Divide a sequence's weight among its hidden states, [T] or [P] or one; NaN ones have none."""
    is_known = ~np.isnan(states).any(-1)
    return np.where(is_known, weight / max(int(is_known.sum()), 1), 0.0).astype(np.float32)


def _with_empty_targets(item: Features, like: Features) -> Features:
    """Add the targets that other features have, without a value: they add nothing to the loss of labels."""
    targets = {}
    for name in like.targets.keys() - item.targets.keys():
        row = np.asarray(like.rows(name)[0])
        shape = (len(item.parts), *row.shape) if item.parts else row.shape
        targets[name] = np.full(shape, no_target(row), dtype=row.dtype)
    token_targets = {
        name: np.full((len(item), *target.shape[1:]), no_target(target), dtype=target.dtype)
        for name, target in like.token_targets.items()
    }
    return replace(
        item,
        targets={name: (item.targets | targets)[name] for name in like.targets},
        token_targets={**token_targets, **item.token_targets},
        weight=item.weight or 1.0,
    )


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of labels and that of a teacher's logits and hidden states, weighted, summed over a batch."""

    task: Task[Any, Any]
    settings: DistillationSettings

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Compute the loss from logits, which hidden states follow where they count."""
        taught = {**batch.targets, **batch.token_targets}
        total = logits.new_zeros(())
        if self.settings.hidden_weight:
            size = taught[STATES].shape[-1]
            logits, states = logits[..., :-size], logits[..., -size:]
            weights = taught[STATE_WEIGHT].nan_to_num()
            total = total + self.settings.hidden_weight * (squared_errors(states, taught[STATES]) * weights).sum()
        weight, temperature = self.settings.weight, self.settings.temperature
        total = total + (1 - weight) * self.task.loss(logits, batch)
        return total + weight * self.task.distillation_loss(logits, taught[TEACHER], batch, temperature)
