"""The run folder of a training: its path, its lock, the checkpoint to resume from, run.json."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...config.schema import ExperimentSettings
from ...errors import CheckpointError, ConfigError
from .manifest import MANIFEST
from .manifest_folder import Contents
from .run_checkpoints import (
    CHECKPOINTS,
    Entry,
    checkpoint_folders,
    first_sound,
    list_checkpoints,
    list_leftovers,
    open_lazily,
    read_entry,
    restore_leftovers,
)

RESUMED_GROUPS = ("model", "optimizer")


def run_folder_path(settings: ExperimentSettings, task_name: str, started: str) -> Path:
    """Return explicit_log_dir, or exp_dir/name/version as NeMo's exp_manager lays them out.

    `started`, date and time, stands for a version that is not given.
    """
    if settings.explicit_log_dir is not None:
        return Path(settings.explicit_log_dir)
    folder = Path(settings.exp_dir) / (settings.name or task_name)
    if settings.version is not None:
        return folder / settings.version
    return folder if settings.resume_if_exists else folder / started


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; one without results, after an error, is removed.

    Raises ConfigError if another process trains in it.
    """
    import fcntl

    made = [path for path in (folder, *folder.parents) if not path.exists()]
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
    except BaseException:
        if made and [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            with suppress(OSError):  # others may use a parent by now
                for path in made:
                    path.rmdir()
        raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, and its contents with lazy tensors."""

    entry: Entry
    contents: Contents


def open_resume_point(
    settings: ExperimentSettings,
    folder: Path,
    log: Callable[[str], None],
    *,
    step: int | None,
    lacks_results: bool,
    is_rank_zero: bool,
    broadcast: Callable[[str], str],
) -> Contents | None:
    """Open the checkpoint to resume from, the same on all ranks: rank 0 decides which. None starts a new run."""
    point = None
    if is_rank_zero:
        point = find_resume_point(settings, folder, log, step=step, lacks_results=lacks_results)
    name = broadcast("" if point is None else point.entry.path.name)
    if not name:
        return None
    if point is None:
        return open_lazily(folder / CHECKPOINTS / name, groups=RESUMED_GROUPS)
    log(f"Resuming {folder} from step {point.entry.step}.")
    return point.contents


def find_resume_point(
    settings: ExperimentSettings,
    folder: Path,
    log: Callable[[str], None],
    *,
    step: int | None = None,
    lacks_results: bool = False,
) -> ResumePoint | None:
    """Open the newest sound checkpoint, or that of `step`, to resume from; None starts a new run.

    A run that is at its end may be resumed if it `lacks_results`: it was killed before it had written them.
    Restores checkpoints whose write was complete but for the rename; requires the run's lock. Raises ConfigError where
    the folder's run may not be resumed, CheckpointError where a checkpoint is required, or where there are only damaged
    ones: never begins from the start where there was something to resume.
    """
    if not settings.resume_if_exists:
        if checkpoint_folders(folder) or any((leftover / MANIFEST).is_file() for leftover in list_leftovers(folder)):
            raise ConfigError(
                f"{folder} holds a run already. Resume it with exp_manager.resume_if_exists=true, "
                "or choose another folder."
            )
        return None
    for path in restore_leftovers(folder):
        log(f"note: {path} is restored: its write was interrupted when all files were complete.")
    candidates = checkpoint_folders(folder)[::-1]
    if step is not None:
        candidates = [_checkpoint_of_step(folder, step)]
    elif not candidates:
        _check_nothing_is_lost(settings, folder, log)
        return None
    try:
        point = first_sound(candidates, _open_to_resume)
    except CheckpointError as error:
        raise CheckpointError(
            f"No checkpoint of {folder} can be resumed from. {error} To start anew, choose another folder."
        ) from None
    if point.entry.is_end and not (settings.resume_past_end or lacks_results):
        raise ConfigError(
            f"The run in {folder} is complete at step {point.entry.step}. To train further raise trainer.max_epochs "
            "and set exp_manager.resume_past_end=true."
        )
    return point


def _open_to_resume(path: Path) -> ResumePoint:
    return ResumePoint(read_entry(path), open_lazily(path, groups=RESUMED_GROUPS))


def _checkpoint_of_step(folder: Path, step: int) -> Path:
    steps = {entry.step: entry.path for entry in list_checkpoints(folder)}
    if step not in steps:
        raise ConfigError(
            f"--step {step}: {folder} has no checkpoint of that step. "
            f"It has those of: {', '.join(map(str, steps)) or 'none'}."
        )
    return steps[step]


def _check_nothing_is_lost(settings: ExperimentSettings, folder: Path, log: Callable[[str], None]) -> None:
    """Raise CheckpointError in a run without checkpoints if one is required, or if there are remains of some."""
    # The manifest is written last: what has none was never complete.
    remains = [path for path in (folder / CHECKPOINTS).glob("step-*") if (path / MANIFEST).exists()]
    if remains:
        raise CheckpointError(
            f"{folder} holds no checkpoint to resume from, but incomplete or set aside ones: "
            f"{', '.join(path.name for path in remains)}. Rename a sound one to step-NNNNNNNN, or choose another "
            "folder to start anew."
        )
    if not settings.resume_ignore_no_checkpoint:
        raise CheckpointError(
            f"{folder} holds no checkpoint to resume from (exp_manager.resume_ignore_no_checkpoint=false)."
        )
    if leftovers := list_leftovers(folder):
        log(f"note: {leftovers[0]} was interrupted before it was complete, so the run starts from its beginning.")
