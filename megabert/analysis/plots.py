"""Plots with matplotlib, as PNG: the curves of a training (metrics.jsonl), and the pictures of an evaluation.

These are confusion matrices, the calibration of probabilities, and the score by length of the text. Each function
returns False, and writes nothing, where matplotlib is not installed.
"""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from ..metrics.calibration import expected_calibration_error, reliability_bins
from ..metrics.classification import Confusion
from ..storage import atomic_write
from .judgments import by_length, confidences

# Okabe and Ito's palette, safe for colour-blind readers; scores have different markers, too.
TRAINING, VALIDATION, GREY = "#0072B2", "#D55E00", "#555555"
SCORES = ("#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#999999")
MARKERS = "osD^vPX*"

# Curves with at most this many points have markers, and no smoothing.
FEW = 60

Curve = tuple[NDArray[numpy.float64], NDArray[numpy.float64]]


def plot_curves(lines: list[dict[str, Any]], run: str, destination: Path) -> bool:
    """Plot the curves of a run from the lines of its metrics.jsonl, and write the PNG atomically."""

    def draw(figure: Any) -> None:
        scores = _score_names(lines)
        figure.suptitle(_title(run, lines), fontsize="x-large")
        grid = figure.add_gridspec(2, 2 if scores else 1, height_ratios=(3, 1))
        loss_axes = figure.add_subplot(grid[0, 0])
        _draw_loss(loss_axes, lines)
        _draw_rate(figure.add_subplot(grid[1, 0], sharex=loss_axes), lines)
        if scores:
            _draw_scores(figure.add_subplot(grid[:, 1], sharex=loss_axes), lines, scores)

    return _picture(destination, (12, 6), draw)


# More labels do not fit into a plot; the most frequent ones are shown.
MAX_LABELS = 40


def plot_confusion(matrix: Confusion, destination: Path, kind: str) -> bool:
    """Plot a confusion matrix, colours normalized by row (gold label), with the counts in its cells."""
    labels = matrix.labels[:MAX_LABELS]
    counts = numpy.array(matrix.counts)[: len(labels), : len(labels)]
    totals = numpy.maximum(numpy.array([sum(row) for row in matrix.counts])[: len(labels)], 1)
    shares = counts / totals[:, None]
    size = 3 + 0.55 * max(len(labels), 3)

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label=f"share of the gold {kind}", shrink=0.8)
        axes.set_xticks(
            range(len(labels)),
            labels,
            rotation=45 if len(labels) > 3 else 0,
            ha="right" if len(labels) > 3 else "center",
        )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel(f"predicted {kind}")
        axes.set_ylabel(f"gold {kind}")
        left_out = len(matrix.labels) - len(labels)
        axes.set_title(
            f"{sum(map(sum, matrix.counts)):,} in all" + (f", {left_out} rare labels not shown" if left_out else "")
        )
        for row, column in itertools.product(range(len(labels)), repeat=2):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)

    return _picture(destination, (size + 1, size), draw)


CALIBRATION, LENGTHS = "calibration.png", "lengths.png"


