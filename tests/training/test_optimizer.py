import dataclasses
import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from megabert.config.schema import OptimizerSettings, ScheduleSettings
from megabert.errors import CheckpointError, ConfigError
from megabert.training.lr_schedules import SCHEDULES, learning_rate, resolve_warmup
from megabert.training.optimizer import (
    OPTIMIZERS,
    build_loss_scaler,
    build_optimizer,
    clip_gradients,
    load_loss_scale,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)


def named(model):
    return dict(model.named_parameters())


class Tied(nn.Module):
    """Tied word embedding and output, a norm, an unused layer and a frozen one."""

    def __init__(self, *, is_reversed=False):
        super().__init__()
        parts = {
            "words": nn.Embedding(7, 4),
            "norm": nn.LayerNorm(4),
            "vocabulary": nn.Linear(4, 7),
            "unused": nn.Linear(4, 2),
            "frozen": nn.Linear(4, 4),
        }
        # named_parameters() lists a tied parameter under its first name, so words must precede vocabulary.
        order = ("frozen", "unused", "words", "vocabulary", "norm") if is_reversed else parts
        for name in order:
            self.add_module(name, parts[name])
        self.vocabulary.weight = self.words.weight
        self.frozen.requires_grad_(False)

    def forward(self, token_ids):
        return self.vocabulary(self.frozen(self.norm(self.words(token_ids))))


def named_groups(model, **options):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (sorted(names[id(parameter)] for parameter in group["params"]), group["weight_decay"])
        for group in parameter_groups(named(model), 0.01, **options)
    ]


def test_biases_and_norms_have_no_weight_decay_and_tied_parameters_are_listed_once():
    assert named_groups(Tied(), decay_norm_and_bias=False) == [
        (["unused.weight", "words.weight"], 0.01),
        (["norm.bias", "norm.weight", "unused.bias", "vocabulary.bias"], 0.0),
    ]


def test_weight_decay_can_include_norms_and_biases():
    (names, weight_decay), *others = named_groups(Tied(), decay_norm_and_bias=True)
    assert (len(names), weight_decay, others) == (6, 0.01, [])


def test_a_frozen_model_is_refused():
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        parameter_groups(named(Tied().requires_grad_(False)), 0.01, decay_norm_and_bias=False)


# -- learning rates ----------------------------------------------------------------------------------------

# lr 1, 10 steps, 2 of warm-up: 1/3, 2/3, 1 at steps 0, 1, 2, and these rates at steps 3, 6, 10, 11.
POINTS = {
    "WarmupAnnealing": (7 / 8, 4 / 8, 0.0, 0.0),
    "SquareRootAnnealing": (math.sqrt(0.7), math.sqrt(0.4), 0.0, 0.0),
    "SquareAnnealing": (49 / 64, 16 / 64, 0.0, 0.0),
    "CosineAnnealing": (0.5 * (1 + math.cos(math.pi / 8)), 0.5, 0.0, 0.0),
    "PolynomialDecayAnnealing": (7 / 8, 4 / 8, 0.0, 0.0),
    "PolynomialHoldDecayAnnealing": (1.0, 4 / 5, 0.0, 0.0),
    "InverseSquareRootAnnealing": (math.sqrt(3 / 4), math.sqrt(3 / 7), math.sqrt(3 / 11), 0.0),
    "WarmupPolicy": (1.0, 1.0, 1.0, 0.0),
    "WarmupHoldPolicy": (1.0, 1.0, 1.0, 0.0),
}


def rates(steps, *, lr=1.0, max_steps=10, hidden_size=16, **settings):
    schedule = ScheduleSettings(**settings)
    return [learning_rate(step, schedule, lr=lr, max_steps=max_steps, hidden_size=hidden_size) for step in steps]


@pytest.mark.parametrize("name", POINTS)
def test_a_schedule_matches_rates_computed_by_hand(name):
    hold = {"hold_steps": 3} if "Hold" in name else {}
    actual = rates((0, 1, 2, 3, 6, 10, 11), name=name, warmup_steps=2, **hold)
    assert actual == pytest.approx([1 / 3, 2 / 3, 1.0, *POINTS[name]])


def test_noam_is_scaled_by_the_hidden_size_and_has_a_different_warmup():
    # 16 ** -0.5 = 1/4; up to step 4: step * 4 ** -1.5 = step / 8; then step ** -0.5
    actual = rates((0, 1, 4, 9, 10, 11), name="NoamAnnealing", warmup_steps=4, lr=2.0, min_lr=0.001)
    assert actual == pytest.approx([1 / 16, 1 / 16, 1 / 4, 1 / 6, 0.5 / math.sqrt(10), 0.001])
    assert rates((0, 4), name="NoamAnnealing") == pytest.approx([1 / 4, 1 / 8])


