"""Fields of requests: one table describes, checks and documents them. JSON is bounded before anything looks at it."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .refusals import Refusal, invalid

MAX_DEPTH = 32
REQUIRED = object()
_SURROGATE = re.compile("[\ud800-\udfff]")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Name of a kind -> (whether a value is of it, its JSON schema)
KINDS: Mapping[str, tuple[Callable[[Any], bool], dict[str, Any]]] = {
    "string": (_is_text, {"type": "string"}),
    "list of strings": (_is_texts, {"type": "array", "items": {"type": "string"}}),
    "string or list of strings": (
        lambda value: _is_text(value) or _is_texts(value),
        {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    ),
    "boolean": (lambda value: isinstance(value, bool), {"type": "boolean"}),
    "integer": (_is_integer, {"type": "integer"}),
    "object": (lambda value: isinstance(value, dict), {"type": "object"}),
    "list": (lambda value: isinstance(value, list), {"type": "array", "items": {}}),
    "any": (lambda value: True, {}),
}


@dataclass(frozen=True)
class RequestField:
    """A field of a request's JSON object."""

    name: str
    kind: str
    help: str
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()

    def read(self, body: Mapping[str, Any]) -> Any:
        """Return the checked value; null is as good as none. Raises Refusal that names the field."""
        value = body.get(self.name)
        if value is None:
            if self.default is REQUIRED:
                raise invalid(f"{self.name} is missing: a {self.kind}.", self.name)
            return self.default
        if not KINDS[self.kind][0](value):
            raise invalid(f"{self.name} is a {json_name(value)}; expected a {self.kind}.", self.name)
        if self.choices and value not in self.choices:
            raise invalid(f"{self.name} is none of {', '.join(self.choices)}.", self.name)
        return value

    def schema(self) -> dict[str, Any]:
        """Return its JSON schema."""
        default = {} if self.default is REQUIRED or self.default is None else {"default": self.default}
        choices = {"enum": list(self.choices)} if self.choices else {}
        return {**KINDS[self.kind][1], "description": self.help, **default, **choices}


def json_name(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "value")


def read_fields(body: Mapping[str, Any], fields: Sequence[RequestField], *, are_all: bool) -> dict[str, Any]:
    """Check the fields of a body; `are_all`: others are refused instead of ignored."""
    if are_all:
        names = [field.name for field in fields]
        unknown = next((name for name in body if name not in names), None)
        if unknown is not None:
            raise invalid(f"{unknown[:40]} is no field of this route: {', '.join(names)}.", unknown[:40])
    return {field.name: field.read(body) for field in fields}


def parse_body(data: bytes) -> dict[str, Any]:
    """Parse a request's JSON object. Raises Refusal for anything else, deep nesting, NaN, and half characters."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8.") from None
    except RecursionError:
        raise Refusal(400, f"the JSON is nested deeper than {MAX_DEPTH}.") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:100]}.") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body is no JSON object.")
    _check_values(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_values(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Refusal(400, f"the JSON is nested deeper than {MAX_DEPTH}.")
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item.keys()
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str) and _SURROGATE.search(item):
                raise invalid("a string is not valid Unicode: half a surrogate pair.")
            elif isinstance(item, float) and not math.isfinite(item):
                raise invalid("a number is too large.")
        level = following
