"""From settings to a finished run: read the data, load or make the network, find the run folder, train, report."""

import inspect
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
from omegaconf import OmegaConf

from .. import __version__
from ..build import LanguageModel, load_language_model, load_run, new_task_model, restore
from ..checkpoints.native import run_checkpoints as run
from ..config.schema import ExperimentSettings, Settings
from ..data import feature_cache as store
from ..data.packing import Features
from ..data.sampler import BatchSampler
from ..errors import ConfigError, InputError, Interrupted
from ..inference import Evaluation, Predictor
from ..model.heads import TaskModel
from ..model.precision import resolve_precision, resolve_static_batches
from ..parallel.process_group import World, connect
from ..parallel.sharding import parallelize, resolve_compile, warm_up
from ..storage import write_whole
from ..tasks import registry
from ..tasks.task import Task
from ..tokenizers.wordpiece import Tokenizer
from .intervals import make_schedule
from .log import METRICS, read_metrics
from .loop import Job, fit
from .plots import plot_curves
from .reports import write_evaluation
from .resume import check_unchanged, find_resume_checkpoint, keep_sequences_per_step
from .step import FUSED, SyncFreeStepper


@dataclass(frozen=True)
class Outcome:
    """What a training left: its folder, the best checkpoint, scores of the last validation and of test_ds."""

    folder: Path
    best: run.Entry
    monitor: str
    validation: dict[str, float]
    test: dict[str, float] | None


def train(task_name: str, settings: Settings, *, home: Path, say: Callable[[str], None]) -> Outcome | None:
    """Train as the settings say; `say` takes lines for the person who watches.

    Each of several processes calls this; the first one speaks, evaluates the test data and returns what came of it.
    """
    with connect(settings.trainer, settings.parallel) as world:
        outcome = _train(task_name, settings, world, home=home, say=say if world.is_rank_zero else lambda line: None)
    if not world.is_rank_zero:
        return None
    if registry.find(task_name)(settings).files(settings.model.test_ds):
        return replace(outcome, test=test(settings, outcome.folder).scores)
    return outcome


def _train(task_name: str, settings: Settings, world: World, *, home: Path, say: Callable[[str], None]) -> Outcome:
    if resolve_compile(settings.trainer.compile, world.device) and world.device.type == "cuda":
        warm_up(world.device)
    task = registry.find(task_name)(settings)
    # By the first one's clock, where the folder is named by date and time.
    folder = Path(world.broadcast_text(str(run_folder(settings.exp_manager, task.name()))))
    world.set_recovery_command(_resume_command(task_name, folder))
    _check_files(task, settings)
    with _locked(folder) if world.is_rank_zero else nullcontext():
        world.barrier()
        resumed_from = find_resume_checkpoint(settings.exp_manager, folder)
        resumed = run.open_lazily(resumed_from.path, groups=("model", "optimizer")) if resumed_from else None
        if resumed is not None and resumed_from is not None:
            say(f"Going on with {folder} from step {resumed_from.step}.")
            check_unchanged(settings, resumed.documents["settings"])
            keep_sequences_per_step(settings, resumed.documents, world, say)
        with world.local_rank_zero_first():
            start = _find_start(task, task_name, settings, resumed, folder, home, say)
            texts = _training_texts(start, settings, home)
        job = _prepare(start, texts, task_name, settings, world, folder, say)
        if world.is_rank_zero:
            _write_facts(job, command=sys.argv)
        try:
            last = fit(job, resumed)
        except Interrupted as stop:
            raise Interrupted(f"{stop} Go on with: {_resume_command(task_name, folder)}") from None
        finally:
            if world.is_rank_zero:
                _plot(folder, say)
        if last is not None and world.is_rank_zero:
            write_evaluation(folder / "validation", job.task, last)
        best = run.find_best(folder, job.mode)
        assert best is not None, "training ends with a checkpoint"
        return Outcome(folder, best, job.monitor, {} if last is None else last.scores, None)


