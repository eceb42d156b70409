"""Folds of cross-validation: which examples a training leaves out, so that its run can judge them.

Examples of one text are in one fold: a copy in the training data would give the label of the other away.
"""

import re
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, InputError


def parse_fold(word: str) -> tuple[int, int]:
    """Return the number of a fold, from 1, and how many there are; raises ConfigError unless it is I/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", word)
    number, total = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= total or total < 2:
        raise ConfigError(f"model.train_ds.held_out_fold={word}: expected I/N with 1 <= I <= N and N >= 2, as 1/5.")
    return number, total


def fold_numbers(examples: Sequence[Any], num_folds: int) -> list[int]:
    """Assign examples to folds, from 1, in turn; raises InputError where there are fewer texts than folds."""
    folds: dict[str, int] = {}
    numbers = [folds.setdefault(_text_of(example), len(folds) % num_folds + 1) for example in examples]
    if len(folds) < num_folds:
        raise InputError(f"{len(folds)} different texts are too few for {num_folds} folds. Give more data.")
    return numbers


def without_fold(examples: Sequence[Any], word: str | None) -> Sequence[Any]:
    """Leave out the examples of the fold I/N; None leaves out nothing."""
    if word is None:
        return examples
    held_out, num_folds = parse_fold(word)
    if not isinstance(examples, list):
        raise ConfigError("model.train_ds.held_out_fold is for data files, not for corpora of token ids.")
    numbers = fold_numbers(examples, num_folds)
    return [example for example, number in zip(examples, numbers, strict=True) if number != held_out]


def _text_of(example: Any) -> str:
    names = (name for name in ("text", "context", "query") if isinstance(getattr(example, name, None), str))
    return str(getattr(example, next(names, "id")))
