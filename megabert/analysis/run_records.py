"""What a run folder records of its training: task, encoder, steps, scores; and the runs below a folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .metrics_file import METRICS, read_metrics

RUN_JSON = "run.json"
# Folder of a data set's results in a run folder -> its scores, written last
SCORE_FILES = {"validation": "validation/scores.json", "test": "test.json"}


@dataclass(frozen=True)
class RunRecord:
    """A training: where, what, how far and how good; `best` is its best validation by the metric `monitor`."""

    folder: Path
    task: str
    encoder: str
    started: str
    steps: int
    total_steps: int
    seconds: float
    is_complete: bool
    monitor: str
    best: float | None
    best_step: int | None
    scores: dict[str, dict[str, float]]
    settings: dict[str, Any]

    def to_document(self) -> dict[str, Any]:
        """Return plain values, without the settings."""
        values = {name: value for name, value in vars(self).items() if name != "settings"}
        return values | {"folder": str(self.folder)}


def find_runs(folder: Path) -> Iterator[Path]:
    """List the run folders in a folder and below it, by name; a run's own folders hold no runs."""
    if (folder / RUN_JSON).is_file():
        yield folder
    elif folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and inner.name != "checkpoints":
                yield from find_runs(inner)


def read_run(folder: Path) -> RunRecord:
    """Read a run's record; raises CheckpointError where run.json cannot be read."""
    facts = _read_json(folder / RUN_JSON)
    settings = facts.get("settings")
    if not isinstance(settings, dict) or not isinstance(facts.get("task"), str):
        raise CheckpointError(f"{folder / RUN_JSON} has no task or settings. Give the run folder of a training.")
    lines = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    monitor, mode = str(facts.get("monitor", "")), facts.get("mode", "max")
    points = [
        (line[monitor], line["step"])
        for line in lines
        if line["split"] == "validation" and isinstance(line.get(monitor), float | int)
    ]
    best = (max if mode == "max" else min)(points, key=lambda point: point[0], default=(None, None))
    scores = {name: _read_json(folder / file) for name, file in SCORE_FILES.items() if (folder / file).is_file()}
    steps, total = max((line["step"] for line in lines), default=0), int(facts.get("total_steps") or 0)
    return RunRecord(
        folder=folder,
        task=facts["task"],
        encoder=_encoder(settings),
        started=str(facts.get("started", ""))[:16],
        steps=steps,
        total_steps=total,
        seconds=max((line["seconds"] for line in lines), default=0.0),
        is_complete=bool(scores) or (total > 0 and steps >= total),
        monitor=monitor,
        best=best[0],
        best_step=best[1],
        scores={name: {key: v for key, v in found.items() if _is_number(v)} for name, found in scores.items()},
        settings=settings,
    )


def _encoder(settings: dict[str, Any]) -> str:
    """Name the checkpoint that a training began from."""
    model = settings.get("model") or {}
    start = model.get("language_model") or {}
    name = start.get("lm_checkpoint") or settings.get("pretrained_model") or start.get("pretrained_model_name")
    return "random weights" if not name else Path(name).name if Path(name).is_absolute() else str(name)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Give the run folder of a training.") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} is not a JSON object. Give the run folder of a training.")
    return document
