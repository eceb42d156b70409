"""Read metrics.jsonl, the metrics of a run over its steps.

A line is one JSON object: {"step": 50, "seconds": 81.2, "split": "train", "loss": 1.2, ...}. `step` is the number of
completed optimizer steps; `seconds` is the run's duration, summed over its resumptions; a metric that is not finite is
null.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl; a last line that a crash truncated is left out.

    Raises CheckpointError if any other line is not one of metrics.
    """
    *whole, rest = path.read_bytes().split(b"\n")
    lines = [_parse(line) for line in whole]
    if None in lines:
        raise CheckpointError(f"{path}:{lines.index(None) + 1} is not a line of metrics. Remove that line.")
    return [line for line in [*lines, _parse(rest)] if line is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        metrics = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) and {"step", "seconds", "split"} <= metrics.keys() else None


def warn_of_zeros(lines: Sequence[Mapping[str, Any]], monitor: str, mode: str) -> str | None:
    """Return a warning if the monitored score was 0 at every validation; `lines` are those of metrics.jsonl."""
    values = [line.get(monitor) for line in lines if line["split"] == "validation"]
    if mode == "min" or not values or any(values):
        return None
    return (
        f"WARNING: {monitor} was 0 at every validation ({len(values)}), so the best checkpoint is that of the lowest "
        "validation loss. Check labels and data, train longer, or set exp_manager.checkpoint_callback_params.monitor."
    )
