"""The command `config`: the settings of a task and their help."""

import dataclasses
import sys
from collections.abc import Sequence

from ..config.listing import list_settings
from .console import new_parser, to_json


def config(words: Sequence[str]) -> int:
    """List all settings of a task with type, default and help: megabert config TASK."""
    from ..tasks import registry

    parser = new_parser("config", config, "")
    parser.add_argument("task", help=f"one of {', '.join(registry.NAMES)}; or the Python file of your own task")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--page", action="store_true", help="print the task's documentation page in Markdown")
    arguments = parser.parse_args(list(words))
    if arguments.page:
        sys.stdout.write(registry.page(arguments.task))
        return 0
    settings = list(list_settings(registry.find(arguments.task).settings_type))
    if arguments.json:
        print(to_json([dataclasses.asdict(setting) for setting in settings]))
        return 0
    for setting in settings:
        print(f"{setting.heading()}\n    {setting.help}")
    return 0
