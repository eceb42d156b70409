"""The training loop: micro-batches in, optimizer steps, validations and checkpoints out, top to bottom, no hooks.

Everything that shapes the next step is a function of the settings and the step's number, or is in the checkpoint;
so a run that was stopped anywhere goes on with the same numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..build import model_documents
from ..checkpoints.native import run_checkpoints as run
from ..config.schema import Settings
from ..data.packing import Batch, Features
from ..data.prefetch import prefetch
from ..data.sampler import BatchSampler
from ..errors import CheckpointError, InputError, Interrupted
from ..inference import Evaluation, Predictor
from ..kernels.cuda_graph import side_stream
from ..parallel.process_group import World
from ..parallel.sharding import Sharding
from ..parallel.signals import stop_signals
from ..tasks.task import Task
from .intervals import Schedule
from .log import RunLog, SilentLog
from .lr_schedules import learning_rate
from .optimizer import load_loss_scale, optimizer_tensors
from .resume import fingerprint
from .saver import Saver, own_tensors
from .step import Stepper, SyncFreeStepper


@dataclass(frozen=True)
class Job:
    """What a training needs: the network and its data, where and how to compute, where to write.

    Each of several processes has one, alike but for its part of the network and of the texts.
    """

    task: Task[Any, Any]
    task_name: str
    settings: Settings
    predictor: Predictor
    train_sampler: BatchSampler
    validation_examples: Sequence[Any]
    validation_features: Sequence[Features]
    schedule: Schedule
    monitor: str
    mode: str
    folder: Path
    facts: dict[str, Any]
    """Versions and the like, written into each checkpoint."""
    sharding: Sharding

    @property
    def world(self) -> World:
        """This process among the others."""
        return self.sharding.world

    def make_step(self, step: int) -> tuple[list[Batch], int]:
        """Pack a step's micro-batches; for a GPU into memory from which it can copy without the host.

        Returns them and the number of tokens of all processes' ones.
        """
        batches, num_tokens = self.train_sampler.step(step), self.train_sampler.count_tokens(step)
        if self.predictor.device.type == "cuda":
            batches = [batch.map(Tensor.pin_memory) for batch in batches]
        return batches, num_tokens


@dataclass(frozen=True)
class Progress:
    """Where a run stands, as its checkpoints hold it."""

    step: int = 0
    validated_step: int = 0
    figure: float | None = None
    data_fingerprint: str = ""
    texts_per_step: int = 0
    """Of all processes: however many there are, a run keeps it. 0 in checkpoints of before there could be several."""


def fit(job: Job, resumed: run.Contents | None) -> Evaluation | None:
    """Train to the end of the schedule, from the start or from a checkpoint's contents.

    Leaves the last and the best checkpoints in job.folder; returns the last validation that was made. Raises
    Interrupted, after a checkpoint, when the process is asked to stop; InputError when loss or gradients are not
    finite.
    """
    schedule, predictor, settings, world = job.schedule, job.predictor, job.settings, job.world
    progress = Progress(
        data_fingerprint=fingerprint(job.train_sampler.features), texts_per_step=job.train_sampler.sequences_per_step
    )
    if resumed is not None:
        progress = _take_up(progress, resumed)
    with (
        side_stream(predictor.device),
        _open_log(job, progress.step) as log,
        stop_signals() as stop,
        Saver(in_background=predictor.device.type == "cuda") as saver,
        closing(prefetch(job.make_step, range(progress.step, schedule.total_steps))) as steps,
    ):
        stepper = _make_stepper(job)
        if resumed is not None:
            stepper.load_optimizer(resumed.tensors["optimizer"])
            load_loss_scale(stepper.scaler, resumed.documents["progress"]["scaler"])
        predictor.model.train()
        # Figures stay on a GPU until they are shown: it need not wait for the host, nor the host for it.
        pending: list[_Done] = []
        last_validation: Evaluation | None = None
        show_every = settings.trainer.log_every_n_steps if isinstance(stepper, SyncFreeStepper) else 1
        while True:
            step = progress.step
            is_stopping = world.any_rank(stop.is_set())
            is_due = schedule.saves_after(step)
            is_last = step >= schedule.total_steps
            if is_due or is_last or schedule.validates_after(step) or is_stopping or step % show_every == 0:
                _show(job, log, pending)
            if schedule.validates_after(step) and progress.validated_step != step:
                progress, result = _validate(job, progress, log, lambda: world.any_rank(stop.is_set()))
                last_validation = result or last_validation
                is_due = True
                # It may have been cut short by a request.
                is_stopping = is_stopping or world.any_rank(stop.is_set())
            is_due = is_due and settings.exp_manager.create_checkpoint_callback
            if is_due or is_stopping or is_last:
                _save(job, progress, stepper, saver, is_last=is_last or is_stopping)
            if is_stopping:
                saver.wait()
                raise Interrupted(f"Stopped after step {step}; the checkpoint is in {job.folder}.")
            if is_last:
                return last_validation
            batches, num_tokens = next(steps)
            rate = learning_rate(
                step,
                settings.model.optim.sched,
                lr=settings.model.optim.lr,
                max_steps=schedule.total_steps,
                hidden_size=predictor.model.encoder.config.hidden_size,
            )
            figures = stepper.step(batches, rate, number=step * job.train_sampler.num_groups)
            pending.append(_Done(step + 1, figures, rate, num_tokens))
            progress = replace(progress, step=step + 1, figure=None)


def _open_log(job: Job, first_step: int) -> RunLog:
    if not job.world.is_rank_zero:
        return SilentLog()
    return RunLog(
        job.folder,
        total_steps=job.schedule.total_steps,
        first_step=first_step,
        progress_bar=job.settings.trainer.enable_progress_bar,
        tensorboard=job.settings.exp_manager.create_tensorboard_logger,
    )


def _make_stepper(job: Job) -> Stepper:
    settings = job.settings
    common: dict[str, Any] = {
        "precision": job.predictor.precision,
        "clip": settings.trainer.gradient_clip_val,
        "seed": settings.seed,
        "sharding": job.sharding,
    }
    if job.train_sampler.size is None:
        return Stepper(job.predictor.model, job.task.loss, settings.model.optim, **common)
    return SyncFreeStepper(
        job.predictor.model,
        job.task.loss,
        settings.model.optim,
        accumulate=job.schedule.accumulate,
        **common,
    )


@dataclass(frozen=True)
class _Done:
    """A step that was made; figures_2 is (loss, norm), on the device."""

    step: int
    figures_2: Tensor
    rate: float
    num_tokens: int


def _show(job: Job, log: RunLog, pending: list[_Done]) -> None:
    """Fetch the figures of the steps since the last call, show and log them, and stop if one is not finite."""
    if not pending:
        return
    fetched = torch.stack([done.figures_2 for done in pending]).tolist()
    every, total = job.settings.trainer.log_every_n_steps, job.schedule.total_steps
    for done, (loss, norm) in zip(pending, fetched, strict=True):
        _check_finite(job, loss, norm, done.step - 1)
        figures = {"loss": loss, "lr": done.rate, "grad_norm": norm}
        epoch = job.schedule.epoch(done.step)
        log.step(done.step, **figures, tokens=done.num_tokens, epoch=epoch)
        if done.step % every == 0 or done.step == total:
            log.write(done.step, {"split": "train", "epoch": epoch, **figures})
    pending.clear()


def _take_up(fresh: Progress, resumed: run.Contents) -> Progress:
    stored = {name: value for name, value in resumed.documents["progress"].items() if name != "scaler"}
    progress = replace(Progress(**stored), texts_per_step=fresh.texts_per_step)
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
    texts = [int(index) for group in job.train_sampler.indices(step) for index in group]
    raise InputError(
        f"Step {step + 1}: the loss is {loss} and the gradients' norm {norm}; nothing was updated. The last checkpoint "
        f"is in {job.folder}. Lower model.optim.lr, clip (trainer.gradient_clip_val=1.0) or use "
        f"trainer.precision=32. The step's texts are numbers {texts[:64]}."
    )


def _validate(
    job: Job, progress: Progress, log: RunLog, is_asked_to_stop: Callable[[], bool]
) -> tuple[Progress, Evaluation | None]:
    """Score the validation data.

    A request to stop is heard between batches; the validation is then made on resuming.
    """
    if not job.validation_examples:
        return replace(progress, validated_step=progress.step), None

    class _Asked(Exception):  # noqa: N818  (a way out, not a fault)
        pass

    with log.validation() as show:

        def advance(done: int, total: int) -> None:
            show(done, total)
            if is_asked_to_stop():
                raise _Asked

        try:
            result: Evaluation = job.predictor.evaluate(
                job.validation_examples, features=job.validation_features, with_loss=True, progress=advance
            )
        except _Asked:
            return progress, None
    figures = {"val_loss": result.loss, **result.scores}
    if job.monitor not in figures:
        raise InputError(f"There is no figure {job.monitor!r} to monitor; validation gives {', '.join(figures)}.")
    log.write(progress.step, {"split": "validation", "epoch": job.schedule.epoch(progress.step), **figures})
    return replace(progress, validated_step=progress.step, figure=figures[job.monitor]), result


def _save(job: Job, progress: Progress, stepper: Stepper, saver: Saver, *, is_last: bool) -> None:
    model, world = job.predictor.model, job.world
    documents = model_documents(job.task, model, job.predictor.tokenizer) | {
        "run": {"task": job.task_name, "monitor": job.monitor, "mode": job.mode} | job.facts,
        "progress": asdict(progress) | {"scaler": stepper.scaler.state_dict()},
    }
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": stepper.master_weights,
        "optimizer": optimizer_tensors(stepper.optimizer, stepper.master_weights),
    }
    contents = run.Contents(
        tensors=groups if world.size == 1 else own_tensors(groups, stepper.sharding),
        documents=documents,
        texts=job.predictor.tokenizer.files(),
    )
    is_end = progress.step >= job.schedule.total_steps and progress.validated_step == progress.step
    keep_best = job.settings.exp_manager.checkpoint_callback_params.save_top_k
    facts: dict[str, Any] = {"figure": progress.figure, "is_end": is_end}
    shares: dict[str, Any] = {
        "part": world.rank,
        "num_parts": world.size,
        "all_gather_text": world.all_gather_text_on_writer_thread,
    }

    def write(contents: run.Contents) -> None:
        if world.size == 1:
            run.write(job.folder, progress.step, contents, **facts)
        else:
            run.write_together(job.folder, progress.step, contents, **facts, **shares)
        if world.is_rank_zero:
            run.prune(job.folder, job.mode, keep_best)

    saver.save(contents, write, is_last=is_last)
