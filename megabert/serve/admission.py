"""Admission: a bounded number of requests, each with a deadline; one whose client goes away is cancelled.

A crowd is counted as it arrives: what is too much is refused unparsed, and of the rest no more are parsed than there
are threads to compute them. So the last of 1,000 does not wait until hundreds before it are parsed.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .hosted_models import ModelCatalog
from .model_queue import Work, WorkCancelled
from .refusals import ClientGone, overloaded, unavailable
from .server_metrics import ServerMetrics

MAX_THREADS = 64
MAX_STARTING = 4


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of what a server takes; connections and bytes are those of one front end."""

    max_concurrent_requests: int = 512
    max_body_bytes: int = 2_000_000
    max_inputs: int = 32
    """Inputs of one request (TEI: --max-client-batch-size)."""
    max_held_bytes: int = 256_000_000
    """Bodies of all requests together that are being read or computed."""
    deadline_seconds: float = 30.0
    max_connections: int = 4096
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    """A body must have come after so many seconds, and one more for each kB."""
    idle_seconds: float = 5.0
    shutdown_seconds: float = 18.0


@dataclass(eq=False)
class WaitingPlace:
    """The place of a request that waits to be parsed and admitted."""

    admission: "Admission"
    is_starting: bool = False
    is_left: bool = False

    def __post_init__(self) -> None:
        self.admission.metrics.add("te_queue_size")

    def leave(self) -> None:
        """Give it back, once."""
        if not self.is_left:
            self.is_left = True
            self.admission.metrics.add("te_queue_size", -1)
            self.admission.num_starting -= self.is_starting


class Admission:
    """Admits requests and runs them in threads. Counts hold: admitted = answered + failed + cancelled."""

    def __init__(self, limits: ServerLimits, catalog: ModelCatalog, metrics: ServerMetrics) -> None:
        self.limits, self.catalog, self.metrics = limits, catalog, metrics
        self.is_draining = False
        self.num_active = 0
        self.held_bytes = 0
        self.num_starting = 0
        self._num_threads = min(MAX_THREADS, limits.max_concurrent_requests)
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="request")
        self._held: dict[WaitingPlace, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Refusal where a request cannot be admitted now."""
        if self.is_draining:
            raise unavailable("the server is shutting down. Use another one.")
        waiting = self.metrics.value("te_queue_size")  # of all front ends
        if waiting >= self.limits.max_concurrent_requests:
            raise overloaded(f"{waiting:.0f} requests are waiting. Try again later.")

    def reserve(self) -> "WaitingPlace":
        """Count a request that is not parsed yet. Raises Refusal as `check` does."""
        self.check()
        return WaitingPlace(self)

    def hold_or_start(self, place: "WaitingPlace", start: Callable[[], None]) -> None:
        """Start to parse a request that has a place; hold it while as many are computed as there are threads."""
        self._held[place] = start
        self.start_held()

    def drop(self, place: "WaitingPlace | None") -> None:
        """Forget a request that is held, if it is."""
        if place is not None and self._held.pop(place, None) is not None:
            place.leave()

    def start_held(self) -> None:
        """Start those that are held: a few at a time, so that others are read between, while there are threads."""
        while (
            self._held and self.num_starting < MAX_STARTING and self.num_active + self.num_starting < self._num_threads
        ):
            place = next(iter(self._held))
            self.num_starting += 1
            place.is_starting = True
            self._held.pop(place)()

    async def run(
        self,
        function: Callable[[Work], Any],
        gone: Callable[[], Awaitable[None]],
        seconds: float | None,
        arrived: float,
        place: "WaitingPlace | None" = None,
    ) -> tuple[Any, Work]:
        """Compute a request in a thread; its time begins when it `arrived`, by time.monotonic().

        `gone` returns when its client has closed the connection. Raises Refusal, ClientGone or what `function` raised.
        """
        if place is None:
            self.check()
        else:
            place.leave()
            asyncio.get_running_loop().call_soon(self.start_held)
        work = self.catalog.work()
        with self._lock:
            self.num_active += 1
        self.metrics.add("te_request_count")
        self.metrics.add("te_queue_size")
        future = asyncio.get_running_loop().run_in_executor(self._threads, self.catalog.perform, function, work)
        future.add_done_callback(self._release)
        watch = asyncio.ensure_future(gone())
        limit = min(seconds or self.limits.deadline_seconds, self.limits.deadline_seconds)
        try:
            left = max(limit - (time.monotonic() - arrived), 0)
            done, _ = await asyncio.wait({future, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future in done:
                result = future.result()
                self.metrics.add("te_request_success")
                return result, work
        except WorkCancelled:
            self.metrics.add("te_request_failure")
            raise unavailable("the request was cancelled.") from None
        except BaseException:
            self.metrics.add("te_request_failure")
            raise
        finally:
            watch.cancel()
            work.cancel()
        if watch in done:
            self.metrics.add("megabert_requests_cancelled_total")
            raise ClientGone
        self.metrics.add("te_request_failure")
        raise unavailable(f"no answer within {limit:g} s. Try again later.")

    def _release(self, future: "asyncio.Future[Any]") -> None:
        self.num_active -= 1
        self.metrics.add("te_queue_size", -1)
        if not future.cancelled():
            future.exception()  # of a request that nobody waits for any more
        self.start_held()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
