"""Choose the kind of optimizer steps of a training."""

from typing import Any

from .contrastive_step import ContrastiveStepper
from .setup import TrainingSetup
from .step import Stepper, SyncFreeStepper


def make_stepper(setup: TrainingSetup) -> Stepper:
    """Make the stepper for a setup: sync-free where the execution allows it."""
    trainer, optimizer = setup.settings.trainer, setup.settings.model.optim
    common: dict[str, Any] = {
        "precision": setup.execution.precision,
        "clip": trainer.gradient_clip_val,
        "seed": setup.settings.seed,
        "sharding": setup.sharding,
    }
    if setup.task.contrasts_sequences:
        return ContrastiveStepper(setup.model, setup.loss, optimizer, **common)
    if not setup.execution.is_sync_free:
        return Stepper(setup.model, setup.loss, optimizer, **common)
    return SyncFreeStepper(setup.model, setup.loss, optimizer, accumulate=trainer.accumulate_grad_batches, **common)
