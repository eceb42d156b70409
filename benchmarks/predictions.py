"""The tables of docs/scaling.md: predictions of the cost model for three sizes of Megatron-BERT on H100s.

    python -m benchmarks.predictions

Prints them in Markdown; a test verifies that the page contains the same lines. Nothing is run, and no GPU is needed.
"""

from collections.abc import Iterator, Sequence

from megabert.planner.cost_model import Estimate
from megabert.planner.hardware import GPUS
from megabert.planner.layout import ParallelLayout
from megabert.planner.published_networks import NETWORKS
from megabert.planner.search import PlanRequest, ScalingPoint, scale
from megabert.planner.workload import MicroBatch, Workload

COUNTS = (1, 2, 4, 8, 64, 512)
# Sequences of a GPU in weak scaling.
SEQUENCES = {"345m": 64, "1.3b": 64, "3.9b": 32}
LENGTH, BATCH = 512, 1024
# Sequences of a GPU as in benchmarks/scaling.py; tensor parallelism multiplies them by its size.
SEQUENCES_OF_KINDS = {"345m": 64, "1.3b": 32, "3.9b": 16}
KINDS = {"data parallel": (1, 1), "fsdp": (1, -1), "tensor 2": (2, -1), "tensor 4": (4, -1), "tensor 8": (8, -1)}


def _request(name: str, gpus: int, batch: int) -> PlanRequest:
    return PlanRequest(Workload(NETWORKS[name]), GPUS["h100"], gpus, 8, batch, LENGTH)


def _layout(estimate: Estimate) -> str:
    layout = estimate.layout
    flags = {", o": layout.keeps_weights, ", c": layout.activation_checkpointing}
    return layout.axes + "".join(flag for flag, is_on in flags.items() if is_on)


def _batch(estimate: Estimate) -> str:
    return f"{estimate.micro_batch.num_sequences:.0f} x {estimate.layout.accumulate}"


def _fitting(points: Sequence[ScalingPoint]) -> Iterator[tuple[ScalingPoint, Estimate]]:
    return ((point, point.estimate) for point in points if point.estimate is not None)


def weak() -> list[str]:
    """Build the table of weak scaling, with a constant number of sequences for each GPU."""
    head = "| model | GPUs | layout | sequences x micro-batches | GB | ms | ktok/s | model TFLOP/s a GPU | efficiency |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, sequences in SEQUENCES.items():
        for point, best in _fitting(scale(_request(name, 1, sequences), COUNTS, is_weak=True)):
            columns = f"{name.upper()} | {point.gpus} | {_layout(best)} | {_batch(best)}"
            speed = f"{best.tokens_per_second / 1000:,.0f} | {best.model_flops_per_second / 1e12:.0f}"
            cost = f"{best.memory.total / 1e9:.1f} | {1000 * best.time.total:.0f}"
            rows.append(f"| {columns} | {cost} | {speed} | {100 * (point.efficiency or 0):.0f} % |")
    return rows


def strong() -> list[str]:
    """Build the table of strong scaling, with a constant global batch."""
    rows = ["| model | GPUs | layout | sequences x micro-batches | ktok/s | efficiency |", "|---|---|---|---|---|---|"]
    for name in SEQUENCES:
        for point, best in _fitting(scale(_request(name, 1, BATCH), (1, 8, 64, 512), is_weak=False)):
            rates = f"{best.tokens_per_second / 1000:,.0f} | {100 * (point.efficiency or 0):.0f} %"
            rows.append(f"| {name.upper()} | {point.gpus} | {_layout(best)} | {_batch(best)} | {rates} |")
    return rows


def kinds() -> list[str]:
    """Build the table that compares kinds of parallelism, ktok/s of each GPU; empty cells do not fit."""
    rows = [f"| | {' | '.join(map(str, COUNTS))} |", "|" + "---|" * (len(COUNTS) + 1)]
    for name, sequences in SEQUENCES_OF_KINDS.items():
        for kind, (tensor, fsdp) in KINDS.items():
            cells = [_rate(name, gpus, sequences, tensor, fsdp) for gpus in COUNTS]
            rows.append(f"| {name.upper()}, {kind} | {' | '.join(cells)} |")
    return rows


def _rate(name: str, gpus: int, sequences: int, tensor: int, fsdp: int) -> str:
    if gpus % tensor:
        return ""
    layout = ParallelLayout(
        gpus=gpus, tensor=tensor, fsdp=gpus // tensor if fsdp == -1 else fsdp, sequence=tensor > 1,
    )  # fmt: skip
    batch = MicroBatch.uniform(sequences * tensor, LENGTH)
    estimate = Estimate(Workload(NETWORKS[name]), batch, layout, GPUS["h100"]).with_kept_weights()
    return f"{estimate.tokens_per_second / gpus / 1000:.1f}" if estimate.fits else ""


def main() -> None:
    """Print the tables."""
    print("\n".join([*weak(), "", *strong(), "", *kinds()]))


if __name__ == "__main__":
    main()
