"""Logs that hold up no answer: a thread writes their lines, which are lost, and counted, where it cannot.

A full disk, or a pipe that nobody reads, costs lines only. The access log has a JSON object a request, without texts.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, printable

MAX_WAITING_LINES = 10_000


class LogWriter:
    """Writes lines to a file, to standard error (-), or nowhere (none)."""

    def __init__(self, target: str, on_loss: Callable[[], None] = lambda: None) -> None:
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING_LINES)
        self._on_loss = on_loss
        self._is_used = target != "none"
        if self._is_used:
            # Written without Python's streams: at exit these would wait for a thread that waits for a pipe.
            self._descriptor = 2 if target == "-" else _open(target)
            threading.Thread(target=self._work, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Queue a line."""
        if self._is_used:
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                self._on_loss()

    def write_access(self, line: Mapping[str, Any]) -> None:
        """Queue a line of the access log."""
        if self._is_used:
            self.write(json.dumps({"time": round(time.time(), 3), **line}))

    def close(self, seconds: float = 1.0) -> None:
        """Wait until all lines are written, for so many seconds at most."""
        end = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _work(self) -> None:
        while True:
            rest = f"{printable(self._lines.get())}\n".encode()
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError:
                self._on_loss()
            self._lines.task_done()


def _open(target: str) -> int:
    try:
        return os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"the access log {target} cannot be opened: {error.strerror}.") from None
