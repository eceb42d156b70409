"""List the settings of a schema with type, default, choices and help text, for `megabert config` and docs."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One key of a settings schema, as `megabert config` prints it."""

    key: str
    type_name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()


def list_settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """List the leaves of a settings dataclass in the order in which they are written."""
    hints = typing.get_type_hints(schema)
    helps = _help_strings(schema)
    default = schema()
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            # The instance, not the annotation: a subclass may put its own block or other defaults in place.
            yield from _with_defaults(value, f"{key}.")
        else:
            choices = field.metadata.get("choices", ())
            yield Setting(key, _type_name(hints[field.name]), value, helps.get(field.name, ""), choices)


def _with_defaults(block: Any, prefix: str) -> Iterator[Setting]:
    for setting in list_settings(type(block), prefix):
        value = block
        for name in setting.key.removeprefix(prefix).split("."):
            value = getattr(value, name)
        yield dataclasses.replace(setting, default=value)


def _type_name(hint: Any) -> str:
    name = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return name.replace("typing.", "").replace(" | None", " or null")


def _help_strings(schema: type) -> dict[str, str]:
    """Collect the string under each field, those of base classes included."""
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
    """Write a value as one would on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
