"""Read metrics.jsonl, the metrics of a run over its steps, and truncate it to a step when the run is resumed.

A line is one JSON object: {"step": 50, "seconds": 81.2, "split": "train", "loss": 1.2, ...}. `step` is the number of
completed optimizer steps; `seconds` is the run's duration, summed over its resumptions; a metric that is not finite is
null.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..storage import atomic_write

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


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove lines of metrics.jsonl about steps after `step`, which will be repeated; return the others."""
    if not path.exists():
        return []
    kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
