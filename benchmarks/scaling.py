"""Scaling benchmark on 1 to 8 GPUs: the pre-training step of three sizes of Megatron-BERT in several parallel layouts.

    python -m benchmarks.scaling --out FOLDER [--shapes 345M,1.3B] [--layouts 1,data8,tensor2xdata4] [--quick]
    python -m benchmarks.scaling --out FOLDER --check [--layouts ...]
    python -m benchmarks.scaling --out FOLDER --cpu --check --layouts 1,data2,tensor2     (a smoke test)

Writes scaling.json and scaling.md, or check.json. Each row is measured in new processes, one for each GPU, started
here; torchrun is not needed. A layout is data, fsdp and tensor with their sizes, joined by x; `sequence` and
`recompute` enable these options: fsdp4xtensor2xsequence. Where whole weights fit fsdp shards only the optimizer;
`reshard` shards the weights all the same, and `eager` forbids CUDA graphs. Sequences are 512 random tokens, 15 % of
them masked, with dropout; 345M-squad is fine-tuning on 32 sequences a GPU of SQuAD's lengths.

Weak scaling keeps the sequences of a GPU, strong scaling those of a step; efficiency is against one GPU of the same
run. Model FLOP count matmuls with weights, attention and the logits of masked tokens, three times the forward pass for
a step; recomputed activations count once. Each row includes the prediction of `megabert plan`, if it supports the GPU.
--profile adds a breakdown of the first GPU's time.
"""

import argparse
import faulthandler
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megabert.config.schema import OptimizerSettings, ParallelSettings, TrainerSettings
from megabert.data.packing import NO_TARGET, Batch, Features
from megabert.data.sampler import BatchSampler
from megabert.kernels.cuda_graph import side_stream
from megabert.model.config import LOSS, ORDER_LOSS, EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import TaskModel, TokenHead
from megabert.model.precision import resolve_static_batches
from megabert.model.pretraining_heads import PretrainingHead
from megabert.parallel.execution import choose_what_to_shard, supports_sync_free
from megabert.parallel.launch import environments
from megabert.parallel.process_group import World, connect
from megabert.parallel.sharding import Sharding, parallelize
from megabert.planner import cost_model as cost
from megabert.planner.hardware import GPUS
from megabert.planner.layout import ParallelLayout
from megabert.planner.workload import MicroBatch, Workload
from megabert.training.step import Loss, Stepper, SyncFreeStepper
from megabert.weights import materialize

from .common import (
    MAX_LENGTH,
    VOCABULARY,
    forward_flops,
    random_features,
    span_loss,
    squad_like_lengths,
)

LENGTH, MASKED = 512, 0.15


@dataclass(frozen=True)
class ModelSize:
    """A model and the sequences of a GPU."""

    config: EncoderConfig
    num_sequences: int
    is_pretraining: bool = True

    @property
    def loss(self) -> Loss:
        """Of pre-training, masked language model and sentence order, or of question answering."""
        return loss if self.is_pretraining else span_loss

    def features(self, count: int, length: int) -> list[Features]:
        """Generate random sequences: of one length, or of lengths like those of SQuAD's windows."""
        if self.is_pretraining:
            return masked_features(self.config, count, length)
        return random_features(np.minimum(squad_like_lengths(count), length))


def _model_size(layers: int, hidden: int, heads: int, num_sequences: int) -> ModelSize:
    return ModelSize(EncoderConfig(VOCABULARY, layers, hidden, heads, 4 * hidden, LENGTH), num_sequences)


