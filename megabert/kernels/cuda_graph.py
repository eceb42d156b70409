"""CUDA graphs: a function's kernels are recorded once and launched together from then on.

A small network's step is bound by the time it takes to launch its thousands of kernels one by one.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch

ResultType = TypeVar("ResultType")


class CapturedGraph(Generic[ResultType]):
    """A function without arguments, of tensors that stay where they are; its results lie in the same place each time.

    The first call runs it as it is, so that lazy parts are made (compilation, optimizer state); the second records
    and launches, the later ones launch. Random numbers are drawn anew each time, from PyTorch's generator. Where
    `records` is false every call runs it as it is.
    """

    def __init__(self, function: Callable[[], ResultType], pool: Any, *, records: bool = True) -> None:
        self._function = function
        self._pool = pool
        self._records = records
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: ResultType

    @property
    def is_captured(self) -> bool:
        """Whether the function will only be launched from now on."""
        return self._graph is not None

    def __call__(self) -> ResultType:
        """Run the function."""
        self._calls += 1
        if self._calls == 1 or not self._records:
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
    """Keep Python from collecting cycles: one may hold another graph, and to free that makes a recording void."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def side_stream(device: torch.device) -> AbstractContextManager[object]:
    """Leave the default stream, on which nothing can be recorded; does nothing elsewhere. A context manager."""
    if device.type != "cuda" or torch.cuda.current_stream(device) != torch.cuda.default_stream(device):
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
