"""Tables of `megabert plan` on the terminal: the layouts, the parts of the best one, and how it scales."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..planner.cost_model import Estimate
    from ..planner.search import PlanRequest, ScalingPoint

CAVEAT = (
    "Verified on one to four GPUs (H100, H200), within 8 %; more GPUs are extrapolated from measured rates of matmuls, "
    "copies and interconnects (docs/scaling.md)."
)
NUM_ROWS = 12


def print_tables(
    headline: str,
    request: "PlanRequest",
    estimates: "Sequence[Estimate]",
    best: "Estimate | None",
    series: "dict[str, list[ScalingPoint]]",
) -> None:
    """Print the headline and the tables, and what would make a training fit where none does."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 132
    console.print(headline)
    console.print(_layout_table(estimates, best))
    if len(estimates) > NUM_ROWS:
        console.print(f"{len(estimates) - NUM_ROWS} more layouts: --json lists them all.")
    if best is None:
        least = estimates[0].memory.total / 1e9
        console.print(
            f"Nothing fits: the smallest layout needs {least:.1f} GB of {request.gpu.memory / 1e9:.0f} GB on each GPU. "
            "Give more GPUs, or fix fewer settings."
        )
    else:
        from ..planner.search import layout_settings

        console.print(_breakdown_tables(best))
        console.print("Best:", style="bold", end=" ")
        console.print(" ".join(f"{key}={value}" for key, value in layout_settings(best).items()), soft_wrap=True)
    console.print(_scaling_table(request, series))
    if any((point.efficiency or 0) > 1.02 for points in series.values() for point in points):
        console.print(
            "More than 100 %: fewer GPUs are short of memory, so they recompute activations or use small micro-batches."
        )
    console.print(CAVEAT)


def _layout_table(estimates: "Sequence[Estimate]", best: "Estimate | None") -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table("", "data x fsdp x tensor", "also", title="Layouts", title_justify="left", box=SIMPLE)
    for column in ("micro-batches", "GB", "ms a step", "tokens/s", "TFLOP/s a GPU"):
        table.add_column(column, justify="right")
    for estimate in estimates[:NUM_ROWS]:
        layout = estimate.layout
        options = {
            "sequence": layout.sequence,
            "checkpointing": layout.activation_checkpointing,
            "whole weights": layout.keeps_weights,
        }
        table.add_row(
            "best" if estimate is best else "fits" if estimate.fits else "too big",
            layout.axes,
            ", ".join(name for name, is_on in options.items() if is_on),
            f"{layout.accumulate} of {estimate.micro_batch.num_sequences:.0f} sequences",
            f"{estimate.memory.total / 1e9:.1f}",
            f"{1000 * estimate.time.total:,.1f}",
            f"{estimate.tokens_per_second:,.0f}",
            f"{estimate.model_flops_per_second / 1e12:.0f}",
            style="bold" if estimate is best else "" if estimate.fits else "dim",
        )
    return table


def _breakdown_tables(best: "Estimate") -> Any:
    from rich.box import SIMPLE
    from rich.columns import Columns
    from rich.table import Table

    tables = []
    for title, parts, scale, form in (
        ("Best: GB on each GPU", best.memory.to_dict(), 1e-9, "{:.2f}"),
        ("Best: ms of a step", best.time.to_dict(), 1e3, "{:,.1f}"),
    ):
        table = Table("part", title=title, title_justify="left", box=SIMPLE)
        for column in ("", "share"):
            table.add_column(column, justify="right")
        for name, value in parts.items():
            cells = (name.replace("_", " "), form.format(value * scale), f"{value / parts['total']:.0%}")
            table.add_row(*cells, style="bold" if name == "total" else "")
        tables.append(table)
    return Columns(tables, padding=(0, 4))


def _scaling_table(request: "PlanRequest", series: "dict[str, list[ScalingPoint]]") -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    per_gpu = max(1, request.batch // request.gpus)
    table = Table(
        "GPUs", title="Scaling, each with its best layout (c: checkpointing)", title_justify="left", box=SIMPLE
    )
    for title in (f"{per_gpu} sequences a GPU", f"{request.batch} sequences a step"):
        table.add_column(f"{title}: tokens/s", justify="right")
        table.add_column("efficiency", justify="right")
        table.add_column("layout")
    counts = sorted({point.gpus for points in series.values() for point in points})
    by_count = [{point.gpus: point for point in points} for points in series.values()]
    for count in counts:
        cells = [cell for points in by_count for cell in _scaling_cells(points.get(count))]
        table.add_row(str(count), *cells)
    return table


def _scaling_cells(point: "ScalingPoint | None") -> tuple[str, str, str]:
    if point is None:
        return "", "", ""
    if point.estimate is None:
        return "-", "-", "none"
    layout = point.estimate.layout
    efficiency = "" if point.efficiency is None else f"{point.efficiency:.0%}"
    axes = layout.axes + (", c" if layout.activation_checkpointing else "")
    return f"{point.estimate.tokens_per_second:,.0f}", efficiency, axes
