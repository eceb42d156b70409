"""Run a PyTorch network over features: packed batches, prefetch, overlapped copies, CUDA graphs, several ranks."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.packing import Batch, BatchSize, Features, pack
from .data.prefetch import prefetch
from .data.sampler import EvaluationBatches, sequence_counts, sequence_lengths
from .inference import EvaluationStopped, ProgressCallback, SessionOutput
from .kernels.cuda_graph import CapturedGraph, side_stream
from .model.heads import EmbeddingHead, StatesHead, TaskModel
from .model.precision import resolve_static_batches
from .parallel.process_group import SINGLE_PROCESS, World

Loss = Callable[[Tensor, Batch], Tensor]
# Capturing a CUDA graph takes about as long as this many batches.
MIN_BATCHES_TO_CAPTURE = 4
SMALL_BATCHES = (BatchSize(64, 9), BatchSize(128, 9), BatchSize(256, 9), BatchSize(512, 9), BatchSize(1024, 18))
"""Static sizes of small batches, fillers included: the launches of their kernels take longer than these run."""


@dataclass(frozen=True)
class TorchSession:
    """A network on its device.

    Of several ranks each runs its share of the batches and all return all logits: they must make the same calls.
    """

    model: TaskModel
    loss: Loss
    """The task's loss, summed over a batch."""
    device: torch.device
    precision: str = "32"
    """What the encoder computes in; its weights are cast already."""
    is_static: bool = False
    """Batches are padded to one static size, and captured in a CUDA graph unless FSDP shards the model."""
    world: World = SINGLE_PROCESS
    small: "SmallBatches | None" = None
    """Graphs of small batches, where `with_small_batches` has captured them."""

    @property
    def needs_targets(self) -> bool:
        """Whether the head computes losses from the batch's targets instead of logits."""
        return self.model.head.takes_targets

    @property
    def max_positions(self) -> int:
        """The most tokens of a sequence."""
        return self.model.encoder.config.max_positions

    def without_head(self) -> "TorchSession":
        """Return the network without its head, as `Session.without_head` describes."""
        model = TaskModel(self.model.encoder, EmbeddingHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, small=None)

    def token_states(self) -> "TorchSession":
        """Return the network with the last hidden states of all tokens instead of logits."""
        model = TaskModel(self.model.encoder, StatesHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, small=None)

    def with_small_batches(self, max_length: int, pad_id: int) -> "TorchSession":
        """Return the network with CUDA graphs of small batches, for a server; as it is where it cannot have them."""
        config = self.model.encoder.config
        if self.needs_targets or not resolve_static_batches(True, self.device, config, self.precision):
            return self
        return replace(self, small=SmallBatches(self.model.eval(), self.device, max_length, pad_id, capture=True))

    def run(
        self,
        features: Sequence[Features],
        *,
        batch_size: int,
        max_length: int,
        pad_id: int,
        with_loss: bool = False,
        progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> SessionOutput:
        """Compute logits of all features, as `Session.run` describes."""
        if self.small is not None and not with_loss and (size := self.small.size_of(features)) is not None:
            return SessionOutput(self.small.run(features, size), None)
        logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(features)
        batches = EvaluationBatches(
            features,
            batch_size,
            max_length,
            pad_id,
            static_size=self.is_static,
            data_rank=self.world.data_rank,
            data_size=self.world.data_size,
        )
        width = 0
        was_training = self.model.training
        self.model.eval()
        try:
            with side_stream(self.device):
                forward = _ForwardPasses(self, len(batches), with_loss=with_loss)
                for number, (indices, batch, array) in enumerate(forward(batches), start=1):
                    width = array.shape[1]
                    parts = _by_feature(array, batch, is_per_sequence=self.model.head.is_per_sequence)
                    for index, part in zip(indices, parts, strict=True):
                        logits[index] = part
                    if progress is not None:
                        progress(number, len(batches))
                    if should_stop is not None and should_stop():
                        raise EvaluationStopped
                loss, weight = float(forward.loss_sum), forward.weight
        finally:
            self.model.train(was_training)
        if self.world.size > 1 and len(batches):
            logits = self._all_gather_logits(logits, self._logits_shapes(features, width))
            loss, weight = self._all_reduce(np.array([loss, weight])).tolist()
        return SessionOutput(logits, loss / weight if with_loss and weight else None)

    def _logits_shapes(self, features: Sequence[Features], width: int) -> list[tuple[int, ...]]:
        if not self.model.head.is_per_sequence:
            return [(int(length), width) for length in sequence_lengths(features)]
        return [(width,) if count == 1 else (int(count), width) for count in sequence_counts(features)]

    def _all_gather_logits(
        self, logits: list[NDArray[np.float32]], shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]:
        """All-gather the logits of all ranks, as a sum: each rank has zeros for the sequences of the others."""
        filled = [item if item.size else np.zeros(shape) for item, shape in zip(logits, shapes, strict=True)]
        flat = self._all_reduce(np.concatenate([item.astype(np.float32).ravel() for item in filled]))
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]

    def _all_reduce(self, numbers: NDArray[np.floating]) -> NDArray[np.floating]:
        # Tensor-parallel ranks have the same logits: only rank 0 of the tensor axis contributes.
        tensor = torch.from_numpy(numbers if self.world.tensor_rank == 0 else np.zeros_like(numbers))
        self.world.all_reduce(tensor)
        return tensor.numpy()


