"""Passes over the records of large files by several processes, with the results in the files' order.

The processes are forked, as torch's DataLoader does: they have the readers, the task and the tokenizer without copying
them, and run neither torch nor other threads. Each reads parts of the files, which end at the ends of lines or
sentences. Where a file cannot be divided, such as a compressed one or JSON's single value, there is one part.
"""

import codecs
import contextvars
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from ..errors import MegabertError
from ..tokenizers.wordpiece import runs_on_one_core
from .data_files import is_compressed
from .record_streams import Part, RecordStream, reading_part, total_size

MIN_SIZE = 2**24
"""Bytes of the data files from which on several processes are faster."""
MAX_PROCESSES = 12
"""Each has some 100 MB of its own."""
PART_SIZE = 2**20
"""Bytes of a file that are read at once."""
ENDED = "ended unexpectedly"
_num_processes: contextvars.ContextVar[int] = contextvars.ContextVar("num_processes", default=1)
RecordType = TypeVar("RecordType")
ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")


@contextmanager
def several_processes(files: Iterable[str]) -> Iterator[None]:
    """Let passes within be divided among processes where the files are large together."""
    is_worthwhile = sys.platform == "linux" and total_size(files) >= MIN_SIZE
    token = _num_processes.set(min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if is_worthwhile else 1)
    try:
        yield
    finally:
        _num_processes.reset(token)


def are_several_processes() -> bool:
    """Return whether passes are divided among processes here."""
    return _num_processes.get() > 1


def by_parts(
    records: Sequence[RecordType], function: Callable[[Iterable[RecordType]], ResultType]
) -> Generator[ResultType, None, None]:
    """Yield the function's results for the parts of the records, in order; one for all if they are not divided.

    The function goes through all records that it gets.
    """
    if not is_divided(records):
        yield function(records)
        return
    assert isinstance(records, RecordStream)

    def of_part(part: Part) -> tuple[ResultType, int | None]:
        reading_part.set(part)
        records.length = None
        return function(records), records.length

    total = 0
    for result, length in forked_map(of_part, _parts(records)):
        assert length is not None, "a pass over a part ends at its end"
        total += length
        yield result
    records.length = total


def is_divided(records: Sequence[Any]) -> bool:
    """Return whether several processes read parts of the records."""
    if not (are_several_processes() and isinstance(records, RecordStream)):
        return False
    return bool(records.files) and not any(map(is_compressed, records.files))


def _parts(records: RecordStream[Any]) -> Iterator[Part]:
    """Divide the files of records at the ends of lines, or behind empty lines; the first part of each is not blank."""
    for number, path in enumerate(records.files):
        start, first_line, is_filled = 0, 1, False
        with path.open("rb") as file:
            while (block := file.read(PART_SIZE) + file.readline()) or start == 0:
                size, num_lines = len(block), block.count(b"\n") + (not block.endswith(b"\n"))
                line, is_filled = block.removesuffix(b"\n").rpartition(b"\n")[2], is_filled or not _is_blank(block)
                while not is_filled or (records.unit == "sentence" and not _is_empty(line)):
                    if not (line := file.readline()):
                        break
                    size, num_lines, is_filled = size + len(line), num_lines + 1, is_filled or not _is_blank(line)
                yield Part(number, path, start, first_line, num_lines)
                start, first_line = start + max(size, 1), first_line + num_lines


def _is_blank(start: bytes) -> bool:
    # Of any white space, as readers leave lines out; what is no UTF-8 is an error of theirs.
    return not start.removeprefix(codecs.BOM_UTF8).decode(errors="replace").strip()


def _is_empty(line: bytes) -> bool:
    return not line.removesuffix(b"\n").removesuffix(b"\r").strip(b" \t")


def forked_map(
    function: Callable[[ItemType], ResultType], items: Iterable[ItemType]
) -> Generator[ResultType, None, None]:
    """Yield function(item) for each item, in order, computed by forked processes, one item each at a time.

    An error or a warning of the function is raised here, at its item. The processes end with this one, and when the
    generator is closed.
    """
    remaining, num_processes = iter(items), _num_processes.get()
    context = multiprocessing.get_context("fork")
    processes: list[Any] = []
    connections: list[Connection] = []
    waiting: deque[Connection] = deque()
    try:
        for item in islice(remaining, num_processes):
            with _reported("cannot be started"):
                here, there = context.Pipe()
                connections.append(here)
                processes.append(context.Process(target=_work, args=(function, there, list(connections)), daemon=True))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # that other threads exist
                    processes[-1].start()
            there.close()  # the process has it: its end is the pipe's end
            with _reported(ENDED):
                here.send(item)
            waiting.append(here)
        while waiting:
            connection = waiting.popleft()
            with _reported(ENDED):
                result, caught, error = connection.recv()
            for item in islice(remaining, 1):
                with _reported(ENDED):
                    connection.send(item)
                waiting.append(connection)
            for message, category, filename, lineno in caught:
                warnings.warn_explicit(message, category, filename, lineno)
            if error is not None:
                raise error
            yield result
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            if process.pid is not None:  # it was started
                process.kill()
                process.join()


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Raise errors of the system here as those of processes: who writes results would take them for a full disk."""
    try:
        yield
    except (EOFError, OSError) as error:
        reason = "" if isinstance(error, EOFError | ConnectionError) else f" ({error.strerror})"
        raise MegabertError(
            f"a process that reads data {what}{reason}; perhaps the system ran out of memory. Try again."
        ) from None


def _work(function: Callable[[Any], Any], connection: Connection, others: Sequence[Connection]) -> None:
    """Compute the function of each item that is received, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the pipe's other end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    gc.freeze()  # a search for cycles would copy all pages of the other process
    gc.disable()
    _num_processes.set(1)
    runs_on_one_core.set(True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not forked
    with suppress(EOFError, ConnectionError):
        while True:
            item = connection.recv()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    result, error = function(item), None
                except Exception as raised:  # raised by who waits for the result
                    result, error = None, raised
            messages = [(own.message, own.category, own.filename, own.lineno) for own in caught]
            connection.send((result, messages, error))


def find_repeated(names: Sequence[str]) -> tuple[int, int] | None:
    """Find the first name that occurred before: the numbers of that record, from 0, and of the first one with the name.

    Takes 8 bytes a name, and a second pass where two have the same hash.
    """
    parts = by_parts(names, lambda names: np.fromiter(map(hash, names), dtype=np.int64))
    hashes, counts = np.unique(np.concatenate(list(parts)), return_counts=True)
    often = set(hashes[counts > 1].tolist())
    first: dict[str, int] = {}
    for number, name in enumerate(names if often else ()):
        if hash(name) in often and first.setdefault(name, number) != number:
            return number, first[name]
    return None
