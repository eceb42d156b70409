"""Find a task by its name, and generate its documentation page."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..config.listing import list_settings, show
from ..config.parser import did_you_mean
from ..config.schema import Settings
from ..errors import ConfigError
from .task import Task

# Each is a file in this folder with that name.
NAMES = (
    "bioasq",
    "causal_language_model",
    "dialogue_state_tracking",
    "entity_linking",
    "glue",
    "intent_slot",
    "masked_language_model",
    "multiple_choice",
    "punctuation_capitalization",
    "question_answering",
    "relation_extraction",
    "text_classification",
    "text_embedding",
    "text_ranking",
    "token_classification",
    "zero_shot",
)


def find(name: str) -> type[Task[Any, Any]]:
    """Find the Task class in tasks/<name>.py, or in a user's own file if `name` ends with .py."""
    if not name.endswith(".py") and name not in NAMES:
        raise ConfigError(
            f"{name!r} is not a task.{did_you_mean(name, NAMES)} "
            f"The tasks are: {', '.join(NAMES)}; or give your own file, ./my_task.py."
        )
    module = importlib.import_module(f"megabert.tasks.{name}") if name in NAMES else _load_file(Path(name))
    classes = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Task) and item.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ConfigError(f"{name} defines {len(classes)} Task classes; a task's file has exactly one.")
    return classes[0]


def page(name: str) -> str:
    """Generate a task's documentation page: the class docstring, and the settings that other tasks do not have."""
    task_type = find(name)
    common = [(setting, setting.help) for setting in list_settings(Settings)]
    own = list_settings(task_type.settings_type)
    specific = [setting for setting in own if (setting, setting.help) not in common]
    title = name.removesuffix(".py").replace("_", " ").capitalize()
    parts = [f"# {title}", inspect.cleandoc(task_type.__doc__ or ""), "## Settings"]
    parts.append(
        f"Those of this task; `megabert config {name}` lists all. NeMo 1.x's names are accepted where they differ."
    )
    rows = ["| setting | default | |", "|---|---|---|"]
    for setting in specific:
        help_text = setting.help.replace("|", "\\|")
        rows.append(f"| `{setting.key}` | {show(setting.default) or '-'} | {help_text} |")
    return "\n\n".join([*parts, "\n".join(rows)]) + "\n"


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"user_tasks.{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} does not exist. Give a Python file with one Task class.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the help of settings look the module up by its name
    spec.loader.exec_module(module)
    return module
