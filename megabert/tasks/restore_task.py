"""Restore the task of a trained model from the JSON documents that its folder stores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.parser import compose
from ..config.schema import Settings
from ..errors import CheckpointError, ConfigError
from . import registry
from .task import Task


def restore_task(
    documents: Mapping[str, Any],
    folder: Path,
    task_name: str | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
) -> Task[Any, Any]:
    """Build a task with its settings and what it learnt from the training data; no training data are needed.

    `task_name` is required where the task is a user's own file. `settings` replaces those of the folder, `overrides`
    changes some of them. Raises CheckpointError for incomplete documents.
    """
    try:
        trained = documents["run"]["task"]
        name = task_name or trained
        if not isinstance(name, str):
            raise CheckpointError(f"{folder}: the task {name!r:.40} is no name.")
        if name.endswith(".py") and task_name is None:
            raise ConfigError(f"{folder} was trained with a task of its own, {name}. Give its file: --task {name}.")
        if name != trained and name in registry.NAMES and trained in registry.NAMES:
            raise ConfigError(
                f"{folder} was trained on {trained}, not {name}. model.head.reset=true takes its encoder only."
            )
        task_type = registry.find(name)
        if settings is None:
            settings, _ = compose(
                task_type.settings_type, overrides, owner=task_type.name(), base=documents["settings"]
            )
        task = task_type(settings)
        task.restore_state(documents.get("task", {}))
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{folder} lacks {error}. Is it a checkpoint of a training run?") from None
    return task
