"""One optimizer step: micro-batches in, new weights out; on a GPU recorded in CUDA graphs.

Weights live in float32, the masters, which the optimizer moves and checkpoints hold. Where the encoder computes in
fewer bits it has a copy, made anew from the masters once a step; gradients of several micro-batches are summed in
float32.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..parallel.graphs import Recorded
from ..parallel.mesh import seed_step
from ..parallel.plan import cast
from ..settings import OptimizerSettings
from ..text.batch import Batch
from .optim import build_loss_scaler, build_optimizer, clip_gradients, set_learning_rate

Loss = Callable[[Tensor, Batch], Tensor]
# Those whose step can be recorded.
RECORDED = ("adam", "adamw")


class Stepper:
    """Makes the optimizer steps of a training. Takes hold of the model: casts its encoder to `precision`."""

    def __init__(
        self, model: nn.Module, loss: Loss, settings: OptimizerSettings, *, precision: str, clip: float, seed: int
    ) -> None:
        if clip < 0:
            raise ConfigError(f"trainer.gradient_clip_val={clip:g} is negative. Give 0 for no clipping.")
        self._model, self._loss = model, loss
        self._clip, self._seed = clip, seed
        self._has_loss_scale = precision == "16"
        self.masters, self._copies = _make_masters(model, precision)
        self._trained = [master for master in self.masters.values() if master.requires_grad]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(self.masters, settings)
        self.device = self._trained[0].device
        self.scaler = build_loss_scaler(self.device.type, enabled=self._has_loss_scale)
        self._weight = torch.ones((), device=self.device)
        self._loss_sum = torch.zeros((), device=self.device)

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step; dropout is a function of the seed and of `number`, that of the step's first micro-batch.

        Returns (mean loss, norm of the gradients before clipping), [2]; if one of them is not finite, nothing was
        updated. (With precision 16 an overflow of the gradients is a step that is skipped.)
        """
        self._begin(batches)
        for place, batch in enumerate(batches):
            seed_step(self._seed, number + place)
            self._add(batch.to(self.device), is_first=place == 0)
        set_learning_rate(self.optimizer, rate)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self._trained, self._clip)
        figures = torch.stack([self._loss_sum, norm])
        loss_value, norm_value = figures.tolist()
        if math.isfinite(loss_value) and (math.isfinite(norm_value) or self._has_loss_scale):
            self.scaler.step(self.optimizer)
            if self._copies:
                with torch.no_grad():
                    torch._foreach_copy_(list(self._copies.values()), list(self._copies))
        self.scaler.update()
        return figures

    def _begin(self, batches: Sequence[Batch]) -> None:
        # The mean over the whole step, however it is cut into micro-batches.
        self._weight.fill_(sum(batch.weight for batch in batches))

    def _add(self, batch: Batch, *, is_first: bool) -> None:
        for master, gradient in self._backward(batch, is_first=is_first).items():
            if is_first or master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad += gradient

    def _backward(self, batch: Batch, *, is_first: bool) -> dict[nn.Parameter, Tensor]:
        """Compute a micro-batch's share of the mean loss and of the masters' gradients."""
        loss = self._loss(self._model(*batch.inputs()), batch) / self._weight
        gradients = torch.autograd.grad(self.scaler.scale(loss), self._parameters, allow_unused=True)
        self._loss_sum.copy_(loss.detach() if is_first else self._loss_sum + loss.detach())
        pairs = zip(self._trained, gradients, strict=True)
        return {master: gradient for master, gradient in pairs if gradient is not None}


class RecordedStepper(Stepper):
    """Makes the steps of a training on a GPU in CUDA graphs; batches must have one static size.

    The host is not told of a step that is not finite until it asks: from such a step on none updates anything.
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
    ) -> None:
        assert settings.name in RECORDED, f"{settings.name} cannot be recorded"
        assert precision != "16", "the loss scale asks the device whether to step"
        super().__init__(model, loss, settings, precision=precision, clip=clip, seed=seed)
        from .triton_adam import FusedAdam

        self._adam = FusedAdam(self.optimizer, self._copies)  # type: ignore[arg-type]
        self._accumulate = accumulate
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._static: Batch | None = None
        self._gradients: Mapping[nn.Parameter, Tensor] = {}
        self._figures = torch.zeros(2, device=self.device)
        self._is_broken = torch.zeros((), device=self.device)
        pool = torch.cuda.graph_pool_handle()
        self._first = Recorded(lambda: self._add_static(is_first=True), pool)
        self._further = Recorded(lambda: self._add_static(is_first=False), pool)
        self._update = Recorded(self._update_on_device, pool)

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step, as Stepper does; the figures are on the device."""
        self._begin(batches)
        gradients = self._gradients
        for place, batch in enumerate(batches):
            seed_step(self._seed, number + place)
            if self._static is None:
                self._static = batch.to(self.device)
            self._static.copy_from(batch)
            gradients = self._further() if place else self._first()
        if gradients is not self._gradients:
            self._gradients = gradients
            self._adam.take(gradients)
        self._adam.rate.fill_(rate)
        self._update()
        if not self._first.is_recorded:
            self._gradients = {}  # else they would still take up memory while others are recorded
        return self._figures.clone()

    def _add_static(self, *, is_first: bool) -> Mapping[nn.Parameter, Tensor]:
        assert self._static is not None
        fresh = self._backward(self._static, is_first=is_first)
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
        from .triton_adam import total_norm

        norm = total_norm(list(self._gradients.values()))
        self._figures.copy_(torch.stack([self._loss_sum, norm]))
        self._is_broken.copy_(torch.maximum(self._is_broken, (~self._figures.isfinite().all()).float()))
        # As torch.nn.utils.clip_grad_norm_ does it.
        clip = (self._clip / (norm + 1e-6)).clamp(max=1.0) if self._clip else torch.ones_like(norm)
        self._adam.step(clip, self._is_broken)


def _placed(gradient: Tensor) -> Tensor:
    """Give a gradient as the fused step loads it: contiguous, at a multiple of 16 bytes."""
    gradient = gradient.contiguous()
    return gradient.clone() if gradient.data_ptr() % 16 else gradient


def _make_masters(model: nn.Module, precision: str) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, nn.Parameter]]:
    """Give the float32 weights by name, and of each that the model has in lower precision that copy."""
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(parameter.dtype == torch.float32 for parameter in before.values()), "masters are made of float32"
    cast(model, precision)
    masters, copies = {}, {}
    for name, parameter in model.named_parameters():
        masters[name] = parameter
        if parameter.dtype != torch.float32:
            masters[name] = nn.Parameter(before[name], requires_grad=parameter.requires_grad)
            copies[masters[name]] = parameter
    return masters, copies
