"""Pipeline of processes: one reads chunks, several work on them, this one runs the networks and yields the results.

The results come in the order of the chunks, and a chunk's batches hold its own sequences only: neither order nor
content depends on the number of workers. A bounded number of chunks is in flight, so memory is bounded, too.
"""

import ctypes
import gc
import multiprocessing
import selectors
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..errors import MegabertError
from ..inference import Session
from .remote_session import RemoteSession, RunRequest

ReadChunks = Callable[[], Iterator[Any]]
Work = Callable[[Any], Any]
MakeWork = Callable[[Sequence[Session]], Work]
"""Called once in each worker with its sessions; returns the function from a chunk to its result."""

SWITCH_INTERVAL = 0.0002
"""Seconds after which a thread must give up Python's lock: those that launch GPU work must not wait for the others."""
CONCURRENT_RUNS = 2
"""The batches of one compute while the host packs those of the next, and sends the logits of the one before."""
CHUNKS_PER_WORKER = 4
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt."""
KEPT_BYTES = 64 * 2**20
GARBAGE_THRESHOLD = 500_000
"""New objects after which workers search for reference cycles; a chunk makes some 100,000."""


def process_chunks(read: ReadChunks, make_work: MakeWork, sessions: Sequence[Session], workers: int) -> Iterator[Any]:
    """Yield the result of each chunk, in order; with 0 workers all is done in this process.

    `read` and `make_work` must be picklable: the processes are spawned, since a process with threads must not fork.
    Raises what reading or working on a chunk raised, in its turn.
    """
    if workers == 0:
        yield from map(make_work(sessions), read())
        return
    with (
        _undisturbed(),
        _processes(read, make_work, len(sessions), workers) as (reader, connections),
        closing(_Dispatcher(reader, connections, sessions)) as dispatcher,
    ):
        for result in dispatcher.results():
            if isinstance(result, BaseException):
                raise result
            yield result


@dataclass
class _StartedRun:
    """A run of a network that has begun: the event of the GPU that it waits for."""

    connection: Connection
    steps: Generator[Any, None, Any]
    event: Any = None


class _Dispatcher:
    """Hand chunks to idle workers, and run the networks for them.

    All in one thread and without waiting, except where nothing else is left to do: several threads would take turns
    with Python's lock between any two launches of GPU kernels.
    """

    def __init__(self, reader: Connection, workers: Sequence[Connection], sessions: Sequence[Session]) -> None:
        self._reader, self._sessions = reader, sessions
        self._depth = CHUNKS_PER_WORKER * len(workers)
        self._selector = selectors.DefaultSelector()
        for connection in (reader, *workers):
            self._selector.register(connection, selectors.EVENT_READ)
        self._reads = self._is_reading = True
        self._idle = deque(workers)
        self._chunks: deque[bytes] = deque()
        self._requests: deque[tuple[Connection, RunRequest]] = deque()
        self._running: deque[_StartedRun] = deque()
        self._number_of: dict[Connection, int] = {}
        """Which chunk each worker has."""
        self._done: dict[int, Any] = {}
        self._num_sent = self._num_yielded = 0

    def close(self) -> None:
        """Stop the runs."""
        for run in self._running:
            run.steps.close()
        self._selector.close()

    def results(self) -> Iterator[Any]:
        """Yield the result of each chunk, in order."""
        while True:
            while self._num_yielded in self._done:
                yield self._done.pop(self._num_yielded)
                self._num_yielded += 1
            if not self._reads and not self._chunks and self._num_yielded == self._num_sent:
                return
            can_go_on = [self._send_chunks(), self._start_runs(), self._continue_runs()]
            waits = not any(can_go_on) and not self._running
            if not self._receive(None if waits else 0) and not any(can_go_on):
                self._running[0].event.synchronize()

    def _receive(self, timeout: float | None) -> bool:
        """Take what the processes have sent; returns whether there was something."""
        is_behind = self._num_sent + len(self._chunks) - self._num_yielded < self._depth
        if self._is_reading != (self._reads and is_behind):
            self._is_reading = not self._is_reading
            if self._is_reading:
                self._selector.register(self._reader, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._reader)
        ready = self._selector.select(timeout)
        for key, _ in ready:
            connection: Any = key.fileobj
            if connection is self._reader:
                with _named_end("reader"):
                    chunk = connection.recv_bytes()
                self._reads = bool(chunk)
                self._chunks.extend([chunk] if chunk else [])
                continue
            with _named_end("worker"):
                message = connection.recv()
            if isinstance(message, RunRequest):
                self._requests.append((connection, message))
            else:
                self._done[self._number_of.pop(connection)] = message
                self._idle.append(connection)
        return bool(ready)

    def _send_chunks(self) -> bool:
        can_send = bool(self._chunks and self._idle)
        while self._chunks and self._idle:
            connection = self._idle.popleft()
            with _named_end("worker"):
                connection.send_bytes(self._chunks.popleft())
            self._number_of[connection] = self._num_sent
            self._num_sent += 1
        return can_send

    def _start_runs(self) -> bool:
        can_start = bool(self._requests) and len(self._running) < CONCURRENT_RUNS
        if can_start:
            connection, request = self._requests.popleft()
            self._running.append(_StartedRun(connection, request.steps(self._sessions)))
            self._step(self._running[-1])
        return can_start

    def _continue_runs(self) -> bool:
        """Continue the first run whose event is over."""
        for run in self._running:
            if run.event.query():
                self._step(run)
                return True
        return False

    def _step(self, run: _StartedRun) -> None:
        """Let a run go on to the next event; at its end the worker gets what it returned."""
        try:
            run.event = next(run.steps)
            return
        except StopIteration as end:
            with _named_end("worker"):
                run.connection.send(end.value)
        except Exception as error:  # the worker that waits is of no use any more
            self._done[self._number_of.pop(run.connection)] = error
        self._running.remove(run)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let the thread that launches GPU work neither wait long for others nor search all objects for cycles."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(SWITCH_INTERVAL)
    prepare_memory()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.unfreeze()


@contextmanager
def _processes(
    read: ReadChunks, make_work: MakeWork, num_sessions: int, workers: int
) -> Iterator[tuple[Connection, list[Connection]]]:
    """Start the process that reads and the workers; stop them at the end. Each also ends when this process does."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        for _ in range(workers + 1):
            here, there = context.Pipe()
            connections.append(here)
            process = context.Process(target=_run, args=(there,), daemon=True)
            process.start()
            processes.append(process)
            there.close()  # the process has it: its end is the pipe's end
        # Behind all starts: what does not fit into a pipe waits until a process has begun to read.
        reader, *others = connections
        with _named_end("reader"):
            reader.send(partial(_read, read=read))
        work = ForkingPickler.dumps(partial(_work, make_work=make_work, num_sessions=num_sessions))
        with _named_end("worker"):
            for connection in others:
                connection.send_bytes(work)
        yield reader, others
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


