"""One optimizer step: micro-batches in, new weights out; on a GPU without a word to the host, recorded if it can be.

Weights live in float32, the masters, which the optimizer moves and checkpoints hold. Where the encoder computes in
fewer bits it has a copy, made anew from the masters once a step; gradients of several micro-batches are summed in
float32. Of several processes each has the masters of its part; gradients are summed over processes once a step, and so
are the two figures by which all decide alike whether it counts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from ..checkpoints.files.lazy_tensor import Readable
from ..checkpoints.native.run_checkpoints import read_whole
from ..config.schema import OptimizerSettings
from ..data.packing import Batch
from ..errors import ConfigError
from ..kernels.cuda_graph import CapturedGraph
from ..model.precision import cast_model
from ..parallel.gradient_reduction import GradientReducer
from ..parallel.process_group import World, seed_step
from ..parallel.sharding import Sharding
from .optimizer import build_loss_scaler, build_optimizer, clip_gradients, load_optimizer_tensors, set_learning_rate
from .saver import parameter_of

Loss = Callable[[Tensor, Batch], Tensor]
# Those whose step a kernel of ours makes.
FUSED = ("adam", "adamw")


class Stepper:
    """Makes the optimizer steps of a training. Takes hold of the model: casts its encoder to `precision`."""

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
        self.master_weights, self._copies = _make_master_weights(model, precision, self.sharding)
        self._trained = [master for master in self.master_weights.values() if master.requires_grad]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(self.master_weights, settings)
        self.device = self._trained[0].device
        self.scaler = build_loss_scaler(self.device.type, enabled=self._has_loss_scale)
        self._weight = torch.ones((), device=self.device)
        self._loss_sum = torch.zeros((), device=self.device)
        self._reducer = GradientReducer(self.master_weights, self.sharding) if self._world.size > 1 else None
        if self._reducer is not None and not self.sharding.uses_fsdp:
            self._reducer.register_hooks(zip(self._parameters, self._trained, strict=True))

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step; dropout is a function of the seed and of `number`, that of the step's first micro-batch.

        Returns (mean loss, norm of the gradients before clipping), [2]; if one of them is not finite, nothing was
        updated. (With precision 16 an overflow of the gradients is a step that is skipped.) Several processes get the
        same figures, those of all their batches.
        """
        self._begin(batches)
        for place, batch in enumerate(batches):
            self._seed_dropout(number, place)
            self._add(batch.to(self.device), is_first=place == 0, is_last=place == len(batches) - 1)
        set_learning_rate(self.optimizer, rate)
        figures = self._finish_gradients()
        loss_value, norm_value = figures.tolist()
        if math.isfinite(loss_value) and (math.isfinite(norm_value) or self._has_loss_scale):
            self.scaler.step(self.optimizer)
            if self._copies:
                with torch.no_grad():
                    torch._foreach_copy_(list(self._copies.values()), list(self._copies))
        self.scaler.update()
        return figures

    def load_optimizer(self, tensors: Mapping[str, Readable | Tensor]) -> None:
        """Go on from what a checkpoint holds of the optimizer: whole tensors, of which this process takes its parts."""
        parts = {}
        for key, item in tensors.items():
            name, whole = parameter_of(key), read_whole(item)
            master = self.master_weights.get(name or "")
            # A tensor of another shape stays as it is: load_optimizer_tensors refuses it.
            if name is not None and master is not None and whole.shape == self.sharding.full_shape(name, master):
                whole = self.sharding.shard(name, whole).contiguous()
            parts[key] = whole
        load_optimizer_tensors(self.optimizer, self.master_weights, parts)

    def _begin(self, batches: Sequence[Batch]) -> None:
        # The mean over the whole step, however it is cut into micro-batches.
        self._weight.fill_(sum(batch.weight for batch in batches))
        self._world.all_reduce_data(self._weight)

    def _seed_dropout(self, number: int, place: int) -> None:
        # Micro-batches count through all processes with texts of their own, as Loader deals them.
        seed_step(self._seed, number + place * self._world.data_size + self._world.data_rank)

    def _finish_gradients(self) -> Tensor:
        """Sum over processes, take the loss scale out, clip; returns (loss, norm)."""
        if self._reducer is None:
            self.scaler.unscale_(self.optimizer)
            return torch.stack([self._loss_sum, clip_gradients(self._trained, self._clip)])
        self._reducer.reduce()
        figures = self._reducer.loss_and_norm(self._loss_sum)
        if self._has_loss_scale:
            scale = self.scaler.get_scale()
            if not figures[1].isfinite():
                # An overflow in a part that one process has is one of all: the scaler skips where it sees one.
                next(item.grad for item in self._trained if item.grad is not None and len(item)).fill_(torch.inf)
            self.scaler.unscale_(self.optimizer)
            figures[1] /= scale
        if self._clip:
            clip_grads_with_norm_(self._trained, self._clip, figures[1])
        return figures

    def _add(self, batch: Batch, *, is_first: bool, is_last: bool) -> None:
        fresh = self._backward(batch, is_first=is_first, is_last=is_last)
        if self._reducer is not None:
            for master in fresh:
                master.grad = self._reducer.gradients[master]
            return
        for master, gradient in fresh.items():
            if is_first or master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad += gradient

    def _backward(self, batch: Batch, *, is_first: bool, is_last: bool) -> dict[nn.Parameter, Tensor]:
        """Compute a micro-batch's share of the mean loss and of the masters' gradients."""
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
        # FSDP reduces in the hooks of a plain backward pass, to the mean over the data axis.
        (loss * self._world.data_size).backward()
        gradients = []
        for parameter in self._parameters:
            gradients.append(None if parameter.grad is None else parameter.grad.to_local())  # type: ignore[attr-defined]
            parameter.grad = None
        return gradients


