"""Speed on 1 to 8 GPUs: the pre-training step of three sizes of Megatron-BERT in several layouts; beside them one GPU.

    python -m benchmarks.scaling --out FOLDER [--shapes 345M,1.3B] [--layouts 1,data8,tensor2xdata4] [--quick]
    python -m benchmarks.scaling --out FOLDER --check [--layouts ...]
    python -m benchmarks.scaling --out FOLDER --cpu --check --layouts 1,data2,tensor2     (a smoke test)

Writes scaling.json and scaling.md, or check.json. Each row is measured in processes of its own, one a GPU, started
here; torchrun is not needed. A layout is data, fsdp and tensor with their sizes, joined by x; `sequence` and
`recompute` switch these on: fsdp4xtensor2xsequence. Texts are random tokens, 512 long, 15 % of them masked; dropout is
on.

Weak scaling keeps the texts of a GPU, strong scaling those of a step; efficiency is against one GPU of the same run,
with its own number of texts. Model FLOP count products with weights, attention and the masked tokens' vocabulary,
three times the forward pass for a step; what activation checkpointing computes twice counts once. Beside each row
stands what `megabert plan` says of the same step, where it knows the GPU. --profile tells of each row where the first
GPU's time went.
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megabert.build import materialize
from megabert.config.schema import OptimizerSettings, ParallelSettings, TrainerSettings
from megabert.data.packing import NO_TARGET, Batch, Features
from megabert.data.sampler import BatchSampler
from megabert.kernels.cuda_graph import side_stream
from megabert.model.config import LOSS, ORDER_LOSS, EncoderConfig
from megabert.model.encoder import Encoder, initialize
from megabert.model.heads import PretrainingHead, TaskModel
from megabert.model.precision import resolve_static_batches
from megabert.parallel.launch import environments
from megabert.parallel.process_group import World, connect
from megabert.parallel.sharding import Sharding, parallelize
from megabert.planner import cost_model as cost
from megabert.planner.hardware import GPUS
from megabert.planner.workload import Texts, Work
from megabert.training.step import Stepper, SyncFreeStepper

from .common import VOCABULARY, forward_flops

LENGTH, MASKED = 512, 0.15


@dataclass(frozen=True)
class Shape:
    """A network and how many texts a GPU gets."""

    config: EncoderConfig
    texts: int


def _shape(layers: int, hidden: int, heads: int, texts: int) -> Shape:
    return Shape(EncoderConfig(VOCABULARY, layers, hidden, heads, 4 * hidden, LENGTH), texts)


# Megatron-LM's BERT: 345M, 1.3B and 3.9B parameters.
SHAPES = {
    "345M": _shape(24, 1024, 16, 64),
    "1.3B": _shape(24, 2048, 32, 32),
    "3.9B": _shape(48, 2560, 40, 16),
    "tiny": _shape(2, 64, 4, 2),
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
class Task:
    """What some processes measure together."""

    shape: str
    layout: str
    kind: str
    """weak, strong or check."""
    texts: int
    """Of a step, in all processes."""
    precision: str
    steps: int
    accelerator: str
    is_profiled: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table; an `error` has no figures."""

    task: Task
    num_devices: int
    milliseconds: float = 0.0
    tokens_per_second: float = 0.0
    tflops: float = 0.0
    """Of the model, for each device."""
    memory_gb: float = 0.0
    """The most that one device held."""
    efficiency: float | None = None
    predicted_ms: float | None = None
    predicted_gb: float | None = None
    losses: tuple[float, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds of a step on the first GPU, by what they went to."""
    kernels: dict[str, float] = field(default_factory=dict)
    """The same for the kernels that took most."""
    error: str = ""


def parse_layout(text: str) -> tuple[int, ParallelSettings]:
    """Read fsdp4xtensor2xsequence: the number of processes and the settings."""
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    flags = set()
    for part in text.split("x"):
        found = re.fullmatch(r"(data|fsdp|tensor)(\d+)", part)
        if found:
            sizes[found[1]] = int(found[2])
        elif part in ("sequence", "recompute"):
            flags.add(part)
        elif part != "1":
            raise SystemExit(
                f"{part!r} in {text!r} is no part of a layout: data2, fsdp2, tensor2, sequence, recompute."
            )
    settings = ParallelSettings(
        tensor=sizes["tensor"],
        fsdp=sizes["fsdp"],
        sequence="sequence" in flags,
        activation_checkpointing="recompute" in flags,
    )
    return math.prod(sizes.values()), settings


def texts_of(config: EncoderConfig, count: int, length: int) -> list[Features]:
    """Make texts of random tokens, of which each has as many masked."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        ids = random.integers(5, config.vocabulary_size, length)
        targets = np.full(length, NO_TARGET)
        places = random.permutation(length)[: int(MASKED * length)]
        targets[places] = ids[places]
        ids[places] = 4
        order = np.full(length, NO_TARGET)
        order[0] = number % 2
        segments = (np.arange(length) >= length // 2).astype(np.int64)
        made.append(
            Features(ids, segments, token_targets={"token": targets, "order": order}, weight=float(len(places)))
        )
    return made


def loss(columns_T6: Tensor, batch: Batch) -> Tensor:
    """Pre-training's: masked tokens and the order of segments."""
    return columns_T6[:, LOSS].sum() + columns_T6[:, ORDER_LOSS].sum()


def make_stepper(config: EncoderConfig, task: Task, world: World, settings: ParallelSettings) -> Stepper:
    """Make a network, laid out, and what trains it; weights are drawn on the device, where it is quick."""
    with torch.device("meta"):
        model = TaskModel(Encoder(config), PretrainingHead(config, asked_share=MASKED, sentence_order=True))
    materialize(model)
    if task.kind == "check":
        initialize(model, torch.Generator().manual_seed(0), num_layers=config.num_layers)
    is_gpu = world.device.type == "cuda"
    layout = parallelize(model.train(), world, settings, precision=task.precision, is_compiled=is_gpu)
    if task.kind != "check":
        _draw(model, layout)
    has_size = resolve_static_batches(True, world.device, config, task.precision)
    common: dict[str, Any] = {"precision": task.precision, "clip": 1.0, "seed": 0, "sharding": layout}
    optimizer = OptimizerSettings(name="adamw", lr=1e-4)
    if has_size and SyncFreeStepper.serves(optimizer, task.precision):
        return SyncFreeStepper(model, loss, optimizer, accumulate=1, **common)
    return Stepper(model, loss, optimizer, **common)


def _draw(model: TaskModel, layout: Sharding) -> None:
    torch.manual_seed(layout.world.rank)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own: Any = parameter.to_local() if layout.uses_fsdp else parameter  # type: ignore[attr-defined]
            if parameter.ndim > 1:
                own.normal_(0.0, 0.02)
            else:
                own.fill_(float("norm" in name and name.endswith("weight")))


def length_of(task: Task) -> int:
    """Give the tokens of a text."""
    return 64 if task.kind == "check" or task.shape == "tiny" else LENGTH


def measure(task: Task, world: World, settings: ParallelSettings) -> Row:
    """Train in this process, one among those of a task, and time it."""
    config = CHECKED if task.kind == "check" else SHAPES[task.shape].config
    length = length_of(task)
    stepper = make_stepper(config, task, world, settings)
    loader = BatchSampler(
        texts_of(config, task.texts * (10 if task.kind == "check" else 2), length),
        task.texts // world.data_size,
        length,
        0,
        seed=0,
        static_epochs=1 if isinstance(stepper, SyncFreeStepper) else 0,
        share=world.data_rank,
        num_shares=world.data_size,
    )
    steps = [loader.step(number) for number in range(len(loader))]
    warm = 0 if task.kind == "check" else 4

    def train(numbers: range) -> list[Tensor]:
        return [stepper.step(steps[number % len(steps)], 1e-4, number * world.data_size) for number in numbers]

    train(range(warm))
    _synchronize(world)
    begin = time.perf_counter()
    losses = train(range(warm, warm + task.steps))
    _synchronize(world)
    seconds = (time.perf_counter() - begin) / task.steps
    after = range(warm + task.steps, warm + task.steps + PROFILED)
    parts, kernels = profile(lambda: train(after)) if task.is_profiled else ({}, {})
    memory = torch.tensor([torch.cuda.max_memory_allocated() if world.device.type == "cuda" else 0.0])
    gathered = [float(text) for text in world.exchange(str(float(memory)))]
    lengths = np.full(task.texts, length)
    flops = 3 * forward_flops(config, lengths, int(MASKED * length) * task.texts)
    return Row(
        task,
        world.size,
        milliseconds=1000 * seconds,
        tokens_per_second=task.texts * length / seconds,
        tflops=flops / seconds / 1e12 / world.size,
        memory_gb=max(gathered) / 1e9,
        losses=tuple(torch.stack(losses)[:, 0].tolist()),
        parts=parts,
        kernels=kernels,
    )


PROFILED = 2
# Parts of kernels' names; the first that fits counts, and what none fits is element-wise.
KINDS = {
    "communication": ("nccl",),
    "products": ("gemm", "nvjet", "cutlass", "xmma"),
    "attention": ("_forward_kernel", "_backward_queries_kernel", "_backward_keys_kernel"),
    "optimizer": ("adam", "_norm_kernel", "lpnorm"),
    "copies": ("memcpy", "memset"),
}


def profile(work: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Say where this GPU's time goes in PROFILED steps: milliseconds of a step by kind, and by kernel.

    `exposed` is communication beside which nothing was computed, `idle` when nothing ran at all.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels: defaultdict[str, float] = defaultdict(float)
    spans: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type != torch.profiler.DeviceType.CUDA or event.is_user_annotation:
            continue
        name, begin, end = event.name.lower(), event.time_range.start, event.time_range.end
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "elementwise")
        spans[kind].append((begin, end))
        kernels[event.name[:100]] += end - begin
    computing = [span for kind, found in spans.items() if kind != "communication" for span in found]
    everything = computing + spans["communication"]
    whole = max(end for _, end in everything) - min(begin for begin, _ in everything)
    parts = {kind: sum(end - begin for begin, end in found) for kind, found in sorted(spans.items())}
    parts["exposed"] = covered(everything) - covered(computing)
    parts["idle"] = whole - covered(everything)
    parts["total"] = whole
    max_seqlen = sorted(kernels.items(), key=lambda item: -item[1])[:20]
    scale = 1e-3 / PROFILED
    return {kind: scale * us for kind, us in parts.items()}, {name: scale * us for name, us in max_seqlen}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Measure what spans of time cover together."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def predict(task: Task, gpu: str) -> cost.Estimate | None:
    """Ask the cost model about a task; None where it knows no GPU or precision, or no time counts."""
    if task.kind == "check" or gpu not in GPUS or task.precision not in GPUS[gpu].matrix_rate:
        return None
    size, settings = parse_layout(task.layout)
    layout = cost.ParallelLayout(
        gpus=size,
        tensor=settings.tensor,
        fsdp=settings.fsdp,
        sequence=settings.sequence,
        activation_checkpointing=settings.activation_checkpointing,
    )
    texts = Texts.alike(task.texts // layout.num_data, length_of(task))
    return cost.Estimate(Work(SHAPES[task.shape].config, task.precision), texts, layout, GPUS[gpu])


def find_gpu(device_name: str) -> str:
    """Name a device as the cost model's table does; empty where it has none."""
    return next((name for name in GPUS if name in device_name.lower()), "")


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def run_child(task: Task, result: Path, limit: float) -> None:
    """Be one of the processes of a task, once its turn has come."""
    import torch._dynamo  # noqa: F401  (takes seconds, as the imports above: while another row is measured)

    size, settings = parse_layout(task.layout)
    trainer = TrainerSettings(devices=size, accelerator=task.accelerator)
    sys.stdin.readline()
    faulthandler.dump_traceback_later(limit)
    with connect(trainer, settings) as world, side_stream(world.device):
        row = measure(task, world, settings)
        if world.is_rank_zero:
            result.write_text(json.dumps(asdict(row)))


class Measurement:
    """A task's processes, which import what they need and then wait for their turn."""

    def __init__(self, task: Task, folder: Path, number: int, limit: float) -> None:
        self._task, self._limit = task, limit
        size, _ = parse_layout(task.layout)
        self._result = folder / f"row.{number}.json"
        self._result.unlink(missing_ok=True)
        self._logs = [folder / f"log.{number}.{rank}" for rank in range(size)]
        words = ["--out", str(self._result), "--child", json.dumps(asdict(task)), "--limit", str(limit)]
        command = [sys.executable, "-m", "benchmarks.scaling", *words]
        self._children = []
        for path, environment in zip(self._logs, environments(size), strict=True):
            with path.open("w") as log:
                self._children.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
                )

    def run(self) -> Row:
        """Let them measure; what fails (it does not fit, for one) or takes too long is a row that says so."""
        deadline = time.monotonic() + self._limit
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        try:
            codes = [child.wait(max(deadline - time.monotonic(), 0.1)) for child in self._children]
        except subprocess.TimeoutExpired:
            return Row(self._task, len(self._children), error=f"took longer than {self._limit:g} s")
        finally:
            for child in self._children:
                child.kill()
        if not any(codes) and self._result.is_file():
            found = json.loads(self._result.read_text())
            return Row(**(found | {"task": self._task, "losses": tuple(found["losses"])}))
        # Those who only heard that another one is gone have nothing to tell.
        failed = next((rank for rank, code in enumerate(codes) if code not in (0, 76)), 0)
        lines = [text for text in self._logs[failed].read_text().splitlines() if text.strip()]
        error = next((text for text in reversed(lines) if "Error" in text), (lines or ["?"])[-1])
        return Row(self._task, len(self._children), error=error[:200])


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """List what is to be measured; layouts that are too large are left out."""
    common = {
        "precision": arguments.precision,
        "accelerator": "cpu" if arguments.cpu else "gpu",
        "is_profiled": arguments.profile and not (arguments.cpu or arguments.check),
    }
    layouts = [layout for layout in arguments.layouts if parse_layout(layout)[0] <= arguments.devices]
    if arguments.check:
        return [Task("tiny", layout, "check", 16, steps=50, **common) for layout in layouts]
    found = []
    for name in arguments.shapes:
        texts = SHAPES[name].texts
        for layout in layouts:
            size, _ = parse_layout(layout)
            kinds = {"weak": texts * size, "strong": texts}
            for kind, count in kinds.items():
                data = size // parse_layout(layout)[1].tensor
                if count % data == 0 and not (kind == "strong" and (size == 1 or arguments.quick)):
                    found.append(Task(name, layout, kind, count, steps=5 if arguments.quick else 15, **common))
    return found


def with_efficiency(rows: Sequence[Row]) -> list[Row]:
    """Compare each row with one GPU; that of weak scaling has as many texts as one GPU of the others."""
    alone = {row.task.shape: row for row in reversed(rows) if row.num_devices == 1 and not row.error}
    return [
        replace(row, efficiency=row.tokens_per_second / row.num_devices / alone[row.task.shape].tokens_per_second)
        if row.task.shape in alone and not row.error
        else row
        for row in rows
    ]


def with_prediction(row: Row, gpu: str) -> Row:
    """Put beside a row what the cost model says."""
    estimate = None if row.error else predict(row.task, gpu)
    if estimate is None:
        return row
    return replace(row, predicted_ms=1000 * estimate.time.total, predicted_gb=estimate.memory.total / 1e9)


HEAD = (
    "| network | layout | GPUs | scaling | texts a step | ms | predicted | ktok/s | model TFLOP/s a GPU | GB a GPU | "
    "predicted | efficiency |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def line(row: Row) -> str:
    """Write a row of the Markdown table."""
    task = row.task
    about = [task.shape, task.layout, str(row.num_devices), task.kind, str(task.texts)]
    if row.error:
        return f"| {' | '.join(about)} | {row.error} |"
    efficiency = "" if row.efficiency is None else f"{row.efficiency:.1%}"
    predicted_ms, predicted_gb = "", ""
    if row.predicted_ms is not None and row.predicted_gb is not None:
        predicted_ms = f"{row.predicted_ms:.1f} ({row.predicted_ms / row.milliseconds - 1:+.0%})"
        predicted_gb = f"{row.predicted_gb:.1f} ({row.predicted_gb / row.memory_gb - 1:+.0%})"
    figures = [f"{row.milliseconds:.1f}", predicted_ms, f"{row.tokens_per_second / 1000:,.0f}", f"{row.tflops:.0f}"]
    return f"| {' | '.join([*about, *figures, f'{row.memory_gb:.1f}', predicted_gb, efficiency])} |"


def parts_table(rows: Sequence[Row]) -> str:
    """Write the parts of the profiled rows, milliseconds."""
    profiled = [row for row in rows if row.parts]
    kinds = [*KINDS, "elementwise", "exposed", "idle", "total"]
    lines = [
        f"| {row.task.shape}, {row.task.layout}, {row.task.texts} | "
        + " | ".join(f"{row.parts.get(kind, 0.0):.1f}" for kind in kinds)
        + " |"
        for row in profiled
    ]
    return "\n".join([f"| ms | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1), *lines]) if lines else ""


def check(rows: Sequence[Row], precision: str) -> int:
    """Compare losses of 50 steps with those of one process."""
    tolerance = 1e-3 if precision == "32" else 3e-2
    one = next(row for row in rows if row.num_devices == 1)
    failures = 0
    for row in rows:
        pairs = zip(row.losses, one.losses, strict=True) if not row.error else ()
        worst = max((abs(own - other) for own, other in pairs), default=math.inf)
        is_right = worst <= tolerance and row.losses[-1] < 0.98 * row.losses[0]
        failures += not is_right
        about = row.error or f"largest difference of 50 losses {worst:.1e}, last loss {row.losses[-1]:.4f}"
        print(f"{'ok    ' if is_right else 'FAILED'} {row.task.layout}: {about}", flush=True)
    return 1 if failures else 0


def main() -> int:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and the processes' logs")
    parser.add_argument("--shapes", default="345M,1.3B,3.9B", type=lambda text: text.split(","), help="networks")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), type=lambda text: text.split(","), help="layouts")
    parser.add_argument("--devices", type=int, help="leave out layouts of more processes; default: the GPUs here")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "32"])
    parser.add_argument("--quick", action="store_true", help="weak scaling only, few steps")
    parser.add_argument("--check", action="store_true", help="compare the losses of 50 steps of a small network")
    parser.add_argument("--profile", action="store_true", help="say where the first GPU's time goes in each row")
    parser.add_argument("--limit", type=float, default=300, help="seconds that a row may take")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU, to try the script out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(Task(**json.loads(arguments.child)), arguments.out, arguments.limit)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.devices is None:
        arguments.devices = (os.cpu_count() or 1) if arguments.cpu else torch.cuda.device_count()
    device = f"{'cpu' if arguments.cpu else torch.cuda.get_device_name()}, torch {torch.__version__}"
    rows = []
    prepared = (
        Measurement(task, arguments.out, number, arguments.limit) for number, task in enumerate(tasks_of(arguments))
    )
    # In pairs: the processes of the next one are started, and get ready, before one begins.
    for measurement, _ in pairwise(chain(prepared, [None])):
        assert measurement is not None
        rows.append(with_prediction(measurement.run(), find_gpu(device)))
        if not arguments.check:
            rows = with_efficiency(rows)
            print(line(rows[-1]), flush=True)
        # After each row: what was measured is not lost when the time is up.
        name = "check" if arguments.check else "scaling"
        table = {"device": device, "rows": [asdict(row) for row in rows]}
        (arguments.out / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
        if not arguments.check:
            text = "\n".join([f"{device}, {arguments.precision}\n", HEAD + "\n".join(map(line, rows)), ""])
            (arguments.out / "scaling.md").write_text(f"{text}\n{parts_table(rows)}\n")
    return check(rows, arguments.precision) if arguments.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
