"""The monitored validation metric: which values are better, when early stopping ends a training, what says nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError
from .resume import Progress
from .setup import TrainingSetup, resolve_mode


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


def warn_of_zeros(lines: Sequence[Mapping[str, Any]], monitor: str, mode: str) -> str | None:
    """Return a warning if the monitored score was 0 at every validation; `lines` are those of metrics.jsonl."""
    values = [line.get(monitor) for line in lines if line["split"] == "validation"]
    if mode == "min" or not values or any(values):
        return None
    return (
        f"WARNING: {monitor} was 0 at every validation ({len(values)}), so the best checkpoint is that of the lowest "
        "validation loss. Check labels and data, train longer, or set exp_manager.checkpoint_callback_params.monitor."
    )