def test_every_schedule_is_tested_and_a_choice_of_the_settings():
    (field,) = [field for field in dataclasses.fields(ScheduleSettings) if field.name == "name"]
    assert {*POINTS, "NoamAnnealing"} == set(SCHEDULES) == set(field.metadata["choices"])


def test_min_lr_and_power_are_used():
    assert rates((6, 10), name="WarmupAnnealing", warmup_steps=2, min_lr=0.2) == pytest.approx([0.6, 0.2])
    assert rates((6, 10), name="CosineAnnealing", warmup_steps=2, min_lr=0.2) == pytest.approx([0.6, 0.2])
    assert rates((9, 10), name="SquareAnnealing", min_lr=0.2) == pytest.approx([0.2, 0.2])
    assert rates((6, 10), name="SquareRootAnnealing", min_lr=0.1) == pytest.approx([math.sqrt(0.4), 0.1])
    assert rates((5,), name="PolynomialDecayAnnealing", power=2.0, min_lr=0.2) == pytest.approx([0.4])


def test_only_square_root_annealing_is_discontinuous_after_the_warmup():
    jumps = {}
    for name in SCHEDULES:
        peak, after = rates((100, 101), name=name, warmup_steps=100, max_steps=1000)
        jumps[name] = (peak - after) / peak
    assert jumps.pop("SquareRootAnnealing") == pytest.approx(1 - math.sqrt(0.899))
    assert max(jumps.values()) < 0.01


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    max_steps=st.integers(1, 300),
    warmup=st.integers(0, 320),
    hold=st.integers(0, 320),
    lr=st.floats(1e-6, 1.0),
    floor=st.floats(0.0, 1.0),
)
def test_rates_are_between_min_lr_and_lr_and_do_not_rise_after_the_warmup(name, max_steps, warmup, hold, lr, floor):
    # Noam's lr is a factor; InverseSquareRootAnnealing ignores min_lr before the end.
    min_lr = 0.0 if name in ("NoamAnnealing", "InverseSquareRootAnnealing") else floor * lr
    actual = rates(
        range(max_steps + 3),
        name=name,
        lr=lr,
        max_steps=max_steps,
        warmup_steps=warmup,
        hold_steps=hold,
        min_lr=min_lr,
        hidden_size=64,
    )
    tolerance = 1e-12
    assert all(0 <= rate <= lr + tolerance for rate in actual)
    assert all(rate >= min_lr - tolerance for rate in actual[warmup + 1 :])
    assert all(later <= earlier + tolerance for earlier, later in pairwise(actual[warmup:]))
    assert all(later >= earlier for earlier, later in pairwise(actual[: warmup + 1]))


@settings(deadline=None, max_examples=40)  # the first example imports transformers
@given(max_steps=st.integers(2, 200), warmup=st.integers(0, 100))
def test_warmup_annealing_is_transformers_linear_schedule_one_step_ahead_in_the_warmup(max_steps, warmup):
    from transformers import get_linear_schedule_with_warmup

    def linear(warmup_steps):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        (curve,) = get_linear_schedule_with_warmup(optimizer, warmup_steps, max_steps).lr_lambdas
        return curve

    warmup = min(warmup, max_steps - 1)
    actual = rates(range(max_steps + 1), name="WarmupAnnealing", warmup_steps=warmup, max_steps=max_steps)
    # (s+1)/(W+1) instead of s/W: as transformers' warm-up of W + 1 steps at step s + 1.
    assert actual[:warmup] == pytest.approx([linear(warmup + 1)(step + 1) for step in range(warmup)])
    assert actual[warmup:] == pytest.approx([linear(warmup)(step) for step in range(warmup, max_steps + 1)])


def test_the_warmup_is_given_in_steps_or_as_a_fraction_rounded_down():
    assert resolve_warmup(ScheduleSettings(), 100) == 0
    assert resolve_warmup(ScheduleSettings(warmup_steps=7), 100) == 7
    assert resolve_warmup(ScheduleSettings(warmup_ratio=0.1), 79) == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"warmup_steps": 0, "warmup_ratio": 0.1},
            "warmup_steps=0 and warmup_ratio=0.1 both define the warm-up",
        ),
        ({"warmup_ratio": 10.0}, "warmup_ratio=10 is not a fraction"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is negative"),
    ],
)
def test_a_contradictory_warmup_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        resolve_warmup(ScheduleSettings(**wrong), 100)


# -- optimizers --------------------------------------------------------------------------------------------

OVERRIDES = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.9}}


def optimizer_settings(name, **settings):
    return OptimizerSettings(name=name, lr=0.01, **OVERRIDES.get(name, {}) | settings)


