"""Training setup: from settings to model, data, sampler, sharding and predictor, all that the training loop needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import base_placement
from ..build import model_documents
from ..checkpoints.native.run_checkpoints import Contents
from ..config.schema import Settings
from ..data.fingerprint import fingerprint
from ..data.packing import Batch
from ..data.sampler import BatchSampler, training_sampler
from ..distillation import open_teacher
from ..inference import Predictor
from ..initial_model import load_initial_model
from ..model.heads import TaskModel
from ..parallel.execution import Execution, choose_what_to_shard, resolve_execution
from ..parallel.process_group import World
from ..parallel.sharding import Sharding, parallelize
from ..planner.workload import MicroBatch
from ..tasks.task import Task
from ..tasks.task_data import (
    TrainingData,
    ValidationData,
    load_training_data,
    load_validation_data,
    software_versions,
)
from ..torch_session import TorchSession
from .intervals import Intervals, count_epochs, count_intervals
from .resume import Progress
from .step import Loss

# Parts of the names of metrics whose smaller values are better.
MINIMIZED = ("loss", "perplexity")


def resolve_mode(monitor: str, mode: str | None) -> str:
    """Return max or min: which values of a metric are better, unless `mode` is given."""
    return mode or ("min" if any(part in monitor for part in MINIMIZED) else "max")


@dataclass(frozen=True)
class TrainingSetup:
    """All parts of a training. Each rank has one; ranks differ in their shards of the model and of the data."""

    task_name: str
    settings: Settings
    folder: Path
    world: World
    execution: Execution
    task: Task[Any, Any]
    model: TaskModel
    loss: Loss
    sharding: Sharding
    training_data: TrainingData
    validation_data: ValidationData
    train_sampler: BatchSampler
    predictor: Predictor
    intervals: Intervals
    start: Progress
    """The progress before the first step."""
    monitor: str
    """The validation metric by which checkpoints are compared."""
    mode: str
    """Which of its values are better: max or min."""
    documents: dict[str, Any]
    """JSON documents of a checkpoint that stay the same for the whole run."""

    def load_step(self, step: int) -> tuple[list[Batch], int]:
        """Pack a step's micro-batches, in pinned memory for a GPU; also returns the number of tokens over all ranks."""
        num_tokens, batches = self.train_sampler.count_tokens(step), self.train_sampler.step(step)
        if self.execution.device.type == "cuda":
            batches = [batch.map(Tensor.pin_memory) for batch in batches]
        return batches, num_tokens


def set_up(
    task_name: str,
    settings: Settings,
    folder: Path,
    world: World,
    *,
    home: Path,
    resumed: Contents | None,
    log: Callable[[str], None],
) -> TrainingSetup:
    """Load the model and the data, resolve device, precision and compilation, and shard the model over the ranks.

    `resumed` is the checkpoint to resume from, `home` the cache folder. Raises ConfigError where settings do not fit
    each other or the model.
    """
    trainer, model_settings = settings.trainer, settings.model
    teacher = open_teacher(task_name, settings, world.device)
    place = base_placement(model_settings.peft, trainer, world.device, is_whole=world.tensor_size == 1)
    with world.local_rank_zero_first():
        initial = load_initial_model(task_name, settings, place, home=home, resumed=resumed, folder=folder)
        for note in initial.notes:
            log(note)
        task, tokenizer = initial.task, initial.language_model.tokenizer
        training_data = load_training_data(
            task, tokenizer, model_settings, home / "texts", learn_labels=initial.model is None, teaching=teacher
        )
    validation_data = load_validation_data(task, tokenizer, model_settings.validation_ds)
    for line in training_data.labels.lines():
        log(line)
    model = initial.build(settings.seed)
    loss = task.loss if teacher is None else teacher.loss(task, model)
    micro_batch = MicroBatch.uniform(model_settings.train_ds.batch_size, task.row_length)
    world = choose_what_to_shard(world, trainer, settings.parallel, model, micro_batch)
    execution = resolve_execution(trainer, settings.parallel, model_settings.optim.name, world, model.encoder.config)
    if task.groups_sequences:  # their number in a batch varies
        execution = replace(execution, has_static_batches=False, is_sync_free=False, obstacle=None)
    features, ranks = training_data.features, {"data_rank": world.data_rank, "data_size": world.data_size}
    static_epochs = count_epochs(settings, len(features), world.data_size) if execution.is_sync_free else 0
    sampler = training_sampler(
        features, settings, task.row_length, tokenizer.pad_id, static_epochs=static_epochs, **ranks
    )
    identity = fingerprint(features, training_data.teacher)
    documents = model_documents(task, model, tokenizer)
    precision, is_static = execution.precision, execution.has_static_batches
    sharding = parallelize(model, world, settings.parallel, precision=precision, is_compiled=execution.is_compiled)
    session = TorchSession(model, task.loss, world.device, precision, is_static=is_static, world=world)
    predictor = Predictor(task, tokenizer, session, model_settings.validation_ds.batch_size)
    intervals = count_intervals(settings, len(sampler))
    start = Progress(data_fingerprint=identity, texts_per_step=sampler.sequences_per_step)
    checkpoints = settings.exp_manager.checkpoint_callback_params
    monitor = checkpoints.monitor or task.main_score
    mode = resolve_mode(monitor, checkpoints.mode)
    about = {"task": task_name, "monitor": monitor, "mode": mode, "versions": software_versions()}
    about |= {"device": execution.device_name, "precision": precision, "labels": training_data.labels.counts}
    about |= {} if teacher is None else {"teacher": teacher.digest}
    return TrainingSetup(
        task_name, settings, folder, world, execution, task, model, loss, sharding, training_data, validation_data,
        sampler, predictor, intervals, start, monitor, mode, documents | {"run": about},
    )  # fmt: skip


def log_setup(setup: TrainingSetup, log: Callable[[str], None]) -> None:
    """Log the numbers of examples, sequences, tokens and steps, the device, and warnings about data and speed."""
    data, validation = setup.training_data, setup.validation_data
    for note in setup.task.notes:
        log(f"note: {note}")
    if setup.execution.obstacle is not None:
        log(f"note: steps are not captured in a CUDA graph, and take longer: {setup.execution.obstacle}.")
    if not validation.examples:
        log("model.validation_ds.file is not given: nothing is validated, and the last checkpoint is the one to use.")
    if validation.unseen_labels:
        log(
            "note: labels of the validation data that the training data lack: "
            f"{', '.join(validation.unseen_labels)}. They count as errors."
        )
    log(
        f"Training on {data.num_examples} examples ({len(data.features)} sequences of "
        f"{setup.train_sampler.num_tokens:,} tokens), validating on {len(validation.examples)}: "
        f"{setup.intervals.total_steps} steps on {_describe(setup.world)}, precision {setup.execution.precision}."
    )
    log(f"Run folder: {setup.folder}")


def _describe(world: World) -> str:
    if world.size == 1:
        return world.device.type
    axes = {"data": world.data_size, "fsdp": world.fsdp_size, "tensor": world.tensor_size}
    shared = ", ".join(f"{name} {size}" for name, size in axes.items() if size > 1)
    shared += ", optimizer sharded" if world.shards_optimizer else ""
    return f"{world.size} x {world.device.type} ({shared})"
