"""CUDA graph capture and replay: a function's kernels are captured once and then launched together.

The step of a small network is bound by the host, which launches thousands of kernels one by one.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch

ResultType = TypeVar("ResultType")
_thread = threading.local()
"""`streams`: the side stream of each device."""


class CapturedGraph(Generic[ResultType]):
    """A function without arguments that reads and writes static tensors; each replay overwrites the same results.

    The first call runs the function eagerly, which initializes lazy parts (compilation, optimizer state); the second
    captures it, and later calls replay. Each replay samples new random numbers from PyTorch's generator. With
    `capture=False` every call is eager.
    """

    def __init__(self, function: Callable[[], ResultType], pool: Any, *, capture: bool = True) -> None:
        self._function = function
        self._pool = pool
        self._capture = capture
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: ResultType

    @property
    def is_captured(self) -> bool:
        """Whether further calls only replay the graph."""
        return self._graph is not None

    def __call__(self) -> ResultType:
        """Run, capture or replay the function."""
        self._calls += 1
        if self._calls == 1 or not self._capture:
            return self._function()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.current_stream()
            with (
                _no_garbage_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                self._result = self._function()
            self._graph = graph
        self._graph.replay()
        return self._result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: freeing another graph, which a cycle may hold, would invalidate the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def side_stream(device: torch.device) -> AbstractContextManager[object]:
    """Context manager that leaves the default stream, on which no graph can be captured; no effect elsewhere.

    Each thread has one, for the allocator reuses memory only on the stream that freed it.
    """
    if device.type != "cuda" or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        return nullcontext()
    if not hasattr(_thread, "streams"):
        _thread.streams = {}
    stream = _thread.streams.get(device) or _thread.streams.setdefault(device, torch.cuda.Stream(device))
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
