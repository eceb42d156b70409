"""Heartbeat thread that detects lost processes: each rank increments a counter in the store, and all read the counters.

A process that waits in a collective cannot detect a lost peer: the thread then prints an error and ends the process.
A rank that fails with an error publishes it in the store, and the other ranks stop with the same exit code.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ..errors import MegabertError, PeerLost
from .rendezvous import LaunchEnvironment, open_store

INTERVAL = 1.0
# Seconds without a heartbeat until a rank counts as lost: after a collective has failed here, and otherwise. Work that
# keeps Python from running threads takes less.
TIMEOUT_AFTER_ERROR, TIMEOUT = 6.0, 20.0
# Seconds that a rank gets to stop by itself with the error that another rank has published.
GRACE = 5.0
# Words of errors that mean a failed connection; every other error is this process' own.
CONNECTION_WORDS = ("gloo", "nccl", "connection", "broken pipe", "socket", "store", "timed out", "timeout")


@contextmanager
def heartbeat_thread(launch: LaunchEnvironment) -> Iterator["Heartbeat"]:
    """Monitor the other ranks while the body runs and publish its error, if any. Raises PeerLost if a rank is lost."""
    heartbeat = Heartbeat(launch)
    try:
        yield heartbeat
    except MegabertError as error:
        error.is_reported = launch.rank != 0
        heartbeat.publish_error(str(error), error.exit_code)
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in CONNECTION_WORDS):
            raise heartbeat.wait_for_cause(error) from error
        heartbeat.publish_error(f"{type(error).__name__}: {error}", 70)
        raise
    finally:
        heartbeat.stop()


class Heartbeat:
    """The thread that increments this rank's counter and reads those of the others."""

    def __init__(self, launch: LaunchEnvironment) -> None:
        self._launch = launch
        # A separate connection: another thread's wait on the store would delay the heartbeats.
        self._store: Any = open_store(launch, is_master=False, timeout=timedelta(seconds=10))
        self._stopped = threading.Event()
        self._has_cause = threading.Event()
        self._main_thread_waits = False
        self._cause = ""
        self._is_reporter = launch.rank == 0
        self.recovery_command = "megabert train TASK --resume RUN"
        self._last_seen: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def publish_error(self, message: str, exit_code: int) -> None:
        """Write to the store that this rank stops, and why."""
        self.stop()
        self._thread.join(timeout=GRACE)
        try:
            self._store.set("end", json.dumps([self._launch.rank, exit_code, message]))
        except RuntimeError:
            return  # the rank that hosted the store is gone, and so is every reader
        if self._launch.rank == 0 and not self._launch.has_store:
            time.sleep(2 * INTERVAL)  # the store ends with this process; let the others read it first

    def wait_for_cause(self, error: RuntimeError) -> PeerLost:
        """Wait until the thread has found which rank is lost, and return the error to raise."""
        self._main_thread_waits = True
        self._has_cause.wait(timeout=TIMEOUT)
        lost = PeerLost(self._cause or f"communication between processes failed, though all are running: {error}")
        lost.is_reported = bool(self._cause) and not self._is_reporter
        return lost

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(INTERVAL):
            count += 1
            if self._launch.parent is not None and os.getppid() != self._launch.parent:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                self._store.set(f"beat/{self._launch.rank}", str(count))
                end = json.loads(self._store.get("end")) if self._store.check(["end"]) else None
                lost = self._find_lost_ranks()
            except RuntimeError:
                # The rank that hosts the store is gone, unless this process itself is shutting down.
                if self._stopped.wait(INTERVAL):
                    return
                end, lost = None, [0]
            if end is not None:
                self._exit_like(*end)
            elif lost:
                self._report_lost(lost)
                return

    def _find_lost_ranks(self) -> list[int]:
        now, lost = time.monotonic(), []
        timeout = TIMEOUT_AFTER_ERROR if self._main_thread_waits else TIMEOUT
        for rank in range(self._launch.size):
            key = f"beat/{rank}"
            value = self._store.get(key) if self._store.check([key]) else b""
            last_value, since = self._last_seen.get(rank, (b"", now))
            self._last_seen[rank] = (value, since if value == last_value else now)
            # A rank without any heartbeat may still be starting.
            if value and now - self._last_seen[rank][1] > timeout:
                lost.append(rank)
        return lost

    def _exit_like(self, rank: int, exit_code: int, message: str) -> None:
        """Exit with another rank's code, unless this rank stops by itself within the grace period."""
        if self._stopped.wait(GRACE):
            return
        if self._launch.rank == 0:
            _print_error(f"process {rank + 1} of {self._launch.size} stopped: {message}")
        os._exit(exit_code)

    def _report_lost(self, lost: list[int]) -> None:
        names = " and ".join(str(rank + 1) for rank in lost)
        self._cause = (
            f"process {names} of {self._launch.size} is gone, so the others stop. Saved checkpoints are complete; "
            f"resume with: {self.recovery_command}"
        )
        self._is_reporter = self._launch.rank == min(set(range(self._launch.size)) - set(lost))
        self._has_cause.set()
        if self._main_thread_waits or self._stopped.is_set():
            return
        # The main thread waits in a collective that never completes; only the end of the process interrupts it.
        if self._is_reporter:
            _print_error(self._cause)
        os._exit(PeerLost.exit_code)


def _print_error(message: str) -> None:
    print(f"megabert: {message}", file=sys.stderr, flush=True)
