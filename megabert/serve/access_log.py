"""Access log: a JSON object a line for each request, without texts. A full disk loses lines, never an answer."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from ..errors import ConfigError


class AccessLog:
    """Writes to a file, to standard error (-), or nowhere (none)."""

    def __init__(self, target: str) -> None:
        self._file: IO[str] | None = None
        self._lock = threading.Lock()
        if target == "-":
            self._file = sys.stderr
        elif target != "none":
            try:
                self._file = open(target, "a", encoding="utf-8", buffering=1)  # noqa: SIM115, PTH123
            except OSError as error:
                raise ConfigError(f"the access log {target} cannot be opened: {error.strerror}.") from None

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line."""
        if self._file is not None:
            record = {"time": round(time.time(), 3), **line}
            with self._lock, suppress(OSError, ValueError):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