def train(model, optimizer, steps):
    for step in steps:
        set_learning_rate(optimizer, 0.01 / (step + 1))
        token_ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(token_ids).flatten(0, 1), token_ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def start(name, **settings):
    torch.manual_seed(0)
    model = Tied()
    return model, build_optimizer(named(model), optimizer_settings(name, **settings))


def through_a_file(tensors):
    return safetensors.torch.load(safetensors.torch.save(tensors))


def test_every_optimizer_of_the_table_is_a_choice_of_the_settings():
    (field,) = [field for field in dataclasses.fields(OptimizerSettings) if field.name == "name"]
    assert set(OPTIMIZERS) == set(field.metadata["choices"])


CASES = [(name, {}) for name in OPTIMIZERS]
CASES += [("sgd", {"momentum": 0.0}), ("rmsprop", {"momentum": 0.0})]


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_a_restored_optimizer_is_bit_identical(name, overrides):
    straight, straight_optimizer = start(name, **overrides)
    train(straight, straight_optimizer, range(6))

    first, first_optimizer = start(name, **overrides)
    train(first, first_optimizer, range(3))
    saved = through_a_file(optimizer_tensors(first_optimizer, named(first)))

    second = Tied(is_reversed=True)  # other parameter order
    second.load_state_dict(first.state_dict())
    second_optimizer = build_optimizer(named(second), optimizer_settings(name, **overrides))
    load_optimizer_tensors(second_optimizer, named(second), saved)
    train(second, second_optimizer, range(3, 6))

    expected = straight.state_dict() | optimizer_tensors(straight_optimizer, named(straight))
    actual = second.state_dict() | optimizer_tensors(second_optimizer, named(second))
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_pytorchs_to_the_last_bit(name):
    model, optimizer = start(name)
    train(model, optimizer, range(4))

    torch.manual_seed(0)
    reference = Tied()
    settings = optimizer_settings(name)
    options = {key: getattr(settings, key) for key in OPTIMIZERS[name].takes if key not in ("weight_decay", "betas")}
    options |= {"betas": tuple(settings.betas)} if "betas" in OPTIMIZERS[name].takes else {}
    options |= {"fused": True} if OPTIMIZERS[name].has_fused else {}
    groups = parameter_groups(named(reference), settings.weight_decay, decay_norm_and_bias=settings.decay_norm_and_bias)
    train(reference, getattr(torch.optim, type(optimizer).__name__)(groups, lr=0.01, **options), range(4))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in reference.state_dict().items())