def _by_feature(logits: NDArray[np.float32], batch: Batch, *, is_per_sequence: bool) -> list[NDArray[np.float32]]:
    """Split logits by features: [T, C] of tokens; of sequences [C], or [P, C] of a feature with several."""
    if not is_per_sequence:
        return np.split(logits, batch.cu_seqlens_N1[1:].tolist())[: len(batch.parts)]
    starts = np.cumsum([0, *batch.parts])
    pairs = zip(starts[:-1].tolist(), batch.parts, strict=True)
    return [logits[start] if count == 1 else logits[start : start + count] for start, count in pairs]


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
        return _by_feature(logits, batch, is_per_sequence=self._model.head.is_per_sequence)


class _ForwardPasses:
    """Forward passes over batches; the copy of a batch's logits to the host overlaps the next batch's forward pass."""

    def __init__(self, session: TorchSession, num_batches: int, *, with_loss: bool) -> None:
        self._session = session
        self._device = session.device
        self._with_loss = with_loss
        self.loss_sum = torch.zeros((), device=self._device)
        self.weight = 0.0
        self._static: Batch | None = None
        self._graph: CapturedGraph[tuple[Tensor, Tensor]] | None = None
        if session.is_static and session.world.fsdp_size == 1 and num_batches >= MIN_BATCHES_TO_CAPTURE:
            self._graph = CapturedGraph(lambda: self._compute(self._static), torch.cuda.graph_pool_handle())

    def __call__(self, batches: EvaluationBatches) -> Iterator[tuple[list[int], Batch, NDArray[np.float32]]]:
        """Yield each batch with the indices of its features and its logits."""
        previous: tuple[list[int], Batch, Tensor, torch.cuda.Event | None] | None = None
        # FSDP reuses the memory of gathered weights in training, where inference tensors are not allowed.
        no_grad = torch.no_grad if self._session.world.fsdp_size > 1 else torch.inference_mode
        # A single batch, as in a server, is not worth a thread.
        items = prefetch(self._pin, batches) if len(batches) > 1 else (self._pin(item) for item in batches)
        with closing(items) as prefetched:
            for indices, batch in prefetched:
                with no_grad():
                    logits, loss = self._forward(batch)
                    self.loss_sum += loss
                    self.weight += batch.weight
                    current = (indices, batch, *self._copy_to_host(logits))
                if previous is not None:
                    yield self._wait(*previous)
                previous = current
            if previous is not None:
                yield self._wait(*previous)

    def _pin(self, item: tuple[list[int], Batch]) -> tuple[list[int], Batch]:
        indices, batch = item
        return indices, batch.map(Tensor.pin_memory) if self._device.type == "cuda" else batch

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._graph is None:
            return self._compute(batch.to(self._device))
        if self._static is None:
            self._static = batch.to(self._device)
        self._static.copy_from(batch)
        return self._graph()

    def _compute(self, batch: Batch | None) -> tuple[Tensor, Tensor]:
        assert batch is not None
        logits = self._session.model(*batch.inputs()).float()
        if self._with_loss:
            return logits, self._session.loss(logits, batch)
        return logits, torch.zeros((), device=self._device)

    def _copy_to_host(self, tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if not tensor.is_cuda:
            return tensor, None
        host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _wait(
        self, indices: list[int], batch: Batch, logits: Tensor, event: torch.cuda.Event | None
    ) -> tuple[list[int], Batch, NDArray[np.float32]]:
        if event is not None:
            event.synchronize()
        return indices, batch, logits.numpy()
