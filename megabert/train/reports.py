"""What an evaluation leaves in a folder: scores, predictions, and for labels a report and a confusion matrix."""

import json
from pathlib import Path
from typing import Any

from .. import metrics
from ..infer import Evaluation
from ..storage import write_whole
from ..tasks.task import Task
from .plot import plot_confusion


def write_evaluation(folder: Path, task: Task[Any, Any], result: Evaluation) -> list[str]:
    """Write scores.json, the predictions in the official scorer's format, and what `write_labels` writes.

    Returns the files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"scores.json": json.dumps(result.scores, indent=2, ensure_ascii=False) + "\n"}
    files |= task.write_predictions(folder, result.examples, result.predictions)
    pairs = task.label_pairs(result.examples, result.predictions)
    for kind, own in pairs.items():
        files[f"report_{kind}.txt"] = metrics.label_report(own)
        files[f"confusion_{kind}.tsv"] = _table(metrics.confusion(own))
    for name, content in files.items():
        write_whole(folder / name, content)
    pictures = [f"confusion_{kind}.png" for kind, own in pairs.items() if own and _draw(folder, kind, own)]
    return [*files, *pictures]


def _draw(folder: Path, kind: str, pairs: Any) -> bool:
    return plot_confusion(metrics.confusion(pairs), folder / f"confusion_{kind}.png", kind)


def _table(matrix: metrics.Confusion) -> str:
    rows = [["gold \\ predicted", *matrix.labels]]
    rows += [[label, *map(str, counts)] for label, counts in zip(matrix.labels, matrix.counts, strict=True)]
    return "".join("\t".join(row) + "\n" for row in rows)
