"""How weights move: parameter groups, optimizers, learning rates, gradient clipping, the loss scale.

Everything is a function of the settings and the step. The learning rate keeps no state, so a resumed run
needs the step alone; the optimizer's own state goes to a checkpoint and back as tensors with readable names.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ..errors import CheckpointError, ConfigError
from ..settings import OptimizerSettings, ScheduleSettings


@dataclass(frozen=True)
class OptimizerRow:
    """One of PyTorch's optimizers: the settings it takes and the state that it keeps for each parameter."""

    cls: Callable[..., Optimizer]
    takes: tuple[str, ...]
    state: tuple[str, ...]
    has_fused: bool = False


# The names are settings. Adagrad has a fused step too, but not on every device.
OPTIMIZERS = {
    "adamw": OptimizerRow(
        torch.optim.AdamW, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_avg_sq"), has_fused=True
    ),
    "adam": OptimizerRow(
        torch.optim.Adam, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_avg_sq"), has_fused=True
    ),
    "sgd": OptimizerRow(torch.optim.SGD, ("momentum", "weight_decay"), ("momentum_buffer",), has_fused=True),
    "adamax": OptimizerRow(torch.optim.Adamax, ("betas", "eps", "weight_decay"), ("step", "exp_avg", "exp_inf")),
    "adagrad": OptimizerRow(torch.optim.Adagrad, ("eps", "weight_decay"), ("step", "sum")),
    "adadelta": OptimizerRow(torch.optim.Adadelta, ("eps", "weight_decay"), ("step", "square_avg", "acc_delta")),
    "rmsprop": OptimizerRow(
        torch.optim.RMSprop, ("eps", "momentum", "weight_decay"), ("step", "square_avg", "momentum_buffer")
    ),
    # Its steps grow and shrink by themselves: the learning rate is the size of the first one only.
    "rprop": OptimizerRow(torch.optim.Rprop, (), ("step", "prev", "step_size")),
}

# Stands in a checkpoint for a parameter that has had no gradient yet: nothing is left out unsaid.
UNTOUCHED = "untouched"

# All other state has the parameter's shape.
SHAPES = {"step": torch.Size([]), UNTOUCHED: torch.Size([0])}


Parameters = Mapping[str, nn.Parameter]
"""A model's parameters by name, as named_parameters() gives them: one that two modules share is listed once."""


