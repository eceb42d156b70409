"""The monitored validation metric: which values are better, when early stopping ends a training, advice."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .resume import Progress
from .setup import TrainingSetup, resolve_mode

FEW_STEPS = 300
USUAL_RATE = 5e-5
"""Peak learning rate of a fine-tuning, for an encoder of 1024 dimensions."""


def record_validation(setup: TrainingSetup, progress: Progress, metrics: Mapping[str, Any]) -> Progress:
    """Return the progress after a validation. Raises InputError if it lacks a monitored metric.

    Values that are not finite count as none.
    """
    early = setup.settings.exp_manager.early_stopping_callback_params
    stopping = early.monitor or setup.monitor
    for monitor in (setup.monitor, stopping):
        if monitor not in metrics:
            raise InputError(f"There is no metric {monitor!r} to monitor; validation gives {', '.join(metrics)}.")
    figure, loss, current = (_finite(metrics[name]) for name in (setup.monitor, "val_loss", stopping))
    progress = replace(progress, validated_step=progress.step, figure=figure, loss=loss)
    sign = 1.0 if resolve_mode(stopping, early.mode) == "max" else -1.0
    best = progress.best
    if current is not None and (best is None or sign * current - early.min_delta > sign * best):
        return replace(progress, best=current, num_without_improvement=0)
    return replace(progress, num_without_improvement=progress.num_without_improvement + 1)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def stops_early(setup: TrainingSetup, progress: Progress) -> bool:
    """Whether early stopping ends the training: the last `patience` validations brought no improvement."""
    manager = setup.settings.exp_manager
    patience = manager.early_stopping_callback_params.patience
    return manager.create_early_stopping_callback and progress.num_without_improvement >= max(patience, 1)


def is_at_end(setup: TrainingSetup, progress: Progress) -> bool:
    """Whether no further step is to be made."""
    return progress.step >= setup.intervals.total_steps or stops_early(setup, progress)


def advise_on_steps(setup: TrainingSetup) -> str | None:
    """Return what to change where a new head gets few steps, after which scores may be 0: their number, and the rate.

    The rate of large encoders is too small for a narrow one.
    """
    trainer, steps = setup.settings.trainer, setup.intervals.total_steps
    is_new = setup.settings.pretrained_model is None and not setup.task.is_embedding and setup.mode == "max"
    if steps >= FEW_STEPS or not is_new:
        return None
    width, rate = setup.model.encoder.config.hidden_size, setup.settings.model.optim.lr
    usual = float(f"{min(USUAL_RATE * 1024 / width, 10 * USUAL_RATE):.0e}")
    per_epoch = setup.intervals.steps_per_epoch
    words = f"max_epochs={-(-FEW_STEPS // per_epoch)}" if trainer.max_steps < 0 else f"max_steps={FEW_STEPS}"
    more = f" model.optim.lr={usual:g}" if rate < usual / 2 else ""
    return (
        f"{steps} steps at a rate of {rate:g} are few for a new head on {width} dimensions. "
        f"If scores stay low: trainer.{words}{more}"
    )
