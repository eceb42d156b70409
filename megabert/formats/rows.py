"""A row of a table or of a JSON lines file: its values by column, and its location for messages."""

from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Row:
    """One record; `location` is its file and line."""

    values: dict[str, Any]
    location: str

    def get(self, name: str) -> Any:
        """Return a required value."""
        if name not in self.values:
            found = ", ".join(map(repr, self.values)) or "nothing"
            raise InputError(f"{self.location}: there is no {name!r}; found {found}.")
        return self.values[name]

    def others(self, *names: str | None) -> dict[str, Any]:
        """Return the values of all other names."""
        return {name: value for name, value in self.values.items() if name not in names}

    def identifier(self, default: Any, name: str = "id") -> str:
        """Return a string or number as a string; that of `default` where it is missing or null."""
        value = self.values.get(name)
        if isinstance(value, bool | list | dict) or value != value:  # NaN is not equal to itself
            raise InputError(f"{self.location}: {name!r} is {str(value)[:40]!r}; expected a string or a number.")
        return str(default if value is None else value)

    def string(self, name: str) -> str:
        """Return a required string that is not blank."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.location}: {name!r} is {value!r}; expected a string that is not blank.")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a required list of strings that is not empty."""
        value = self.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise InputError(
                f"{self.location}: {name!r} is {str(value)[:60]!r}; expected a list of strings, none empty."
            )
        return tuple(value)
