"""Optimizer steps of losses that compare all sequences of a step, over its micro-batches and over all processes.

Gradient caching (Gao et al. 2021, arXiv:2101.06983): embeddings of all micro-batches first, then the loss of the whole
step and its gradient by the embeddings, then each micro-batch again, with that gradient. It is exact: dropout is a
function of the seed and the micro-batch's number, so the second pass has the masks of the first.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.packing import Batch
from ..parallel.process_group import World
from .step import Stepper


class ContrastiveStepper(Stepper):
    """A Stepper whose loss is that of the whole step; memory is that of one micro-batch and of all embeddings."""

    _cached: deque[tuple[Tensor, Tensor]] | None = None

    def _accumulate_gradients(self, batches: Sequence[Batch], number: int) -> None:
        step_loss = self._loss
        if len(batches) > 1 or self._world.data_size > 1:
            self._cached = deque(self._embedding_gradients(batches, number))
            self._loss = self._cached_loss
        try:
            super()._accumulate_gradients(batches, number)
        finally:
            self._loss = step_loss

    def _embedding_gradients(self, batches: Sequence[Batch], number: int) -> list[tuple[Tensor, Tensor]]:
        """Return for each micro-batch the step's gradient by its embeddings, and its share of the loss."""
        parts, on_device = [], []
        for index, batch in enumerate(batches):
            on_device.append(batch.to(self.device))
            self._seed_dropout(number, index)
            # With gradients, as in the second pass, so that both execute the same kernels.
            parts.append(self._model(*on_device[-1].inputs()).float().detach())
        own_ND = torch.cat(parts)
        targets = {name: torch.cat([batch.targets[name] for batch in on_device]) for name in on_device[0].targets}
        embeddings_ND, start = gather(own_ND, self._world)
        targets = {name: gather(target, self._world)[0] for name, target in targets.items()}
        embeddings_ND.requires_grad_()
        loss = self._loss(embeddings_ND, replace(on_device[0], targets=targets))
        (gradients_ND,) = torch.autograd.grad(loss, embeddings_ND)
        share = loss.detach() / (len(batches) * self._world.data_size)
        own_gradients = gradients_ND[start : start + len(own_ND)]
        return [(part, share) for part in own_gradients.split([len(part) for part in parts])]

    def _cached_loss(self, embeddings_ND: Tensor, batch: Batch) -> Tensor:
        """Return the micro-batch's share of the loss, with the cached gradient by its embeddings."""
        assert self._cached is not None
        gradients_ND, share = self._cached.popleft()
        product = (embeddings_ND.float() * gradients_ND).sum()
        return product + (share - product).detach()


def gather(own: Tensor, world: World) -> tuple[Tensor, int]:
    """Concatenate the rows of all data-parallel processes; returns them and where this process's own begin.

    Processes may have different numbers of rows. Gradients do not flow through it.
    """
    if world.data_size == 1:
        return own, 0
    counts = torch.zeros(world.data_size, dtype=torch.long, device=own.device)
    counts[world.data_rank] = len(own)
    world.all_reduce_data(counts)
    start = int(counts[: world.data_rank].sum())
    rows = own.new_zeros((int(counts.sum()), *own.shape[1:]))
    rows[start : start + len(own)] = own
    world.all_reduce_data(rows)
    return rows, start
