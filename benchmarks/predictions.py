"""The tables of docs/scaling.md: what the cost model says of three sizes of Megatron-BERT on H100s.

    python -m benchmarks.predictions

Prints them in Markdown; a test holds that the page has these very lines. Nothing is run, and no GPU is needed.
"""

from collections.abc import Iterator, Sequence

from megabert.planner.cost_model import Estimate
from megabert.planner.hardware import GPUS, NETWORKS
from megabert.planner.layout import ParallelLayout
from megabert.planner.search import PlanRequest, ScalingPoint, scale
from megabert.planner.workload import MicroBatch, Workload

COUNTS = (1, 2, 4, 8, 64, 512)
# Texts of a GPU in weak scaling.
TEXTS = {"345m": 64, "1.3b": 64, "3.9b": 32}
LENGTH, BATCH = 512, 1024
# Those of benchmarks/scaling.py, where a GPU without tensor parallelism has them; each kind has as many a GPU.
TEXTS_OF_KINDS = {"345m": 64, "1.3b": 32, "3.9b": 16}
KINDS = {"data parallel": (1, 1), "fsdp": (1, -1), "tensor 2": (2, -1), "tensor 4": (4, -1), "tensor 8": (8, -1)}


def _request(name: str, gpus: int, batch: int) -> PlanRequest:
    return PlanRequest(Workload(NETWORKS[name]), GPUS["h100"], gpus, 8, batch, LENGTH)


def _layout(estimate: Estimate) -> str:
    layout = estimate.layout
    flag = ", c" if layout.activation_checkpointing else ""
    return layout.axes + flag


def _texts(estimate: Estimate) -> str:
    return f"{estimate.micro_batch.num_sequences:.0f} x {estimate.layout.accumulate}"


def _fitting(points: Sequence[ScalingPoint]) -> Iterator[tuple[ScalingPoint, Estimate]]:
    return ((point, point.estimate) for point in points if point.estimate is not None)


def weak() -> list[str]:
    """Tell how networks scale with as many texts on each GPU: rows of a table."""
    head = "| model | GPUs | layout | sequences x micro-batches | GB | ms | ktok/s | model TFLOP/s a GPU | efficiency |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, texts in TEXTS.items():
        for point, best in _fitting(scale(_request(name, 1, texts), COUNTS, is_weak=True)):
            about = f"{name.upper()} | {point.gpus} | {_layout(best)} | {_texts(best)}"
            speed = f"{best.tokens_per_second / 1000:,.0f} | {best.model_flops_per_second / 1e12:.0f}"
            cost = f"{best.memory.total / 1e9:.1f} | {1000 * best.time.total:.0f}"
            rows.append(f"| {about} | {cost} | {speed} | {100 * (point.efficiency or 0):.0f} % |")
    return rows


def strong() -> list[str]:
    """Tell how networks scale with as many texts on all GPUs together: rows of a table."""
    rows = ["| model | GPUs | layout | sequences x micro-batches | ktok/s | efficiency |", "|---|---|---|---|---|---|"]
    for name in TEXTS:
        for point, best in _fitting(scale(_request(name, 1, BATCH), (1, 8, 64, 512), is_weak=False)):
            figures = f"{best.tokens_per_second / 1000:,.0f} | {100 * (point.efficiency or 0):.0f} %"
            rows.append(f"| {name.upper()} | {point.gpus} | {_layout(best)} | {_texts(best)} | {figures} |")
    return rows


def kinds() -> list[str]:
    """Compare kinds of parallelism, thousand tokens a second and GPU: rows of a table. Empty: it does not fit."""
    rows = [f"| | {' | '.join(map(str, COUNTS))} |", "|" + "---|" * (len(COUNTS) + 1)]
    for name, texts in TEXTS_OF_KINDS.items():
        for kind, (tensor, fsdp) in KINDS.items():
            cells = [_rate(name, gpus, texts, tensor, fsdp) for gpus in COUNTS]
            rows.append(f"| {name.upper()}, {kind} | {' | '.join(cells)} |")
    return rows


def _rate(name: str, gpus: int, texts: int, tensor: int, fsdp: int) -> str:
    if gpus % tensor:
        return ""
    layout = ParallelLayout(
        gpus=gpus, tensor=tensor, fsdp=gpus // tensor if fsdp == -1 else fsdp, sequence=tensor > 1,
    )  # fmt: skip
    estimate = Estimate(Workload(NETWORKS[name]), MicroBatch.uniform(texts * tensor, LENGTH), layout, GPUS["h100"])
    return f"{estimate.tokens_per_second / gpus / 1000:.1f}" if estimate.fits else ""


def main() -> None:
    """Print the tables."""
    print("\n".join([*weak(), "", *strong(), "", *kinds()]))


if __name__ == "__main__":
    main()
