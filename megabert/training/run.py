"""A training from settings to a finished run: join the process group, set up, fit, plot, evaluate the test data."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..analysis.metrics_file import METRICS, read_metrics, warn_of_zeros
from ..analysis.plots import plot_curves
from ..checkpoints.model_card import CARD, write_run_card
from ..checkpoints.native.run_checkpoints import (
    Contents,
    Entry,
    find_best,
    find_last,
    open_lazily,
    prune,
    set_aside_after,
)
from ..checkpoints.native.run_folder import lock_run_folder, open_resume_point, run_folder_path
from ..config.schema import Settings
from ..errors import Interrupted
from ..evaluation import SCORES, TEST, evaluate_test_data, write_evaluation
from ..parallel.execution import resolve_compile
from ..parallel.process_group import connect
from ..parallel.sharding import warm_up
from ..tasks import registry
from .loop import fit
from .monitor import advise_on_steps
from .resume import check_unchanged, keep_sequences_per_step
from .setup import TrainingSetup, log_setup, set_up


@dataclass(frozen=True)
class Outcome:
    """Result of a training: run folder, best checkpoint, scores of the last validation and of test_ds."""

    folder: Path
    best: Entry
    monitor: str
    validation: dict[str, float]
    test: dict[str, float] | None = None


def train(
    task_name: str, settings: Settings, *, home: Path, log: Callable[[str], None], step: int | None = None
) -> Outcome | None:
    """Run a training by its settings, on every rank; rank 0 logs, evaluates the test data and returns the outcome.

    A run that is resumed continues from its newest checkpoint, or from that of `step`. One that was killed after its
    last step gets the results that are missing.
    """
    outcome = _train_on_rank(task_name, settings, home=home, log=log, step=step)
    if outcome is not None and registry.find(task_name)(settings).files(settings.model.test_ds):
        with _resumable(f"megabert train {task_name} --resume {outcome.folder}"):
            outcome = replace(outcome, test=evaluate_test_data(task_name, settings, outcome.folder).scores)
    if outcome is not None:
        write_run_card(outcome.folder, outcome.best.path)
    return outcome


@contextmanager
def _resumable(command: str) -> Iterator[None]:
    """Add the command that resumes the run to the message of an interruption."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop} Resume with: {command}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. Resume with: {command}") from None


def _train_on_rank(
    task_name: str, settings: Settings, *, home: Path, log: Callable[[str], None], step: int | None
) -> Outcome | None:
    """Train in this process, one of the process group; only rank 0 returns an outcome."""
    with connect(settings.trainer, settings.parallel) as world, ExitStack() as stack:
        log = log if world.is_rank_zero else lambda line: None
        if world.device.type == "cuda" and resolve_compile(settings.trainer.compile, world.device):
            warm_up(world.device)
        # By rank 0's clock, so that all ranks use the same run folder where it is named by date and time.
        started = world.broadcast_text(time.strftime("%Y-%m-%d_%H-%M-%S"))
        task = registry.find(task_name)(settings)
        task.check_files()
        folder = run_folder_path(settings.exp_manager, task.name(), started)
        resume_command = f"megabert train {task_name} --resume {folder}"
        if world.size > 1:
            world.set_recovery_command(resume_command)
        if world.is_rank_zero:
            stack.enter_context(lock_run_folder(folder))
        results = [folder / CARD]
        results += [folder / SCORES] if task.files(settings.model.validation_ds) else []
        results += [folder / TEST] if task.files(settings.model.test_ds) else []
        resumed = open_resume_point(
            settings.exp_manager,
            folder,
            log,
            step=step,
            lacks_results=not all(file.is_file() for file in results),
            is_rank_zero=world.is_rank_zero,
            broadcast=world.broadcast_text,
        )
        if resumed is not None:
            check_unchanged(settings, resumed.documents["settings"])
            keep_sequences_per_step(settings, resumed.documents, world, log)
        setup = set_up(task_name, settings, folder, world, home=home, resumed=resumed, log=log)
        log_setup(setup, log)
        if resumed is None and (advice := advise_on_steps(setup)):
            log(f"note: {advice}")
        if resumed is not None and world.is_rank_zero:
            # So that a later checkpoint, damaged or not chosen, is not taken for the last one of the resumed run.
            reason = "damaged" if step is None else "superseded"
            for path in set_aside_after(folder, resumed.documents["progress"]["step"], reason):
                log(f"note: a later checkpoint is set aside as {path}.")
            # A kill may have come between a write and what is deleted after it, and there may be no later write.
            prune(folder, setup.mode, settings.exp_manager.checkpoint_callback_params.save_top_k)
            if resumed.documents["progress"]["step"] < setup.intervals.total_steps:
                _remove_results(folder)
        with _resumable(resume_command):
            return _fit_and_evaluate(setup, resumed, log)


def _remove_results(folder: Path) -> None:
    """Remove the results of a run's former end: it trains on."""
    for name in (SCORES, TEST, CARD):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree((folder / SCORES).parent, ignore_errors=True)


def _fit_and_evaluate(setup: TrainingSetup, resumed: Contents | None, log: Callable[[str], None]) -> Outcome | None:
    """Train, plot the curves, write the last validation; only rank 0 returns an outcome."""
    folder, data, is_rank_zero = setup.folder, setup.validation_data, setup.world.is_rank_zero
    try:
        last = fit(setup, resumed)
    finally:
        has_metrics = is_rank_zero and (folder / METRICS).is_file()
        lines = read_metrics(folder / METRICS) if has_metrics else []
        if has_metrics and not plot_curves(lines, folder.absolute().name, folder / "curves.png"):
            log('No plot: matplotlib is not installed (pip install "megabert[track]").')
    if last is None and data.examples:  # resumed at its end
        last = setup.predictor.evaluate(data.examples, features=data.features)
    if not is_rank_zero:
        return None
    if last is not None:
        write_evaluation((folder / SCORES).parent, setup.task, last)
    if warning := warn_of_zeros(lines, setup.monitor, setup.mode):
        log(warning)
        if advice := advise_on_steps(setup):
            log(f"note: {advice}")
    best = find_best(folder, setup.mode)
    assert best is not None, "training ends with a checkpoint"
    return Outcome(folder, best, setup.monitor, {} if last is None else last.scores)


def past_outcome(settings: Settings, task_name: str) -> Outcome | None:
    """Read the outcome of a training in other processes; None where its folder is named by its start time."""
    folder = run_folder_path(settings.exp_manager, task_name, "")
    last = find_last(folder)
    if last is None:
        return None
    facts = open_lazily(last.path, groups=()).documents["run"]
    best = find_best(folder, facts["mode"])
    assert best is not None, "a run with a last checkpoint has a best one"
    lines = [line for line in read_metrics(folder / METRICS) if line["split"] == "validation"]
    about = ("step", "seconds", "split", "epoch", "val_loss")
    scores = {name: value for line in lines[-1:] for name, value in line.items() if name not in about}
    return Outcome(folder, best, facts["monitor"], scores)
