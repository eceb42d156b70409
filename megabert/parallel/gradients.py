"""Gradients of several processes: summed in float32, in buckets, and their norm as if they were of one.

A gradient is summed over processes with other texts (data), unless FSDP has done so. Over the tensor axis a weight that
is cut has gradients of its own; one that is whole in each process has the same gradient in all (the mean keeps copies
from drifting apart by the last bits), or a part of it where each sees only some tokens (the sum).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .plan import Layout

# Elements of a bucket: 100 MB are enough to be limited by bandwidth and not by latency.
BUCKET = 25_000_000
# Each gradient begins at a multiple of 16 bytes: the fused step loads it so.
ALIGNMENT = 4


@dataclass(frozen=True)
class _Kind:
    """What gradients have in common: how they are reduced, and how many processes end with the same ones."""

    is_cut: bool
    """Cut over the tensor axis."""
    is_partial: bool
    """Whole in each process, of which each sees some tokens only."""


class SharedGradients:
    """The gradients of one process among several; `views` are where each is summed up, float32."""

    def __init__(self, masters: Mapping[str, nn.Parameter], layout: Layout) -> None:
        self._layout, self._world = layout, layout.world
        kinds: dict[_Kind, list[nn.Parameter]] = {}
        for name, master in masters.items():
            if master.requires_grad:
                kind = _Kind(name in layout.cuts, name in layout.partial)
                kinds.setdefault(kind, []).append(master)
        self.views: dict[nn.Parameter, Tensor] = {}
        self._buckets: list[tuple[_Kind, Tensor]] = []
        for kind, parameters in kinds.items():
            for group in _grouped(parameters):
                self._buckets.append((kind, self._make_bucket(group)))

    def _make_bucket(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        sizes = [_aligned(parameter.numel()) for parameter in parameters]
        bucket = torch.zeros(sum(sizes), device=parameters[0].device)
        for parameter, part in zip(parameters, bucket.split(sizes), strict=True):
            self.views[parameter] = part[: parameter.numel()].view(parameter.shape)
        return bucket

    def add(self, fresh: Mapping[nn.Parameter, Tensor], *, is_first: bool) -> None:
        """Take a micro-batch's gradients; those of the first replace what is there.

        A parameter without a gradient must be without it in all processes and micro-batches.
        """
        if not fresh:
            return
        views = [self.views[master] for master in fresh]
        if is_first:
            torch._foreach_copy_(views, list(fresh.values()))
        else:
            torch._foreach_add_(views, list(fresh.values()))

    def reduce(self) -> None:
        """Sum over processes; afterwards those that hold the same weight hold the same gradient."""
        world = self._world
        for kind, bucket in self._buckets:
            if not self._layout.uses_fsdp:
                world.sum_over_data(bucket)
            if not kind.is_cut and world.tensor_size > 1:
                world.sum_over_tensor(bucket)
                if not kind.is_partial:
                    bucket /= world.tensor_size

    def figures(self, loss: Tensor) -> Tensor:
        """Sum this process' share of the loss, and of the squares of all gradients, over processes: [2], loss and norm.

        All get the same bits, so that all decide alike.
        """
        world = self._world
        squares = torch.zeros((), device=loss.device)
        for kind, bucket in self._buckets:
            squares += torch.linalg.vector_norm(bucket).square() / self._num_alike(kind)
        figures = torch.stack([loss / world.tensor_size, squares])
        world.sum(figures)
        return torch.stack([figures[0], figures[1].sqrt()])

    def _num_alike(self, kind: _Kind) -> int:
        """Count the processes that hold the same gradients of a kind."""
        world = self._world
        over_data = world.data_size // world.fsdp_size if self._layout.uses_fsdp else world.data_size
        return over_data if kind.is_cut else over_data * world.tensor_size


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
