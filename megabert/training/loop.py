"""The training loop: micro-batches in, optimizer steps, validations and checkpoints out, top to bottom, no hooks.

Each step is a function of the settings, the step's number and the checkpoint, so that a run interrupted at any step
resumes with the same numbers.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checkpoints.native.run_checkpoints import Contents
from ..data.prefetch import prefetch
from ..errors import InputError, Interrupted
from ..inference import Evaluation, EvaluationStopped
from ..kernels.cuda_graph import side_stream
from ..parallel.signals import stop_signals
from .log import TrainingLog, open_log
from .lr_schedules import learning_rate
from .monitor import is_at_end, record_validation, stops_early
from .new_stepper import make_stepper
from .optimizer import load_loss_scale
from .resume import Progress, resumed_progress
from .saver import Saver, save_checkpoint
from .setup import TrainingSetup
from .step import SyncFreeStepper


def fit(setup: TrainingSetup, resumed: Contents | None) -> Evaluation | None:
    """Train to the last step, from the start or from a checkpoint's contents.

    Writes checkpoints to setup.folder; returns the last validation. Raises Interrupted, after saving a checkpoint, on
    Ctrl-C or SIGTERM; InputError when loss or gradients are not finite.
    """
    settings, world, intervals, device = setup.settings, setup.world, setup.intervals, setup.world.device
    progress = setup.start
    if resumed is not None:
        progress = resumed_progress(progress, resumed.documents["progress"])
    with (
        Saver(in_background=device.type == "cuda") as saver,
        open_log(setup, progress.step) as log,
        side_stream(device),
        stop_signals() as stop,
        closing(prefetch(setup.load_step, range(progress.step, intervals.total_steps))) as steps,
    ):
        upcoming = next(steps, None)
        stepper = make_stepper(setup)
        saved = None
        if resumed is not None:
            stepper.load_optimizer(resumed.tensors["optimizer"])
            load_loss_scale(stepper.scaler, resumed.documents["progress"]["scaler"])
            saved = progress
        setup.model.train()
        # Loss and norm of sync-free steps stay on the GPU until they are logged.
        pending: list[_Done] = []
        last_validation: Evaluation | None = None
        log_every = settings.trainer.log_every_n_steps if isinstance(stepper, SyncFreeStepper) else 1
        while True:
            step = progress.step
            if is_stopping := world.any_rank(stop.is_set() or saver.has_failed):
                saver.wait()  # raises on all ranks if the background writer of one has failed
            saves = intervals.saves_after(step) or intervals.validates_after(step)
            if pending and (saves or is_stopping or step % log_every == 0):
                _log_steps(setup, log, pending)
            if intervals.validates_after(step) and progress.validated_step != step:
                try:
                    progress, last_validation = _validate(setup, progress, log, lambda: world.any_rank(stop.is_set()))
                except EvaluationStopped:  # the resumed run validates instead
                    is_stopping = True
                is_stopping = is_stopping or world.any_rank(stop.is_set())
            is_last = is_at_end(setup, progress)
            saves = is_last or is_stopping or (saves and settings.exp_manager.create_checkpoint_callback)
            if saves and progress != saved:  # a resumed run does not rewrite what it has just read
                save_checkpoint(setup, progress, stepper, saver, is_last=is_last or is_stopping)
                saved = progress
            if is_stopping:
                saver.wait()
                raise Interrupted(f"Stopped after step {step}; the checkpoint is in {setup.folder}.")
            if is_last or upcoming is None:
                return last_validation
            batches, num_tokens = upcoming
            rate = _learning_rate(setup, step)
            loss_norm_2 = stepper.step(batches, rate, number=step * setup.train_sampler.micro_batches_per_step)
            pending.append(_Done(step + 1, loss_norm_2, rate, num_tokens))
            upcoming = next(steps, None)  # while a GPU still computes this step
            progress = replace(progress, step=step + 1, figure=None, loss=None)


def _learning_rate(setup: TrainingSetup, step: int) -> float:
    optimizer, max_steps = setup.settings.model.optim, setup.intervals.total_steps
    hidden_size = setup.model.encoder.config.hidden_size
    return learning_rate(step, optimizer.sched, lr=optimizer.lr, max_steps=max_steps, hidden_size=hidden_size)


@dataclass(frozen=True)
class _Done:
    """A completed step; loss_norm_2 is (mean loss, gradient norm), on the device."""

    step: int
    loss_norm_2: Tensor
    rate: float
    num_tokens: int


def _log_steps(setup: TrainingSetup, log: TrainingLog, pending: list[_Done]) -> None:
    """Copy loss and norm of pending steps to the host, log them, and stop if one is not finite."""
    fetched = torch.stack([done.loss_norm_2 for done in pending]).tolist()
    every, total = setup.settings.trainer.log_every_n_steps, setup.intervals.total_steps
    for done, (loss, norm) in zip(pending, fetched, strict=True):
        _check_finite(setup, loss, norm, done.step - 1)
        metrics = {"loss": loss, "lr": done.rate, "grad_norm": norm}
        epoch = setup.intervals.epoch(done.step)
        log.step(done.step, **metrics, tokens=done.num_tokens, epoch=epoch)
        if done.step % every == 0 or done.step == total:
            log.write(done.step, {"split": "train", "epoch": epoch, **metrics})
    pending.clear()


def _check_finite(setup: TrainingSetup, loss: float, norm: float, step: int) -> None:
    """Raise InputError if loss or norm is not finite; with a loss scale an overflow of gradients only skips a step."""
    if math.isfinite(loss) and (math.isfinite(norm) or setup.execution.precision == "16"):
        return
    indices = [int(index) for group in setup.train_sampler.indices(step) for index in group]
    raise InputError(
        f"Step {step + 1}: the loss is {loss} and the gradients' norm {norm}; nothing was updated. Checkpoints are in "
        f"{setup.folder}. {_advice(setup, loss, step)} The step's sequences have the indices {indices[:64]}."
    )


def _advice(setup: TrainingSetup, loss: float, step: int) -> str:
    """Advise what may make a loss or a gradient finite, of what is not set already."""
    trainer = setup.settings.trainer
    remedies = ["use trainer.precision=32"] if setup.execution.precision != "32" else []
    if step > 0:
        remedies = ["lower model.optim.lr", *remedies]
        if not trainer.gradient_clip_val:
            remedies.insert(1, "clip gradients (trainer.gradient_clip_val=1.0)")
        return f"Resume from an earlier checkpoint (--step N) and {' or '.join(remedies)}."
    cause = "the step's examples" if math.isfinite(loss) else "the weights that the training starts from"
    check = f"No step was made before it, so the learning rate is not the cause: check {cause}"
    return f"{check}, or {remedies[0]}." if remedies else f"{check}."


def _validate(
    setup: TrainingSetup, progress: Progress, log: TrainingLog, should_stop: Callable[[], bool]
) -> tuple[Progress, Evaluation | None]:
    """Score the validation data and log its metrics. Raises EvaluationStopped when `should_stop` returns true."""
    data = setup.validation_data
    if not data.examples:
        return replace(progress, validated_step=progress.step), None
    with log.validation() as show_progress:
        result = setup.predictor.evaluate(
            data.examples, features=data.features, with_loss=True, progress=show_progress, should_stop=should_stop
        )
    metrics = {"val_loss": result.loss, **result.scores}
    validated = record_validation(setup, progress, metrics)
    log.write(progress.step, {"split": "validation", "epoch": setup.intervals.epoch(progress.step), **metrics})
    if stops_early(setup, validated):
        count = validated.num_without_improvement
        log.message(f"Early stopping after step {progress.step}: no improvement in {count} validations.")
    return validated, result
