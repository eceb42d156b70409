"""When a training validates, saves and ends: counted in steps from the settings alone."""

import math
from dataclasses import dataclass

from ..config.schema import Settings
from ..errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """What happens at which step. A step takes up to `accumulate` micro-batches; numbers count through all epochs."""

    total_steps: int
    accumulate: int
    validate_every: float
    """In micro-batches; 0: only at the end."""
    save_every: int
    steps_per_epoch: int

    def validates_after(self, step: int) -> bool:
        """Whether a validation is due when `step` steps are done."""
        if step in (0, self.total_steps):
            return step > 0
        if not self.validate_every:
            return False
        done, before = step * self.accumulate, (step - 1) * self.accumulate
        # The small addition keeps a third of an epoch of 3k batches from ending a batch late.
        return math.floor(done / self.validate_every + 1e-9) > math.floor(before / self.validate_every + 1e-9)

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due besides those at validations."""
        return bool(self.save_every) and step > 0 and step % self.save_every == 0

    def epoch(self, step: int) -> float:
        """Epochs that are done after `step` steps."""
        return step / self.steps_per_epoch


def make_schedule(settings: Settings, steps_per_epoch: int) -> Schedule:
    """Count a training's steps, by epochs or by max_steps, whichever ends it first."""
    trainer = settings.trainer
    if trainer.max_epochs < 0 and trainer.max_steps < 0:
        raise ConfigError("trainer.max_epochs and max_steps are both -1: training would have no end. Give one of them.")
    total = steps_per_epoch * trainer.max_epochs if trainer.max_epochs >= 0 else trainer.max_steps
    interval = trainer.val_check_interval
    per_epoch = steps_per_epoch * trainer.accumulate_grad_batches
    return Schedule(
        total_steps=min(total, trainer.max_steps) if trainer.max_steps >= 0 else total,
        accumulate=trainer.accumulate_grad_batches,
        validate_every=interval * per_epoch if isinstance(interval, float) else interval,
        save_every=settings.exp_manager.checkpoint_callback_params.every_n_train_steps,
        steps_per_epoch=steps_per_epoch,
    )
