"""Optimizers: parameter groups, weight decay, gradient clipping, loss scale, and optimizer state in checkpoints.

The optimizer is built from the settings alone. Its state is saved as tensors named "<parameter name>/<state name>".
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop, Rprop

from ..config.schema import OptimizerSettings
from ..errors import CheckpointError, ConfigError
from .lr_schedules import check_schedule, refuse_unused_settings


@dataclass(frozen=True)
class OptimizerRow:
    """One of PyTorch's optimizers: the settings that it takes, and the names of its state for each parameter."""

    cls: type[Optimizer]
    takes: tuple[str, ...]
    state: tuple[str, ...]
    has_fused: bool = False


# By the values of model.optim.name. Adagrad has a fused implementation too, but not on every device.
OPTIMIZERS = {
    "adamw": OptimizerRow(AdamW, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_avg_sq"), has_fused=True),
    "adam": OptimizerRow(Adam, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_avg_sq"), has_fused=True),
    "sgd": OptimizerRow(SGD, ("momentum", "weight_decay"), ("momentum_buffer",), has_fused=True),
    "adamax": OptimizerRow(Adamax, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_inf")),
    "adagrad": OptimizerRow(Adagrad, ("eps", "weight_decay"), ("step", "sum")),
    "adadelta": OptimizerRow(Adadelta, ("eps", "weight_decay"), ("step", "square_avg", "acc_delta")),
    "rmsprop": OptimizerRow(RMSprop, ("eps", "momentum", "weight_decay"), ("step", "square_avg", "momentum_buffer")),
    # Adapts the step size of each weight itself: the learning rate is only the initial one.
    "rprop": OptimizerRow(Rprop, (), ("step", "prev", "step_size")),
}


# Key of an empty tensor that a checkpoint has for a parameter without optimizer state, so that none is missing.
UNTOUCHED = "untouched"

# All other state has the parameter's shape.
SHAPES = {"step": torch.Size([]), UNTOUCHED: torch.Size([0])}

Parameters = Mapping[str, nn.Parameter]
"""A model's parameters by name, as named_parameters() returns them: tied parameters are listed once."""


def parameter_groups(named: Parameters, weight_decay: float, *, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups with and without weight decay.

    Raises ConfigError if all are frozen.
    """
    parameters = [parameter for parameter in named.values() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("Nothing to train: every parameter of the model is frozen.")
    # By shape, not by name: parameters with fewer than two dims are exactly the biases and the weights of norms,
    # whatever a task names them. Decay would pull the weight of a norm from 1 to 0.
    decayed = [parameter for parameter in parameters if decay_norm_and_bias or parameter.ndim >= 2]
    kept = [parameter for parameter in parameters if not (decay_norm_and_bias or parameter.ndim >= 2)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(parameters: Parameters, settings: OptimizerSettings) -> Optimizer:
    """Build the optimizer that the settings name, in its fused implementation where PyTorch has one.

    Raises ConfigError if a setting does not fit the optimizer or the schedule.
    """
    row = OPTIMIZERS[settings.name]
    arguments = {name: getattr(settings, name) for name in row.takes if name != "weight_decay"}
    if "betas" in arguments:
        arguments["betas"] = _two_betas(settings.betas)
    if row.has_fused:
        arguments["fused"] = True
    groups = parameter_groups(parameters, settings.weight_decay, decay_norm_and_bias=settings.decay_norm_and_bias)
    optional = {name for row in OPTIMIZERS.values() for name in row.takes}
    refuse_unused_settings(settings, row.takes, optional, "model.optim")
    check_schedule(settings)
    try:
        return _plain(row.cls)(groups, lr=settings.lr, **arguments)
    except ValueError as error:  # PyTorch checks the ranges of the hyperparameters
        raise ConfigError(f"model.optim: {error} (optimizer {settings.name}).") from None


def _plain(cls: type[Optimizer]) -> Callable[..., Optimizer]:
    """Derive an optimizer whose methods do not import torch._dynamo, a third of a short training's start-up.

    torch.optim wraps them to break the graphs of torch.compile, which never compiles an optimizer here.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(cls, name)) for name in names}
    return type(cls.__name__, (cls,), {**methods, "step": torch.no_grad()(inspect.unwrap(cls.step))})


def _two_betas(betas: list[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise ConfigError(f"model.optim.betas={betas}: give two numbers, for example [0.9,0.999].")
    return betas[0], betas[1]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the global 2-norm of the gradients to `max_norm`; 0: no clipping.

    Returns the norm before clipping, a scalar tensor on the device. If it is infinite or NaN, the caller must not
    use the gradients. Parameters without a gradient are left out.
    """
    if max_norm < 0:
        raise ConfigError(f"trainer.gradient_clip_val={max_norm:g} is negative. Give 0 for no clipping.")
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def build_loss_scaler(device_type: str, *, enabled: bool) -> torch.amp.GradScaler:
    """Build the dynamic loss scaler of float16 training; if not enabled, its methods do nothing.

    The scale is halved after each overflow, whose step is skipped, and doubled after 1,000 steps without one, as in
    Megatron-LM. It starts at 2**16 instead of Megatron-LM's 2**32, which would skip about 16 steps: nothing in
    pre-training, but a large part of the warm-up in fine-tuning. Megatron-LM halves only after a second overflow
    (hysteresis 2) and has a minimum of 1; PyTorch's scaler has neither.
    """
    return torch.amp.GradScaler(
        device_type,
        init_scale=2.0**16,
        growth_factor=2.0,
        backoff_factor=0.5,
        growth_interval=1000,
        enabled=enabled,
    )


def load_loss_scale(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Load a loss scaler's `state_dict()` from a checkpoint; it is empty where the scaler was not enabled.

    Raises CheckpointError if the run had another precision.
    """
    if set(state) != set(scaler.state_dict()):
        raise CheckpointError(
            "The checkpoint's loss scale does not fit trainer.precision: only precision 16 has one. "
            "Resume with the precision that the run was started with."
        )
    if state:
        scaler.load_state_dict(dict(state))


def optimizer_tensors(optimizer: Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """Return the optimizer state for a checkpoint, keyed "<parameter name>/<state name>".

    The tensors are not copied. A parameter without state (it had no gradient yet) has an empty tensor,
    "<parameter name>/untouched".
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _optimized(optimizer, parameters).items():
        state = {key: value for key, value in optimizer.state.get(parameter, {}).items() if value is not None}
        for key, value in (state or {UNTOUCHED: torch.empty(0)}).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def parameter_of(key: str) -> str | None:
    """Return the parameter that a checkpoint key belongs to and is shaped like; None for step counts and the like."""
    name, _, state = key.rpartition("/")
    return key if not name else None if state in SHAPES else name


def load_optimizer_tensors(optimizer: Optimizer, named: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned; the next steps equal those of an uninterrupted run bit for bit.

    The order of the model's parameters does not matter. The tensors are copied.
    Raises CheckpointError, and changes nothing, if a tensor is missing, unexpected or of another shape.
    """
    parameters = _optimized(optimizer, named)
    keys = _expected_keys(optimizer, parameters, tensors)
    _check_tensors(keys, parameters, tensors)
    names = {id(parameter): name for name, parameter in parameters.items()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for index, parameter in enumerate(ordered):
        name = names[id(parameter)]
        if keys[name] != [UNTOUCHED]:
            state[index] = {key: _copy_to_device(tensors[f"{name}/{key}"], key, parameter) for key in keys[name]}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _copy_to_device(tensor: Tensor, key: str, parameter: nn.Parameter) -> Tensor:
    # Step counts are on the CPU; where a fused optimizer needs them on the device, load_state_dict moves them.
    return tensor.to("cpu" if key == "step" else parameter.device, copy=True)


def _optimized(optimizer: Optimizer, parameters: Parameters) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer updates, by name."""
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in parameters.items() if id(parameter) in updated}
    assert len(named) == len(updated), "the optimizer has parameters that are not the model's"
    return named


def _expected_keys(optimizer: Optimizer, names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of the state that a checkpoint must have for each parameter."""
    row = next(row for row in OPTIMIZERS.values() if row.cls is type(optimizer).__base__)
    has_momentum = bool(optimizer.defaults.get("momentum"))
    keys = [key for key in row.state if has_momentum or key != "momentum_buffer"] or [UNTOUCHED]
    return {name: [UNTOUCHED] if f"{name}/{UNTOUCHED}" in tensors else keys for name in names}


def _check_tensors(
    keys: Mapping[str, list[str]], parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    shapes = {f"{name}/{key}": SHAPES.get(key, parameters[name].shape) for name in keys for key in keys[name]}
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is unexpected" for name in tensors if name not in shapes]
    faults += [
        f"{name} has the shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        shown = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        raise CheckpointError(
            f"The checkpoint's optimizer state does not fit: {shown}. "
            "Resume with the model and model.optim.name that the run was started with."
        )
