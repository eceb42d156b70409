"""Front-end processes: each answers HTTP, tokenizes and decodes; one process has the networks and computes for all.

A pipe to each: packed sequences one way, logits the other. A front end that dies is started again; where the process
with the networks ends, so do they.
"""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features
from .model_queue import Computed, ComputeQueue, ModelFailure

DRAIN, READY = "drain", "ready"
ENDED = "the process of the networks has ended"


@dataclass(frozen=True)
class _Request:
    job: int
    lane: str
    token_ids: NDArray[np.int32]
    segment_ids: NDArray[np.int8]
    lengths: NDArray[np.int32]
    token_targets: Mapping[str, NDArray[Any]]
    """What a head takes beside the tokens, such as the role of a text that is embedded."""

    def features(self) -> list[Features]:
        """Return the sequences."""
        ends = np.cumsum(self.lengths)[:-1]
        ids, segments = (np.split(array.astype(np.int64), ends) for array in (self.token_ids, self.segment_ids))
        own = {name: np.split(values, ends) for name, values in self.token_targets.items()}
        return [
            Features(*pair, token_targets={name: values[number] for name, values in own.items()})
            for number, pair in enumerate(zip(ids, segments, strict=True))
        ]


@dataclass(frozen=True)
class _Answer:
    job: int
    logits: NDArray[np.float32] | None
    are_of_tokens: bool = False
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    failure: str = ""


class RemoteQueue:
    """The queue of the process that has the networks, as a front end sees it."""

    def __init__(self, connection: Connection, on_drain: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._connection, self._on_drain, self._on_end = connection, on_drain, on_end
        self._numbers = itertools.count()
        self._jobs: dict[int, tuple[Future[Computed], NDArray[np.int32]]] = {}
        self._lock = threading.Lock()
        self._has_ended = False
        threading.Thread(target=self._receive, name="answers", daemon=True).start()

    def submit(self, lane: str, features: Sequence[Features]) -> "Future[Computed]":
        """Send sequences, as `ComputeQueue.submit` describes."""
        future: Future[Computed] = Future()
        lengths = np.array([len(item) for item in features], dtype=np.int32)
        token_ids = np.concatenate([item.token_ids for item in features]).astype(np.int32)
        segment_ids = np.concatenate([item.segment_ids for item in features]).astype(np.int8)
        names = features[0].token_targets
        token_targets = {name: np.concatenate([item.token_targets[name] for item in features]) for name in names}
        with self._lock:
            if self._has_ended:
                future.set_exception(ModelFailure(ENDED))
                return future
            job = next(self._numbers)
            self._jobs[job] = future, lengths
            self._send(_Request(job, lane, token_ids, segment_ids, lengths, token_targets))
        future.add_done_callback(lambda done: self._cancel(job) if done.cancelled() else None)
        return future

    def report_ready(self) -> None:
        """Report that this front end takes requests."""
        with self._lock:
            self._send(READY)

    def _cancel(self, job: int) -> None:
        with self._lock:
            if self._jobs.pop(job, None) is not None:
                self._send(job)

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # the receiving thread notices the end of the other process
            self._connection.send(message)

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                if message == DRAIN:
                    self._on_drain()
                    continue
                with self._lock:
                    future, lengths = self._jobs.pop(message.job, (None, None))
                if future is not None and future.set_running_or_notify_cancel():
                    _resolve(future, message, lengths)
        with self._lock:
            self._has_ended = True
            lost = [future for future, _ in self._jobs.values()]
            self._jobs.clear()
        for future in lost:
            if future.set_running_or_notify_cancel():
                future.set_exception(ModelFailure(ENDED))
        self._on_end()


def _resolve(future: "Future[Computed]", answer: _Answer, lengths: Any) -> None:
    if answer.logits is None:
        future.set_exception(ModelFailure(answer.failure))
        return
    logits = np.split(answer.logits, np.cumsum(lengths)[:-1]) if answer.are_of_tokens else list(answer.logits)
    future.set_result(Computed(logits, answer.queue_seconds, answer.inference_seconds))


def compute_for(connection: Connection, queue: ComputeQueue, on_ready: Callable[[], None]) -> None:
    """Compute for a front end until its pipe ends; what it still waits for is cancelled then."""
    lock = threading.Lock()
    jobs: dict[int, Future[Computed]] = {}

    def answer(number: int, done: "Future[Computed]") -> None:
        jobs.pop(number, None)
        if done.cancelled():
            return
        failure = done.exception()
        if failure is not None:
            message = _Answer(number, None, failure=str(failure))
        else:
            computed = done.result()
            are_of_tokens = computed.logits[0].ndim == 2
            logits = np.concatenate(computed.logits) if are_of_tokens else np.stack(computed.logits)
            message = _Answer(number, logits, are_of_tokens, computed.queue_seconds, computed.inference_seconds)
        with lock, suppress(OSError):
            connection.send(message)

    with suppress(EOFError, OSError):
        while True:
            message = connection.recv()
            if message == READY:
                on_ready()
                continue
            if isinstance(message, int):
                if message in jobs:
                    jobs[message].cancel()
                continue
            future = jobs[message.job] = queue.submit(message.lane, message.features())
            future.add_done_callback(partial(answer, message.job))
    for future in list(jobs.values()):
        future.cancel()
