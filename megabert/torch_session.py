"""Run a PyTorch network over features: packed batches, overlapped copies, CUDA graphs, several ranks."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.packing import Batch, BatchSize, Features, pack
from .data.sampler import EvaluationBatches, sequence_counts, sequence_lengths
from .inference import EvaluationStopped, ProgressCallback, SessionOutput
from .kernels.cuda_graph import CapturedGraph, side_stream
from .model.attention import PackedSequences
from .model.heads import DualEmbeddingHead, EmbeddingHead, StatesHead, TaskModel
from .model.lora import base_parameters, lora_config, mix_encoders
from .model.precision import resolve_static_batches
from .parallel.process_group import SINGLE_PROCESS, World

Loss = Callable[[Tensor, Batch], Tensor]
# Capturing a CUDA graph takes about as long as this many batches.
MIN_BATCHES_TO_CAPTURE = 4


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
    graphs: "SizedGraphs | None" = None
    """Captured forward passes that later calls replay; without losses."""

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

    def without_head(self) -> "TorchSession":
        """Return the network without its head, as `Session.without_head` describes."""
        model = TaskModel(self.model.encoder, EmbeddingHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, graphs=None)

    def token_states(self) -> "TorchSession":
        """Return the network with the last hidden states of all tokens instead of logits."""
        model = TaskModel(self.model.encoder, StatesHead()).train(self.model.training)
        return replace(self, model=model, is_static=False, graphs=None)

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
        steps = self.steps(
            features,
            batch_size=batch_size,
            max_length=max_length,
            pad_id=pad_id,
            with_loss=with_loss,
            progress=progress,
            should_stop=should_stop,
        )
        while True:
            try:
                next(steps).synchronize()
            except StopIteration as end:
                output: SessionOutput = end.value
                return output

    def steps(
        self,
        features: Sequence[Features],
        *,
        batch_size: int,
        max_length: int,
        pad_id: int,
        with_loss: bool = False,
        progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Generator[torch.cuda.Event, None, SessionOutput]:
        """Compute what `run` returns; yields each event of the GPU that must be over before the next step."""
        logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(features)
        batches = EvaluationBatches(
            features,
            batch_size,
            max_length,
            pad_id,
            static_size=self.is_static,
            size_multiple=self.graphs.size_multiple if self.graphs else 0,
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
            loss, weight = forward.total_loss(), forward.weight
        finally:
            if was_training:
                self.model.train()
        if self.world.size > 1 and len(batches):
            logits = self._all_gather_logits(logits, self._logits_shapes(features, width))
            loss, weight = self._all_reduce(np.array([loss, weight])).tolist()
        return SessionOutput(logits, loss / weight if with_loss and weight else None)

    def _split(self, launched: "_Launched", logits: list[NDArray[np.float32]]) -> None:
        """Fill in the logits of each feature of a batch."""
        array = launched.logits.numpy()
        if self.model.head.is_per_sequence:
            parts = _by_feature(array, launched.batch.parts)
        else:
            ends = launched.batch.cu_seqlens_N1.tolist()
            parts = [array[start:end] for start, end in pairwise(ends[: len(launched.indices) + 1])]
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


def _by_feature(logits_NC: NDArray[np.float32], parts: Sequence[int]) -> list[NDArray[np.float32]]:
    """Split the logits of sequences: [C] of a feature with one sequence, [P, C] of one with several."""
    starts = np.cumsum([0, *parts])
    pairs = zip(starts[:-1].tolist(), parts, strict=True)
    return [logits_NC[start] if count == 1 else logits_NC[start : start + count] for start, count in pairs]


class AdapterMix:
    """Networks of one base with adapters and heads of their own, whose sequences share a batch."""

    def __init__(self, sessions: Mapping[str, TorchSession]) -> None:
        self._numbers = {name: number for number, name in enumerate(sessions)}
        self._models = [session.model for session in sessions.values()]
        self._device = next(iter(sessions.values())).device
        self._segments = threading.local()  # of the batch that a thread computes
        self._encoder = mix_encoders([model.encoder for model in self._models], self._segments)

    def run(self, parts: Sequence[tuple[str, Sequence[Features]]], max_length: int) -> list[NDArray[np.float32]]:
        """Compute logits of the features of several networks, given by name, as one batch; in their order."""
        features = [item for _, own in parts for item in own]
        ends = np.cumsum([0, *(sum(map(len, own)) for _, own in parts)]).tolist()
        sequences = np.cumsum([0, *(sum(item.num_sequences for item in own) for _, own in parts)]).tolist()
        numbers = [self._numbers[name] for name, _ in parts]
        self._segments.now = list(zip(numbers, ends[:-1], ends[1:], strict=True))
        with side_stream(self._device), torch.inference_mode():
            batch = pack(features, max_length, pad_id=0)  # without a static size nothing is padded
            batch = batch.map(Tensor.pin_memory).to(self._device) if self._device.type == "cuda" else batch
            token_ids_T, position_ids_T, segment_ids_T, cu_seqlens_N1, _, _ = batch.inputs()
            documents = PackedSequences(cu_seqlens_N1, max_length)
            hidden_TD = self._encoder(token_ids_T, position_ids_T, segment_ids_T, documents)
            starts_N = documents.starts()
            outputs = [
                self._models[number].apply_head(hidden_TD[start:end], starts_N[first:last] - start)
                for (number, start, end), first, last in zip(
                    self._segments.now, sequences[:-1], sequences[1:], strict=True
                )
            ]
            arrays = [output.float().cpu().numpy() for output in outputs]
        logits: list[NDArray[np.float32]] = []
        for number, array, (_, own) in zip(numbers, arrays, parts, strict=True):
            if self._models[number].head.is_per_sequence:
                logits += _by_feature(array, [item.num_sequences for item in own])
            else:
                logits += np.split(array, np.cumsum([len(item) for item in own])[:-1])
        return logits


def adapter_mixes(sessions: Mapping[str, object]) -> dict[str, AdapterMix]:
    """Find the networks, by name, that are adapters of one base in memory: each group's sequences can share batches."""
    groups: dict[tuple[int, ...], dict[str, TorchSession]] = {}
    for name, session in sessions.items():
        if not isinstance(session, TorchSession) or isinstance(session.model.head, DualEmbeddingHead):
            continue
        if lora_config(session.model) is not None and session.precision != "fp8" and session.world.size == 1:
            key = tuple(id(parameter) for parameter in base_parameters(session.model.encoder).values())
            groups.setdefault(key, {})[name] = session
    mixes: dict[str, AdapterMix] = {}
    for group in groups.values():
        if len({id(session.model.encoder) for session in group.values()}) > 1:
            mixes |= dict.fromkeys(group, AdapterMix(group))
    return mixes


class SizedGraphs:
    """Captured forward passes of one network: a CUDA graph for each size of batches.

    Sizes are multiples of `size_multiple` tokens, so that there are few. Only one thread may use them.
    """

    def __init__(self, size_multiple: int = 128) -> None:
        self.size_multiple = size_multiple
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
