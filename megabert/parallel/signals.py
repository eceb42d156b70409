"""Ctrl-C and SIGTERM as a stop flag that the training loop checks between steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C or SIGTERM, so that the step is completed and saved; the second interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread can handle signals
        return

    def request_stop(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with signal_handler(request_stop):
        yield stop


@contextmanager
def signal_handler(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM in the main thread; restore the previous handlers on exit."""
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
