"""Intervals of validations and checkpoints, and the total number of optimizer steps, from the settings alone."""

import math
from dataclasses import dataclass

from ..config.schema import Settings
from ..errors import ConfigError


@dataclass(frozen=True)
class Intervals:
    """What happens after which step. Steps are counted through all epochs; a step has up to `accumulate` micro-batches.

    `validate_every` counts micro-batches; 0: only at the end.
    """

    total_steps: int
    accumulate: int
    validate_every: float
    save_every: int
    steps_per_epoch: int

    def validates_after(self, step: int) -> bool:
        """Whether a validation is due after `step` steps."""
        if step in (0, self.total_steps):
            return step > 0
        if not self.validate_every:
            return False
        done, before = step * self.accumulate, (step - 1) * self.accumulate
        # The epsilon keeps a third of an epoch of 3k micro-batches from ending one micro-batch late.
        return math.floor(done / self.validate_every + 1e-9) > math.floor(before / self.validate_every + 1e-9)

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due besides those at validations."""
        return bool(self.save_every) and step > 0 and step % self.save_every == 0

    def epoch(self, step: int) -> float:
        """Convert steps to epochs."""
        return step / self.steps_per_epoch


def count_intervals(settings: Settings, steps_per_epoch: int) -> Intervals:
    """Count a training's steps, by max_epochs or by max_steps, whichever ends it first."""
    trainer = settings.trainer
    if trainer.max_epochs < 0 and trainer.max_steps < 0:
        raise ConfigError("trainer.max_epochs and max_steps are both -1: training would have no end. Give one of them.")
    total = steps_per_epoch * trainer.max_epochs if trainer.max_epochs >= 0 else trainer.max_steps
    interval = trainer.val_check_interval
    per_epoch = steps_per_epoch * trainer.accumulate_grad_batches
    return Intervals(
        total_steps=min(total, trainer.max_steps) if trainer.max_steps >= 0 else total,
        accumulate=trainer.accumulate_grad_batches,
        validate_every=interval * per_epoch if isinstance(interval, float) else interval,
        save_every=settings.exp_manager.checkpoint_callback_params.every_n_train_steps,
        steps_per_epoch=steps_per_epoch,
    )


def count_epochs(settings: Settings, num_sequences: int, data_parallel_size: int) -> int:
    """Count the epochs of a training, including the last one if it is incomplete."""
    trainer = settings.trainer
    if trainer.max_steps < 0:
        return trainer.max_epochs
    per_step = trainer.accumulate_grad_batches * settings.model.train_ds.batch_size * data_parallel_size
    needed = trainer.max_steps * per_step // num_sequences + 1
    return needed if trainer.max_epochs < 0 else min(trainer.max_epochs, needed)
