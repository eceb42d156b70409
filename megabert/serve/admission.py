"""Admission: a bounded number of requests, each with a deadline; one whose client goes away is cancelled."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .hosted_models import ModelCatalog
from .model_queue import Work, WorkCancelled
from .refusals import ClientGone, overloaded, unavailable
from .server_metrics import ServerMetrics

MAX_THREADS = 64


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


class Admission:
    """Admits requests and runs them in threads. Counts hold: admitted = answered + failed + cancelled."""

    def __init__(self, limits: ServerLimits, catalog: ModelCatalog, metrics: ServerMetrics) -> None:
        self.limits, self.catalog, self.metrics = limits, catalog, metrics
        self.is_draining = False
        self.num_active = 0
        self.held_bytes = 0
        self._threads = ThreadPoolExecutor(
            min(MAX_THREADS, limits.max_concurrent_requests), thread_name_prefix="request"
        )
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Refusal where a request cannot be admitted now."""
        if self.is_draining:
            raise unavailable("the server is shutting down. Use another one.")
        waiting = self.metrics.value("te_queue_size")  # of all front ends
        if waiting >= self.limits.max_concurrent_requests:
            raise overloaded(f"{waiting:.0f} requests are waiting. Try again later.")

    async def run(
        self, function: Callable[[Work], Any], gone: Callable[[], Awaitable[None]], seconds: float | None
    ) -> tuple[Any, Work]:
        """Compute a request in a thread.

        `gone` returns when its client has closed the connection. Raises Refusal, ClientGone or what `function` raised.
        """
        self.check()
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
            done, _ = await asyncio.wait({future, watch}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
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

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
