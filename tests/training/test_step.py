"""The optimizer step: float32 master weights, CUDA graphs against eager steps, losses that are not finite."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megabert.config.schema import OptimizerSettings, ParallelSettings
from megabert.data.packing import Features
from megabert.data.sampler import BatchSampler
from megabert.kernels.cuda_graph import CapturedGraph, side_stream
from megabert.model.config import EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.fp8 import OLDEST
from megabert.model.heads import TaskModel, TokenHead
from megabert.parallel.process_group import World
from megabert.parallel.sharding import compile_layers, parallelize
from megabert.training.optimizer import build_optimizer, optimizer_tensors
from megabert.training.step import Stepper, SyncFreeStepper

CONFIG = EncoderConfig(
    vocabulary_size=60, num_layers=2, hidden_size=64, num_heads=2, ffn_size=96, max_positions=40,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def loss(logits_TC, batch):
    return F.cross_entropy(logits_TC, batch.token_targets["label"], reduction="sum")


def features(count=24):
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        ids = random.integers(1, 60, random.integers(4, 40))
        made.append(Features(ids, ids % 2, token_targets={"label": ids % 3}, weight=float(len(ids))))
    return made


def model():
    torch.manual_seed(0)
    made = TaskModel(Encoder(CONFIG), TokenHead(64, 3, num_layers=1, dropout=0.0, activation="relu"))
    initialize(made, torch.Generator().manual_seed(0), num_layers=2)
    return made.train()


def stepper(network, *, precision="32", captured=False, settings=None, accumulate=1, clip=1.0):
    settings = settings or OptimizerSettings(lr=1e-3)
    if not captured:
        return Stepper(network, loss, settings, precision=precision, clip=clip, seed=5)
    return SyncFreeStepper(network, loss, settings, precision=precision, clip=clip, seed=5, accumulate=accumulate)


def losses(made, loader, steps):
    return [made.step(loader.step(number), 1e-3, number * loader.accumulate).tolist()[0] for number in range(steps)]


def loader(**changes):
    return BatchSampler(features(), **({"batch_size": 6, "max_seqlen": 40, "pad_id": 0, "seed": 1} | changes))


def test_a_step_matches_plain_pytorch():
    network = model()
    plain = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    made = stepper(network, settings=OptimizerSettings(lr=1e-3, weight_decay=0.0))
    for number in range(3):
        (batch,) = loader().step(number)
        made.step([batch], 1e-3, number)
        logits = plain(*batch.inputs())
        F.cross_entropy(logits, batch.token_targets["label"]).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for actual, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_padding_to_a_static_size_changes_no_loss():
    tight, filled = stepper(model()), stepper(model())
    assert losses(tight, loader(), 8) == pytest.approx(losses(filled, loader(static_epochs=2), 8), abs=1e-5)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_accumulated_micro_batches_match_the_global_batch(precision):
    whole, cut = stepper(model(), precision=precision), stepper(model(), precision=precision)
    expected = losses(whole, loader(), 8)
    actual = losses(cut, loader(batch_size=2, accumulate=3), 8)
    assert actual == pytest.approx(expected, abs=1e-4 if precision == "32" else 2e-2)


def test_lower_precision_keeps_master_weights_and_head_in_float32():
    network = model()
    made = stepper(network, precision="bf16")
    before = {name: master.detach().clone() for name, master in made.master_weights.items()}
    assert {master.dtype for master in made.master_weights.values()} == {torch.float32}
    assert network.encoder.layers[0].mlp.up.weight.dtype == torch.bfloat16
    assert network.head.out.weight.dtype == torch.float32
    losses(made, loader(), 2)
    for name, parameter in network.named_parameters():
        assert not torch.equal(made.master_weights[name], before[name]), name
        assert torch.equal(parameter, made.master_weights[name].to(parameter.dtype)), name


def test_lower_precision_has_nearly_the_losses_of_float32():
    exact, rounded = losses(stepper(model()), loader(), 40), losses(stepper(model(), precision="bf16"), loader(), 40)
    assert exact[-1] < 0.5 * exact[0]
    assert rounded == pytest.approx(exact, abs=0.05)


def poisoned(made_loader, number):
    batches = made_loader.step(number)
    batches[0].token_ids_T[0] = 59
    return batches


@pytest.mark.parametrize("captured", [False, pytest.param(True, marks=needs_gpu)])
def test_a_loss_that_is_not_finite_updates_nothing(captured):
    network = model().to("cuda" if captured else "cpu")
    with torch.no_grad():
        network.encoder.embeddings.word.weight[59] = torch.nan
    with side_stream(next(network.parameters()).device):
        made = stepper(network, captured=captured)
        clean = [
            Features(item.token_ids % 59, item.segment_ids, token_targets=item.token_targets) for item in features()
        ]
        source = BatchSampler(clean, 6, 40, 0, seed=1, static_epochs=1)
        made.step(source.step(0), 1e-3, 0)
        made.step(source.step(1), 1e-3, 1)
        before = {name: master.detach().clone() for name, master in made.master_weights.items()}
        loss_norm = made.step(poisoned(source, 2), 1e-3, 2)
        assert not loss_norm[0].isfinite()
        for name, master in made.master_weights.items():
            torch.testing.assert_close(master, before[name], equal_nan=True, atol=0, rtol=0)
        if captured:  # nor does any later step: the host reads losses late
            made.step(source.step(3), 1e-3, 3)
            for name, master in made.master_weights.items():
                torch.testing.assert_close(master, before[name], equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("captured", [False, pytest.param(True, marks=needs_gpu)])
def test_a_step_without_any_target_has_the_loss_0_and_leaves_finite_moments(captured):
    made_features = [
        Features(
            item.token_ids, item.segment_ids, token_targets={"label": np.full(len(item.token_ids), -100)}, weight=0.0
        )
        for item in features()
    ]
    network = model().to("cuda" if captured else "cpu")
    settings = OptimizerSettings(lr=1e-3, weight_decay=0.0)
    with side_stream(next(network.parameters()).device):
        made = stepper(network, captured=captured, settings=settings)
        before = {name: master.detach().clone() for name, master in made.master_weights.items()}
        empty = BatchSampler(made_features, 6, 40, 0, seed=1, static_epochs=1)
        # By hand: a sum of 0 over no target, gradients of 0, moments of 0, so the update is 0 / (0 + eps).
        assert made.step(empty.step(0), 1e-3, 0).tolist() == [0.0, 0.0]
        for name, master in made.master_weights.items():
            assert torch.equal(master, before[name]), name
        # A step with targets after it trains as usual.
        found = made.step(loader(static_epochs=1).step(0), 1e-3, 1)
        assert found.isfinite().all()
        assert found[0] > 0
    moments = optimizer_tensors(made.optimizer, made.master_weights)
    assert all(item.isfinite().all() for item in moments.values())


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("32", 1e-4), ("bf16", 2e-2), ("fp8", 5e-2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_captured_steps_match_eager_ones(precision, tolerance, accumulate, compiled):
    if precision == "fp8" and torch.cuda.get_device_capability() < OLDEST:
        pytest.skip("this GPU has no fp8")
    source = loader(batch_size=6 // accumulate, accumulate=accumulate, static_epochs=20)
    assert len(source.step(0)) == accumulate
    actual = {}
    for captured in (False, True):
        network = model().cuda()
        if compiled:
            compile_layers(network, fuse=precision != "fp8")
        with side_stream(torch.device("cuda")):
            made = stepper(network, precision=precision, captured=captured, accumulate=accumulate)
            actual[captured] = losses(made, source, 50)
    assert actual[True] == pytest.approx(actual[False], abs=tolerance)
    assert actual[True][-1] < 0.5 * actual[True][0]


@needs_gpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_sync_free_steps_without_capture_match_plain_steps(accumulate):
    source = loader(batch_size=6 // accumulate, accumulate=accumulate, static_epochs=20)
    settings = ParallelSettings(activation_checkpointing=True)
    actual = {}
    for kind in (Stepper, SyncFreeStepper):
        network = model()
        sharding = parallelize(network, World(torch.device("cuda")), settings, precision="bf16", is_compiled=False)
        more = {"accumulate": accumulate} if kind is SyncFreeStepper else {}
        with side_stream(torch.device("cuda")):
            made = kind(
                network, loss, OptimizerSettings(lr=1e-3), precision="bf16", clip=1.0, seed=5, sharding=sharding, **more
            )
            actual[kind] = losses(made, source, 50)
    assert not sharding.is_capturable
    assert actual[SyncFreeStepper] == pytest.approx(actual[Stepper], abs=2e-2)
    assert actual[Stepper][-1] < 0.5 * actual[Stepper][0]


@needs_gpu
def test_layers_with_activation_checkpointing_are_captured_for_inference():
    network = model()
    parallelize(
        network, World(torch.device("cuda")), ParallelSettings(activation_checkpointing=True),
        precision="32", is_compiled=False,
    )  # fmt: skip
    (batch,) = loader(static_epochs=20).step(0)
    batch = batch.to("cuda")
    with side_stream(torch.device("cuda")), torch.inference_mode():
        answer = CapturedGraph(lambda: network.eval()(*batch.inputs()), torch.cuda.graph_pool_handle())
        torch.testing.assert_close(answer().clone(), answer())


@needs_gpu
def test_captured_dropout_is_resampled_and_is_a_function_of_the_step():
    import dataclasses

    source = loader(static_epochs=20)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        config = dataclasses.replace(CONFIG, hidden_dropout=0.2, attention_dropout=0.2)
        network = TaskModel(Encoder(config), TokenHead(64, 3, num_layers=1, dropout=0.0, activation="relu"))
        initialize(network, torch.Generator().manual_seed(0), num_layers=2)
        network.cuda().train()
        with side_stream(torch.device("cuda")):
            settings = OptimizerSettings(lr=0.0, weight_decay=0.0)
            made = stepper(network, captured=True, settings=settings, clip=0.0)
            runs.append([made.step(source.step(0), 0.0, number).tolist()[0] for number in (3, 4, 5, 6, 5)])
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    assert len({round(value, 4) for value in runs[0][:4]}) == 4
    assert runs[0][2] == pytest.approx(runs[0][4], abs=1e-5)


@needs_gpu
@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_adam_step_matches_pytorch(name, dtype):
    from megabert.kernels.adam import FusedAdam, total_norm

    settings = OptimizerSettings(name=name, lr=1e-2, weight_decay=0.1)
    torch.manual_seed(0)
    shapes = [(7,), (100, 64), (4096,), (65, 127), (0, 8)]  # a rank of FSDP may have an empty shard
    weights = {str(shape): torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in shapes}
    plain = {key: torch.nn.Parameter(weight.detach().clone()) for key, weight in weights.items()}
    copies = {weight: torch.nn.Parameter(weight.detach().bfloat16()) for weight in weights.values()}
    optimizer, expected = build_optimizer(weights, settings), build_optimizer(plain, settings)
    fused = FusedAdam(optimizer, copies)
    fused.learning_rate.fill_(1e-2)
    for _ in range(5):
        gradients = {weight: torch.randn_like(weight).to(dtype) for weight in weights.values()}
        fused.set_gradients(gradients)
        norm = total_norm(list(gradients.values()))
        for weight, same in zip(weights.values(), plain.values(), strict=True):
            same.grad = gradients[weight].float().clone()
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(plain.values(), 1.0))
        fused.step((1.0 / (norm + 1e-6)).clamp(max=1.0), torch.zeros((), device="cuda"))
        expected.step()
    for weight, same in zip(weights.values(), plain.values(), strict=True):
        torch.testing.assert_close(weight, same, atol=1e-6, rtol=1e-5)
        assert torch.equal(copies[weight], weight.bfloat16())
        torch.testing.assert_close(
            optimizer.state[weight]["exp_avg_sq"], expected.state[same]["exp_avg_sq"], atol=1e-9, rtol=1e-5
        )
    saved = {key: item.clone() for key, item in optimizer_tensors(optimizer, weights).items()}
    before = {weight: weight.detach().clone() for weight in weights.values()}
    fused.step(torch.ones((), device="cuda"), torch.ones((), device="cuda"))
    assert all(torch.equal(weight, before[weight]) for weight in before)
    assert all(torch.equal(item, saved[key]) for key, item in optimizer_tensors(optimizer, weights).items())