@contextmanager
def _named_end(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise MegabertError(
            f"a {name} process ended unexpectedly; perhaps the system ran out of memory. Resume with fewer workers."
        ) from None


def prepare_memory() -> None:
    """Let this process search for reference cycles rarely, and keep the memory that it frees.

    Documents have no cycles, and a search takes a fifth of the time; what there is now is not searched again. Memory
    that is given back to the system and taken again for the arrays of each chunk takes a quarter.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        for option in (M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def _run(connection: Connection) -> None:
    """Run the function that is sent first, with the connection."""
    with suppress(EOFError, ConnectionResetError, KeyboardInterrupt):
        connection.recv()(connection)


def _read(connection: Connection, read: ReadChunks) -> None:
    """Send each chunk, then nothing; an exception is sent like a chunk."""
    with suppress(BrokenPipeError, KeyboardInterrupt):
        prepare_memory()
        try:
            for chunk in read():
                connection.send(chunk)
        except Exception as error:
            connection.send(error)
        connection.send_bytes(b"")


def _work(connection: Connection, make_work: MakeWork, num_sessions: int) -> None:
    """Answer each chunk with its result or the exception that it raised, until the pipe is closed."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        work = make_work([RemoteSession(connection, number) for number in range(num_sessions)])
        prepare_memory()
        while True:
            chunk = connection.recv()
            try:
                result = chunk if isinstance(chunk, Exception) else work(chunk)
            except (EOFError, OSError):
                raise
            except Exception as error:
                result = error
            connection.send(result)
