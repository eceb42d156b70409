"""A request to stop, by Ctrl-C or SIGTERM, made a flag that the loop looks at between steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step is ended and saved; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread only
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    with signal_handler(ask):
        yield asked


@contextmanager
def signal_handler(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Call the handler at Ctrl-C and SIGTERM; for the main thread only. Afterwards what was before is there again."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
