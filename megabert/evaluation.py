"""Evaluate a trained run on a data file, and write scores, predictions and confusion matrices to a folder.

`megabert evaluate`, a training's test_ds and `do_training=false` use it.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .analysis.judgments import PREDICTIONS
from .analysis.plots import plot_confusion, plot_judged
from .config.schema import Settings
from .errors import ConfigError, InputWarning
from .formats.json_lines import to_json_lines
from .inference import Evaluation, Predictor
from .metrics.classification import Confusion, confusion, label_report
from .storage import atomic_write
from .tasks import registry
from .tasks.task import Task


def evaluate_examples(
    predictor: Predictor,
    examples: Sequence[Any],
    folder: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, list[str]]:
    """Predict and score examples, and write the evaluation into a folder if one is given; also returns file names.

    Warns of labels that the run does not have, since no prediction of it can be right there.
    """
    if unseen := predictor.task.unseen_labels(examples):
        shown, (first, place) = ", ".join(unseen)[:200], next(iter(unseen.items()))
        text = f"{place}: {first!r} is no label that the run was trained on. They count as errors: {shown}."
        warnings.warn(text, InputWarning, stacklevel=2)
    result = predictor.evaluate(examples, progress=progress)
    return result, [] if folder is None else write_evaluation(folder, predictor.task, result)


# Result files of a training in its run folder, each written after all others of its evaluation.
SCORES, TEST = "validation/scores.json", "test.json"


def evaluate_test_data(task_name: str, settings: Settings, run: Path) -> Evaluation:
    """Evaluate a run's best checkpoint on model.test_ds, with these settings instead of the run's own.

    Writes test.json and the folder test/ in the run folder.
    """
    from .build import load_run  # imported here since it imports torch
    from .model.precision import resolve_precision
    from .parallel.process_group import resolve_device

    data = settings.model.test_ds
    files = registry.find(task_name)(settings).files(data)
    if not files:
        raise ConfigError("model.test_ds.file is not given. Name the data to evaluate: model.test_ds.file=FILE.")
    trainer = settings.trainer
    device = resolve_device(trainer.accelerator, device_ids=trainer.device_ids)
    predictor = load_run(
        run,
        accelerator=trainer.accelerator,
        precision=resolve_precision(trainer.precision, device),  # that of the training
        batch_size=data.batch_size,
        task_name=task_name,
        settings=settings,
    )
    folder = run if run.is_dir() else run.parent
    result, _ = evaluate_examples(predictor, predictor.task.read_data(data), folder / "test")
    atomic_write(folder / TEST, json.dumps({"file": files[0], **result.scores}, indent=2) + "\n")
    return result


def write_evaluation(folder: Path, task: Task[Any, Any], result: Evaluation) -> list[str]:
    """Write scores.json, predictions.jsonl, predictions in the official scorer's format, reports of labels, confusions.

    Where matplotlib is installed there are pictures of the confusion matrices, of the calibration and of the score by
    length. Returns the files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = task.label_pairs(result.examples, result.predictions)
    official = task.write_predictions(result.examples, result.predictions)
    rows = list(task.to_rows(result.examples, result.predictions))
    files = {PREDICTIONS: to_json_lines(rows), **official}
    matrices = {kind: confusion(labels) for kind, labels in pairs.items()}
    for kind, matrix in matrices.items():
        files[f"report_{kind}.txt"] = label_report(matrix)
        files[f"confusion_{kind}.tsv"] = _table(matrix)
    for name, content in files.items():
        atomic_write(folder / name, content)
    drawn = _plot(folder, matrices, rows)
    atomic_write(folder / "scores.json", json.dumps(result.scores, indent=2, ensure_ascii=False) + "\n")
    return ["scores.json", *files, *drawn]


def _plot(folder: Path, matrices: Mapping[str, Confusion], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    pictures = {f"confusion_{kind}.png": kind for kind, matrix in matrices.items() if matrix.labels}
    drawn = [name for name, kind in pictures.items() if plot_confusion(matrices[kind], folder / name, kind)]
    return drawn + plot_judged([row for row in rows if row.get("gold")], folder)


def _table(matrix: Confusion) -> str:
    rows = [["gold \\ predicted", *matrix.labels]]
    rows += [[label, *map(str, counts)] for label, counts in zip(matrix.labels, matrix.counts, strict=True)]
    return "".join("\t".join(row) + "\n" for row in rows)
