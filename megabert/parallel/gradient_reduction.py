"""Bucketed float32 gradient all-reduce, overlapped with the backward pass, and the global gradient norm.

Gradients are summed over the data-parallel processes, unless FSDP has already reduced them. Over the tensor axis, a
sharded weight has its own gradients; a replicated weight has the same gradient in every process (the mean keeps the
replicas from drifting apart by rounding), and a sequence-parallel one has partial gradients (the sum).

In the last micro-batch a bucket is all-reduced as soon as its gradients are ready, while the backward pass continues.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import Sharding

# Elements: 100 MB make an all-reduce bandwidth-bound rather than latency-bound.
BUCKET_SIZE = 25_000_000
# Elements: each gradient starts at a multiple of 16 bytes, as the fused optimizer step loads it.
ALIGNMENT = 4


@dataclass
class _Bucket:
    """Gradients of parameters of one kind in one contiguous buffer."""

    buffer: Tensor
    is_tensor_sharded: bool
    is_sequence_parallel: bool
    master_weights: list[nn.Parameter]
    ready: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    """Gradients that the current backward pass has computed."""
    is_accumulated: bool = False


class GradientReducer:
    """Accumulate gradients in float32 buckets and reduce them; `gradients` are views into the buckets."""

    def __init__(self, master_weights: Mapping[str, nn.Parameter], sharding: Sharding) -> None:
        self._sharding, self._world = sharding, sharding.world
        kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, master in master_weights.items():
            if master.requires_grad:
                kind = (name in sharding.tensor_sharded, name in sharding.sequence_parallel)
                kinds.setdefault(kind, []).append(master)
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self._buckets = [
            self._make_bucket(group, *kind)
            for kind, parameters in kinds.items()
            for group in _group_into_buckets(parameters)
        ]
        self._bucket_of = {master: bucket for bucket in self._buckets for master in bucket.master_weights}
        self._is_first = self._is_last = False
        self._pending: list[Any] = []

    def _make_bucket(
        self, master_weights: list[nn.Parameter], is_tensor_sharded: bool, is_sequence_parallel: bool
    ) -> _Bucket:
        sizes = [-(-master.numel() // ALIGNMENT) * ALIGNMENT for master in master_weights]
        buffer = torch.zeros(sum(sizes), device=master_weights[0].device)
        for master, chunk in zip(master_weights, buffer.split(sizes), strict=True):
            self.gradients[master] = chunk[: master.numel()].view(master.shape)
        return _Bucket(buffer, is_tensor_sharded, is_sequence_parallel, master_weights)

    def register_hooks(self, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """Hook (parameter, master weight) pairs: a gradient enters its bucket when the backward pass computes it."""
        for parameter, master in pairs:
            parameter.register_hook(partial(self._on_gradient, master))

    def begin_backward(self, *, is_first: bool, is_last: bool) -> None:
        """Prepare for the backward pass of a micro-batch; the first of a step overwrites the accumulated gradients."""
        self._is_first, self._is_last = is_first, is_last

    def _on_gradient(self, master: nn.Parameter, gradient: Tensor) -> None:
        bucket = self._bucket_of[master]
        bucket.ready[master] = gradient.detach()
        if len(bucket.ready) == len(bucket.master_weights):
            self._accumulate(bucket)

    def end_backward(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Accumulate what no hook has delivered, and wait for the all-reduces.

        A parameter without a gradient must have none in every process.
        """
        for master, gradient in gradients.items():
            if not self._bucket_of[master].is_accumulated:
                self._bucket_of[master].ready.setdefault(master, gradient)
        for bucket in self._buckets:
            if not bucket.is_accumulated and bucket.ready:
                self._accumulate(bucket)
            bucket.is_accumulated = False
        # Wait here rather than before the update: work begun inside a CUDA graph must end inside it.
        for work in self._pending:
            work.wait()
        self._pending.clear()

    def _accumulate(self, bucket: _Bucket) -> None:
        with torch.no_grad():
            sums = [self.gradients[master] for master in bucket.ready]
            if self._is_first:
                torch._foreach_copy_(sums, list(bucket.ready.values()))
            else:
                torch._foreach_add_(sums, list(bucket.ready.values()))
        bucket.ready = {}
        bucket.is_accumulated = True
        if self._is_last and not self._sharding.uses_fsdp:
            self._pending += self._world.all_reduce_data_async(bucket.buffer)

    def reduce(self) -> None:
        """All-reduce over the tensor axis, so that every replica of a weight has the same gradient."""
        world = self._world
        for bucket in self._buckets:
            if not bucket.is_tensor_sharded and world.tensor_size > 1:
                world.all_reduce_tensor(bucket.buffer)
                if not bucket.is_sequence_parallel:
                    bucket.buffer /= world.tensor_size

    def loss_and_norm(self, loss: Tensor) -> Tensor:
        """Reduce this process' share of the loss and the global gradient norm: [2].

        Every process gets the same bits, so that all take the same decision about the step.
        """
        world = self._world
        squared_norm = torch.zeros((), device=loss.device)
        for bucket in self._buckets:
            squared_norm += torch.linalg.vector_norm(bucket.buffer).square() / self._num_replicas(bucket)
        sums = torch.stack([loss / world.tensor_size, squared_norm])
        world.all_reduce(sums)
        return torch.stack([sums[0], sums[1].sqrt()])

    def _num_replicas(self, bucket: _Bucket) -> int:
        """Count the processes that hold the same gradients."""
        world = self._world
        over_data = world.data_size // world.fsdp_size if self._sharding.uses_fsdp else world.data_size
        return over_data if bucket.is_tensor_sharded else over_data * world.tensor_size


def _group_into_buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters into buckets, the network's last ones first: the backward pass reaches them first."""
    groups: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(parameters):
        if groups[-1] and size + parameter.numel() > BUCKET_SIZE:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
