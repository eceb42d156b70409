"""A row of a table or JSON-lines file: its values by column, and its place for messages."""

from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Row:
    """One record: its values by column, and where it stands, for messages."""

    values: dict[str, Any]
    place: str

    def get(self, name: str) -> Any:
        """Give a value that must be there."""
        if name not in self.values:
            raise InputError(f"{self.place}: there is no {name!r}.")
        return self.values[name]

    def text(self, name: str) -> str:
        """Give a text that must be there."""
        value = self.get(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.place}: {name!r} is {value!r}; expected a text.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Give a list of texts that must be there."""
        value = self.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise InputError(f"{self.place}: {name!r} is {str(value)[:60]!r}; expected a list of texts.")
        return tuple(value)
