"""Notice that another process of a run is gone: each writes a number once a second, a thread reads all of them.

A process that waits in a collective cannot notice it by itself: the thread then prints what happened and ends it.
One that comes to an end with an error says so in the same place, and the others stop with its message.
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

EVERY = 1.0
# Seconds without a sign of life: where a message to the others has failed already, and where nothing is known yet.
# Work that keeps Python from running threads takes less.
LOST_AFTER, SILENT_AFTER = 6.0, 20.0
# Seconds that a process gets to come to the same end as another one that failed.
GRACE = 5.0
# What a failed collective says of a connection; every other fault is the process' own.
CONNECTION = ("gloo", "nccl", "connection", "broken pipe", "socket", "store", "timed out", "timeout")


@contextmanager
def heartbeat_thread(launch: LaunchEnvironment) -> Iterator["Watch"]:
    """Watch the other processes while the body runs, and tell them if it fails. Raises PeerLost if one is gone."""
    watch = Watch(launch)
    try:
        yield watch
    except MegabertError as error:
        error.is_reported = launch.rank != 0
        watch.tell(str(error), error.exit_code)
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in CONNECTION):
            raise watch.judge(error) from error
        watch.tell(f"{type(error).__name__}: {error}", 70)
        raise
    finally:
        watch.stop()


class Watch:
    """The thread that writes this process' number and reads those of the others."""

    def __init__(self, launch: LaunchEnvironment) -> None:
        self._launch = launch
        # A connection of its own: another thread's wait on the store would hold up the beats.
        self._store: Any = open_store(launch, is_master=False, timeout=timedelta(seconds=10))
        self._stopped = threading.Event()
        self._decided = threading.Event()
        self._main_waits = False
        self._verdict = ""
        self._speaks = launch.rank == 0
        self.advice = "megabert train TASK --resume RUN"
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def tell(self, message: str, exit_code: int) -> None:
        """Let the others know that this process stops, and why."""
        self.stop()
        self._thread.join(timeout=GRACE)
        try:
            self._store.set("end", json.dumps([self._launch.rank, exit_code, message]))
        except RuntimeError:
            return  # there is nobody to tell: whoever held the store is gone
        if self._launch.rank == 0 and not self._launch.has_store:
            time.sleep(2 * EVERY)  # the store goes with this process; the others read it first

    def judge(self, error: RuntimeError) -> PeerLost:
        """Wait until it is known who is gone, and make an error of it."""
        self._main_waits = True
        self._decided.wait(timeout=SILENT_AFTER)
        lost = PeerLost(self._verdict or f"a message between processes failed, though all are there: {error}")
        lost.is_reported = bool(self._verdict) and not self._speaks
        return lost

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(EVERY):
            number += 1
            if self._launch.parent is not None and os.getppid() != self._launch.parent:
                os.kill(os.getpid(), signal.SIGTERM)
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
            elif lost:
                self._give_up(lost)
                return

    def _find_lost(self) -> list[int]:
        now, lost = time.monotonic(), []
        patience = LOST_AFTER if self._main_waits else SILENT_AFTER
        for rank in range(self._launch.size):
            key = f"beat/{rank}"
            value = self._store.get(key) if self._store.check([key]) else b""
            before, since = self._seen.get(rank, (b"", now))
            self._seen[rank] = (value, since if value == before else now)
            # Until its first beat a process may still be starting.
            if value and now - self._seen[rank][1] > patience:
                lost.append(rank)
        return lost

    def _follow(self, rank: int, exit_code: int, message: str) -> None:
        """Stop as another process did, unless this one does so by itself."""
        if self._stopped.wait(GRACE):
            return
        if self._launch.rank == 0:
            _say(f"process {rank + 1} of {self._launch.size} stopped: {message}")
        os._exit(exit_code)

    def _give_up(self, lost: list[int]) -> None:
        names = " and ".join(str(rank + 1) for rank in lost)
        self._verdict = (
            f"process {names} of {self._launch.size} is gone, so the others stop. What was saved is whole; go on with: "
            f"{self.advice}"
        )
        self._speaks = self._launch.rank == min(set(range(self._launch.size)) - set(lost))
        self._decided.set()
        if self._main_waits or self._stopped.is_set():
            return
        # The main thread waits for what never comes; nothing but the end of the process wakes it.
        if self._speaks:
            _say(self._verdict)
        os._exit(PeerLost.exit_code)


def _say(message: str) -> None:
    print(f"megabert: {message}", file=sys.stderr, flush=True)
