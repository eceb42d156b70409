"""Optimizer steps: micro-batches in, updated weights out, with gradient accumulation and float32 master weights.

Master weights are float32: the optimizer updates them and checkpoints hold them. Where the encoder computes in lower
precision it has copies, refreshed from the masters once a step; gradients of micro-batches are accumulated in float32.
Each rank has the masters of its shard. Gradients, loss and gradient norm are all-reduced once a step, so that all
ranks make the same decision whether to skip it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from ..checkpoints.files.lazy_tensor import Readable
from ..checkpoints.native.run_checkpoints import read_whole
from ..config.schema import OptimizerSettings
from ..data.packing import Batch
from ..errors import ConfigError
from ..kernels.cuda_graph import CapturedGraph
from ..model.lora import frozen_base
from ..model.precision import cast_model
from ..parallel.execution import supports_sync_free
from ..parallel.gradient_reduction import GradientReducer
from ..parallel.optimizer_shards import OptimizerShards
from ..parallel.process_group import World
from ..parallel.sharding import Sharding
from .optimizer import (
    build_loss_scaler,
    build_optimizer,
    clip_gradients,
    load_optimizer_tensors,
    parameter_of,
    set_learning_rate,
)

Loss = Callable[[Tensor, Batch], Tensor]


class Stepper:
    """Optimizer steps of a training. Takes ownership of the model: casts its encoder to `precision`."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: OptimizerSettings,
        *,
        precision: str,
        clip: float,
        seed: int,
        sharding: Sharding | None = None,
    ) -> None:
        if clip < 0:
            raise ConfigError(f"trainer.gradient_clip_val={clip:g} is negative. Give 0 for no clipping.")
        self._model, self._loss = model, loss
        self._clip, self._seed = clip, seed
        self._has_loss_scale = precision == "16"
        self.sharding = sharding or Sharding(World(next(model.parameters()).device))
        self._world = self.sharding.world
        self.master_weights: dict[str, nn.Parameter]
        self._copies: Mapping[nn.Parameter, Tensor]
        self.master_weights, self._copies = _make_master_weights(model, precision, self.sharding)
        self._shards = self._shard_optimizer(model) if self._world.shards_optimizer else None
        self._trained = [master for master in self.master_weights.values() if master.requires_grad]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = next(iter(self.master_weights.values())).device
        self.scaler = build_loss_scaler(self.device.type, enabled=self._has_loss_scale)
        self.optimizer = build_optimizer(self.master_weights, settings)
        self._weight = torch.ones((), device=self.device)
        self._loss_sum = torch.zeros((), device=self.device)
        self._reducer = GradientReducer(self.master_weights, self.sharding) if self._world.size > 1 else None
        if self._reducer is not None and not self.sharding.uses_fsdp:
            self._reducer.register_hooks(zip(self._parameters, self._trained, strict=True))

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make an optimizer step with learning rate `rate` on micro-batches, the first of which has the given number.

        Dropout is a function of the seed and the micro-batch number.
        Returns (mean loss, gradient norm before clipping), [2], the same on every rank; if one of them is not finite,
        nothing was updated. (With precision 16 an overflow of the gradients skips the step.)
        """
        self._accumulate_gradients(batches, number)
        loss_norm_2 = self._finish_gradients()
        set_learning_rate(self.optimizer, rate)
        loss, norm = loss_norm_2.tolist()
        if math.isfinite(loss) and (math.isfinite(norm) or self._has_loss_scale):
            self.scaler.step(self.optimizer)
            if self._copies:
                with torch.no_grad():
                    torch._foreach_copy_(list(self._copies.values()), list(self._copies))
            if self._shards is not None:
                self._shards.gather_weights()
        self.scaler.update()
        return loss_norm_2

    def load_optimizer(self, tensors: Mapping[str, Readable | Tensor]) -> None:
        """Load a checkpoint's optimizer state: unsharded tensors, of which this rank takes its shards."""
        shards = {}
        for key, item in tensors.items():
            name, whole = parameter_of(key), read_whole(item)
            fits = name in self.master_weights and whole.shape == self.sharding.full_shape(
                name, self.master_weights[name]
            )
            # A tensor that does not fit stays as it is, and load_optimizer_tensors refuses it.
            shards[key] = _owned(self.sharding.shard(name, whole)) if name is not None and fits else whole
        load_optimizer_tensors(self.optimizer, self.master_weights, shards)

    def _shard_optimizer(self, model: nn.Module) -> OptimizerShards:
        """Replace the master weights, and what lower precision has of them, by this process' shards."""
        weights = {name: item for name, item in model.named_parameters() if item.requires_grad}
        kinds = {name: self.sharding.kind(name) for name in weights}
        shards = OptimizerShards(weights, self.master_weights, kinds, self._world)
        self.master_weights |= shards.master_weights
        self._copies = shards.copies
        self.sharding = replace(self.sharding, optimizer_sharded=shards.places)
        return shards

    def _accumulate_gradients(self, batches: Sequence[Batch], number: int) -> None:
        """Accumulate the micro-batches' gradients of the mean loss over the whole step."""
        self._set_weight(batches)
        for index, batch in enumerate(batches):
            self._seed_dropout(number, index)
            is_first = index == 0
            fresh = self._backward(batch, is_first=is_first, is_last=index == len(batches) - 1)
            if self._reducer is not None:
                for master in fresh:
                    master.grad = self._reducer.gradients[master]
                continue
            for master, gradient in fresh.items():
                if is_first or master.grad is None:
                    master.grad = gradient.float()
                else:
                    master.grad += gradient

    def _set_weight(self, batches: Sequence[Batch]) -> None:
        # The loss is the mean over the global batch, however it is split into micro-batches.
        # A step without any target has the loss 0, not 0 / 0.
        weight = sum(batch.weight for batch in batches)
        if self._world.data_size == 1:
            self._weight.fill_(weight or 1.0)
            return
        self._weight.fill_(weight)
        self._world.all_reduce_data(self._weight)
        self._weight.masked_fill_(self._weight == 0, 1.0)  # on the device: the host does not wait for it

    def _seed_dropout(self, number: int, index: int) -> None:
        # Micro-batches are numbered over all data-parallel ranks, as BatchSampler assigns them.
        seed_step(self._seed, number + index * self._world.data_size + self._world.data_rank)

    def _finish_gradients(self) -> Tensor:
        """All-reduce, unscale and clip the gradients; returns (loss, norm)."""
        if self._reducer is None:
            self.scaler.unscale_(self.optimizer)
            return torch.stack([self._loss_sum, clip_gradients(self._trained, self._clip)])
        self._reducer.reduce()
        loss_norm_2 = self._reducer.loss_and_norm(self._loss_sum)
        if self._has_loss_scale:
            scale = self.scaler.get_scale()
            if not loss_norm_2[1].isfinite():
                # An overflow in one rank's shard skips the step on all: the scaler skips where it finds one.
                next(item.grad for item in self._trained if item.grad is not None and item.numel()).fill_(torch.inf)
            self.scaler.unscale_(self.optimizer)
            loss_norm_2[1] /= scale
        if self._clip:
            clip_grads_with_norm_(self._trained, self._clip, loss_norm_2[1])
        return loss_norm_2

    def _backward(self, batch: Batch, *, is_first: bool, is_last: bool) -> dict[nn.Parameter, Tensor]:
        """Compute a micro-batch's contribution to the mean loss and to the masters' gradients."""
        batch = batch.to(self.device)
        loss = self._loss(self._model(*batch.inputs()), batch) / self._weight
        if self._reducer is not None:
            self._reducer.begin_backward(is_first=is_first, is_last=is_last)
        gradients = self._differentiate(self.scaler.scale(loss))
        self._loss_sum.copy_(loss.detach() if is_first else self._loss_sum + loss.detach())
        pairs = zip(self._trained, gradients, strict=True)
        fresh = {master: gradient for master, gradient in pairs if gradient is not None}
        if self._reducer is not None:
            self._reducer.end_backward(fresh)
        return fresh

    def _differentiate(self, loss: Tensor) -> Sequence[Tensor | None]:
        if not self.sharding.uses_fsdp:
            return torch.autograd.grad(loss, self._parameters, allow_unused=True)
        # FSDP reduces gradients in the hooks of a plain backward pass, to the mean over the data axis.
        (loss * self._world.data_size).backward()
        gradients = []
        for parameter in self._parameters:
            gradients.append(None if parameter.grad is None else parameter.grad.to_local())  # type: ignore[attr-defined]
            parameter.grad = None
        return gradients


