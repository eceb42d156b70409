"""Bucketed float32 gradient all-reduce, overlapped with the backward pass, and the global gradient norm.

Gradients are summed over the data-parallel processes, unless FSDP has already reduced them: all-reduced, or with a
sharded optimizer reduce-scattered within the same buckets (`optimizer_shards`). Over the tensor axis, a
sharded weight has its own gradients; a replicated weight has the same gradient in every process (the mean keeps the
replicas from drifting apart by rounding), and a sequence-parallel one has partial gradients (the sum).

In the last micro-batch a bucket is all-reduced as soon as its gradients are ready, while the backward pass continues.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .optimizer_shards import group_into_buckets
from .sharding import Sharding

# Elements: each gradient starts at a multiple of 16 bytes, as the fused optimizer step loads it.
ALIGNMENT = 4


@dataclass
class _Bucket:
    """Gradients of parameters of one kind in one contiguous buffer."""

    buffer: Tensor
    reduced: Tensor
    """What this process has of the sums over the data axis: the buffer, or with a sharded optimizer its part of it."""
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
        groups: dict[object, list[tuple[str, nn.Parameter]]] = {}
        for name, master in master_weights.items():
            if master.requires_grad:
                place = sharding.optimizer_sharded.get(name)
                key = sharding.kind(name) if place is None else place.bucket
                groups.setdefault(key, []).append((name, master))
        self.gradients: dict[nn.Parameter, Tensor] = {}
        """The float32 sums that this process has of the gradients of the master weights."""
        self._sums = self.gradients if not sharding.optimizer_sharded else {}
        """Those of whole gradients."""
        self._buckets: list[_Bucket] = []
        for group in groups.values():
            if sharding.optimizer_sharded:
                self._buckets.append(self._make_shared_bucket(dict(group)))
            else:
                self._buckets += [
                    self._make_bucket({name: master_weights[name] for name in names})
                    for names in group_into_buckets(group)
                ]
        self._bucket_of = {master: bucket for bucket in self._buckets for master in bucket.master_weights}
        self._is_first = self._is_last = False
        self._pending: list[Any] = []

    def _make_bucket(self, masters: Mapping[str, nn.Parameter]) -> _Bucket:
        sizes = [-(-master.numel() // ALIGNMENT) * ALIGNMENT for master in masters.values()]
        buffer = torch.zeros(sum(sizes), device=next(iter(masters.values())).device)
        for master, chunk in zip(masters.values(), buffer.split(sizes), strict=True):
            self.gradients[master] = chunk[: master.numel()].view(master.shape)
        return _Bucket(buffer, buffer, *self._sharding.kind(next(iter(masters))), list(masters.values()))

    def _make_shared_bucket(self, masters: Mapping[str, nn.Parameter]) -> _Bucket:
        """Make the bucket of a sharded optimizer, of which this process keeps a part."""
        world, places = self._world, self._sharding.optimizer_sharded
        first = next(iter(masters))
        buffer = torch.zeros(places[first].part * world.data_size, device=masters[first].device)
        reduced = buffer.chunk(world.data_size)[world.data_rank]
        for name, master in masters.items():
            start, shape = places[name].start, places[name].shape
            self._sums[master] = buffer[start : start + shape.numel()].view(shape)
            self.gradients[master] = places[name].view(reduced, world.data_rank)
        return _Bucket(buffer, reduced, *self._sharding.kind(first), list(masters.values()))

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
            sums = [self._sums[master] for master in bucket.ready]
            if self._is_first:
                torch._foreach_copy_(sums, list(bucket.ready.values()))
            else:
                torch._foreach_add_(sums, list(bucket.ready.values()))
        bucket.ready = {}
        bucket.is_accumulated = True
        if not self._is_last or self._sharding.uses_fsdp:
            return
        if self._sharding.optimizer_sharded:
            self._pending += self._world.reduce_scatter_data_async(bucket.buffer, bucket.reduced)
        else:
            self._pending += self._world.all_reduce_data_async(bucket.buffer)

    def reduce(self) -> None:
        """All-reduce over the tensor axis, so that every replica of a weight has the same gradient."""
        world = self._world
        for bucket in self._buckets:
            if not bucket.is_tensor_sharded and world.tensor_size > 1:
                world.all_reduce_tensor(bucket.reduced)
                if not bucket.is_sequence_parallel:
                    bucket.reduced /= world.tensor_size

    def loss_and_norm(self, loss: Tensor) -> Tensor:
        """Reduce this process' share of the loss and the global gradient norm: [2].

        Every process gets the same bits, so that all take the same decision about the step.
        """
        world = self._world
        squared_norm = torch.zeros((), device=loss.device)
        for bucket in self._buckets:
            squared_norm += torch.linalg.vector_norm(bucket.reduced).square() / self._num_replicas(bucket)
        sums = torch.stack([loss / world.tensor_size, squared_norm])
        world.all_reduce(sums)
        return torch.stack([sums[0], sums[1].sqrt()])

    def _num_replicas(self, bucket: _Bucket) -> int:
        """Count the processes that hold the same gradients."""
        world = self._world
        sharing = world.fsdp_size if self._sharding.uses_fsdp else 1
        over_data = 1 if self._sharding.optimizer_sharded else world.data_size // sharing
        return over_data if bucket.is_tensor_sharded else over_data * world.tensor_size
