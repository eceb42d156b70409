"""Gradients of several processes: summed in float32, in buckets, and their norm as if they were of one.

A gradient is summed over processes with other texts (data), unless FSDP has done so. Over the tensor axis a weight that
is cut has gradients of its own; one that is whole in each process has the same gradient in all (the mean keeps copies
from drifting apart by the last bits), or a part of it where each sees only some tokens (the sum).

In the last micro-batch a bucket is sent off as soon as its gradients are there, while the backward pass goes on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .sharding import Sharding

# Elements of a bucket: 100 MB are enough to be limited by bandwidth and not by latency.
BUCKET = 25_000_000
# Each gradient begins at a multiple of 16 bytes: the fused step loads it so.
ALIGNMENT = 4


@dataclass
class _Bucket:
    """Some parameters' gradients, end to end, and what these have in common."""

    numbers: Tensor
    is_cut: bool
    """Cut over the tensor axis."""
    is_partial: bool
    """Whole in each process, of which each sees some tokens only."""
    master_weights: list[nn.Parameter]
    came: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    """Gradients of the backward pass at hand."""
    is_sent: bool = False


class GradientReducer:
    """The gradients of one process among several; `gradients` are where each is summed up, float32."""

    def __init__(self, master_weights: Mapping[str, nn.Parameter], sharding: Sharding) -> None:
        self._layout, self._world = sharding, sharding.world
        kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, master in master_weights.items():
            if master.requires_grad:
                kind = (name in sharding.tensor_sharded, name in sharding.sequence_parallel)
                kinds.setdefault(kind, []).append(master)
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self._buckets = [
            self._make_bucket(group, *kind) for kind, parameters in kinds.items() for group in _grouped(parameters)
        ]
        self._bucket_of = {master: bucket for bucket in self._buckets for master in bucket.master_weights}
        self._is_first = self._is_last = False
        self._works: list[Any] = []

    def _make_bucket(self, master_weights: list[nn.Parameter], is_cut: bool, is_partial: bool) -> _Bucket:
        sizes = [_aligned(master.numel()) for master in master_weights]
        numbers = torch.zeros(sum(sizes), device=master_weights[0].device)
        for master, part in zip(master_weights, numbers.split(sizes), strict=True):
            self.gradients[master] = part[: master.numel()].view(master.shape)
        return _Bucket(numbers, is_cut, is_partial, master_weights)

    def register_hooks(self, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """Take the gradients of parameters for those of their masters, as soon as a backward pass has made them."""
        for parameter, master in pairs:
            parameter.register_hook(partial(self._take, master))

    def begin_backward(self, *, is_first: bool, is_last: bool) -> None:
        """Say which micro-batch the next backward pass is of: the first one's replace what is there."""
        self._is_first, self._is_last = is_first, is_last

    def _take(self, master: nn.Parameter, gradient: Tensor) -> None:
        bucket = self._bucket_of[master]
        bucket.came[master] = gradient.detach()
        if len(bucket.came) == len(bucket.master_weights):
            self._add_up(bucket)

    def end_backward(self, fresh: Mapping[nn.Parameter, Tensor]) -> None:
        """Take what came otherwise. A parameter without a gradient must be without it in all processes."""
        for master, gradient in fresh.items():
            if not self._bucket_of[master].is_sent:
                self._bucket_of[master].came.setdefault(master, gradient)
        for bucket in self._buckets:
            if not bucket.is_sent and bucket.came:
                self._add_up(bucket)
            bucket.is_sent = False
        # Here and not before the update: a CUDA graph must end what it began.
        for work in self._works:
            work.wait()
        self._works.clear()

    def _add_up(self, bucket: _Bucket) -> None:
        with torch.no_grad():
            views = [self.gradients[master] for master in bucket.came]
            if self._is_first:
                torch._foreach_copy_(views, list(bucket.came.values()))
            else:
                torch._foreach_add_(views, list(bucket.came.values()))
        bucket.came = {}
        bucket.is_sent = True
        if self._is_last and not self._layout.uses_fsdp:
            self._works += self._world.all_reduce_data_async(bucket.numbers)

    def reduce(self) -> None:
        """Sum over the tensor axis; afterwards those that hold the same weight hold the same gradient."""
        world = self._world
        for bucket in self._buckets:
            if not bucket.is_cut and world.tensor_size > 1:
                world.all_reduce_tensor(bucket.numbers)
                if not bucket.is_partial:
                    bucket.numbers /= world.tensor_size

    def loss_and_norm(self, loss: Tensor) -> Tensor:
        """Sum this process' share of the loss, and of the squares of all gradients, over processes: [2], loss and norm.

        All get the same bits, so that all decide alike.
        """
        world = self._world
        squares = torch.zeros((), device=loss.device)
        for bucket in self._buckets:
            squares += torch.linalg.vector_norm(bucket.numbers).square() / self._num_alike(bucket)
        figures = torch.stack([loss / world.tensor_size, squares])
        world.all_reduce(figures)
        return torch.stack([figures[0], figures[1].sqrt()])

    def _num_alike(self, bucket: _Bucket) -> int:
        """Count the processes that hold the same gradients."""
        world = self._world
        over_data = world.data_size // world.fsdp_size if self._layout.uses_fsdp else world.data_size
        return over_data if bucket.is_cut else over_data * world.tensor_size


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _grouped(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Cut parameters into groups of about a bucket's size, the last ones of the network first."""
    groups: list[list[nn.Parameter]] = [[]]
    filled = 0
    for parameter in reversed(parameters):
        if groups[-1] and filled + parameter.numel() > BUCKET:
            groups.append([])
            filled = 0
        groups[-1].append(parameter)
        filled += parameter.numel()
    return groups
