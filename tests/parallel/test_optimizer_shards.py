from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from megabert.config.schema import ParallelSettings, TrainerSettings
from megabert.parallel import execution
from megabert.parallel.execution import choose_what_to_shard
from megabert.parallel.optimizer_shards import ALIGNMENT, OptimizerShards
from megabert.parallel.process_group import World
from megabert.planner.cost_model import FREE_SHARE, Estimate
from megabert.planner.hardware import GPUS
from megabert.planner.layout import ParallelLayout
from megabert.planner.published_networks import NETWORKS
from megabert.planner.workload import MicroBatch, Workload

SHAPES = st.lists(st.sampled_from([(3,), (1,), (64,), (7, 5), (40, 33), (2, 1000)]), min_size=1, max_size=6)


@given(SHAPES, st.integers(1, 5), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_shards_of_all_processes_make_the_whole_weights(shapes, size, dtype):
    masters = {f"w{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    pieces = {name: [] for name in masters}
    for rank in range(size):
        weights = {name: nn.Parameter(master.to(dtype)) for name, master in masters.items()}
        world = World(torch.device("cpu"), data_rank=rank, data_size=size, shards_optimizer=True)
        shards = OptimizerShards(weights, masters, dict.fromkeys(weights), world)
        for name, weight in weights.items():
            assert torch.equal(weight, masters[name].to(dtype))
            place, shard = shards.places[name], shards.master_weights[name]
            assert place.start % ALIGNMENT == place.part % ALIGNMENT == 0  # a fused step loads 16 bytes at once
            assert torch.equal(shard, place.take(masters[name], rank))
            assert shard.ndim == masters[name].ndim  # weight decay goes by it
            pieces[name].append(shard.detach().flatten())
            if dtype == torch.bfloat16:
                shards.copies[shard].fill_(rank)  # a view of the weight
                first, last = place.span(rank)
                assert (weight.detach().flatten()[first:last] == rank).all()
    for name, master in masters.items():
        assert torch.equal(torch.cat(pieces[name]), master.flatten())


def estimate(gpus=4, **layout):
    batch = MicroBatch.uniform(32, 128)
    return Estimate(Workload(NETWORKS["345m"]), batch, ParallelLayout(gpus=gpus, **layout), GPUS["h100"])


def test_whole_weights_take_six_bytes_and_a_share_of_twelve():
    kept, total = estimate(fsdp=4).with_kept_weights(), estimate().parameters.total
    memory = kept.memory
    assert (memory.masters, memory.moments) == (total, 2 * total)
    assert (memory.copy, memory.gradients) == (2 * total, 4 * total)
    assert memory.activations == estimate().memory.activations
    in_float32 = replace(kept, workload=Workload(NETWORKS["345m"], "32")).memory  # masters are parts of the weights
    assert (in_float32.masters, in_float32.copy) == (total, 3 * total)


def test_kept_weights_communicate_less_than_data_parallelism_and_are_captured():
    data, kept = estimate().time, estimate(fsdp=4).with_kept_weights().time
    assert kept.data_communication < data.data_communication
    assert kept.optimizer < data.optimizer
    assert (kept.products, kept.elementwise, kept.other) == (data.products, data.elementwise, data.other)


def test_weights_are_kept_where_they_fit_and_no_replicas_remain():
    assert estimate(fsdp=4).with_kept_weights().layout.keeps_weights
    assert not estimate(fsdp=2).with_kept_weights().layout.keeps_weights
    assert not estimate().with_kept_weights().layout.keeps_weights
    need = estimate(fsdp=4).with_kept_weights().memory.total / (1 - FREE_SHARE)
    for factor in (0.99, 1.01):
        gpu = replace(GPUS["h100"], memory=factor * need)
        assert replace(estimate(fsdp=4), gpu=gpu).with_kept_weights().layout.keeps_weights == (factor > 1)


@pytest.mark.parametrize(
    ("memory", "data_size", "is_kept"), [(80e9, 4, True), (4e9, 4, False), (80e9, 8, False), (float("inf"), 4, True)]
)
def test_training_decides_as_the_plan_does(monkeypatch, memory, data_size, is_kept):
    monkeypatch.setattr(execution, "device_memory", lambda device: memory)
    monkeypatch.setattr(World, "any_rank", lambda self, flag: flag)
    world = World(torch.device("cpu"), size=data_size, data_size=data_size, fsdp_size=4)
    encoder, head = SimpleNamespace(config=NETWORKS["345m"]), SimpleNamespace(takes_targets=False)
    model = SimpleNamespace(encoder=encoder, head=head, modules=lambda: ())
    batch = MicroBatch.uniform(32, 128)
    chosen = choose_what_to_shard(world, TrainerSettings(precision="bf16"), ParallelSettings(fsdp=4), model, batch)
    assert (chosen.fsdp_size, chosen.shards_optimizer) == ((1, True) if is_kept else (4, False))
