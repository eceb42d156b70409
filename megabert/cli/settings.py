"""The command `config`: the settings of a task and their help."""

from collections.abc import Mapping, Sequence

from ..config.listing import list_settings
from .console import new_parser, show, to_json
from .plan import PlanSettings
from .predictions import EvaluateSettings, PredictSettings

COMMAND_SETTINGS: Mapping[str, type] = {"evaluate": EvaluateSettings, "predict": PredictSettings, "plan": PlanSettings}


def config(words: Sequence[str]) -> None:
    """List all settings of a task, or of evaluate, predict or plan, with default and help: megabert config TASK."""
    from ..tasks import registry

    parser = new_parser("config", config, "")
    names = ", ".join([*registry.NAMES, *COMMAND_SETTINGS])
    parser.add_argument("task", help=f"one of {names}; or the Python file of your own task")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--page", action="store_true", help="print the task's documentation page in Markdown")
    arguments = parser.parse_args(list(words))
    if arguments.page:
        show(registry.page(arguments.task), end="")
        return
    schema = COMMAND_SETTINGS.get(arguments.task) or registry.find(arguments.task).settings_type
    settings = list(list_settings(schema))
    if arguments.json:
        show(to_json([setting.to_json() for setting in settings]))
        return
    for setting in settings:
        show(f"{setting.heading()}\n    {setting.help}")