class SyncFreeStepper(Stepper):
    """Makes the steps of a training on a GPU that asks the host nothing; batches must have one static size.

    The host is not told of a step that is not finite until it asks: from such a step on none updates anything. Steps
    are recorded in CUDA graphs where the layout allows it; else the host launches each kernel, ahead of the GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: OptimizerSettings,
        *,
        precision: str,
        clip: float,
        seed: int,
        accumulate: int,
        sharding: Sharding | None = None,
    ) -> None:
        assert self.serves(settings, precision), f"{settings.name} in {precision}: a step that asks the host"
        super().__init__(model, loss, settings, precision=precision, clip=clip, seed=seed, sharding=sharding)
        from ..kernels.adam import FusedAdam

        self._adam = FusedAdam(self.optimizer, self._copies)  # type: ignore[arg-type]
        self._accumulate = accumulate
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._static: Batch | None = None
        self._gradients: Mapping[nn.Parameter, Tensor] = {}
        self._figures = torch.zeros(2, device=self.device)
        self._is_broken = torch.zeros((), device=self.device)
        pool = torch.cuda.graph_pool_handle()
        capture = self.sharding.is_capturable
        # By whether the micro-batch is the step's first, and its last.
        self._graphs = {
            (first, last): CapturedGraph(partial(self._add_static, is_first=first, is_last=last), pool, capture=capture)
            for first in (True, False)
            for last in (True, False)
        }
        self._update = CapturedGraph(self._update_on_device, pool, capture=capture)

    @staticmethod
    def serves(settings: OptimizerSettings, precision: str) -> bool:
        """Say whether there is a kernel for the optimizer, and no loss scale, which asks the device whether to step."""
        return settings.name in FUSED and precision != "16"

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step, as Stepper does; the figures are on the device."""
        self._begin(batches)
        gradients = self._gradients
        for place, batch in enumerate(batches):
            self._seed_dropout(number, place)
            if self._static is None:
                self._static = batch.to(self.device)
            self._static.copy_from(batch)
            graph = self._graphs[place == 0, self._reducer is None or place == len(batches) - 1]
            gradients = graph()
        if gradients is not self._gradients:
            self._gradients = gradients
            self._adam.set_gradients(gradients)
        self._adam.learning_rate.fill_(rate)
        self._update()
        if not graph.is_captured:
            self._gradients = {}  # else they would still take up memory while others are made or recorded
        return self._figures.clone()

    def _add_static(self, *, is_first: bool, is_last: bool) -> Mapping[nn.Parameter, Tensor]:
        assert self._static is not None
        fresh = self._backward(self._static, is_first=is_first, is_last=is_last)
        if self._reducer is not None:
            if not self._sums:
                self._sums.update({master: self._reducer.gradients[master] for master in fresh})
            return self._sums
        if self._accumulate == 1:
            return {master: _placed(gradient) for master, gradient in fresh.items()}
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
            self._figures.copy_(self._reducer.loss_and_norm(self._loss_sum))
        else:
            norm = total_norm(list(self._gradients.values()))
            self._figures.copy_(torch.stack([self._loss_sum, norm]))
        norm = self._figures[1]
        self._is_broken.copy_(torch.maximum(self._is_broken, (~self._figures.isfinite().all()).float()))
        # As torch.nn.utils.clip_grad_norm_ does it.
        clip = (self._clip / (norm + 1e-6)).clamp(max=1.0) if self._clip else torch.ones_like(norm)
        self._adam.step(clip, self._is_broken)


def _placed(gradient: Tensor) -> Tensor:
    """Give a gradient as the fused step loads it: contiguous, at a multiple of 16 bytes."""
    gradient = gradient.contiguous()
    return gradient.clone() if gradient.data_ptr() % 16 else gradient


def _make_master_weights(
    model: nn.Module, precision: str, sharding: Sharding
) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, nn.Parameter]]:
    """Give the float32 weights by name, and of each that the model has in lower precision that copy.

    Where FSDP spreads them they are this process' parts, in FSDP's own memory: it casts what it gathers.
    """
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(parameter.dtype == torch.float32 for parameter in before.values()), "masters are made of float32"
    if sharding.uses_fsdp:
        named = model.named_parameters()
        return {
            name: nn.Parameter(item.detach().to_local(), requires_grad=item.requires_grad)  # type: ignore[attr-defined]
            for name, item in named
        }, {}
    cast_model(model, precision)
    master_weights, copies = {}, {}
    for name, parameter in model.named_parameters():
        master_weights[name] = parameter
        if parameter.dtype != torch.float32:
            master_weights[name] = nn.Parameter(before[name], requires_grad=parameter.requires_grad)
            copies[master_weights[name]] = parameter
    return master_weights, copies
