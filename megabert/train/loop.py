"""The training loop: micro-batches in, optimizer steps, validations and checkpoints out, top to bottom, no hooks.

Everything that shapes the next step is a function of the settings and the step's number, or is in the checkpoint;
so a run that was stopped anywhere goes on with the same numbers.
"""

import hashlib
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..assemble import documents_of
from ..checkpoint import run
from ..errors import CheckpointError, InputError, Interrupted
from ..infer import Evaluation, Predictor
from ..parallel.mesh import autocast, seed_step
from ..settings import Settings
from ..tasks.task import Task
from ..text.batch import Features
from ..text.loader import Loader
from .log import RunLog
from .optim import (
    build_loss_scaler,
    build_optimizer,
    clip_gradients,
    learning_rate,
    load_loss_scale,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)


@dataclass(frozen=True)
class Schedule:
    """What happens at which step. A step takes `accumulate` micro-batches; numbers count through all epochs."""

    total_steps: int
    total_micro_batches: int
    accumulate: int
    validate_every: float
    """In micro-batches; 0: only at the end."""
    save_every: int
    micro_batches_per_epoch: int

    def micro_batches(self, step: int) -> range:
        """List the micro-batches of a step; an epoch's end does not cut a step."""
        first = step * self.accumulate
        return range(first, min(first + self.accumulate, self.total_micro_batches))

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
        return min(step * self.accumulate, self.total_micro_batches) / self.micro_batches_per_epoch


@dataclass(frozen=True)
class Job:
    """What a training needs: the network and its data, where and how to compute, where to write."""

    task: Task[Any, Any]
    task_name: str
    settings: Settings
    predictor: Predictor
    train_loader: Loader
    validation_examples: list[Any]
    validation_features: list[Features]
    schedule: Schedule
    monitor: str
    mode: str
    folder: Path
    facts: dict[str, Any]
    """Versions and the like, written into each checkpoint."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, as its checkpoints hold it."""

    step: int = 0
    validated_step: int = 0
    figure: float | None = None
    data_fingerprint: str = ""


def make_schedule(settings: Settings, loader: Loader) -> Schedule:
    """Count a training's steps, by epochs or by max_steps, whichever ends it first."""
    trainer = settings.trainer
    total = len(loader) * trainer.max_epochs
    if trainer.max_steps >= 0:
        total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
    interval = trainer.val_check_interval
    return Schedule(
        total_steps=math.ceil(total / trainer.accumulate_grad_batches),
        total_micro_batches=total,
        accumulate=trainer.accumulate_grad_batches,
        validate_every=interval * len(loader) if isinstance(interval, float) else interval,
        save_every=settings.exp_manager.checkpoint_callback_params.every_n_train_steps,
        micro_batches_per_epoch=len(loader),
    )


def fingerprint(features: list[Features]) -> str:
    """Digest the training data as the network sees it, to notice on resuming that it has changed."""
    digest = hashlib.sha256()
    for item in features:
        digest.update(item.token_ids.tobytes())
        for name in sorted(item.targets):
            digest.update(item.targets[name].tobytes())
    return digest.hexdigest()


def fit(job: Job, resumed: run.Contents | None) -> None:
    """Train to the end of the schedule, from the start or from a checkpoint's contents.

    Leaves the last and the best checkpoints in job.folder. Raises Interrupted, after a checkpoint, when the process
    is asked to stop; InputError when loss or gradients are not finite.
    """
    schedule, predictor, settings = job.schedule, job.predictor, job.settings
    model, device, task = predictor.model, predictor.device, job.task
    optimizer = build_optimizer(model, settings.model.optim, fused=device.type == "cuda")
    scaler = build_loss_scaler(device.type, enabled=predictor.precision == "16")
    progress = Progress(data_fingerprint=fingerprint(list(job.train_loader.features)))
    if resumed is not None:
        load_optimizer_tensors(optimizer, model, resumed.tensors["optimizer"])
        load_loss_scale(scaler, resumed.documents["progress"]["scaler"])
        progress = _take_up(progress, resumed)
    model.train()
    with (
        RunLog(
            job.folder,
            total_steps=schedule.total_steps,
            first_step=progress.step,
            progress_bar=settings.trainer.enable_progress_bar,
            tensorboard=settings.exp_manager.create_tensorboard_logger,
        ) as log,
        _stop_signals() as stop,
    ):
        while True:
            step = progress.step
            is_due = schedule.saves_after(step)
            if schedule.validates_after(step) and progress.validated_step != step:
                progress = _validate(job, progress, log, stop)
                is_due = True
            is_due = is_due and settings.exp_manager.create_checkpoint_callback
            if is_due or stop.is_set() or step >= schedule.total_steps:
                _save(job, progress, optimizer, scaler)
            if stop.is_set():
                raise Interrupted(f"Stopped after step {step}; the checkpoint is in {job.folder}.")
            if step >= schedule.total_steps:
                return
            micro_batches = {
                number: job.train_loader.batch(number).to(device) for number in schedule.micro_batches(step)
            }
            # The mean over the whole step, however it is cut into micro-batches.
            weight = sum(batch.weight for batch in micro_batches.values())
            loss_sum = torch.zeros((), device=device)
            for number, batch in micro_batches.items():
                seed_step(settings.seed, number)
                with autocast(device, predictor.precision):
                    loss = task.loss(model(*batch.inputs()), batch) / weight
                scaler.scale(loss).backward()
                loss_sum += loss.detach()
            scaler.unscale_(optimizer)
            norm = clip_gradients(model.parameters(), settings.trainer.gradient_clip_val)
            _check_finite(job, float(loss_sum), float(norm), step)
            rate = learning_rate(
                step,
                settings.model.optim.sched,
                lr=settings.model.optim.lr,
                max_steps=schedule.total_steps,
                hidden_size=model.encoder.config.hidden_size,
            )
            set_learning_rate(optimizer, rate)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress = replace(progress, step=step + 1, figure=None)
            figures = {"loss": float(loss_sum), "lr": rate, "grad_norm": float(norm)}
            tokens = sum(batch.num_tokens for batch in micro_batches.values())
            log.step(progress.step, **figures, tokens=tokens, epoch=schedule.epoch(progress.step))
            if progress.step % settings.trainer.log_every_n_steps == 0 or progress.step == schedule.total_steps:
                log.write(progress.step, {"split": "train", "epoch": schedule.epoch(progress.step), **figures})


