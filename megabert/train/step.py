"""One optimizer step: micro-batches in, new weights out; on a GPU recorded in CUDA graphs.

Weights live in float32, the masters, which the optimizer moves and checkpoints hold. Where the encoder computes in
fewer bits it has a copy, made anew from the masters once a step; its gradients are summed in float32.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.heads import TaskModel
from ..parallel.graphs import Recorded
from ..parallel.mesh import seed_step
from ..parallel.plan import cast
from ..settings import OptimizerSettings
from ..text.batch import Batch
from .optim import (
    build_loss_scaler,
    build_optimizer,
    can_be_recorded,
    clip_gradients,
    set_learning_rate,
)

Loss = Callable[[Tensor, Batch], Tensor]


class Stepper:
    """Makes the optimizer steps of a training. Takes hold of the model: casts its encoder to `precision`."""

    def __init__(
        self,
        model: TaskModel,
        loss: Loss,
        settings: OptimizerSettings,
        *,
        precision: str,
        clip: float,
        seed: int,
        record: bool,
    ) -> None:
        """Make masters and optimizer. `record` asks for CUDA graphs; batches must then have one static size."""
        self._model, self._loss = model, loss
        self._clip, self._seed = clip, seed
        self._has_loss_scale = precision == "16"
        if clip < 0:
            raise ConfigError(f"trainer.gradient_clip_val={clip:g} is negative. Give 0 for no clipping.")
        self.is_recorded = record and not self._has_loss_scale and can_be_recorded(settings)
        self.masters, self._copied = _make_masters(model, precision)
        self.optimizer = build_optimizer(self.masters, settings, recorded=self.is_recorded)
        device = next(iter(self.masters.values())).device
        self.scaler = build_loss_scaler(device.type, enabled=self._has_loss_scale)
        self._weight = torch.ones((), device=device)
        self._loss_sum = torch.zeros((), device=device)
        self._figures = torch.zeros(2, device=device)
        self._is_broken = torch.zeros((), device=device)
        self._static: Batch | None = None
        if self.is_recorded:
            pool = torch.cuda.graph_pool_handle()
            self._first = Recorded(lambda: self._backward(self._static, is_first=True), pool)
            self._further = Recorded(lambda: self._backward(self._static, is_first=False), pool)
            self._update = Recorded(self._update_on_device, pool)
            # Graphs write to fixed places, and fused optimizers skip a step by this tensor.
            for master in self._trained():
                master.grad = torch.zeros_like(master)
            self.optimizer.found_inf = self._is_broken  # type: ignore[attr-defined]

    def step(self, batches: Sequence[Batch], rate: float, number: int) -> Tensor:
        """Make a step; dropout is a function of the seed and of `number`, that of the step's first micro-batch.

        Returns (mean loss, norm of the gradients before clipping), [2], on the device; if one of them is not finite,
        nothing was updated, and with CUDA graphs nothing will be from then on. (With precision 16 an overflow of the
        gradients is a step that is skipped.)
        """
        # The mean over the whole step, however it is cut into micro-batches.
        self._weight.fill_(sum(batch.weight for batch in batches))
        for place, batch in enumerate(batches):
            seed_step(self._seed, number + place)
            if self.is_recorded:
                if self._static is None:
                    self._static = batch.to(self._weight.device)
                self._static.copy_from(batch)
                self._further() if place else self._first()
            else:
                self._backward(batch.to(self._weight.device), is_first=place == 0)
        set_learning_rate(self.optimizer, rate)
        if self.is_recorded:
            self._update()
        else:
            self._update_or_skip()
        return self._figures.clone()

    def _trained(self) -> list[nn.Parameter]:
        return [master for master in self.masters.values() if master.requires_grad]

    def _backward(self, batch: Batch | None, *, is_first: bool) -> None:
        """Add a micro-batch's share to the masters' gradients; the first one replaces what is there."""
        assert batch is not None
        loss = self._loss(self._model(*batch.inputs()), batch) / self._weight
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        fresh = torch.autograd.grad(self.scaler.scale(loss), parameters, allow_unused=True)
        self._loss_sum.copy_(loss.detach() if is_first else self._loss_sum + loss.detach())
        if is_first and not self.is_recorded:
            for master, gradient in zip(self._trained(), fresh, strict=True):
                master.grad = None if gradient is None else gradient.float()
            return
        into, new = [], []
        for master, gradient in zip(self._trained(), fresh, strict=True):
            if master.grad is not None and gradient is not None:
                into.append(master.grad)
                new.append(gradient)
        torch._foreach_copy_(into, new) if is_first else torch._foreach_add_(into, new)

    def _update_on_device(self) -> None:
        """Clip and move the weights without a word to the host: what is not finite makes all further steps void."""
        norm = clip_gradients(self._trained(), self._clip)
        self._figures.copy_(torch.stack([self._loss_sum, norm]))
        self._is_broken.copy_(torch.maximum(self._is_broken, (~self._figures.isfinite().all()).float()))
        self.optimizer.step()
        self._copy_masters()

    def _update_or_skip(self) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self._trained(), self._clip)
        self._figures.copy_(torch.stack([self._loss_sum, norm]))
        loss_value, norm_value = self._figures.tolist()
        if math.isfinite(loss_value) and (math.isfinite(norm_value) or self._has_loss_scale):
            self.scaler.step(self.optimizer)
            self._copy_masters()
        self.scaler.update()

    def _copy_masters(self) -> None:
        if self._copied:
            with torch.no_grad():
                torch._foreach_copy_(list(self._copied), list(self._copied.values()))


def _make_masters(model: TaskModel, precision: str) -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, nn.Parameter]]:
    """Give the float32 weights by name, and for each parameter that is a copy of lower precision its master."""
    before = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(parameter.dtype == torch.float32 for parameter in before.values()), "masters are made of float32"
    cast(model, precision)
    masters, copied = {}, {}
    for name, parameter in model.named_parameters():
        masters[name] = parameter
        if parameter.dtype != torch.float32:
            masters[name] = nn.Parameter(before[name], requires_grad=parameter.requires_grad)
            copied[parameter] = masters[name]
    return masters, copied