def past_outcome(settings: Settings, task_name: str) -> Outcome | None:
    """Read what a training in other processes left; None where the folder is named by the time that it was made."""
    folder = run_folder(settings.exp_manager, task_name)
    last = run.find_last(folder)
    if last is None:
        return None
    facts = run.open_lazily(last.path, groups=()).documents["run"]
    best = run.find_best(folder, facts["mode"])
    assert best is not None, "a run with a last checkpoint has a best one"
    lines = [line for line in read_metrics(folder / METRICS) if line["split"] == "validation"]
    about = ("step", "seconds", "split", "epoch", "val_loss")
    scores = {name: value for line in lines[-1:] for name, value in line.items() if name not in about}
    return Outcome(folder, best, facts["monitor"], scores, None)


def run_folder(settings: ExperimentSettings, task_name: str) -> Path:
    """Find a run's folder: explicit_log_dir, or exp_dir/name/version as NeMo's exp_manager lays them out."""
    if settings.explicit_log_dir is not None:
        return Path(settings.explicit_log_dir)
    folder = Path(settings.exp_dir) / (settings.name or task_name)
    if settings.version is not None:
        return folder / settings.version
    return folder if settings.resume_if_exists else folder / time.strftime("%Y-%m-%d_%H-%M-%S")


def _check_files(task: Task[Any, Any], settings: Settings) -> None:
    """Look for the data files before the network is loaded, which takes longer."""
    model = settings.model
    if settings.do_training and not task.files(model.train_ds):
        raise ConfigError("model.train_ds.file is not given. Name the training data: model.train_ds.file=FILE.")
    for name, data in (
        ("train_ds", model.train_ds),
        ("validation_ds", model.validation_ds),
        ("test_ds", model.test_ds),
    ):
        for file in task.files(data):
            if not Path(file).is_file():
                raise InputError(f"model.{name}: {file} does not exist.")
        if data.batch_size < 1:
            raise ConfigError(f"model.{name}.batch_size={data.batch_size}; at least 1 is needed.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from training in the same folder."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is training in {folder}. Wait for it, or choose another folder."
            ) from None
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Start:
    """What a training starts from: a whole model, or a language model that still needs a head."""

    task: Task[Any, Any]
    tokenizer: Tokenizer
    model: TaskModel | None
    language_model: LanguageModel | None


def _find_start(
    task: Task[Any, Any],
    task_name: str,
    settings: Settings,
    resumed: run.Contents | None,
    folder: Path,
    home: Path,
    say: Callable[[str], None],
) -> _Start:
    """Get the network: from the run's checkpoint, from another run, or a language model for a new head."""
    if resumed is not None:
        task, model, tokenizer = restore(resumed, folder, task_name, settings)
        return _Start(task, tokenizer, model, None)
    if settings.pretrained_model is not None:
        source = run.find_checkpoint(Path(settings.pretrained_model))
        restored, model, tokenizer = restore(run.read(source, groups=("model",)), source, task_name, settings)
        if not settings.model.head.reset:
            say(f"Starting from {source}, its head included.")
            return _Start(restored, tokenizer, model, None)
        say(f"Starting from the encoder of {source}, with a new head.")
        return _Start(task, tokenizer, None, LanguageModel(model.encoder, tokenizer, str(source), ()))
    language_model = load_language_model(
        settings.model, home=home, seed=settings.seed, default_shape=task.default_shape
    )
    say(f"Encoder: {describe_encoder(language_model.encoder.config)}, from {language_model.source}.")
    for note in language_model.notes:
        say(f"  {note}")
    if language_model.is_random:
        say("  It is not pre-trained: it knows nothing but what this training shows it.")
    return _Start(task, language_model.tokenizer, None, language_model)


def describe_encoder(config: Any) -> str:
    """Say an encoder's size as people do."""
    return (
        f"{config.num_layers} layers x {config.hidden_size} x {config.num_heads} heads, {config.vocabulary_size} tokens"
    )


