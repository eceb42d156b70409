from dataclasses import replace
from pathlib import Path

import pytest

from megabert.errors import ConfigError
from megabert.planner.hardware import GPUS, MEGABERT
from megabert.planner.published_networks import NETWORKS
from megabert.planner.search import ALL, PlanRequest, choose, estimate_all, layout_settings, scale
from megabert.planner.workload import Workload

REQUEST = PlanRequest(Workload(NETWORKS["345m"]), GPUS["h100"], gpus=8, gpus_per_node=8, batch=1024, length=512)


def test_every_layout_has_the_global_batch():
    for estimate in estimate_all(REQUEST):
        assert estimate.tokens == 1024 * 512


def test_layouts_that_fit_come_first_and_fastest_first():
    estimates = estimate_all(replace(REQUEST, workload=Workload(NETWORKS["8.3b"]), length=1024))
    fits = [estimate.fits for estimate in estimates]
    assert True in fits and False in fits
    assert fits == sorted(fits, reverse=True)
    times = [estimate.time.total for estimate in estimates if estimate.fits]
    assert times == sorted(times)


def test_the_simplest_of_about_equally_fast_layouts_is_chosen():
    best = choose(estimate_all(replace(REQUEST, gpus=1)))
    assert best is not None
    assert not best.layout.activation_checkpointing
    assert layout_settings(best) == {
        "trainer.devices": 1,
        "trainer.accumulate_grad_batches": best.layout.accumulate,
        "model.train_ds.batch_size": round(best.micro_batch.num_sequences),
        "trainer.precision": "bf16",
    }


def test_a_model_too_large_for_one_gpu_has_no_best_layout_there():
    request = replace(REQUEST, workload=Workload(NETWORKS["8.3b"]), gpus=1, length=1024)
    assert choose(estimate_all(request)) is None
    points = scale(request, [1, 8], is_weak=True)
    assert points[0].estimate is None and points[0].efficiency is None
    assert points[-1].estimate is not None


def test_fixed_settings_are_kept():
    estimates = estimate_all(replace(REQUEST, tensor=2, fsdp=ALL, activation_checkpointing=True, sequence=False))
    (one,) = estimates
    layout = one.layout
    assert (layout.tensor, layout.fsdp, layout.sequence, layout.activation_checkpointing) == (2, 4, False, True)
    words = layout_settings(one)
    assert words["parallel.tensor"] == 2 and words["parallel.fsdp"] == 4
    assert words["parallel.activation_checkpointing"] == "true"


def test_impossible_fixed_settings_are_rejected():
    with pytest.raises(ConfigError, match="attention heads"):
        estimate_all(replace(REQUEST, tensor=32, gpus=32, gpus_per_node=32))
    with pytest.raises(ConfigError, match="divide evenly among 8"):
        estimate_all(replace(REQUEST, tensor=1, batch=100))
    with pytest.raises(ConfigError, match="needs two GPUs"):
        estimate_all(replace(REQUEST, gpus=1, sequence=True))


def test_weak_scaling_starts_at_one_gpu_with_full_efficiency():
    points = scale(REQUEST, [1, 8, 64], is_weak=True)
    assert [point.gpus for point in points] == [1, 8, 64]
    assert points[0].efficiency == 1
    assert all(point.efficiency > 0.9 for point in points)


def test_efficiency_of_strong_scaling_falls_with_the_gpus():
    points = scale(REQUEST, [1, 8, 64, 512], is_weak=False)
    efficiencies = [point.efficiency for point in points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert efficiencies[-1] < 0.5


def test_overlap_hides_the_gradient_all_reduce():
    def exposed(overlap):
        request = replace(REQUEST, tensor=1, fsdp=1, implementation=replace(MEGABERT, overlap=overlap))
        return choose(estimate_all(request)).time.data_communication

    assert exposed(0.0) > exposed(0.5) > exposed(1.0) == 0


def test_the_documented_tables_match_the_model():
    from benchmarks import predictions

    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text().splitlines()
    for row in (*predictions.weak(), *predictions.strong(), *predictions.kinds()):
        assert row in page, "python -m benchmarks.predictions prints what docs/scaling.md should have"
