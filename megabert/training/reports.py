"""What an evaluation leaves in a folder: scores, predictions, and for labels a report and a confusion matrix."""

import json
from pathlib import Path
from typing import Any

from ..inference import Evaluation
from ..metrics import classification
from ..storage import atomic_write
from ..tasks.task import Task
from .plots import plot_confusion


def write_evaluation(folder: Path, task: Task[Any, Any], result: Evaluation) -> list[str]:
    """Write scores.json, the predictions in the official scorer's format, and what there is to see of the labels.

    For each kind of label: a report and a confusion matrix, as a table and, where matplotlib is installed, as a
    picture. Returns the files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {"scores.json": json.dumps(result.scores, indent=2, ensure_ascii=False) + "\n"}
    files |= task.write_predictions(folder, result.examples, result.predictions)
    pairs = task.label_pairs(result.examples, result.predictions)
    matrices = {kind: classification.confusion(own) for kind, own in pairs.items()}
    for kind, matrix in matrices.items():
        files[f"report_{kind}.txt"] = classification.label_report(matrix)
        files[f"confusion_{kind}.tsv"] = _table(matrix)
    for name, content in files.items():
        atomic_write(folder / name, content)
    pictures = {f"confusion_{kind}.png": kind for kind, matrix in matrices.items() if matrix.labels}
    return [*files, *(name for name, kind in pictures.items() if plot_confusion(matrices[kind], folder / name, kind))]


def _table(matrix: classification.Confusion) -> str:
    rows = [["gold \\ predicted", *matrix.labels]]
    rows += [[label, *map(str, counts)] for label, counts in zip(matrix.labels, matrix.counts, strict=True)]
    return "".join("\t".join(row) + "\n" for row in rows)
