"""Notice that another process of a run is gone: each writes a number once a second, a thread reads all of them.

A process that waits in a collective cannot notice it by itself: the thread then prints what happened and ends it.
One that comes to an end with an error says so in the same place, and the others stop with its message.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ..errors import MegabertError, PeerLost
from .mesh import Launch, open_store

EVERY = 1.0
LOST_AFTER = 15.0
# Seconds that a process gets to come to the same end as another one that failed.
GRACE = 5.0
# What a failed collective says of a connection; everything else is a fault of the process itself.
CONNECTION = ("gloo", "nccl", "connection", "broken pipe", "socket", "store", "timed out", "timeout")


@contextmanager
def beating(launch: Launch) -> Iterator[None]:
    """Watch the other processes while the body runs, and tell them if it fails. Raises PeerLost if one is gone."""
    watch = Watch(launch)
    try:
        yield
    except MegabertError as error:
        watch.tell(str(error), error.exit_code)
        raise
    except RuntimeError as error:
        if any(word in str(error).lower() for word in CONNECTION):
            watch.wait_for_verdict()
            raise PeerLost(watch.verdict or f"a message to the other processes failed: {error}") from error
        watch.tell(f"{type(error).__name__}: {error}", 70)
        raise
    except Exception as error:
        watch.tell(f"{type(error).__name__}: {error}", 70)
        raise
    finally:
        watch.stop()


class Watch:
    """The thread that writes this process' number and reads those of the others."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        # A connection of its own: another thread's wait on the store would hold up the beats.
        self._store: Any = open_store(launch, is_master=False, timeout=timedelta(seconds=10))
        self._stopped = threading.Event()
        self._decided = threading.Event()
        self._main_waits = False
        self.verdict = ""
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def tell(self, message: str, exit_code: int) -> None:
        """Let the others know that this process stops, and why."""
        self._stopped.set()
        self._thread.join(timeout=5)
        try:
            self._store.set("end", json.dumps([self._launch.rank, exit_code, message]))
        except RuntimeError:
            return  # with nobody to tell: whoever held the store is gone

    def wait_for_verdict(self) -> None:
        """Wait until it is known who is gone; `verdict` is empty if all are there."""
        self._main_waits = True
        self._decided.wait(timeout=LOST_AFTER + 5 * EVERY)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(EVERY):
            number += 1
            try:
                self._store.set(f"beat/{self._launch.rank}", str(number))
                end = json.loads(self._store.get("end")) if self._store.check(["end"]) else None
                lost = self._find_lost()
            except RuntimeError:
                # Unless this process itself is on its way out, the one that holds the store is not there any more.
                if self._stopped.wait(EVERY):
                    return
                end, lost = None, [0]
            if end is not None:
                self._follow(*end)
            if lost:
                self._give_up(lost)

    def _find_lost(self) -> list[int]:
        now, lost = time.monotonic(), []
        for rank in range(self._launch.size):
            key = f"beat/{rank}"
            value = self._store.get(key) if self._store.check([key]) else b""
            before, since = self._seen.get(rank, (b"", now))
            self._seen[rank] = (value, since if value == before and rank in self._seen else now)
            # Until its first beat a process may still be starting.
            if value and now - self._seen[rank][1] > LOST_AFTER:
                lost.append(rank)
        return lost

    def _follow(self, rank: int, exit_code: int, message: str) -> None:
        if self._stopped.wait(GRACE):
            return
        if self._launch.rank == min({0, 1} - {rank}):
            say(f"process {rank + 1} of {self._launch.size} stopped: {message}")
        os._exit(exit_code)

    def _give_up(self, lost: list[int]) -> None:
        names = ", ".join(str(rank + 1) for rank in lost)
        self.verdict = (
            f"process {names} of {self._launch.size} is gone (not heard of for {LOST_AFTER:.0f} s), so all stop. "
            "The last checkpoint is whole; go on with: megabert train TASK --resume RUN"
        )
        self._decided.set()
        if self._main_waits:
            self._stopped.wait(EVERY * 10)
        if self._stopped.is_set():
            return
        # The main thread waits for what never comes; nothing but the end of the process wakes it.
        alive = [rank for rank in range(self._launch.size) if rank not in lost]
        if self._launch.rank == min(alive):
            say(self.verdict)
        os._exit(PeerLost.exit_code)


def say(message: str) -> None:
    """Print a line for people."""
    print(f"megabert: {message}", file=sys.stderr, flush=True)
