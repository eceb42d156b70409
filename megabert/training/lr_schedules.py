"""Learning-rate schedules with warm-up, by NeMo 1.x's names and formulas: pure functions of the step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..config.schema import OptimizerSettings, ScheduleSettings
from ..errors import ConfigError


def check_schedule(settings: OptimizerSettings) -> None:
    """Check the schedule's settings. Raises ConfigError where one is out of range or its formula ignores it."""
    schedule = settings.sched
    optional = {name for row in SCHEDULES.values() for name in row.takes}
    refuse_unused_settings(schedule, SCHEDULES[schedule.name].takes, optional, "model.optim.sched")
    if not 0 <= settings.lr < math.inf:
        raise ConfigError(f"model.optim.lr={settings.lr:g} is no rate. Give a number of 0 or more, such as 5e-5.")
    for name in ("hold_steps", "min_lr", "power"):
        if (value := getattr(schedule, name)) < 0:
            raise ConfigError(f"model.optim.sched.{name}={value} is negative. Give 0 or more.")
    if schedule.min_lr > settings.lr:
        raise ConfigError(
            f"model.optim.sched.min_lr={schedule.min_lr:g} is larger than model.optim.lr={settings.lr:g}. "
            "Give a lower min_lr."
        )


def refuse_unused_settings(settings: Any, takes: tuple[str, ...], optional: Iterable[str], block: str) -> None:
    """Raise ConfigError for a setting that was changed but has no effect; values of 0 are accepted."""
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
    """The step and the hyperparameters from which a formula computes the learning rate."""

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
    # NeMo counts from step 0, not from the end of the warm-up: the rate drops at the first step after the warm-up.
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
    # The hold may last until the end of the run: no steps are left for the decay.
    progress = (now.step - now.hold_end) / max(now.max_steps - now.hold_end, 1)
    return now.min_lr + (now.lr - now.min_lr) * math.pow(1 - progress, now.power)


def _inverse_square_root(now: Moment) -> float:
    return now.lr / math.sqrt((now.step + 1) / (now.warmup_steps + 1))


def _noam(now: Moment) -> float:
    """Compute equation 3 of Vaswani et al. 2017, arXiv:1706.03762; `lr` is a factor, not the peak learning rate."""
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
    """A schedule: its formula after the warm-up, the optional settings that it uses, and the formula of its warm-up."""

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
    """Return the number of warm-up steps from warmup_steps or warmup_ratio, rounded down.

    Raises ConfigError if both are given or one is out of range.
    """
    steps, ratio = settings.warmup_steps, settings.warmup_ratio
    if steps is not None and ratio is not None:
        raise ConfigError(
            f"model.optim.sched.warmup_steps={steps} and warmup_ratio={ratio:g} both define the warm-up. "
            "Give one of them, and null for the other."
        )
    if ratio is not None and not 0 <= ratio <= 1:
        raise ConfigError(
            f"model.optim.sched.warmup_ratio={ratio:g} is not a fraction of all steps. Give 0 to 1, for example 0.1."
        )
    if steps is not None and steps < 0:
        raise ConfigError(f"model.optim.sched.warmup_steps={steps} is negative. Give 0 for no warm-up.")
    return int(ratio * max_steps) if ratio is not None else steps or 0


def learning_rate(step: int, settings: ScheduleSettings, *, lr: float, max_steps: int, hidden_size: int) -> float:
    """Compute the learning rate of an optimizer step, counted from 0, in a run of `max_steps`.

    The warm-up is steps 0 to W with the rate lr (step + 1) / (W + 1), which is not 0 at the first step. After
    `max_steps` the rate is min_lr; before, InverseSquareRootAnnealing and the constant schedules ignore min_lr.
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