def plot_judged(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Plot calibration and score by length of predictions with gold labels, as far as there are any.

    Returns file names.
    """
    pictures = []
    predictions, by_score = [pair for row in rows for pair in confidences(row)], by_length(rows)
    if predictions and plot_calibration(predictions, folder / CALIBRATION):
        pictures.append(CALIBRATION)
    for score, groups in itertools.islice(by_score.items(), 1):
        if plot_lengths(groups, score, folder / LENGTHS):
            pictures.append(LENGTHS)
    return pictures


def plot_calibration(predictions: Sequence[tuple[float, bool]], destination: Path) -> bool:
    """Plot the share of correct predictions against their probability, above the number of predictions."""

    def draw(figure: Any) -> None:
        bins = reliability_bins(predictions)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
        centers = [item.confidence for item in bins]
        upper.plot(centers, [item.accuracy for item in bins], color=TRAINING, marker="o", label="predictions, in bins")
        error = expected_calibration_error(bins)
        title = f"Calibration: {len(predictions):,} predictions, expected error {100 * error:.1f} %"
        _format_axes(upper, title, "share that is correct")
        upper.set_xticks([i / 5 for i in range(6)])
        upper.xaxis.set_major_formatter("{x:.1f}")
        upper.legend(loc="upper left", frameon=False)
        upper.set(xlim=(0, 1), ylim=(0, 1.02))
        lower.hist([probability for probability, _ in predictions], bins=[i / 20 for i in range(21)], color=TRAINING)
        lower.set(xlabel="predicted probability", ylabel="number")
        lower.spines[["top", "right"]].set_visible(False)

    return _picture(destination, (6, 6.5), draw)


def plot_lengths(groups: Mapping[str, tuple[float, int]], score: str, destination: Path) -> bool:
    """Plot a score by the length of the text: group of numbers of words -> score in per cent, number of examples."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        bars = axes.bar(list(groups), [value for value, _ in groups.values()], color=TRAINING)
        axes.bar_label(
            bars, [f"{value:.1f}\n{count:,} examples" for value, count in groups.values()], fontsize=8, padding=2
        )
        axes.set(ylim=(0, 118), xlabel="words of the text", ylabel=f"{score.replace('_', ' ')} (%)")
        axes.set_yticks(range(0, 101, 20))
        axes.set_title("Score by length", loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)

    return _picture(destination, (7, 4), draw)


def _picture(destination: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> bool:
    """Draw a figure of so many inches, and write it as PNG; returns False if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    # matplotlib's object interface instead of pyplot: it needs no display and has no global state.
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    draw(figure)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    atomic_write(destination, image.getvalue())
    return True


def _score_names(lines: list[dict[str, Any]]) -> list[str]:
    """List the validation scores, except those per label, integers (counts) and thresholds (of another scale)."""
    names = [
        name
        for line in lines
        if line["split"] == "validation"
        for name, value in line.items()
        if isinstance(value, float) and not name.endswith("threshold") and "/" not in name
    ]
    return [name for name in dict.fromkeys(names) if name not in ("seconds", "epoch", "val_loss")]


def _title(run: str, lines: list[dict[str, Any]]) -> str:
    if not lines:
        return f"{run}: no metrics yet"
    last = lines[-1]
    words = [f"{last['step']:,} step{'s' * (last['step'] != 1)}"]
    if last.get("epoch") is not None:
        words.append(f"{last['epoch']:.3g} epoch{'s' * (last['epoch'] != 1)}")
    return f"{run}: {', '.join(words)}, {_duration(last['seconds'])}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _curve(lines: list[dict[str, Any]], split: str, name: str) -> Curve:
    """Return the steps and values of one metric; null becomes NaN."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
    values = [math.nan if value is None else value for _, value in points]
    return numpy.array([step for step, _ in points], dtype=float), numpy.array(values, dtype=float)


def _smooth(values: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Compute the moving average over a fortieth of the curve on either side, without values that are not finite."""
    half_width = len(values) // 40
    positions = numpy.arange(len(values))
    starts, ends = numpy.maximum(positions - half_width, 0), numpy.minimum(positions + half_width + 1, len(values))
    is_finite = numpy.isfinite(values)
    sums = numpy.concatenate([[0.0], numpy.cumsum(numpy.where(is_finite, values, 0.0))])
    counts = numpy.concatenate([[0], numpy.cumsum(is_finite)])
    with numpy.errstate(invalid="ignore"):  # 0 / 0 in a window without finite values is NaN, a gap in the curve
        means: NDArray[numpy.float64] = (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
    return means


def _draw_loss(axes: Any, lines: list[dict[str, Any]]) -> None:
    steps, losses = _curve(lines, "train", "loss")
    if len(steps) > FEW:
        axes.plot(steps, losses, color=TRAINING, alpha=0.25, linewidth=0.8, label="training, each step")
        axes.plot(steps, _smooth(losses), color=TRAINING, linewidth=2, label="training, smoothed")
    elif len(steps):
        axes.plot(steps, losses, color=TRAINING, marker=".", label="training")
    steps, losses = _curve(lines, "validation", "val_loss")
    if numpy.isfinite(losses).any():
        best = int(numpy.nanargmin(losses))
        label = f"validation: lowest {losses[best]:.4g} (at step {steps[best]:,.0f})"
        axes.plot(steps, losses, color=VALIDATION, marker="o" if len(steps) <= FEW else None, label=label)
        _draw_ring(axes, steps[best], losses[best], VALIDATION)
    _draw_not_finite(axes, lines)
    _format_axes(axes, "Loss", "loss")
    axes.tick_params(labelbottom=False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw_scores(axes: Any, lines: list[dict[str, Any]], names: list[str]) -> None:
    styles = itertools.cycle(zip(SCORES, MARKERS, strict=True))
    for name, (color, marker) in zip(names, styles, strict=False):
        steps, scores = _curve(lines, "validation", name)
        label = name.replace("_", " ")
        if numpy.isfinite(scores).any():
            best = int(numpy.nanargmax(scores))
            label += f": {scores[best]:.4g} ({steps[best]:,.0f})"
            _draw_ring(axes, steps[best], scores[best], color)
        axes.plot(steps, scores, color=color, marker=marker if len(steps) <= FEW else None, label=label)
    _format_axes(axes, "Validation scores", "score")
    axes.set_xlabel("optimizer steps")
    axes.legend(
        title="highest (at step)",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),  # below the axes: inside, the legend would cover the ends of the curves
        ncols=2,
        frameon=False,
    )


def _draw_rate(axes: Any, lines: list[dict[str, Any]]) -> None:
    steps, rates = _curve(lines, "train", "lr")
    axes.plot(steps, rates, color=GREY, marker="." if len(steps) <= FEW else None)
    _format_axes(axes, "Learning rate", "rate")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer steps")


def _draw_ring(axes: Any, step: float, value: float, color: str) -> None:
    """Draw a ring around the best point of a curve."""
    axes.plot(step, value, "o", markersize=14, fillstyle="none", color=color)


def _draw_not_finite(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Mark the steps whose loss is not finite at the lower edge of the axes."""
    curves = [_curve(lines, "train", "loss"), _curve(lines, "validation", "val_loss")]
    steps = numpy.concatenate([steps[~numpy.isfinite(values)] for steps, values in curves])
    if len(steps):
        edge = axes.get_xaxis_transform()
        axes.plot(steps, numpy.full(len(steps), 0.03), "kx", transform=edge, label="not finite")


def _format_axes(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
