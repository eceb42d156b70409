"""One queue for all networks of a device: sequences of many requests become packed batches of a token budget.

The oldest sequences decide which network runs next; others that wait for the same network, or for other adapters of its
base, fill the batch. Nothing waits for a batch to fill: while one is computed, the next one gathers. A batch that fails
is computed again request by request, so that one bad request harms no other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features
from ..inference import Session

DEFAULT_BATCH_TOKENS, CPU_BATCH_TOKENS = 16_384, 2_048
"""On a CPU the activations of a batch then stay in its caches."""
MAX_WAITING_TOKENS = 64 * DEFAULT_BATCH_TOKENS
"""Tokens that may be queued; requests beyond them wait in `submit`."""


class ModelFailure(Exception):  # noqa: N818  (one request's computation failed; the server goes on)
    """The network could not compute a request: out of memory, outputs that are not finite, or a bug."""


class WorkCancelled(Exception):  # noqa: N818  (control flow, not an error)
    """The request was cancelled before its sequences were computed."""


@dataclass
class Lane:
    """A network that has a queue of its own, the longest of its sequences in tokens, and the id that pads them."""

    session: Session
    max_length: int
    pad_id: int


class Mix(Protocol):
    """Networks that can share a batch: adapters of one base."""

    def run(self, parts: Sequence[tuple[str, Sequence[Features]]], max_length: int) -> list[NDArray[np.float32]]:
        """Compute logits of features of several lanes, in their order, as one batch."""


@dataclass
class Computed:
    """Logits of the sequences of a job, with the seconds that it waited and that its batch was computed."""

    logits: list[NDArray[np.float32]]
    queue_seconds: float
    inference_seconds: float


class ComputeQueue(Protocol):
    """Where the sequences of requests are computed: in this process or in another one."""

    def submit(self, lane: str, features: Sequence[Features]) -> "Future[Computed]":
        """Queue sequences; cancelling the future removes them if they are not being computed yet."""


@dataclass(eq=False)
class _QueuedJob:
    lane: str
    features: Sequence[Features]
    future: "Future[Computed]"
    tokens: int
    since: float = field(default_factory=time.monotonic)


class ModelQueue:
    """The queue with its threads.

    `mixes` maps lanes that can share a batch to what computes them together. `observe(name, value)` takes measurements
    for metrics. `divide(n)` divides the processor's threads among n, the number of batches that are being computed.
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        mixes: Mapping[str, Mix] = MappingProxyType({}),
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        threads: int = 1,
        observe: Callable[[str, float], None] = lambda *_: None,
        divide: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.lanes, self.batch_tokens, self._observe = dict(lanes), batch_tokens, observe
        self._mixes, self._divide, self._num_busy = mixes, divide, 0
        self._waiting: dict[str, deque[_QueuedJob]] = {name: deque() for name in lanes}
        self._tokens = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"model-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, lane: str, features: Sequence[Features]) -> "Future[Computed]":
        """Queue sequences, as `ComputeQueue.submit` describes; waits while too many tokens wait."""
        job = _QueuedJob(lane, features, Future(), sum(map(len, features)))
        with self._changed:
            self._changed.wait_for(lambda: self._tokens < MAX_WAITING_TOKENS or self._is_closed)
            if self._is_closed:
                job.future.set_exception(ModelFailure("the server has stopped"))
                return job.future
            self._waiting[lane].append(job)
            self._tokens += job.tokens
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._remove_cancelled(job))
        return job.future

    def close(self) -> None:
        """Stop the threads; jobs that wait fail."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=20)

    def _remove_cancelled(self, job: _QueuedJob) -> None:
        if job.future.cancelled():
            with self._changed:
                if job in self._waiting[job.lane]:
                    self._waiting[job.lane].remove(job)
                    self._tokens -= job.tokens
                    self._changed.notify_all()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self._divide(self._num_busy)
            self._compute(jobs)
            with self._changed:
                self._num_busy -= 1

    def _next_batch(self) -> list[_QueuedJob]:
        """Wait for jobs and take a batch of one network; [] at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._is_closed or any(self._waiting.values()))
                if self._is_closed:
                    for queue in self._waiting.values():
                        for job in queue:
                            if job.future.set_running_or_notify_cancel():
                                job.future.set_exception(ModelFailure("the server has stopped"))
                        queue.clear()
                    return []
                if jobs := self._take():
                    self._num_busy += 1
                    self._changed.notify_all()
                    return jobs

    def _take(self) -> list[_QueuedJob]:
        """Take the oldest job, and others of lanes that share batches with its own, up to the token budget."""
        lane = self._oldest(self._waiting)
        mix = self._mixes.get(lane)
        lanes = [lane] if mix is None else [name for name in self._waiting if self._mixes.get(name) is mix]
        jobs: list[_QueuedJob] = []
        tokens = 0
        while any(self._waiting[name] for name in lanes):
            queue = self._waiting[self._oldest(lanes)]
            if jobs and tokens + queue[0].tokens > self.batch_tokens:
                break
            job = queue.popleft()
            self._tokens -= job.tokens
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
                tokens += job.tokens
        return sorted(jobs, key=attrgetter("lane"))

    def _oldest(self, lanes: Iterable[str]) -> str:
        """Return the lane whose first job waits longest."""
        return min((name for name in lanes if self._waiting[name]), key=lambda name: self._waiting[name][0].since)

    def _compute(self, jobs: Sequence[_QueuedJob]) -> None:
        start = time.monotonic()
        try:
            outputs = self._run(jobs)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._compute([job])
            else:
                jobs[0].future.set_exception(ModelFailure(f"{type(error).__name__}: {error}"))
            return
        seconds = time.monotonic() - start
        self._measure(jobs, seconds)
        first = 0
        for job in jobs:
            own = outputs[first : first + len(job.features)]
            first += len(job.features)
            if all(np.isfinite(item).all() for item in own):
                job.future.set_result(Computed(own, start - job.since, seconds))
            else:
                job.future.set_exception(ModelFailure("the network's outputs are not finite numbers"))

    def _run(self, jobs: Sequence[_QueuedJob]) -> list[NDArray[np.float32]]:
        parts = [
            (name, [item for job in group for item in job.features])
            for name, group in groupby(jobs, attrgetter("lane"))
        ]
        (name, features), *others = parts
        if others:
            return self._mixes[name].run(parts, max(self.lanes[name].max_length for name, _ in parts))
        lane = self.lanes[name]
        rows = max(self.batch_tokens // lane.max_length, 1)
        return lane.session.run(features, batch_size=rows, max_length=lane.max_length, pad_id=lane.pad_id).logits

    def _measure(self, jobs: Sequence[_QueuedJob], seconds: float) -> None:
        tokens = sum(job.tokens for job in jobs)
        self._observe("batches", 1)
        self._observe("batch_tokens", tokens)
        self._observe("batch_sequences", sum(len(job.features) for job in jobs))
        self._observe("batch_seconds", seconds)
        self._observe("batch_fill", tokens / self.batch_tokens)
        with self._changed:
            self._observe("queue_tokens", self._tokens)


@dataclass
class Work:
    """What one request has computed so far; another thread may cancel it."""

    host: Any
    """The HostTurns of the server, which limits how many threads tokenize and decode."""
    tokens: int = 0
    windows: int = 0
    cut_tokens: int = 0
    """Tokens of its texts that no sequence showed."""
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    is_cancelled: bool = False
    _futures: "set[Future[Computed]]" = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancel(self) -> None:
        """Remove the request's sequences from the queue; its thread raises WorkCancelled."""
        with self._lock:
            self.is_cancelled = True
            futures = list(self._futures)
        for future in futures:
            future.cancel()

    def check(self) -> None:
        """Raise WorkCancelled if the request was cancelled."""
        if self.is_cancelled:
            raise WorkCancelled

    def add(self, future: "Future[Computed]") -> None:
        """Remember a job, to cancel it."""
        with self._lock:
            self._futures.add(future)
            is_cancelled = self.is_cancelled
        if is_cancelled:
            future.cancel()