def parameter_groups(named: Parameters, weight_decay: float, *, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Sort the trainable parameters into those that decay and those that do not, for an optimizer.

    Raises ConfigError if all are frozen.
    """
    parameters = [parameter for parameter in named.values() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("Nothing to train: every parameter of the model is frozen.")
    # Decided by shape and not by name: the parameters with fewer than two dims are exactly the biases and the
    # gains of norms, whatever a task's author calls them. Decay would pull a norm's gain from 1 to 0.
    decayed = [parameter for parameter in parameters if decay_norm_and_bias or parameter.ndim >= 2]
    kept = [parameter for parameter in parameters if not (decay_norm_and_bias or parameter.ndim >= 2)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(parameters: Parameters, settings: OptimizerSettings) -> Optimizer:
    """Build the optimizer that the settings name, with its step in one kernel where it has such a one.

    Raises ConfigError if a setting does not fit the optimizer or the schedule.
    """
    row = OPTIMIZERS[settings.name]
    optional = {name for row in OPTIMIZERS.values() for name in row.takes}
    _refuse_unused(settings, row.takes, optional, "model.optim")
    _check_schedule(settings)
    arguments = {name: getattr(settings, name) for name in row.takes if name != "weight_decay"}
    if "betas" in arguments:
        arguments["betas"] = _two_betas(settings.betas)
    if row.has_fused:
        arguments["fused"] = True
    groups = parameter_groups(parameters, settings.weight_decay, decay_norm_and_bias=settings.decay_norm_and_bias)
    try:
        return row.cls(groups, lr=settings.lr, **arguments)
    except ValueError as error:  # PyTorch checks the ranges
        raise ConfigError(f"model.optim: {error} (optimizer {settings.name}).") from None


def _two_betas(betas: list[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise ConfigError(f"model.optim.betas={betas}: give two numbers, for example [0.9,0.999].")
    return betas[0], betas[1]


def _check_schedule(settings: OptimizerSettings) -> None:
    schedule = settings.sched
    optional = {name for row in SCHEDULES.values() for name in row.takes}
    _refuse_unused(schedule, SCHEDULES[schedule.name].takes, optional, "model.optim.sched")
    for name in ("hold_steps", "min_lr", "power"):
        if (value := getattr(schedule, name)) < 0:
            raise ConfigError(f"model.optim.sched.{name}={value} is negative. Give 0 or more.")
    if schedule.min_lr > settings.lr:
        raise ConfigError(
            f"model.optim.sched.min_lr={schedule.min_lr:g} is larger than model.optim.lr={settings.lr:g}. "
            "Give a lower min_lr."
        )


def _refuse_unused(settings: Any, takes: tuple[str, ...], optional: Iterable[str], block: str) -> None:
    """Raise ConfigError for a setting that was changed but would do nothing; 0 asks for nothing."""
    default = type(settings)()
    for name in sorted(set(optional) - set(takes)):
        value = getattr(settings, name)
        if value and value != getattr(default, name):
            raise ConfigError(
                f"{block}.{name}={value} has no effect with {block}.name={settings.name}. "
                f"Leave it at {getattr(default, name)}."
            )


@dataclass(frozen=True)
class Moment:
    """A step of a run, and all that a formula may use to give its learning rate."""

    step: int
    max_steps: int
    warmup_steps: int
    hold_end: int
    """The first step after warm-up and hold."""
    lr: float
    min_lr: float
    power: float
    hidden_size: int


def _linear_warmup(now: Moment) -> float:
    return now.lr * (now.step + 1) / (now.warmup_steps + 1)


def _linear(now: Moment) -> float:
    remaining = (now.max_steps - now.step) / (now.max_steps - now.warmup_steps)
    return now.min_lr + (now.lr - now.min_lr) * remaining


def _square_root(now: Moment) -> float:
    # Counts from step 0 and not from the end of the warm-up: the rate jumps down at the first step after it.
    remaining = (now.max_steps - now.step) / now.max_steps
    return max(now.lr * math.sqrt(remaining), now.min_lr)


def _square(now: Moment) -> float:
    remaining = (now.max_steps - now.step) / (now.max_steps - now.warmup_steps)
    return max(now.lr * remaining**2, now.min_lr)


def _cosine(now: Moment) -> float:
    progress = (now.step - now.warmup_steps) / (now.max_steps - now.warmup_steps)
    return now.min_lr + (now.lr - now.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def _polynomial(now: Moment) -> float:
    progress = (now.step - now.warmup_steps) / (now.max_steps - now.warmup_steps)
    return now.min_lr + (now.lr - now.min_lr) * math.pow(1 - progress, now.power)


def _polynomial_after_hold(now: Moment) -> float:
    if now.step < now.hold_end:
        return now.lr
    # The hold may fill the run: then there is nothing left to decay over.
    progress = (now.step - now.hold_end) / max(now.max_steps - now.hold_end, 1)
    return now.min_lr + (now.lr - now.min_lr) * math.pow(1 - progress, now.power)


def _inverse_square_root(now: Moment) -> float:
    return now.lr / math.sqrt((now.step + 1) / (now.warmup_steps + 1))


def _noam(now: Moment) -> float:
    """Follow Vaswani et al. 2017, arXiv:1706.03762, equation 3; `lr` is a factor and not the largest rate."""
    step = max(now.step, 1)
    curve = 1 / math.sqrt(step)
    if now.warmup_steps > 0:
        curve = min(curve, step / math.pow(now.warmup_steps, 1.5))
    rate = now.lr / math.sqrt(now.hidden_size) * curve
    return max(rate, now.min_lr) if step > now.warmup_steps else rate


def _constant(now: Moment) -> float:
    return now.lr


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule: its formula after the warm-up, the settings that only some take, and its warm-up."""

    formula: Callable[[Moment], float]
    takes: tuple[str, ...] = ()
    warmup: Callable[[Moment], float] = _linear_warmup


# Names and formulas are those of NVIDIA NeMo 1.x, nemo/core/optim/lr_scheduler.py.
SCHEDULES = {
    "WarmupAnnealing": ScheduleRow(_linear),
    "SquareRootAnnealing": ScheduleRow(_square_root),
    "SquareAnnealing": ScheduleRow(_square),
    "CosineAnnealing": ScheduleRow(_cosine),
    "PolynomialDecayAnnealing": ScheduleRow(_polynomial, ("power",)),
    "PolynomialHoldDecayAnnealing": ScheduleRow(_polynomial_after_hold, ("power", "hold_steps")),
    "InverseSquareRootAnnealing": ScheduleRow(_inverse_square_root),
    "NoamAnnealing": ScheduleRow(_noam, warmup=_noam),
    "WarmupPolicy": ScheduleRow(_constant),
    "WarmupHoldPolicy": ScheduleRow(_constant, ("hold_steps",)),
}


def resolve_warmup(settings: ScheduleSettings, max_steps: int) -> int:
    """Return the number of warm-up steps; a ratio is rounded down.

    Raises ConfigError if both are given or one is out of range.
    """
    steps, ratio = settings.warmup_steps, settings.warmup_ratio
    if steps is not None and ratio is not None:
        raise ConfigError(
            f"model.optim.sched.warmup_steps={steps} and warmup_ratio={ratio:g} say the same thing twice. "
            "Give one of them, and null for the other."
        )
    if ratio is not None and not 0 <= ratio <= 1:
        raise ConfigError(
            f"model.optim.sched.warmup_ratio={ratio:g} is no fraction of all steps. Give 0 to 1, for example 0.1."
        )
    if steps is not None and steps < 0:
        raise ConfigError(f"model.optim.sched.warmup_steps={steps} is negative. Give 0 for no warm-up.")
    return int(ratio * max_steps) if ratio is not None else steps or 0


def learning_rate(step: int, settings: ScheduleSettings, *, lr: float, max_steps: int, hidden_size: int) -> float:
    """Return the learning rate of one optimizer step, counted from 0, of `max_steps`.

    The warm-up takes steps 0 to W: lr (step + 1) / (W + 1), so that the first step already moves. After
    `max_steps` the rate is min_lr; before, InverseSquareRootAnnealing and the constant ones do not heed it.
    Raises ConfigError if the warm-up is given twice or out of range.
    """
    now = Moment(
        step=step,
        max_steps=max_steps,
        warmup_steps=(warmup_steps := resolve_warmup(settings, max_steps)),
        hold_end=warmup_steps + settings.hold_steps,
        lr=lr,
        min_lr=settings.min_lr,
        power=settings.power,
        hidden_size=hidden_size,
    )
    row = SCHEDULES[settings.name]
    if step <= warmup_steps:
        return row.warmup(now)
    if step > max_steps:
        return settings.min_lr
    return row.formula(now)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameter groups the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their 2-norm together is at most `max_norm`; 0: leave them.

    Returns the norm before clipping, a tensor of no dims on the device (it may be infinite or NaN: then the
    gradients are of no use and the caller decides). Parameters without a gradient do not count.
    """
    if max_norm < 0:
        raise ConfigError(f"trainer.gradient_clip_val={max_norm:g} is negative. Give 0 for no clipping.")
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def build_loss_scaler(device_type: str, *, enabled: bool) -> torch.amp.GradScaler:
    """Build the dynamic loss scale of float16 training; not enabled, it passes everything through.

    It halves at each overflow, whose step is skipped, and doubles after 1,000 steps without one, as in
    Megatron-LM. It starts at 2**16, where Megatron-LM starts at 2**32: the way down from there skips some 16
    steps, which is nothing for pre-training and a good part of a fine-tuning's warm-up. Megatron-LM also
    waits for a second overflow (hysteresis 2) and never goes below 1; PyTorch's scaler has neither.
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
    """Continue from `scaler.state_dict()`: plain numbers, or nothing if the scale was not enabled.

    Raises CheckpointError if the state is that of another precision.
    """
    if set(state) != set(scaler.state_dict()):
        raise CheckpointError(
            "The checkpoint's loss scale does not fit trainer.precision: only precision 16 has one. "
            "Resume with the precision that the run was started with."
        )
    if state:
        scaler.load_state_dict(dict(state))


def optimizer_tensors(optimizer: Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """Name the optimizer's state "<parameter name>/<state name>", for a checkpoint.

    The tensors are the live ones, not copies. A parameter that has had no gradient yet is stated as an empty
    tensor, "<parameter name>/untouched".
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in _optimized(optimizer, parameters).items():
        state = {key: value for key, value in optimizer.state.get(parameter, {}).items() if value is not None}
        for key, value in (state or {UNTOUCHED: torch.empty(0)}).items():
            tensors[f"{name}/{key}"] = value
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, named: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the optimizer then goes on bit for bit as if never interrupted.

    The order of the model's parameters does not matter. The tensors are copied.
    Raises CheckpointError, and changes nothing, if a tensor is missing, unknown or of another shape.
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
            state[index] = {key: _placed(tensors[f"{name}/{key}"], key, parameter) for key in keys[name]}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _placed(tensor: Tensor, key: str, parameter: nn.Parameter) -> Tensor:
    # Step counts live on the CPU; where a fused step wants them on the device, load_state_dict moves them.
    return tensor.to("cpu" if key == "step" else parameter.device, copy=True)


def _optimized(optimizer: Optimizer, parameters: Parameters) -> dict[str, nn.Parameter]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: parameter for name, parameter in parameters.items() if id(parameter) in held}
    assert len(named) == len(held), "the optimizer holds parameters that are not the model's"
    return named


def _expected_keys(optimizer: Optimizer, names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    row = next(row for row in OPTIMIZERS.values() if row.cls is type(optimizer))
    has_momentum = bool(optimizer.defaults.get("momentum"))
    keys = [key for key in row.state if has_momentum or key != "momentum_buffer"] or [UNTOUCHED]
    return {name: [UNTOUCHED] if f"{name}/{UNTOUCHED}" in tensors else keys for name in names}


def _check_tensors(
    keys: Mapping[str, list[str]], parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    shapes = {f"{name}/{key}": SHAPES.get(key, parameters[name].shape) for name in keys for key in keys[name]}
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    faults += [f"{name} is not known" for name in tensors if name not in shapes]
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
