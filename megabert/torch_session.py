"""Run a PyTorch network over features: packed batches, overlapped copies, CUDA graphs, several ranks."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .captured_batches import SizedGraphs, SmallBatches, split_logits
from .data.packing import Batch, Features
from .data.sampler import EvaluationBatches, sequence_counts, sequence_lengths
from .inference import EvaluationStopped, RunOptions, SessionOutput
from .kernels.cuda_graph import CapturedGraph, side_stream
from .model.heads import EmbeddingHead, StatesHead, TaskModel
from .model.precision import resolve_static_batches
from .parallel.process_group import SINGLE_PROCESS, World

Loss = Callable[[Tensor, Batch], Tensor]
# Capturing a CUDA graph takes about as long as this many batches.
MIN_BATCHES_TO_CAPTURE = 4
CPU_TOKENS = 1024
"""Tokens of a batch on a CPU for each thread: activations then stay in its caches."""


@cache
def compute_alone_after_forks() -> None:
    """Let processes that are forked from this one compute with one thread.

    A fork has none of OpenMP's other threads, for which it would wait forever. PyTorch's DataLoader does the same.
    """
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


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
    graphs: SizedGraphs | None = None
    """Captured forward passes that later calls replay; without losses."""
    small: SmallBatches | None = None
    """Graphs of small batches, where `with_small_batches` has captured them."""

    @property
    def needs_targets(self) -> bool:
        """Whether the head computes losses from the batch's targets instead of logits."""
        return self.model.head.takes_targets

    @property
    def max_positions(self) -> int:
        """The most tokens of a sequence."""
        return self.model.encoder.config.max_positions

    def captured(self) -> "TorchSession":
        """Return a session that keeps captured forward passes for later calls, which one thread makes; for many calls.

        On a CPU, and where nothing can be captured, it is the same.
        """
        config = self.model.encoder.config
        can_capture = self.world.size == 1 and resolve_static_batches(True, self.device, config, self.precision)
        return replace(self, graphs=SizedGraphs()) if can_capture else self

    def with_small_batches(self, max_length: int, pad_id: int) -> "TorchSession":
        """Return the network with CUDA graphs of small batches, for a server; as it is where it cannot have them."""
        config = self.model.encoder.config
        if self.needs_targets or not resolve_static_batches(True, self.device, config, self.precision):
            return self
        return replace(self, small=SmallBatches(self.model.eval(), self.device, max_length, pad_id, capture=True))

    def without_head(self) -> "TorchSession":
        """Return the network without its head, as `Session.without_head` describes."""
        model = TaskModel(self.model.encoder, EmbeddingHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, graphs=None, small=None)

    def token_states(self) -> "TorchSession":
        """Return the network with the last hidden states of all tokens instead of logits."""
        model = TaskModel(self.model.encoder, StatesHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, graphs=None, small=None)

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Compute logits of all features, as `Session.run` describes."""
        small = None if options.get("with_loss") else self.small
        if small is not None and (size := small.size_of(features)) is not None:
            return SessionOutput(small.run(features, size), None)
        steps = self.steps(features, **options)
        while True:
            try:
                next(steps).synchronize()
            except StopIteration as end:
                output: SessionOutput = end.value
                return output

    def steps(
        self, features: Sequence[Features], **options: Unpack[RunOptions]
    ) -> Generator[torch.cuda.Event, None, SessionOutput]:
        """Compute what `run` returns; yields each event of the GPU that must be over before the next step."""
        batch_size, max_length = options["batch_size"], options["max_length"]
        with_loss = options.get("with_loss", False)
        progress, should_stop = options.get("progress"), options.get("should_stop")
        logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(features)
        batches = EvaluationBatches(
            features,
            batch_size,
            max_length,
            options["pad_id"],
            static_size=self.is_static,
            size_multiple=self.graphs.size_multiple if self.graphs else 0,
            max_tokens=CPU_TOKENS * torch.get_num_threads() if self.device.type == "cpu" else None,
            data_rank=self.world.data_rank,
            data_size=self.world.data_size,
        )
        width = 0
        was_training = self.model.training
        if was_training:  # it takes a millisecond
            self.model.eval()
        try:
            forward = _ForwardPasses(self, len(batches), with_loss=with_loss)
            # A batch computes while the host packs the next one, and takes the logits of the one before.
            waiting: deque[_Launched] = deque()
            for number, batch in enumerate(chain(batches, [None])):
                if batch is not None:
                    waiting.append(forward(*batch))
                if not number or not waiting:
                    continue
                launched = waiting.popleft()
                if launched.event is not None:
                    yield launched.event
                width = launched.logits.shape[1]
                self._split(launched, logits)
                if progress is not None:
                    progress(number, len(batches))
                if should_stop is not None and should_stop():
                    raise EvaluationStopped
            loss, weight = forward.total_loss() if with_loss else 0.0, forward.weight
        finally:
            if was_training:
                self.model.train()
        if self.world.size > 1 and len(batches):
            logits = self._all_gather_logits(logits, self._logits_shapes(features, width))
            loss, weight = self._all_reduce(np.array([loss, weight])).tolist()
        return SessionOutput(logits, loss / weight if with_loss and weight else None)

    def _split(self, launched: "_Launched", logits: list[NDArray[np.float32]]) -> None:
        """Fill in the logits of each feature of a batch."""
        is_per_sequence = self.model.head.is_per_sequence
        parts = split_logits(launched.logits.numpy(), launched.batch, is_per_sequence=is_per_sequence)
        for index, part in zip(launched.indices, parts, strict=True):
            logits[index] = part

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


@dataclass(frozen=True)
class _Launched:
    """A batch whose logits are on the host when the event is over."""

    indices: list[int]
    batch: Batch
    logits: Tensor
    event: torch.cuda.Event | None


class _ForwardPasses:
    """Forward passes over batches, each launched with the copy of its logits to the host."""

    def __init__(self, session: TorchSession, num_batches: int, *, with_loss: bool) -> None:
        self._session = session
        self._device = session.device
        self._with_loss = with_loss
        self._loss_sum: Tensor | None = None
        self.weight = 0.0
        self._static: Batch | None = None
        self._graph: CapturedGraph[tuple[Tensor, Tensor | None]] | None = None
        # FSDP reuses the memory of gathered weights in training, where inference tensors are not allowed.
        self._no_grad = torch.no_grad if session.world.fsdp_size > 1 else torch.inference_mode
        if session.is_static and session.world.fsdp_size == 1 and num_batches >= MIN_BATCHES_TO_CAPTURE:
            self._graph = CapturedGraph(lambda: self._compute(self._static), torch.cuda.graph_pool_handle())

    def __call__(self, indices: list[int], batch: Batch) -> _Launched:
        """Launch the forward pass of a batch with the indices of its features."""
        if self._device.type == "cuda":
            batch = batch.map(Tensor.pin_memory)
        with side_stream(self._device), self._no_grad():
            logits, loss = self._forward(batch)
            if loss is not None:
                self._loss_sum = loss + (0 if self._loss_sum is None else self._loss_sum)
            self.weight += batch.weight
            return _Launched(indices, batch, *self._copy_to_host(logits))

    def total_loss(self) -> float:
        """Return the sum of the batches' losses, for which the host waits; 0 without losses."""
        if self._loss_sum is None:
            return 0.0
        with side_stream(self._device):
            return float(self._loss_sum)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if self._session.graphs is not None and not self._with_loss:
            return self._session.graphs(self._logits, batch, self._device), None
        if self._graph is None:
            return self._compute(batch.to(self._device))
        if self._static is None:
            self._static = batch.to(self._device)
        self._static.copy_from(batch)
        return self._graph()

    def _compute(self, batch: Batch | None) -> tuple[Tensor, Tensor | None]:
        assert batch is not None
        logits = self._logits(batch)
        return logits, self._session.loss(logits, batch) if self._with_loss else None

    def _logits(self, batch: Batch) -> Tensor:
        return self._session.model(*batch.inputs()).float()

    def _copy_to_host(self, tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if not tensor.is_cuda:
            return tensor, None
        host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event
