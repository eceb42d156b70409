"""Forward passes captured in CUDA graphs: of batches of any size, and of a server's small ones in a few sizes."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.packing import Batch, BatchSize, Features, pack
from .inference import by_feature
from .kernels.cuda_graph import CapturedGraph, side_stream
from .model.heads import TaskModel

SMALL_BATCHES = (BatchSize(64, 9), BatchSize(128, 9), BatchSize(256, 9), BatchSize(512, 9), BatchSize(1024, 18))
"""Static sizes of small batches, fillers included: the launches of their kernels take longer than these run."""


def split_logits(logits: NDArray[np.float32], batch: Batch, *, is_per_sequence: bool) -> list[NDArray[np.float32]]:
    """Split the logits of a batch by features: those of sequences as `by_feature`, those of tokens into [T, C]."""
    if is_per_sequence:
        return by_feature(logits, batch.parts)
    return np.split(logits, batch.cu_seqlens_N1[1:].tolist())[: len(batch.parts)]


class SizedGraphs:
    """Captured forward passes of one network: a CUDA graph for each size of batches.

    Sizes are multiples of `size_multiple` tokens, so that there are few. Only one thread may use them.
    """

    size_multiple: ClassVar[int] = 128

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._by_size: dict[tuple[BatchSize, int], tuple[Batch, CapturedGraph[Tensor]]] = {}

    def __call__(self, compute: Callable[[Batch], Tensor], batch: Batch, device: torch.device) -> Tensor:
        """Compute the logits of a batch; the next call overwrites them."""
        size = batch.size, batch.max_seqlen
        if size not in self._by_size:
            static = batch.to(device)
            self._by_size[size] = static, CapturedGraph(partial(compute, static), self._pool)
        static, graph = self._by_size[size]
        static.copy_from(batch)
        return graph()


class SmallBatches:
    """A network's small batches, padded to static sizes, each size captured in a CUDA graph when this is made.

    One thread at a time uses those of all networks. `capture=False` computes the padded batches eagerly, on any device.
    """

    # Graphs share the memory of their pool and, those of all networks, the workspace of matrix products.
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, model: TaskModel, device: torch.device, max_length: int, pad_id: int, *, capture: bool) -> None:
        self._model, self._device, self._max_length, self._pad_id = model, device, max_length, pad_id
        self._static: dict[BatchSize, Batch] = {}
        self._graphs: dict[BatchSize, CapturedGraph[Tensor]] = {}
        pool = torch.cuda.graph_pool_handle() if capture else None
        sequence = np.full(2, pad_id, dtype=np.int64)
        with self._lock, side_stream(device), torch.inference_mode():
            for size in SMALL_BATCHES:
                batch = pack([Features(sequence, np.zeros_like(sequence))], max_length, pad_id, size)
                self._static[size] = batch.to(device)
                self._graphs[size] = CapturedGraph(partial(self._compute, size), pool, capture=capture)
                for _ in range(2):  # the first call is eager, the second captures
                    self._graphs[size]().cpu()  # waits, for the next replay may be on another thread's stream

    def _compute(self, size: BatchSize) -> Tensor:
        return self._model(*self._static[size].inputs()).float()

    def size_of(self, features: Sequence[Features]) -> BatchSize | None:
        """Return the smallest size that holds features and the fillers, or None."""
        num_tokens, num_sequences = sum(map(len, features)), sum(item.num_sequences for item in features)
        for size in SMALL_BATCHES:
            num_fillers = -(-(size.num_tokens - num_tokens) // self._max_length)
            # A filler of a token or more, so that the last sequence ends where a filler begins.
            if num_tokens < size.num_tokens and num_sequences + num_fillers <= size.num_sequences:
                return size
        return None

    def run(self, features: Sequence[Features], size: BatchSize) -> list[NDArray[np.float32]]:
        """Compute the logits of features, as `Session.run` describes."""
        plain = [replace(item, targets={}, token_targets={}) for item in features]
        batch = pack(plain, self._max_length, self._pad_id, size)
        with self._lock, side_stream(self._device), torch.inference_mode():
            self._static[size].copy_from(batch)
            logits = self._graphs[size]().cpu().numpy()
        return split_logits(logits, batch, is_per_sequence=self._model.head.is_per_sequence)
