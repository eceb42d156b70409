"""Prefetch in a background thread, so that the device never waits for the next batch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemType = TypeVar("ItemType")
ResultType = TypeVar("ResultType")


def prefetch(
    function: Callable[[ItemType], ResultType], items: Iterable[ItemType], depth: int = 3
) -> Generator[ResultType, None, None]:
    """Yield function(item) for each item, in order, computed by a thread up to `depth` items ahead.

    An error in the function is raised here, at its item. Closing the generator cancels the pending items.
    """
    pending: deque[Future[ResultType]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)