class SyncFreeStepper(Stepper):
    """Optimizer steps on a GPU without host synchronization, captured in CUDA graphs where the sharding allows it.

    Batches must have one static size. Loss and norm stay on the device; from a step on that is not finite no step
    updates anything. Without capture the host launches each kernel, ahead of the GPU.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, settings: OptimizerSettings, *, accumulate: int, **options: Any
    ) -> None:
        """Take the options of Stepper, and how many micro-batches a step has."""
        precision = options["precision"]
        assert supports_sync_free(settings.name, precision), f"{settings.name} in {precision} needs the host"
        super().__init__(model, loss, settings, **options)
        from ..kernels.adam import FusedAdam

        self._adam = FusedAdam(self.optimizer, self._copies)  # type: ignore[arg-type]
        self._num_micro_batches = accumulate
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._static: Batch | None = None
        self._gradients: Mapping[nn.Parameter, Tensor] = {}
        self._loss_norm_2 = torch.zeros(2, device=self.device)
        self._has_failed = torch.zeros((), device=self.device)
        pool = torch.cuda.graph_pool_handle()
        capture = self.sharding.is_capturable
        # Keys: whether the micro-batch is the step's first, and its last.
        self._graphs = {
            (first, last): CapturedGraph(partial(self._add_static, is_first=first, is_last=last), pool, capture=capture)
            for first in (True, False)
            for last in (True, False)
        }
        self._update = CapturedGraph(self._update_on_device, pool, capture=capture)

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step, as Stepper does; (loss, norm) stays on the device."""
        self._set_weight(batches)
        gradients = self._gradients
        for index, batch in enumerate(batches):
            self._seed_dropout(number, index)
            if self._static is None:
                self._static = batch.to(self.device)
            self._static.copy_from(batch)
            graph = self._graphs[index == 0, self._reducer is None or index == len(batches) - 1]
            gradients = graph()
        if gradients is not self._gradients:
            self._gradients = gradients
            self._adam.set_gradients(gradients)
        self._adam.learning_rate.fill_(rate)
        self._update()
        if not graph.is_captured:
            self._gradients = {}  # frees their memory for the next backward pass or capture
        return self._loss_norm_2.clone()

    def _add_static(self, *, is_first: bool, is_last: bool) -> Mapping[nn.Parameter, Tensor]:
        assert self._static is not None
        fresh = self._backward(self._static, is_first=is_first, is_last=is_last)
        if self._reducer is not None:
            if not self._sums:
                self._sums.update({master: self._reducer.gradients[master] for master in fresh})
            return self._sums
        if self._num_micro_batches == 1:
            return {master: _aligned(gradient) for master, gradient in fresh.items()}
        if not self._sums:
            self._sums.update({master: torch.zeros_like(master) for master in fresh})
        sums = [self._sums[master] for master in fresh]
        if is_first:
            torch._foreach_copy_(sums, list(fresh.values()))
        else:
            torch._foreach_add_(sums, list(fresh.values()))
        return self._sums

    def _update_on_device(self) -> None:
        from ..kernels.adam import total_norm

        if self._reducer is not None:
            self._reducer.reduce()
            self._loss_norm_2.copy_(self._reducer.loss_and_norm(self._loss_sum))
        else:
            norm = total_norm(list(self._gradients.values()))
            self._loss_norm_2.copy_(torch.stack([self._loss_sum, norm]))
        norm = self._loss_norm_2[1]
        self._has_failed.copy_(torch.maximum(self._has_failed, (~self._loss_norm_2.isfinite().all()).float()))
        # As torch.nn.utils.clip_grad_norm_ does it.
        clip = (self._clip / (norm + 1e-6)).clamp(max=1.0) if self._clip else torch.ones_like(norm)
        self._adam.step(clip, self._has_failed)
        if self._shards is not None:
            self._shards.gather_weights()


