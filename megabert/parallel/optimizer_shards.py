"""Sharded optimizer: whole weights in every process, master weights and optimizer state in shards (ZeRO stage 1).

The weights of a bucket are views of one buffer, as the gradients are; each process owns an equal part of it, whatever
weights it holds. After a backward pass a bucket's gradients are reduce-scattered, each process updates its part, and
the parts are all-gathered. All buffers are static, so that a CUDA graph can capture a step.

Source: Rajbhandari et al. 2019 (arXiv:1910.02054); the buffers as in Megatron-LM's distributed optimizer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .process_group import World

# Elements: 100 MB of gradients make a collective bandwidth-bound rather than latency-bound.
BUCKET_SIZE = 25_000_000
# Elements: each weight begins at a multiple of 128 bytes, as matmuls load it fastest.
ALIGNMENT = 64


def group_into_buckets(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[list[str]]:
    """Group parameters into buckets, the network's last ones first: the backward pass reaches them first."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, parameter in reversed(list(parameters)):
        if groups[-1] and size + parameter.numel() > BUCKET_SIZE:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += parameter.numel()
    return groups


@dataclass(frozen=True)
class Place:
    """Where a weight is in a bucket, of which each process owns an equal part: from element `start` on."""

    bucket: int
    start: int
    shape: torch.Size
    part: int
    """Elements of the bucket that a process owns."""

    def span(self, rank: int) -> tuple[int, int]:
        """Return the elements of the flat weight that a process owns, first and last + 1; perhaps none."""
        first, last = (
            min(max(at - self.start, 0), self.shape.numel()) for at in (rank * self.part, (rank + 1) * self.part)
        )
        return first, last

    def take(self, whole: Tensor, rank: int) -> Tensor:
        """Return a process' shard of a tensor of the weight's shape, a view where that is contiguous."""
        first, last = self.span(rank)
        return self._shaped(whole.reshape(-1)[first:last])

    def view(self, part: Tensor, rank: int) -> Tensor:
        """Return a process' shard of the weight as a view of the process' part of a bucket's buffer."""
        first, last = self.span(rank)
        begin = self.start + first - rank * self.part if last > first else 0
        return self._shaped(part[begin : begin + last - first])

    def _shaped(self, flat: Tensor) -> Tensor:
        # Shards of matrices have two dims: weight decay distinguishes them from biases by that.
        return flat.view(1, -1) if len(self.shape) > 1 else flat

    def gather(self, shard: Tensor, world: World) -> Tensor:
        """Put a tensor together from the shards of all processes, exactly; a collective."""
        flat = shard.new_zeros(self.shape.numel())
        for rank in range(world.data_size):
            first, last = self.span(rank)
            if last > first:
                if rank == world.data_rank:
                    flat[first:last] = shard.reshape(-1)
                world.broadcast_data(flat[first:last], rank)
        return flat.view(self.shape)


class OptimizerShards:
    """The buckets of a model's trained weights, and this process' master weights: views of its part of each bucket."""

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        masters: Mapping[str, Tensor],
        kinds: Mapping[str, object],
        world: World,
    ) -> None:
        """Move `weights` into buckets; `masters` are their values in float32, `kinds` what may not share a bucket."""
        self._world = world
        self.places: dict[str, Place] = {}
        self.master_weights: dict[str, nn.Parameter] = {}
        self.copies: dict[nn.Parameter, Tensor] = {}
        """For each master weight that the model holds in lower precision this process' shard of it."""
        self._buffers: list[Tensor] = []
        groups: dict[object, list[tuple[str, nn.Parameter]]] = {}
        for name, weight in weights.items():
            groups.setdefault((weight.dtype, kinds[name]), []).append((name, weight))
        for group in groups.values():
            for names in group_into_buckets(group):
                self._add_bucket({name: weights[name] for name in names}, masters)

    def _add_bucket(self, weights: Mapping[str, nn.Parameter], masters: Mapping[str, Tensor]) -> None:
        world, bucket = self._world, len(self._buffers)
        sizes = [_aligned(weight.numel(), ALIGNMENT) for weight in weights.values()]
        part = _aligned(sum(sizes), ALIGNMENT * world.data_size) // world.data_size
        first = next(iter(weights.values()))
        buffer = torch.zeros(part * world.data_size, dtype=first.dtype, device=first.device)
        own = self._own(buffer)
        # Weights that the model holds in float32 are their own masters.
        exact = own if first.dtype == torch.float32 else torch.zeros(part, device=first.device)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        for (name, weight), start in zip(weights.items(), starts, strict=True):
            place = self.places[name] = Place(bucket, start, weight.shape, part)
            whole = buffer[start : start + weight.numel()].view(weight.shape)
            whole.copy_(weight.detach())
            weight.data = whole
            view = place.view(exact, world.data_rank)
            view.copy_(place.take(masters[name].detach(), world.data_rank))
            master = self.master_weights[name] = nn.Parameter(view, requires_grad=True)
            if exact is not own:
                self.copies[master] = place.view(own, world.data_rank)
        self._buffers.append(buffer)

    def _own(self, buffer: Tensor) -> Tensor:
        return buffer.chunk(self._world.data_size)[self._world.data_rank]

    def gather_weights(self) -> None:
        """All-gather the updated weights; a CUDA graph can capture it."""
        works = [
            work for buffer in self._buffers for work in self._world.all_gather_data_async(buffer, self._own(buffer))
        ]
        for work in works:
            work.wait()


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