# Megatron-LM's BERT: 345M, 1.3B and 3.9B parameters.
MODEL_SIZES = {
    "345M": _model_size(24, 1024, 16, 64),
    "1.3B": _model_size(24, 2048, 32, 32),
    "3.9B": _model_size(48, 2560, 40, 16),
    "345M-squad": replace(_model_size(24, 1024, 16, 32), is_pretraining=False),
    "tiny": _model_size(2, 64, 4, 2),
    "tiny-squad": replace(_model_size(2, 64, 4, 2), is_pretraining=False),
}
LAYOUTS = (
    "1", "1xrecompute", "data2", "fsdp2", "fsdp2xrecompute", "tensor2", "tensor2xsequence",
    "data4", "fsdp4", "tensor4", "tensor4xsequence", "data2xtensor2", "fsdp2xtensor2",
    "data8", "fsdp8", "fsdp8xrecompute", "tensor8", "tensor8xsequence", "data4xtensor2", "data2xtensor4",
    "fsdp4xtensor2",
)  # fmt: skip
CHECKED = EncoderConfig(
    1003, num_layers=3, hidden_size=128, num_heads=8, ffn_size=512, max_positions=LENGTH,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row to measure."""

    shape: str
    layout: str
    kind: str
    """weak, strong or check."""
    num_sequences: int
    """Global batch: sequences of a step in all processes."""
    precision: str
    steps: int
    accelerator: str
    is_profiled: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table; with an `error` it has no cases."""

    case: Case
    num_devices: int
    milliseconds: float = 0.0
    tokens_per_second: float = 0.0
    tflops: float = 0.0
    """Of the model, for each device."""
    memory_gb: float = 0.0
    """Largest peak memory of a device."""
    efficiency: float | None = None
    predicted_ms: float | None = None
    predicted_gb: float | None = None
    losses: tuple[float, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds of a step on the first GPU, by kind of kernel."""
    kernels: dict[str, float] = field(default_factory=dict)
    """The same for the kernels with the most time, each with its calls."""
    error: str = ""


FLAGS = ("sequence", "recompute", "reshard", "eager")


def parse_layout(text: str) -> tuple[int, ParallelSettings]:
    """Parse a layout such as fsdp4xtensor2xsequence into the number of processes and the settings."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    flags = set()
    for part in text.split("x"):
        axis = re.fullmatch(r"(data|fsdp|tensor)(\d+)", part)
        if axis:
            sizes[axis[1]] = int(axis[2])
        elif part in FLAGS:
            flags.add(part)
        elif part != "1":
            raise SystemExit(
                f"{part!r} in {text!r} is no part of a layout. Use data2, fsdp2, tensor2, {', '.join(FLAGS)}."
            )
    settings = ParallelSettings(
        tensor=sizes["tensor"],
        fsdp=sizes["fsdp"],
        sequence="sequence" in flags,
        activation_checkpointing="recompute" in flags,
    )
    return math.prod(sizes.values()), settings


def masked_features(config: EncoderConfig, count: int, length: int) -> list[Features]:
    """Generate sequences of random tokens with equal numbers of masked ones."""
    random = np.random.default_rng(0)
    features = []
    for number in range(count):
        ids = random.integers(5, config.vocabulary_size, length)
        targets = np.full(length, NO_TARGET)
        masked = random.permutation(length)[: int(MASKED * length)]
        targets[masked] = ids[masked]
        ids[masked] = 4
        order = np.full(length, NO_TARGET)
        order[0] = number % 2
        segments = (np.arange(length) >= length // 2).astype(np.int64)
        features.append(
            Features(ids, segments, token_targets={"token": targets, "order": order}, weight=float(len(masked)))
        )
    return features


def loss(columns_T6: Tensor, batch: Batch) -> Tensor:
    """Pre-training loss: masked language model and sentence order."""
    return columns_T6[:, LOSS].sum() + columns_T6[:, ORDER_LOSS].sum()


def make_stepper(size: ModelSize, case: Case, world: World, settings: ParallelSettings) -> Stepper:
    """Build a sharded model and its stepper; weights are initialized on the device, where it is fast."""
    config = size.config
    with torch.device("meta"):
        head: nn.Module = TokenHead(config.hidden_size, 2, num_layers=1, dropout=0.0, activation="relu")
        if size.is_pretraining:
            head = PretrainingHead(config, target_share=MASKED, sentence_order=True)
        model = TaskModel(Encoder(config), head)
    materialize(model)
    if case.kind == "check":
        initialize(model, torch.Generator().manual_seed(0), num_layers=config.num_layers)
    is_gpu = world.device.type == "cuda"
    if "reshard" not in case.layout.split("x"):
        micro_batch = MicroBatch.uniform(case.num_sequences // world.data_size, length_of(case))
        trainer = TrainerSettings(precision=case.precision)
        world = choose_what_to_shard(world, trainer, settings, model, micro_batch)
    layout = parallelize(model.train(), world, settings, precision=case.precision, is_compiled=is_gpu)
    if case.kind != "check":
        _initialize_on_device(model, layout)
    if "eager" in case.layout.split("x"):
        layout = replace(layout, is_capturable=False)
    has_size = resolve_static_batches(True, world.device, config, case.precision)
    common: dict[str, Any] = {"precision": case.precision, "clip": 1.0, "seed": 0, "sharding": layout}
    optimizer = OptimizerSettings(name="adamw", lr=1e-4)
    if has_size and supports_sync_free(optimizer.name, case.precision):
        return SyncFreeStepper(model, size.loss, optimizer, accumulate=1, **common)
    return Stepper(model, size.loss, optimizer, **common)


def _initialize_on_device(model: TaskModel, layout: Sharding) -> None:
    torch.manual_seed(layout.world.rank)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local: Any = parameter.to_local() if layout.uses_fsdp else parameter  # type: ignore[attr-defined]
            if parameter.ndim > 1:
                local.normal_(0.0, 0.02)
            else:
                local.fill_(float("norm" in name and name.endswith("weight")))


def length_of(case: Case) -> int:
    """Return the tokens of a sequence."""
    if case.kind == "check" or case.shape.startswith("tiny"):
        return 64
    return LENGTH if MODEL_SIZES[case.shape].is_pretraining else MAX_LENGTH


def measure(case: Case, world: World, settings: ParallelSettings) -> Row:
    """Train in this process, one of those of a case, and time it."""
    size = ModelSize(CHECKED, 0) if case.kind == "check" else MODEL_SIZES[case.shape]
    config, length = size.config, length_of(case)
    stepper = make_stepper(size, case, world, settings)
    features = size.features(case.num_sequences * (10 if case.kind == "check" else 2), length)
    loader = BatchSampler(
        features,
        case.num_sequences // world.data_size,
        length,
        0,
        seed=0,
        static_epochs=1 if isinstance(stepper, SyncFreeStepper) else 0,
        data_rank=world.data_rank,
        data_size=world.data_size,
    )
    steps = [loader.step(number) for number in range(len(loader))]
    if world.device.type == "cuda":
        steps = [[batch.map(Tensor.pin_memory) for batch in batches] for batches in steps]
    warm = 0 if case.kind == "check" else 4

    def train(numbers: range) -> list[Tensor]:
        return [stepper.step(steps[number % len(steps)], 1e-4, number * world.data_size) for number in numbers]

    train(range(warm))
    _synchronize(world)
    begin = time.perf_counter()
    losses = train(range(warm, warm + case.steps))
    _synchronize(world)
    seconds = (time.perf_counter() - begin) / case.steps
    after = range(warm + case.steps, warm + case.steps + PROFILED)
    parts, kernels = profile(lambda: train(after)) if case.is_profiled else ({}, {})
    memory = torch.tensor([torch.cuda.max_memory_allocated() if world.device.type == "cuda" else 0.0])
    gathered = [float(text) for text in world.all_gather_text(str(float(memory)))]
    lengths = np.array([len(item.token_ids) for item in features])
    num_masked = int(MASKED * length) * case.num_sequences if size.is_pretraining else 0
    flops = 3 * (forward_flops(config, lengths) / len(steps) + forward_flops(config, lengths[:0], num_masked))
    return Row(
        case,
        world.size,
        milliseconds=1000 * seconds,
        tokens_per_second=float(lengths.sum()) / len(steps) / seconds,
        tflops=flops / seconds / 1e12 / world.size,
        memory_gb=max(gathered) / 1e9,
        losses=tuple(torch.stack(losses)[:, 0].tolist()),
        parts=parts,
        kernels=kernels,
    )


PROFILED = 2
# Parts of kernels' names, first match; kernels without a match are element-wise.
KINDS = {
    "communication": ("nccl",),
    "products": ("gemm", "nvjet", "cutlass", "xmma"),
    "attention": ("_forward_kernel", "_backward_queries_kernel", "_backward_keys_kernel"),
    "optimizer": ("adam", "_norm_kernel", "lpnorm"),
    "copies": ("memcpy", "memset"),
}


def profile(work: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Profile PROFILED steps on this GPU: milliseconds of a step by kind, and by kernel.

    `exposed` is communication that does not overlap with compute, `idle` the time without any kernel.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    spans: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type != torch.profiler.DeviceType.CUDA or event.is_user_annotation:
            continue
        name, begin, end = event.name.lower(), event.time_range.start, event.time_range.end
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "elementwise")
        spans[kind].append((begin, end))
        kernels[event.name[:100]] += end - begin
        calls[event.name[:100]] += 1
    compute = [span for kind, items in spans.items() if kind != "communication" for span in items]
    everything = compute + spans["communication"]
    whole = max(end for _, end in everything) - min(begin for begin, _ in everything)
    parts = {kind: sum(end - begin for begin, end in items) for kind, items in sorted(spans.items())}
    parts["exposed"] = covered(everything) - covered(compute)
    parts["idle"] = whole - covered(everything)
    parts["total"] = whole
    slowest = sorted(kernels.items(), key=lambda item: -item[1])[:20]
    scale = 1e-3 / PROFILED
    of_kernels = {f"{calls[name] / PROFILED:g} x {name}": scale * us for name, us in slowest}
    return {kind: scale * us for kind, us in parts.items()}, of_kernels


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Compute the length of the union of time spans."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def predict(case: Case, gpu: str) -> cost.Estimate | None:
    """Predict a case; None for unsupported GPUs and precisions, and for checks."""
    if case.kind == "check" or gpu not in GPUS or case.precision not in GPUS[gpu].matmul_rate:
        return None
    size, settings = parse_layout(case.layout)
    layout = ParallelLayout(
        gpus=size,
        tensor=settings.tensor,
        fsdp=settings.fsdp,
        sequence=settings.sequence,
        activation_checkpointing=settings.activation_checkpointing,
    )
    model = MODEL_SIZES[case.shape]
    lengths = [len(item.token_ids) for item in model.features(2 * case.num_sequences, length_of(case))]
    everything = MicroBatch.from_lengths(lengths)  # as measured: those of two steps of all processes
    micro_batch = MicroBatch(*(value / (2 * layout.data_size) for value in astuple(everything)))
    workload = Workload(model.config, case.precision, model.is_pretraining)
    estimate = cost.Estimate(workload, micro_batch, layout, GPUS[gpu])
    return estimate if "reshard" in case.layout.split("x") else estimate.with_kept_weights()


def find_gpu(device_name: str) -> str:
    """Find a device's name in the cost model's table; empty if absent."""
    return next((name for name in GPUS if name in device_name.lower()), "")


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def run_child(case: Case, result: Path, limit: float) -> None:
    """Run one process of a case, after a line on stdin starts it."""
    import torch._dynamo  # noqa: F401  (takes seconds: import it while another row is measured)

    size, settings = parse_layout(case.layout)
    trainer = TrainerSettings(devices=size, accelerator=case.accelerator)
    sys.stdin.readline()
    faulthandler.dump_traceback_later(limit)
    with connect(trainer, settings) as world, side_stream(world.device):
        row = measure(case, world, settings)
        if world.is_rank_zero:
            result.write_text(json.dumps(asdict(row)))


class CaseProcesses:
    """The processes of a case, which import their modules and then wait for the start."""

    def __init__(self, case: Case, folder: Path, number: int, limit: float) -> None:
        self._case, self._limit = case, limit
        size, _ = parse_layout(case.layout)
        self._result = folder / f"row.{number}.json"
        self._result.unlink(missing_ok=True)
        self._logs = [folder / f"log.{number}.{rank}" for rank in range(size)]
        words = ["--out", str(self._result), "--child", json.dumps(asdict(case)), "--limit", str(limit)]
        command = [sys.executable, "-m", "benchmarks.scaling", *words]
        self._children = []
        for path, environment in zip(self._logs, environments(size), strict=True):
            with path.open("w") as log:
                self._children.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )

    def run(self) -> Row:
        """Start the case and wait for it; failures (out of memory) and timeouts become rows with an error."""
        deadline = time.monotonic() + self._limit
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        try:
            codes = [child.wait(max(deadline - time.monotonic(), 0.1)) for child in self._children]
        except subprocess.TimeoutExpired:
            return Row(self._case, len(self._children), error=f"took longer than {self._limit:g} s")
        finally:
            for child in self._children:
                child.kill()
        if not any(codes) and self._result.is_file():
            row = json.loads(self._result.read_text())
            return Row(**(row | {"case": self._case, "losses": tuple(row["losses"])}))
        # Exit code 76 means that another process was lost; its log has the cause.
        failed = next((rank for rank, code in enumerate(codes) if code not in (0, 76)), 0)
        lines = [text for text in self._logs[failed].read_text().splitlines() if text.strip()]
        error = next((text for text in reversed(lines) if "Error" in text), (lines or ["?"])[-1])
        return Row(self._case, len(self._children), error=error[:200])


def list_cases(arguments: argparse.Namespace) -> list[Case]:
    """List the cases, except for layouts that need more devices."""
    common = {
        "precision": arguments.precision,
        "accelerator": "cpu" if arguments.cpu else "gpu",
        "is_profiled": arguments.profile and not (arguments.cpu or arguments.check),
    }
    layouts = [layout for layout in arguments.layouts if parse_layout(layout)[0] <= arguments.devices]
    if arguments.check:
        return [Case("tiny", layout, "check", 16, steps=50, **common) for layout in layouts]
    cases = []
    for name in arguments.shapes:
        num_sequences = MODEL_SIZES[name].num_sequences
        for layout in layouts:
            size, _ = parse_layout(layout)
            kinds = {"weak": num_sequences * size, "strong": num_sequences}
            for kind, count in kinds.items():
                data = size // parse_layout(layout)[1].tensor
                if count % data == 0 and not (kind == "strong" and (size == 1 or arguments.quick)):
                    cases.append(
                        Case(
                            name, layout, kind, count, steps=arguments.steps or (5 if arguments.quick else 15), **common
                        )
                    )
    return cases


def with_efficiency(rows: Sequence[Row]) -> list[Row]:
    """Add the efficiency of each row against one GPU."""
    alone = {row.case.shape: row for row in reversed(rows) if row.num_devices == 1 and not row.error}
    return [
        replace(row, efficiency=row.tokens_per_second / row.num_devices / alone[row.case.shape].tokens_per_second)
        if row.case.shape in alone and not row.error
        else row
        for row in rows
    ]


def with_prediction(row: Row, gpu: str) -> Row:
    """Add the cost model's prediction to a row."""
    estimate = None if row.error else predict(row.case, gpu)
    if estimate is None:
        return row
    return replace(row, predicted_ms=1000 * estimate.time.total, predicted_gb=estimate.memory.total / 1e9)


HEAD = (
    "| model | layout | GPUs | scaling | sequences a step | ms | predicted | ktok/s | model TFLOP/s a GPU | GB a GPU | "
    "predicted | efficiency |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def line(row: Row) -> str:
    """Format a row of the Markdown table."""
    case = row.case
    columns = [case.shape, case.layout, str(row.num_devices), case.kind, str(case.num_sequences)]
    if row.error:
        return f"| {' | '.join(columns)} | {row.error} |"
    efficiency = "" if row.efficiency is None else f"{row.efficiency:.1%}"
    predicted_ms, predicted_gb = "", ""
    if row.predicted_ms is not None and row.predicted_gb is not None:
        predicted_ms = f"{row.predicted_ms:.1f} ({row.predicted_ms / row.milliseconds - 1:+.0%})"
        predicted_gb = f"{row.predicted_gb:.1f} ({row.predicted_gb / row.memory_gb - 1:+.0%})"
    values = [f"{row.milliseconds:.1f}", predicted_ms, f"{row.tokens_per_second / 1000:,.0f}", f"{row.tflops:.0f}"]
    return f"| {' | '.join([*columns, *values, f'{row.memory_gb:.1f}', predicted_gb, efficiency])} |"


def parts_table(rows: Sequence[Row]) -> str:
    """Format the table of the profiled rows, milliseconds."""
    profiled = [row for row in rows if row.parts]
    kinds = [*KINDS, "elementwise", "exposed", "idle", "total"]
    lines = [
        f"| {row.case.shape}, {row.case.layout}, {row.case.num_sequences} | "
        + " | ".join(f"{row.parts.get(kind, 0.0):.1f}" for kind in kinds)
        + " |"
        for row in profiled
    ]
    return "\n".join([f"| ms | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1), *lines]) if lines else ""


def check(rows: Sequence[Row], precision: str) -> int:
    """Compare the losses of 50 steps with those of one process; returns the exit code."""
    tolerance = 1e-3 if precision == "32" else 3e-2
    one = next(row for row in rows if row.num_devices == 1)
    failures = 0
    for row in rows:
        pairs = zip(row.losses, one.losses, strict=True) if not row.error else ()
        worst = max((abs(one_loss - other) for one_loss, other in pairs), default=math.inf)
        is_close = worst <= tolerance and row.losses[-1] < 0.98 * row.losses[0]
        failures += not is_close
        result = row.error or f"largest difference of the 50 losses {worst:.1e}, last loss {row.losses[-1]:.4f}"
        print(f"{'ok    ' if is_close else 'FAILED'} {row.case.layout}: {result}", flush=True)
    return 1 if failures else 0


def main() -> int:
    """Run the benchmark and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and the processes' logs")
    parser.add_argument("--shapes", default="345M,1.3B,3.9B", type=lambda text: text.split(","), help="models")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), type=lambda text: text.split(","), help="layouts")
    parser.add_argument("--devices", type=int, help="skip layouts of more processes; default: the GPUs of this machine")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "32"])
    parser.add_argument("--quick", action="store_true", help="weak scaling only, few steps")
    parser.add_argument("--steps", type=int, help="steps to time; default: 15, with --quick 5")
    parser.add_argument("--check", action="store_true", help="compare the losses of 50 steps of a small network")
    parser.add_argument("--profile", action="store_true", help="break down the first GPU's time in each row")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a row may take")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU, as a smoke test")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(Case(**json.loads(arguments.child)), arguments.out, arguments.limit)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.devices is None:
        arguments.devices = (os.cpu_count() or 1) if arguments.cpu else torch.cuda.device_count()
    device = f"{'cpu' if arguments.cpu else torch.cuda.get_device_name()}, torch {torch.__version__}"
    rows = []
    prepared = (
        CaseProcesses(case, arguments.out, number, arguments.limit) for number, case in enumerate(list_cases(arguments))
    )
    # In pairs: the next case's processes start and import while one runs.
    for processes, _ in pairwise(chain(prepared, [None])):
        assert processes is not None
        rows.append(with_prediction(processes.run(), find_gpu(device)))
        if not arguments.check:
            rows = with_efficiency(rows)
            print(line(rows[-1]), flush=True)
        # After each row, so that results survive a timeout.
        name = "check" if arguments.check else "scaling"
        table = {"device": device, "rows": [asdict(row) for row in rows]}
        (arguments.out / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
        if not arguments.check:
            text = "\n".join([f"{device}, {arguments.precision}\n", HEAD + "\n".join(map(line, rows)), ""])
            (arguments.out / "scaling.md").write_text(f"{text}\n{parts_table(rows)}\n")
    return check(rows, arguments.precision) if arguments.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