def _owned(view: Tensor) -> Tensor:
    """Copy a shard, so that the whole tensor that it is a view of is freed."""
    return view.clone(memory_format=torch.contiguous_format)


def _aligned(gradient: Tensor) -> Tensor:
    """Return a gradient as the fused Adam loads it: contiguous, aligned to 16 bytes."""
    gradient = gradient.contiguous()
    return gradient.clone() if gradient.data_ptr() % 16 else gradient


def _make_master_weights(
    model: nn.Module, precision: str, sharding: Sharding
) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, nn.Parameter]]:
    """Return the float32 master weights by name, and for each that the model holds in lower precision its copy.

    The frozen weights under adapters have none.

    With FSDP they are views of FSDP's shards of this rank, which it casts to lower precision when it all-gathers them.
    """
    frozen = frozen_base(model)
    before = {name: item.detach() for name, item in model.named_parameters() if name not in frozen}
    assert all(parameter.dtype == torch.float32 for parameter in before.values()), "masters are made of float32"
    if sharding.uses_fsdp:
        return {
            name: nn.Parameter(item.detach().to_local(), requires_grad=item.requires_grad)  # type: ignore[attr-defined]
            for name, item in model.named_parameters()
            if name not in frozen
        }, {}
    cast_model(model, precision)
    master_weights, copies = {}, {}
    for name, parameter in model.named_parameters():
        if name in frozen:
            continue
        master_weights[name] = parameter
        if parameter.dtype != torch.float32:
            master_weights[name] = nn.Parameter(before[name], requires_grad=parameter.requires_grad)
            copies[master_weights[name]] = parameter
    return master_weights, copies


def seed_step(seed: int, micro_batch: int) -> None:
    """Seed dropout from the run's seed and the global number of a micro-batch; resuming needs no saved random state.

    Data-parallel ranks have different micro-batch numbers. Hash: SplitMix64's finalizer (Steele, Lea and Flood
    2014, doi:10.1145/2714064.2660195).
    """
    mask = (1 << 64) - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + micro_batch + 1) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    torch.manual_seed((mixed ^ (mixed >> 31)) & mask)
