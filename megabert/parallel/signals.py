"""Ctrl-C and SIGTERM: a stop flag that the training loop checks between steps, elsewhere an exception."""

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
def interrupt_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM as at Ctrl-C, so that a command removes what it has half written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with signal_handler(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def signal_handler(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals (Ctrl-C and SIGTERM) in the main thread; restore the previous handlers on exit."""
    handled = numbers or (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
