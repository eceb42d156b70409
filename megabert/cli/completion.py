"""The command `completion`: scripts that complete commands, tasks, settings, their values and files in a shell.

A script holds all words itself, so that a completion starts no Python: `_table CONTEXT` prints the words of a context.
"""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..config.listing import Setting, list_settings
from .console import Command, new_parser, show

EPILOG = """\
Write the script to a file that your shell reads:
  bash  ~/.local/share/bash-completion/completions/megabert, or any file that .bashrc reads by `source FILE`
  zsh   a file _megabert in a folder of $fpath, or any file that .zshrc reads by `source FILE` after compinit
  fish  ~/.config/fish/completions/megabert.fish
Print it anew when megabert is updated.
"""
# Their first argument is a file or folder, so that settings are offered from the second on.
AFTER_A_RUN = ("evaluate", "predict")


def print_script(words: Sequence[str], command: Command, commands: Mapping[str, Command]) -> None:
    """Parse the words of the command `completion` and print the script of the shell that they name."""
    parser = new_parser("completion", command, EPILOG)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=sorted(SCRIPTS))
    shell = parser.parse_args(list(words)).shell
    table = _fish_table if shell == "fish" else _shell_table
    # bash and zsh share the functions that look words up; fish has another syntax.
    script = _template(SCRIPTS[shell]).replace("LOOKUP\n", _template("lookup.sh"))
    show(script.replace("VERSION", __version__).replace("    TABLE\n", table(contexts(commands))), end="")


def _template(name: str) -> str:
    return Path(__file__).with_name("completion_scripts").joinpath(name).read_text(encoding="utf-8")


SCRIPTS: Mapping[str, str] = {"bash": "megabert.bash", "zsh": "megabert.zsh", "fish": "megabert.fish"}


def contexts(commands: Mapping[str, Command]) -> dict[str, list[str]]:
    """List the words that may follow in each context.

    A context is "" (the command), a command, a command and one of its words ("train glue"), a command with any
    argument before ("evaluate *"), or a setting with = before it ("=trainer.precision"): then its values.
    """
    from ..checkpoints.published import published_checkpoints
    from ..tasks import registry
    from .plan import PlanSettings
    from .settings import COMMAND_SETTINGS

    tasks = {name: list(list_settings(registry.find(name).settings_type)) for name in registry.NAMES}
    own = {name: list(list_settings(schema)) for name, schema in COMMAND_SETTINGS.items()}
    table = {"": [*commands, "--help", "--version"]}
    for name in commands:
        options, subcommands = _of_help(commands[name])
        table[name] = [*subcommands, *options]
        table |= {f"{name} {verb}": _of_help(commands[name], verb)[0] for verb in subcommands}
    options = table["train"]
    table |= {f"train {task}": [*_keys(settings), *options] for task, settings in tasks.items()}
    table["train"] = [*registry.NAMES, *options]
    table["score"] = [*registry.NAMES, *table["score"]]
    table["config"] = [*registry.NAMES, *own, *table["config"]]
    table["completion"] = [*SCRIPTS, *table["completion"]]
    table["plan"] = [*_keys(list_settings(PlanSettings)), *table["plan"]]
    table |= {f"{name} *": [*_keys(own[name]), *table[name]] for name in AFTER_A_RUN}
    for name in ("fetch", "inspect", "convert"):
        table[name] = [*published_checkpoints(), *table[name]]
    for setting in (setting for settings in (*tasks.values(), *own.values()) for setting in settings):
        known = table.setdefault(f"={setting.key}", [])
        known += [value for value in _values(setting, list(published_checkpoints())) if value not in known]
    return {context: found for context, found in table.items() if found}


def _keys(settings: Iterable[Setting]) -> list[str]:
    return [f"{setting.key}=" for setting in settings]


def _values(setting: Setting, published: Sequence[str]) -> Sequence[str]:
    """List the values of a setting that has few; none where files, numbers or other words are its values."""
    if setting.key.endswith("pretrained_model_name"):
        return published
    if setting.choices:
        return setting.choices
    return ("true", "false") if setting.type_name.startswith("bool") else ()


def _of_help(command: Command, *words: str) -> tuple[list[str], list[str]]:
    """List the options and the subcommands that the help of a command shows."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        command([*words, "--help"])
    text = output.getvalue()
    options = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w-]+)", text, re.MULTILINE)
    verbs = re.search(r"^  [A-Z]+\n((?:    .*\n)+)", text.partition("positional arguments:\n")[2], re.MULTILINE)
    return options, re.findall(r"^    (\w+)", verbs[1], re.MULTILINE) if verbs else []


def _shell_table(table: Mapping[str, Sequence[str]]) -> str:
    """Write the table as branches of a case statement of bash and zsh, which expands an =name that is not quoted."""
    lines = [f"    '{name}') printf '%s\\n' {shlex.join(words)} ;;\n" for name, words in table.items()]
    return "".join(lines)


def _fish_table(table: Mapping[str, Sequence[str]]) -> str:
    return "".join(
        f"    case {_fish_quote(name)}\n        printf '%s\\n' {' '.join(map(_fish_quote, words))}\n"
        for name, words in table.items()
    )


def _fish_quote(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
