"""Rank likely label errors: examples whose labels contradict runs that did not train on them (out-of-fold loss).

Each run of a cross-validation left one fold out (model.train_ds.held_out_fold=I/N) and predicts it. The loss of a label
is -ln of its probability; that of an entity the smallest of the words whose tags the prediction contradicts. Source:
the self-confidence of a label, Northcutt et al. 2021, arXiv:1911.00068; of tokens, Wang and Mueller 2022,
arXiv:2210.03920.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.run_records import read_run
from ..build import load_run
from ..config.parser import compose
from ..errors import ConfigError
from ..inference import Predictor
from ..tasks import registry
from ..tasks.folds import fold_numbers, parse_fold

_SMALLEST = 1e-9


def out_of_fold_rows(
    runs: Sequence[Path], *, accelerator: str = "auto", precision: str = "auto", log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Predict each example of the runs' training data by the run that left it out; returns rows of predictions.jsonl.

    Rows of token classification have the words' `losses`, too. Raises ConfigError unless the runs are those of one
    cross-validation.
    """
    settings = {_fold_of(run): _settings_of(run) for run in runs}
    (num_folds, task_name), *others = {(fold[1], task) for fold, (task, _) in settings.items()}
    if others or len(settings) < num_folds or len({_data_of(item) for _, item in settings.values()}) > 1:
        raise ConfigError(
            f"{len(settings)} runs are not the {num_folds} of one cross-validation. Train one for each "
            "model.train_ds.held_out_fold=I/N on the same data."
        )
    _, first = settings[min(settings)]
    task = registry.find(task_name)(first)
    task.check_files()
    examples = task.read_data(first.model.train_ds)
    folds = np.array(fold_numbers(examples, num_folds))
    rows: dict[int, dict[str, Any]] = {}
    for run in runs:
        places = np.flatnonzero(folds == _fold_of(run)[0]).tolist()
        predictor = load_run(run, accelerator=accelerator, precision=precision)
        log(f"{run} predicts {len(places):,} of {len(examples):,} examples.")
        rows |= zip(places, _rows(predictor, [examples[place] for place in places]), strict=True)
    return [rows[place] for place in range(len(examples))]


def _settings_of(run: Path) -> tuple[str, Any]:
    record = read_run(run)
    task_type = registry.find(record.task)
    return record.task, compose(task_type.settings_type, [], owner=record.task, base=record.settings)[0]


def _fold_of(run: Path) -> tuple[int, int]:
    word = read_run(run).settings["model"]["train_ds"].get("held_out_fold")
    if word is None:
        raise ConfigError(f"{run} left out no fold. Train it with model.train_ds.held_out_fold=I/N.")
    return parse_fold(word)


def _data_of(settings: Any) -> str:
    return repr(replace(settings.model.train_ds, held_out_fold=None))


def _rows(predictor: Predictor, examples: Sequence[Any]) -> list[dict[str, Any]]:
    task: Any = predictor.task
    if not hasattr(task, "word_probabilities"):
        return list(task.to_rows(examples, predictor.predict_examples(examples)))
    features = task.features(examples, predictor.tokenizer, with_targets=False)
    logits = predictor.run(features).logits
    indices: Mapping[str, int] = {label: index for index, label in enumerate(task.labels)}
    rows = []
    for example, row, probabilities_WC in zip(
        examples,
        task.to_rows(examples, task.decode(examples, features, logits)),
        task.word_probabilities(examples, features, logits),
        strict=True,
    ):
        rows.append(row | {"losses": _losses(example.tags, probabilities_WC, indices)})
    return rows


def _losses(tags: Sequence[str], probabilities_WC: Iterable[Any], indices: Mapping[str, int]) -> list[float]:
    """Compute the loss of each word's label."""
    # A label that the other folds lack has the probability 0: it may well be misspelt.
    found = [
        item_C[indices[tag]] if tag in indices else 0.0 for tag, item_C in zip(tags, probabilities_WC, strict=True)
    ]
    losses = -np.log(np.maximum(np.nan_to_num(found, nan=1.0), _SMALLEST))  # NaN: a word without tokens
    return [round(float(loss), 4) for loss in losses]