def _prepare(
    start: _Start,
    texts: tuple[Sequence[Features], int],
    task_name: str,
    settings: Settings,
    world: World,
    folder: Path,
    say: Callable[[str], None],
) -> Job:
    task, tokenizer, device = start.task, start.tokenizer, world.device
    precision = resolve_precision(settings.trainer.precision, device)
    data, validation = settings.model.train_ds, settings.model.validation_ds
    features, num_examples = texts
    model = start.model
    if model is None:
        assert start.language_model is not None, "there is a model or a language model"
        model = new_task_model(task, start.language_model, settings.seed)
    has_size = resolve_static_batches(settings.trainer.cuda_graph, device, model.encoder.config, precision)
    asks_nothing = has_size and SyncFreeStepper.serves(settings.model.optim, precision)
    obstacle = _obstacle(settings, precision, model.encoder.config.head_dim, has_kernel=has_size)
    if settings.trainer.cuda_graph and device.type == "cuda" and obstacle is not None:
        say(f"note: steps are not recorded in a CUDA graph, and take longer: {obstacle}.")
    loader = BatchSampler(
        features,
        data.batch_size,
        task.row_length,
        tokenizer.pad_id,
        seed=settings.seed,
        shuffle=data.shuffle,
        drop_last=data.drop_last,
        accumulate=settings.trainer.accumulate_grad_batches,
        static_epochs=_epochs(settings, len(features), world) if asks_nothing else 0,
        share=world.data_rank,
        num_shares=world.data_size,
    )
    validation_examples = task.read_data(validation) if task.files(validation) else []
    if not validation_examples:
        say("model.validation_ds.file is not given: nothing is validated, and the last checkpoint is the one to use.")
    unseen = task.unseen_labels(validation_examples)
    if unseen:
        say(
            "note: labels of the validation data that training does not show: "
            f"{', '.join(unseen)}. They count as errors."
        )
    validation_features = task.features(validation_examples, tokenizer, with_targets=True)
    is_compiled = resolve_compile(settings.trainer.compile, device)
    monitor, mode = _monitor(task, settings)
    schedule = make_schedule(settings, len(loader))
    say(
        f"Training on {num_examples} examples ({len(features)} texts of {loader.num_tokens:,} tokens), "
        f"validating on {len(validation_examples)}: "
        f"{schedule.total_steps} steps on {describe_world(world)}, precision {precision}."
    )
    say(f"Run folder: {folder}")
    sharding = parallelize(model, world, settings.parallel, precision=precision, is_compiled=is_compiled)
    predictor = Predictor(
        task, model, tokenizer, device, precision, validation.batch_size, is_static=has_size, world=world
    )
    return Job(
        task=task,
        task_name=task_name,
        settings=settings,
        predictor=predictor,
        train_sampler=loader,
        validation_examples=validation_examples,
        validation_features=validation_features,
        schedule=schedule,
        monitor=monitor,
        mode=mode,
        folder=folder,
        facts={"versions": _versions(), "device": _device_name(device), "precision": precision},
        sharding=sharding,
    )


def describe_world(world: World) -> str:
    """Say on how many devices a run computes, and how they share the work."""
    if world.size == 1:
        return world.device.type
    axes = {"data": world.data_size, "fsdp": world.fsdp_size, "tensor": world.tensor_size}
    shared = ", ".join(f"{name} {size}" for name, size in axes.items() if size > 1)
    return f"{world.size} x {world.device.type} ({shared})"


def _epochs(settings: Settings, num_texts: int, world: World) -> int:
    """Count the epochs that a training looks into."""
    trainer = settings.trainer
    if trainer.max_steps < 0:
        return trainer.max_epochs
    per_step = trainer.accumulate_grad_batches * settings.model.train_ds.batch_size * world.data_size
    needed = trainer.max_steps * per_step // num_texts + 1
    return needed if trainer.max_epochs < 0 else min(trainer.max_epochs, needed)


def _obstacle(settings: Settings, precision: str, head_dim: int, *, has_kernel: bool) -> str | None:
    """Say what stands in the way of recording steps on a GPU."""
    if not has_kernel:
        return f"there is no attention kernel for heads of {head_dim} in this installation (Triton; 16, 32, 64 or 128)"
    if settings.parallel.fsdp != 1:
        return "FSDP gathers weights when it needs them, into memory that comes and goes (parallel.fsdp)"
    if settings.parallel.activation_checkpointing:
        return "a layer that is computed again restores the state of random numbers (parallel.activation_checkpointing)"
    if precision == "16":
        return "with precision 16 the loss scale decides at each step whether to update; bf16 can be recorded"
    if settings.model.optim.name not in FUSED:
        return f"the optimizer {settings.model.optim.name} cannot be; {', '.join(FUSED)} can"
    return None


