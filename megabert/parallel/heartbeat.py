"""Heartbeat thread that detects lost processes: each rank keeps a connection to the next one and reports its end.

The system closes the connections of a process that ends, however it does; TCP keepalive detects a lost machine. Both
need nothing of the process itself, which may keep Python's lock for minutes. A process that waits in a collective
cannot detect a lost peer: the thread then prints an error and ends the process. A rank that fails with an error
publishes it in the store, and the other ranks stop with the same exit code.
"""

import errno
import json
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from ..errors import Interrupted, MegabertError, PeerLost
from .rendezvous import LaunchEnvironment, open_store

INTERVAL = 1.0
# A machine that does not answer keepalive probes is lost after IDLE + COUNT x PROBE_INTERVAL seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
# Seconds to wait for the reason of a failed collective, more than it takes to detect a lost machine.
TIMEOUT = 35.0
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
    except KeyboardInterrupt:
        heartbeat.publish_error("interrupted", Interrupted.exit_code)
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in CONNECTION_WORDS):
            raise heartbeat.wait_for_cause(error) from error
        code = 70
        if isinstance(error, OSError):  # as the command line has it
            code = 74 if error.errno == errno.ENOSPC else 73
        heartbeat.publish_error(f"{type(error).__name__}: {error}", code)
        raise
    finally:
        heartbeat.close()


class Heartbeat:
    """The thread that watches the next rank, and reads from the store what the others report."""

    def __init__(self, launch: LaunchEnvironment) -> None:
        self._launch = launch
        # A separate connection: another thread's wait on the store would delay this one.
        self._store: Any = open_store(launch, is_master=False, timeout=timedelta(seconds=60))
        self._next, self._previous = _connect_ring(launch, self._store)
        self._stopped = threading.Event()
        self._has_cause = threading.Event()
        self._main_thread_waits = False
        self._cause = ""
        self._is_reporter = launch.rank == 0
        self.recovery_command = "megabert train TASK --resume RUN"
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
        self._let_others_read()

    def _let_others_read(self) -> None:
        if self._launch.rank == 0 and not self._launch.has_store:
            time.sleep(2 * INTERVAL)  # the store ends with this process

    def wait_for_cause(self, error: RuntimeError) -> PeerLost:
        """Wait until the thread has found which rank is lost, and return the error to raise."""
        self._main_thread_waits = True
        self._has_cause.wait(timeout=TIMEOUT)
        self._let_others_read()
        lost = PeerLost(self._cause or f"communication between processes failed, though all are running: {error}")
        lost.is_reported = bool(self._cause) and not self._is_reporter
        return lost

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def close(self) -> None:
        """Stop the thread and take leave of the previous rank, which otherwise reports this one as lost."""
        self.stop()
        with suppress(OSError):
            self._previous.sendall(b".")
        self._previous.close()
        # A daemon thread within a call of C++ aborts the process when the interpreter ends.
        self._thread.join(timeout=GRACE)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            if self._launch.parent is not None and os.getppid() != self._launch.parent:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                if self._next_is_lost():
                    self._store.set("lost", str((self._launch.rank + 1) % self._launch.size))
                # After the connections: a rank that fails reports its error before it closes them.
                end = json.loads(self._store.get("end")) if self._store.check(["end"]) else None
                lost = int(self._store.get("lost")) if self._store.check(["lost"]) else None
            except RuntimeError:
                # The rank that hosts the store is gone, unless this process itself is shutting down.
                if self._stopped.wait(INTERVAL):
                    return
                end, lost = None, 0
            if end is not None:
                self._exit_like(*end)
            elif lost is not None:
                self._report_lost(lost)
                return

    def _next_is_lost(self) -> bool:
        """Whether the next rank's connection has ended without a farewell."""
        if self._next.fileno() < 0 or not select.select([self._next], [], [], 0)[0]:
            return False
        try:
            farewell = self._next.recv(1)
        except OSError:
            farewell = b""
        self._next.close()
        return not farewell

    def _exit_like(self, rank: int, exit_code: int, message: str) -> None:
        """Exit with another rank's code, unless this rank stops by itself within the grace period."""
        if self._stopped.wait(GRACE):
            return
        if self._launch.rank == 0:
            _print_error(f"process {rank + 1} of {self._launch.size} stopped: {message}")
        os._exit(exit_code)

    def _report_lost(self, lost: int) -> None:
        self._cause = (
            f"process {lost + 1} of {self._launch.size} is gone, so the others stop. Saved checkpoints are complete; "
            f"resume with: {self.recovery_command}"
        )
        self._is_reporter = self._launch.rank == (1 if lost == 0 else 0)
        self._has_cause.set()
        if self._main_thread_waits or self._stopped.is_set():
            return
        # The main thread waits in a collective that never completes; only the end of the process interrupts it.
        if self._is_reporter:
            _print_error(self._cause)
        self._let_others_read()
        os._exit(PeerLost.exit_code)


def _connect_ring(launch: LaunchEnvironment, store: Any) -> tuple[socket.socket, socket.socket]:
    """Connect to the next rank and accept the previous one; returns both connections.

    A token, passed on in the store, distinguishes the previous rank from a stray client.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((socket.gethostbyname(launch.address), launch.port))  # sends nothing, but chooses an interface
        host = probe.getsockname()[0]
    token = secrets.token_hex(16)
    with socket.create_server((host, 0)) as server:
        store.set(f"address/{launch.rank}", json.dumps([host, server.getsockname()[1], token]))
        *address, next_token = json.loads(store.get(f"address/{(launch.rank + 1) % launch.size}"))
        following = socket.create_connection(tuple(address), timeout=60)
        following.sendall(next_token.encode())
        following.settimeout(None)
        following.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                following.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        server.settimeout(60)
        while True:
            previous, _ = server.accept()
            previous.settimeout(10)
            with suppress(OSError):
                if previous.recv(len(token), socket.MSG_WAITALL) == token.encode():
                    previous.settimeout(None)
                    return following, previous
            previous.close()


def _print_error(message: str) -> None:
    print(f"megabert: {message}", file=sys.stderr, flush=True)
