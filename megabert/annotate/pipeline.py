"""Pipeline of processes: one reads chunks, several work on them, this one runs the networks and yields the results.

The results come in the order of the chunks, and a chunk's batches hold its own sequences only: neither order nor
content depends on the number of workers. A bounded number of chunks is in flight, so memory is bounded, too.
"""

import gc
import multiprocessing
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from ..data.prefetch import prefetch
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
"""One batch computes while the host packs the next, and copies the logits of the one before."""
CHUNKS_PER_WORKER = 4
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
        _switch_interval(SWITCH_INTERVAL),
        _processes(read, make_work, len(sessions), workers) as (reader, connections),
    ):
        idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for connection in connections:
            idle.put(connection)
        with ThreadPoolExecutor(CONCURRENT_RUNS, thread_name_prefix="run") as runs:

            def work(chunk: bytes) -> Any:
                """Give a chunk to an idle worker and run the networks for it until it has the result."""
                connection = idle.get()
                with _named_end("worker"):
                    connection.send_bytes(chunk)
                    while isinstance(message := connection.recv(), RunRequest):
                        connection.send(runs.submit(message.answer, sessions).result())
                idle.put(connection)
                return message

            results = prefetch(work, _received(reader), depth=CHUNKS_PER_WORKER * workers, threads=workers)
            with closing(results):
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                    yield result


@contextmanager
def _switch_interval(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _processes(
    read: ReadChunks, make_work: MakeWork, num_sessions: int, workers: int
) -> Iterator[tuple[Connection, list[Connection]]]:
    """Start the process that reads and the workers; stop them at the end. Each also ends when this process does."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        for number in range(workers + 1):
            here, there = context.Pipe()
            connections.append(here)
            if number == 0:
                process = context.Process(target=_read, args=(there, read), daemon=True)
            else:
                process = context.Process(target=_work, args=(there, make_work, num_sessions), daemon=True)
            process.start()
            processes.append(process)
            there.close()  # the process has it: its end is the pipe's end
        yield connections[0], connections[1:]
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
            process.join()


def _received(reader: Connection) -> Iterator[bytes]:
    """Yield the pickled chunks of the process that reads; an exception of it is a last chunk, raised in its turn."""
    while True:
        with _named_end("reader"):
            chunk = reader.recv_bytes()
        if not chunk:
            return
        yield chunk


@contextmanager
def _named_end(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise MegabertError(
            f"a {name} process ended unexpectedly; perhaps the system ran out of memory. Resume with fewer workers."
        ) from None


def collect_rarely() -> None:
    """Search for reference cycles rarely in this process: documents have none, and a search takes a fifth of its time.

    What there is now is not searched again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def _read(connection: Connection, read: ReadChunks) -> None:
    """Send each chunk, then nothing; an exception is sent like a chunk."""
    with suppress(BrokenPipeError, KeyboardInterrupt):
        collect_rarely()
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
        collect_rarely()
        while True:
            chunk = connection.recv()
            try:
                result = chunk if isinstance(chunk, Exception) else work(chunk)
            except (EOFError, OSError):
                raise
            except Exception as error:
                result = error
            connection.send(result)
