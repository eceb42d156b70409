"""List the settings of a schema with type, default, choices and help text, for `megabert config` and the docs."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One key of a settings schema."""

    key: str
    type_name: str
    default: Any
    choices: tuple[str, ...]
    block: type = field(compare=False)
    """The dataclass that has it."""

    @property
    def help(self) -> str:
        """Its help string, read from the source of its class: this takes long, and most callers do without."""
        return _help_strings(self.block).get(self.key.rpartition(".")[2], "")

    def to_json(self) -> dict[str, Any]:
        """Return what `megabert config --json` prints of it."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "block"}
        return values | {"help": self.help}

    def heading(self) -> str:
        """Format key, default and type or choices in one line, as `megabert config` and --help print them."""
        return f"{self.key}={show(self.default)} ({' | '.join(self.choices) or self.type_name})"


def list_settings(schema: type) -> Iterator[Setting]:
    """List the leaves of a settings dataclass in the order of their definition."""
    return _leaves(schema(), "")


def _leaves(block: Any, prefix: str) -> Iterator[Setting]:
    # Values and types come from the instance, not from the annotation: a subclass may override a block or its defaults.
    hints = typing.get_type_hints(type(block))
    for item in dataclasses.fields(block):
        key, value = f"{prefix}{item.name}", getattr(block, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            choices = item.metadata.get("choices", ())
            yield Setting(key, _type_name(hints[item.name]), value, choices, type(block))


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return name.replace("typing.", "").replace(" | None", " or null")


@functools.cache
def _help_strings(schema: type) -> dict[str, str]:
    """Collect the string under each field, base classes included."""
    helps: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in itertools.pairwise(body.body):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    helps[statement.target.id] = " ".join(text.value.split())
    return helps


def show(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