def _training_texts(start: _Start, settings: Settings, home: Path) -> tuple[Sequence[Features], int]:
    """Tokenize the training data, or find it tokenized; returns the texts and the number of examples.

    For a new head the task learns its labels from them.
    """
    task, tokenizer, data = start.task, start.tokenizer, settings.model.train_ds
    is_new = start.model is None
    name, stores = "", home / "texts"
    uses_cache = data.use_cache and task.caches_features
    if uses_cache:
        own: Any = OmegaConf.to_container(OmegaConf.structured(settings.model))
        for block in ("optim", "language_model", "validation_ds", "test_ds"):
            del own[block]
        # Of the data block only this shapes the texts; the files' content is in the digest itself.
        own["train_ds"] = {"num_samples": data.num_samples}
        package = Path(__file__).parent.parent
        text_code = sorted(file for room in ("formats", "tokenizers", "data") for file in (package / room).glob("*.py"))
        name = store.digest(
            json.dumps([own, tokenizer.lower_case, _versions(), is_new, task.state()], default=str).encode(),
            *(content.encode() for content in tokenizer.files().values()),
            *(Path(path).read_bytes() for path in [*task.files(data), *_code_files(task), *map(str, text_code)]),
        )
        stored = store.find(stores, name)
        if stored is not None:
            task.restore_state(stored.meta["state"])
            return stored, stored.meta["num_examples"]
    examples = task.read_data(data)
    if is_new:
        task.learn_labels(examples)
    for label, place in task.unseen_labels(examples).items():
        raise InputError(
            f"{place}: {label!r} is not one of the labels that were trained ({_listed(task)}). Correct it, or train "
            "with model.head.reset=true for another set of labels."
        )
    features = task.features(examples, tokenizer, with_targets=True)
    if uses_cache and features:
        store.keep(stores, name, features, {"num_examples": len(examples), "state": task.state()})
    return features, len(examples)


def _listed(task: Task[Any, Any]) -> str:
    """Name the first labels that a task learnt."""
    labels = [label for value in task.state().values() if isinstance(value, list) for label in value]
    names = [label for label in labels if isinstance(label, str)]
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _code_files(task: Task[Any, Any]) -> list[str]:
    """List the files of the task's own code and of what it inherits."""
    members: list[Any] = [member for cls in type(task).__mro__ for member in vars(cls).values()]
    return sorted({member.__code__.co_filename for member in members if inspect.isfunction(member)})


def _monitor(task: Task[Any, Any], settings: Settings) -> tuple[str, str]:
    asked = settings.exp_manager.checkpoint_callback_params
    monitor = asked.monitor or task.main_score
    return monitor, asked.mode or ("min" if "loss" in monitor else "max")


def _versions() -> dict[str, str]:
    return {
        "megabert": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _write_facts(job: Job, command: list[str]) -> None:
    """Write what a person needs to make the run again: all settings, the command, the versions."""
    facts = {
        "task": job.task_name,
        "command": command,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seed": job.settings.seed,
        "total_steps": job.schedule.total_steps,
        **job.facts,
        "settings": OmegaConf.to_container(OmegaConf.structured(job.settings)),
    }
    write_whole(job.folder / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _resume_command(task_name: str, folder: Path) -> str:
    return f"megabert train {task_name} --resume {folder}"


def _plot(folder: Path, say: Callable[[str], None]) -> None:
    metrics = folder / "metrics.jsonl"
    if metrics.is_file() and not plot_curves(metrics, folder / "curves.png"):
        say('No plot: matplotlib is not installed (pip install "megabert[track]").')


def test(settings: Settings, folder: Path) -> Evaluation:
    """Evaluate a run on test_ds; the scores go to test.json in the run's folder, and all else to its folder test."""
    data = settings.model.test_ds
    predictor = load_run(folder, accelerator=settings.trainer.accelerator, precision=settings.trainer.precision)
    files = predictor.task.files(data)
    if not files:
        raise ConfigError("model.test_ds.file is not given. Name the data to evaluate: model.test_ds.file=FILE.")
    result = predictor.evaluate(predictor.task.read_data(data))
    target = folder if folder.is_dir() else folder.parent
    write_whole(target / "test.json", json.dumps({"file": files[0], **result.scores}, indent=2) + "\n")
    write_evaluation(target / "test", predictor.task, result)
    return result