def test_steps_do_not_import_pytorchs_compiler():
    code = """
import sys, torch
from megabert.config.schema import OptimizerSettings
from megabert.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
named = {"weight": torch.nn.Parameter(torch.ones(2, 2))}
optimizer = build_optimizer(named, OptimizerSettings())
named["weight"].sum().backward()
optimizer.step()
optimizer.zero_grad()
load_optimizer_tensors(optimizer, named, optimizer_tensors(optimizer, named))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_state_is_named_after_the_parameter():
    model, optimizer = start("adamw")
    train(model, optimizer, range(2))
    shapes = {name: tuple(tensor.shape) for name, tensor in optimizer_tensors(optimizer, named(model)).items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith(("words", "unused"))} == {
        "words.weight/step": (),
        "words.weight/exp_avg": (7, 4),
        "words.weight/exp_avg_sq": (7, 4),
        "unused.weight/untouched": (0,),
        "unused.bias/untouched": (0,),
    }
    assert not [name for name in shapes if name.startswith(("frozen", "vocabulary.weight"))]


def test_an_optimizer_without_state_can_be_saved_and_restored():
    model, optimizer = start("adamw")
    load_optimizer_tensors(optimizer, named(model), through_a_file(optimizer_tensors(optimizer, named(model))))
    assert optimizer_tensors(optimizer, named(model)).keys() == {
        f"{name}/untouched" for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def test_restored_state_is_a_copy():
    model, optimizer = start("adamw")
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, named(model))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    other, other_optimizer = start("adamw")
    load_optimizer_tensors(other_optimizer, named(other), tensors)
    train(other, other_optimizer, range(1, 3))
    assert all(torch.equal(before[name], tensors[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("norm.bias/exp_avg"), "norm.bias/exp_avg is missing"),
        (lambda tensors: tensors.pop("unused.bias/untouched"), "unused.bias/exp_avg_sq is missing"),
        (lambda tensors: tensors.update({"a.weight/step": torch.ones(())}), "a.weight/step is unexpected"),
        (
            lambda tensors: tensors.update({"words.weight/exp_avg": torch.ones(4, 7)}),
            r"words.weight/exp_avg has the shape \[4, 7\], not \[7, 4\]",
        ),
    ],
)
def test_state_that_does_not_fit_is_refused_by_name_and_not_loaded(change, message):
    model, optimizer = start("adamw")
    train(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, named(model))
    change(tensors)
    fresh, fresh_optimizer = start("adamw")
    with pytest.raises(CheckpointError, match=message):
        load_optimizer_tensors(fresh_optimizer, named(fresh), tensors)
    assert not fresh_optimizer.state


def test_the_state_of_another_optimizer_is_refused():
    model, optimizer = start("adamw")
    train(model, optimizer, range(1))
    other, other_optimizer = start("sgd")
    with pytest.raises(CheckpointError, match=r"words.weight/momentum_buffer is missing.*and \d+ more"):
        load_optimizer_tensors(other_optimizer, named(other), optimizer_tensors(optimizer, named(model)))


def test_the_optimizer_uses_its_settings():
    _, optimizer = start("adamw", betas=[0.8, 0.95], eps=1e-6, weight_decay=0.1, decay_norm_and_bias=True)
    (group,) = optimizer.param_groups
    actual = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay")}
    assert actual == {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    assert start("sgd", momentum=0.5)[1].defaults["momentum"] == 0.5


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("adamw", {"momentum": 0.9}, "model.optim.momentum=0.9 has no effect with model.optim.name=adamw"),
        ("rprop", {"weight_decay": 0.1}, "model.optim.weight_decay=0.1 has no effect"),
        ("sgd", {"betas": [0.8, 0.9]}, r"model.optim.betas=\[0.8, 0.9\] has no effect"),
        ("adamw", {"betas": [0.9]}, "give two numbers"),
        ("adamw", {"betas": [0.9, 1.5]}, "Invalid beta parameter.*1.5"),
        ("adamw", {"sched": ScheduleSettings(hold_steps=3)}, "sched.hold_steps=3 has no effect"),
        ("adamw", {"sched": ScheduleSettings(min_lr=0.1)}, "min_lr=0.1 is larger than model.optim.lr=0.01"),
        (
            "adamw",
            {"sched": ScheduleSettings(name="WarmupHoldPolicy", hold_steps=-1)},
            "hold_steps=-1 is negative",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(name, wrong, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(named(Tied()), optimizer_settings(name, **wrong))


def test_weight_decay_0_is_accepted_for_an_optimizer_without_it():
    build_optimizer(named(Tied()), optimizer_settings("rprop", weight_decay=0.0))


# -- gradients and loss scale ------------------------------------------------------------------------------


def with_gradients(*values):
    parameters = [nn.Parameter(torch.zeros(1)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = None if value is None else torch.tensor([value])
    return parameters


def test_gradients_are_clipped_to_the_maximum_norm_and_their_norm_is_returned():
    parameters = with_gradients(3.0, None, 4.0)
    assert clip_gradients(parameters, 1.0).item() == 5.0
    assert [parameters[0].grad.item(), parameters[2].grad.item()] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 6.0])
def test_gradients_below_the_maximum_norm_or_without_one_are_not_changed(max_norm):
    parameters = with_gradients(3.0, 4.0)
    assert clip_gradients(iter(parameters), max_norm).item() == 5.0
    assert [parameter.grad.item() for parameter in parameters] == [3.0, 4.0]


def test_a_norm_that_is_not_finite_is_returned():
    assert math.isnan(clip_gradients(with_gradients(3.0, math.nan), 1.0))
    assert math.isinf(clip_gradients(with_gradients(3.0, math.inf), 0.0))


def test_a_negative_norm_is_refused():
    with pytest.raises(ConfigError, match="gradient_clip_val=-1 is negative"):
        clip_gradients(with_gradients(1.0), -1.0)


def overflow(scaler):
    (parameter,) = with_gradients(1.0)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler.scale((parameter * math.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return parameter.item()


def test_an_overflow_halves_the_loss_scale_and_skips_the_step():
    scaler = build_loss_scaler("cpu", enabled=True)
    assert scaler.get_scale() == 2.0**16
    assert overflow(scaler) == 0.0
    assert scaler.get_scale() == 2.0**15
    again = build_loss_scaler("cpu", enabled=True)
    load_loss_scale(again, json.loads(json.dumps(scaler.state_dict())))
    assert again.state_dict() == scaler.state_dict()
    overflow(again)
    assert again.get_scale() == 2.0**14


def test_a_disabled_loss_scale_has_no_state():
    scaler = build_loss_scaler("cpu", enabled=False)
    assert scaler.state_dict() == {}
    load_loss_scale(scaler, {})
    with pytest.raises(CheckpointError, match=r"trainer\.precision"):
        load_loss_scale(scaler, build_loss_scaler("cpu", enabled=True).state_dict())
    with pytest.raises(CheckpointError, match=r"trainer\.precision"):
        load_loss_scale(build_loss_scaler("cpu", enabled=True), {})