def _take_up(fresh: Progress, resumed: run.Contents) -> Progress:
    stored = {name: value for name, value in resumed.documents["progress"].items() if name != "scaler"}
    progress = Progress(**stored)
    if progress.data_fingerprint != fresh.data_fingerprint:
        raise CheckpointError(
            "The training data is not what this run was started with, so it cannot go on as if it were. "
            "Give the same file and settings, or start a run in another folder."
        )
    return progress


def _check_finite(job: Job, loss: float, norm: float, step: int) -> None:
    """Stop before a step that would ruin the weights; with a loss scale an overflow of the gradients is a skip."""
    if math.isfinite(loss) and (math.isfinite(norm) or job.predictor.precision == "16"):
        return
    texts = [int(index) for number in job.schedule.micro_batches(step) for index in job.train_loader.indices(number)]
    raise InputError(
        f"Step {step + 1}: the loss is {loss} and the gradients' norm {norm}; nothing was updated. The last checkpoint "
        f"is in {job.folder}. Lower model.optim.lr, clip (trainer.gradient_clip_val=1.0) or use "
        f"trainer.precision=32. The step's texts are numbers {texts[:64]}."
    )


def _validate(job: Job, progress: Progress, log: RunLog, stop: threading.Event) -> Progress:
    """Score the validation data.

    A request to stop is heard between batches; the validation is then made on resuming.
    """
    if not job.validation_examples:
        return replace(progress, validated_step=progress.step)

    class _Asked(Exception):  # noqa: N818  (a way out, not a fault)
        pass

    with log.validation() as show:

        def advance(done: int, total: int) -> None:
            show(done, total)
            if stop.is_set():
                raise _Asked

        try:
            result: Evaluation = job.predictor.evaluate(
                job.validation_examples, features=job.validation_features, with_loss=True, progress=advance
            )
        except _Asked:
            return progress
    figures = {"val_loss": result.loss, **result.scores}
    if job.monitor not in figures:
        raise InputError(f"There is no figure {job.monitor!r} to monitor; validation gives {', '.join(figures)}.")
    log.write(progress.step, {"split": "validation", "epoch": job.schedule.epoch(progress.step), **figures})
    return replace(progress, validated_step=progress.step, figure=figures[job.monitor])


def _save(job: Job, progress: Progress, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    model = job.predictor.model
    documents = documents_of(job.task, model, job.predictor.tokenizer) | {
        "run": {"task": job.task_name, "monitor": job.monitor, "mode": job.mode} | job.facts,
        "progress": asdict(progress) | {"scaler": scaler.state_dict()},
    }
    contents = run.Contents(
        tensors={"model": dict(model.named_parameters()), "optimizer": optimizer_tensors(optimizer, model)},
        documents=documents,
        texts={"vocab.txt": job.predictor.tokenizer.vocabulary_text()},
    )
    is_end = progress.step >= job.schedule.total_steps and progress.validated_step == progress.step
    run.write(job.folder, progress.step, contents, figure=progress.figure, is_end=is_end)
    run.prune(job.folder, job.mode, job.settings.exp_manager.checkpoint_callback_params.save_top_k)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step is ended and saved; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread only
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
