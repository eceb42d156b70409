"""The run folder of a training: its path, its lock, the checkpoint to resume from, run.json."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config.schema import ExperimentSettings
from ...errors import CheckpointError, ConfigError
from .run_checkpoints import Entry, find_last


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
    """Make the folder and hold its lock. Raises ConfigError if another process trains in it."""
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


def find_resume_checkpoint(settings: ExperimentSettings, folder: Path) -> Entry | None:
    """Find the checkpoint to resume from; None starts a new run.

    Raises ConfigError where the folder's run may not be resumed, CheckpointError where a checkpoint is required.
    """
    last = find_last(folder)
    if not settings.resume_if_exists:
        if last is not None:
            raise ConfigError(
                f"{folder} holds a run already. Resume it with exp_manager.resume_if_exists=true, "
                "or choose another folder."
            )
        return None
    if last is None and not settings.resume_ignore_no_checkpoint:
        raise CheckpointError(
            f"{folder} holds no checkpoint to resume from (exp_manager.resume_ignore_no_checkpoint=false)."
        )
    if last is not None and last.is_end and not settings.resume_past_end:
        raise ConfigError(
            f"The run in {folder} is complete at step {last.step}. To train further raise trainer.max_epochs "
            "and set exp_manager.resume_past_end=true."
        )
    return last
