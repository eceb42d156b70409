"""Several processes on one machine, for tests: forked from one that has imported all modules, they start quickly.

    python -m tests.parallel.processes FOLDER

Runs every check of `CHECKS` with its number of processes and writes the results of rank zero to FOLDER/<check>.npz. The
tests compare them with those of one process.
"""

import os
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # FSDP and activation checkpointing import it, which would take each process seconds
import torch.distributed
import torch.distributed.fsdp
import torch.distributed.tensor

from megabert.config.schema import OptimizerSettings, ParallelSettings
from megabert.data.packing import NO_TARGET, Features, pack
from megabert.data.sampler import BatchSampler
from megabert.model.config import LOSS, ORDER_LOSS, EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import EmbeddingHead, TaskModel
from megabert.model.lora import LoraConfig, add_lora, find_targets
from megabert.model.pretraining_heads import PretrainingHead
from megabert.parallel import optimizer_shards, sharding
from megabert.parallel.process_group import World, init_mesh, init_process_group, resolve_mesh_axes
from megabert.parallel.rendezvous import LaunchEnvironment
from megabert.parallel.sharding import parallelize
from megabert.training.contrastive_step import ContrastiveStepper
from megabert.training.step import Stepper
from tests.training import test_contrastive_step

VOCABULARY = 61
BERT = EncoderConfig(
    VOCABULARY, num_layers=2, hidden_size=32, num_heads=4, ffn_size=48, max_positions=24,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
NETWORKS = {
    "bert": BERT,
    "gpt": replace(BERT, is_causal=True, num_segments=0),
    "post": replace(BERT, norm_place="post"),
    "five_words": replace(BERT, vocabulary_size=5),  # for four processes: two rows, two, one, none
}
# So that even small models have several buckets and FSDP units.
optimizer_shards.BUCKET_SIZE = 5000
sharding.FSDP_UNIT_SIZE = 5000
# Sequences of a micro-batch, and micro-batches of a step in all processes together.
BATCH, NUM_MICRO_BATCHES = 2, 4
STEPS = 2
LAYOUTS = {
    "data2": (2, {}),
    "tensor2": (2, {"tensor": 2}),
    "sequence2": (2, {"tensor": 2, "sequence": True}),
    "fsdp2": (2, {"fsdp": 2}),
    "recompute2": (2, {"tensor": 2, "sequence": True, "activation_checkpointing": True}),
    "data4": (4, {}),
    "tensor4": (4, {"tensor": 4}),
    "data2_tensor2": (4, {"tensor": 2}),
    "data2_sequence2": (4, {"tensor": 2, "sequence": True}),
    "data2_fsdp2": (4, {"fsdp": 2}),
    "fsdp2_tensor2": (4, {"fsdp": 2, "tensor": 2}),
    "fsdp4_recompute": (4, {"fsdp": -1, "activation_checkpointing": True}),
    "optimizer2": (2, {"fsdp": 2}),
    "optimizer4": (4, {"fsdp": 4}),
    "optimizer2_sequence2": (4, {"fsdp": 2, "tensor": 2, "sequence": True}),
}


def make_features(config, count=26):
    """Make sequences of random tokens; a third of them have targets, with a causal model all."""
    random = np.random.default_rng(0)
    features = []
    for number in range(count):
        ids = random.integers(0, config.vocabulary_size, random.integers(5, 24))
        has_target = np.ones(len(ids), bool) if config.is_causal else random.random(len(ids)) < 0.3
        targets = np.where(has_target, np.roll(ids, -1), NO_TARGET)
        order = np.full(len(ids), NO_TARGET)
        order[0] = number % 2
        segments = (np.arange(len(ids)) > 4).astype(np.int64)
        features.append(
            Features(
                ids, segments, token_targets={"token": targets, "order": order}, weight=float(has_target.sum() + 1)
            )
        )
    return features


def loss(columns_T6, batch):
    return columns_T6[:, LOSS].sum() + columns_T6[:, ORDER_LOSS].sum()


def network(config, adapters=None):
    head = PretrainingHead(config, target_share=1.0, sentence_order=not config.is_causal)
    model = TaskModel(Encoder(config), head)
    initialize(model, torch.Generator().manual_seed(1), num_layers=config.num_layers)
    with torch.no_grad():  # with biases of 0 a bias that is added twice would go unnoticed
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    if adapters is not None:
        model.encoder.to(adapters)
        add_lora(model.encoder, dict.fromkeys(find_targets(model.encoder, ["all"]), 3), LoraConfig(3, 6.0))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.encoder.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.train()


def make(config, world, settings, *, precision="32", clip=0.0, count=26, adapters=None):
    model = network(config, adapters)
    sharded = parallelize(model, world, ParallelSettings(**settings), precision=precision, is_compiled=False)
    stepper = Stepper(
        model, loss, OptimizerSettings(lr=1e-3), precision=precision, clip=clip, seed=5, sharding=sharded
    )  # fmt: skip
    source = BatchSampler(
        make_features(config, count), BATCH, 24, 0, seed=1, accumulate=NUM_MICRO_BATCHES // world.data_size,
        data_rank=world.data_rank, data_size=world.data_size,
    )  # fmt: skip
    return stepper, source


def train(stepper, source, steps):
    return [
        stepper.step(source.step(number), 1e-3, number * source.micro_batches_per_step).tolist() for number in steps
    ]


def unshard_all(sharding, kind, tensors):
    return {f"{kind}/{name}": sharding.unshard(name, item.detach()).numpy().copy() for name, item in tensors.items()}


def train_and_compare(world, settings, config, **more):
    """Return losses and gradient norms, the gradients of the first step and the weights of the last."""
    stepper, source = make(config, world, settings, **more)
    metrics = train(stepper, source, [0])
    gradients = unshard_all(
        stepper.sharding, "gradient", {name: master.grad for name, master in stepper.master_weights.items()}
    )
    metrics += train(stepper, source, range(1, STEPS))
    return gradients | unshard_all(stepper.sharding, "weight", stepper.master_weights) | {"metrics": np.array(metrics)}


def contrast(world, settings, config):
    """Return the same of steps whose loss compares the sequences of all micro-batches and processes."""
    model = TaskModel(Encoder(config), EmbeddingHead("mean", normalize=True))
    initialize(model, torch.Generator().manual_seed(1), num_layers=config.num_layers)
    sharded = parallelize(model.train(), world, ParallelSettings(**settings), precision="32", is_compiled=False)
    pair_loss, optimizer = test_contrastive_step.loss, OptimizerSettings(lr=1e-3)
    stepper = ContrastiveStepper(model, pair_loss, optimizer, precision="32", clip=0.0, seed=5, sharding=sharded)
    random = np.random.default_rng(0)
    batches = [pack([test_contrastive_step.group(2 * n + k, random) for k in range(2)], 24, 0) for n in range(4)]
    own = batches[world.data_rank :: world.data_size]
    metrics = [stepper.step(own, 1e-3, 0).tolist()]
    masters = {name: item for name, item in stepper.master_weights.items() if item.grad is not None}
    gradients = unshard_all(stepper.sharding, "gradient", {name: item.grad for name, item in masters.items()})
    metrics.append(stepper.step(own, 1e-3, len(own)).tolist())
    return gradients | unshard_all(stepper.sharding, "weight", masters) | {"metrics": np.array(metrics)}


def compare_replicas(world, settings, config, **more):
    """Train with dropout; return checksums of the replicated weights of every process."""
    stepper, source = make(replace(config, hidden_dropout=0.2, attention_dropout=0.2), world, settings, **more)
    metrics = train(stepper, source, range(STEPS))
    shared = [master for name, master in stepper.master_weights.items() if name not in stepper.sharding.tensor_sharded]
    sums = torch.stack([torch.stack([item.sum(), item.square().sum()]) for item in shared]).detach()
    gathered = [torch.empty_like(sums) for _ in range(world.size)]
    torch.distributed.all_gather(gathered, sums)
    return {"metrics": np.array(metrics), "sums": torch.stack(gathered).numpy()}


def overflow(world, settings, config):
    """Overflow a gradient that one process has: all must skip the step and halve the loss scale."""
    stepper, source = make(config, world, settings, precision="16")
    train(stepper, source, [0])
    before = {name: master.detach().clone() for name, master in stepper.master_weights.items()}
    reduce = stepper._reducer.reduce

    def overflowing():
        reduce()
        if world.rank == 1:
            stepper._reducer.gradients[stepper.master_weights["encoder.layers.0.mlp.up.weight"]].view(-1)[0] = torch.inf

    stepper._reducer.reduce = overflowing
    train(stepper, source, [1])
    is_same = all(torch.equal(master, before[name]) for name, master in stepper.master_weights.items())
    reports = world.all_gather_text(f"{int(is_same)} {stepper.scaler.get_scale()}")
    stepper._reducer.reduce = reduce
    metrics = train(stepper, source, [1])
    return {"reports": np.array([text.split() for text in reports], dtype=float), "metrics": np.array(metrics)}


def predict(world, settings, config):
    """Predict the most probable tokens, with a vocabulary that may be sharded."""
    stepper, source = make(config, world, settings)
    (batch, *_) = source.step(0)
    with torch.no_grad():
        return {"predictions": stepper._model.eval()(*batch.inputs()[:5]).numpy()}


CHECKS = {}
"""By name: processes, settings, function, arguments."""
MIXED = ("tensor4", "data2_sequence2", "fsdp2_tensor2", "optimizer2_sequence2")
WHICH = {
    "bert": tuple(LAYOUTS),
    "gpt": ("sequence2", "fsdp2_tensor2"),
    "post": ("data2_sequence2", "fsdp2_tensor2"),
    "five_words": ("tensor4", "data2_sequence2"),
    # Three sequences for four micro-batches of a step: one process has none, and takes part in collectives.
    "three_sequences": ("data4", "data2_fsdp2", "optimizer4"),
    "clipped": MIXED,
    "bf16": ("data2", "sequence2", "fsdp2_tensor2", "optimizer2"),
    "16": ("sequence2", "fsdp2", "optimizer2"),
    "lora": ("sequence2", "fsdp2", "fsdp2_tensor2"),
    "lora_bf16": ("fsdp2",),
}
CHANGES = {
    "three_sequences": {"count": 3},
    "clipped": {"clip": 0.1},
    "bf16": {"precision": "bf16"},
    "16": {"precision": "16"},
    "lora": {"adapters": torch.float32},
    "lora_bf16": {"precision": "bf16", "adapters": torch.bfloat16},
}
for _case, _layouts in WHICH.items():
    _arguments = {"config": NETWORKS.get(_case, BERT), **CHANGES.get(_case, {})}
    CHECKS[f"one.{_case}"] = (1, {}, train_and_compare, _arguments)
    CHECKS |= {f"{_layout}.{_case}": (*LAYOUTS[_layout], train_and_compare, _arguments) for _layout in _layouts}
for _layout in ("one", "data2"):
    CHECKS[f"{_layout}.contrastive"] = (*LAYOUTS.get(_layout, (1, {})), contrast, {"config": BERT})
CHECKS["tensor2.overflow"] = (*LAYOUTS["tensor2"], overflow, {"config": BERT})
for _layout in ("one", "sequence2", "tensor4"):
    CHECKS[f"{_layout}.predictions"] = (*LAYOUTS.get(_layout, (1, {})), predict, {"config": BERT})
for _layout in ("data2", "tensor2", "data2_sequence2"):
    CHECKS[f"{_layout}.replicas"] = (*LAYOUTS[_layout], compare_replicas, {"config": BERT})


def run(size, rank, port, folder):
    """Run the checks of one size in one process."""
    worlds = {(1, 1, 1): World(torch.device("cpu"))}
    launch = LaunchEnvironment(rank, size, rank, "127.0.0.1", port, has_store=False)
    device = init_process_group(launch, "cpu", timeout=300) if size > 1 else None
    for name, (number, settings, check, arguments) in CHECKS.items():
        if number != size:
            continue
        axes = resolve_mesh_axes(size, ParallelSettings(**settings))
        if axes not in worlds:
            worlds[axes] = init_mesh(launch, device, axes)
        world = worlds[axes]
        if name.startswith("optimizer"):
            world = replace(world, fsdp_size=1, shards_optimizer=True)
        results = check(world, settings, **arguments)
        if rank == 0:
            np.savez(folder / f"{name}.npz", **results)


# A process that forks must have no other thread: numpy's OpenBLAS starts one when it is imported.
FORKING = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def check_alone():
    """Fail if other threads run, since a forked process would lose them and the locks that they hold."""
    tasks = Path("/proc/self/task")
    assert not tasks.is_dir() or len(list(tasks.iterdir())) == 1, "run this with the environment FORKING"


def find_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(size, folder):
    """Run the checks of one size; returns the waitpid statuses of the processes."""
    port = find_port()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                run(size, rank, port, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    check_alone()
    for size in sorted({size for size, *_ in CHECKS.values()}):
        ends = run_together(size, folder)
        # In one of some thirty runs glibc aborted a process ("malloc(): unaligned tcache chunk") when the parent still
        # had a second thread. A signal is not a wrong result: run once more.
        if any(os.WIFSIGNALED(end) for end in ends):
            print(f"a process of {size} was ended by a signal: {ends}; running it once more", file=sys.stderr)
            ends = run_together(size, folder)
        if any(ends):
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
