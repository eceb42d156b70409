"""Compare two runs: settings that differ, scores, and whether their predictions differ by more than chance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config.listing import show
from ..config.parser import flatten
from ..errors import InputError
from ..metrics.significance import Difference, McNemar, mcnemar, paired_bootstrap
from .judgments import PREDICTIONS, columns, read_judged
from .run_records import RUN_JSON, RunRecord, read_run

# Settings that name the run, not what it does
_OWN = ("exp_manager.explicit_log_dir", "exp_manager.exp_dir", "exp_manager.name", "exp_manager.version")


@dataclass(frozen=True)
class ScoreTest:
    """A score of two runs on the same examples: McNemar's test of right examples, bootstrap of the score."""

    score: str
    first: float
    second: float
    num_examples: int
    examples: McNemar
    bootstrap: Difference


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    settings: dict[str, tuple[Any, Any]]
    scores: dict[str, tuple[float | None, float | None]]
    tests: list[ScoreTest]
    note: str
    """Why there are no tests; else empty."""

    def to_document(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compare(first: Path, second: Path, split: str) -> Comparison:
    """Compare two run folders, or two folders that `megabert evaluate ... output_dir=FOLDER` wrote."""
    records = [read_run(path) for path in (first, second) if (path / RUN_JSON).is_file()]
    settings, scores = {}, {}
    if len(records) == 2:
        settings = _differing_settings(records[0], records[1])
        sides = [record.scores.get(split, {}) for record in records]
        names = [name for name in {**sides[0], **sides[1]} if "/" not in name]
        scores = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
    files = [predictions_file(path, split) for path in (first, second)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        return Comparison(settings, scores, [], f"{missing[0]} does not exist, so there is no test of the difference.")
    rows = [read_judged(file) for file in files]
    if note := _different_data(*rows):
        return Comparison(settings, scores, [], f"{note}, so there is no test of the difference.")
    return Comparison(settings, scores, score_tests(*rows), "")


def predictions_file(folder: Path, split: str) -> Path:
    """Name the predictions of a run folder's validation or test, or those of an evaluation's folder."""
    own = folder / PREDICTIONS
    return own if own.is_file() else folder / split / PREDICTIONS


def score_tests(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> list[ScoreTest]:
    """Test each score of two lists of rows about the same examples."""
    sides = columns(first), columns(second)
    tests = []
    for name in (name for name in sides[0] if name in sides[1]):
        a, b = sides[0][name], sides[1][name]
        pairs = [[(item.numerator, item.denominator) for item in side] for side in (a, b)]
        totals = [100 * sum(n for n, _ in side) / (sum(d for _, d in side) or 1) for side in pairs]
        examples = mcnemar([item.is_correct for item in a], [item.is_correct for item in b])
        tests.append(ScoreTest(name, totals[0], totals[1], len(a), examples, paired_bootstrap(*pairs)))
    return tests


def _differing_settings(first: RunRecord, second: RunRecord) -> dict[str, tuple[Any, Any]]:
    ours, theirs = dict(flatten(first.settings)), dict(flatten(second.settings))
    pairs: dict[str, tuple[Any, Any]] = {"task": (first.task, second.task)}
    pairs |= {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs} if key not in _OWN}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _different_data(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> str:
    """Say how the gold labels of two files differ; empty if they are the same."""
    if len(first) != len(second):
        return f"the runs were scored on different data ({len(first)} and {len(second)} examples)"
    for number, (a, b) in enumerate(zip(first, second, strict=True), start=1):
        if a.get("id") != b.get("id") or _plain(a["gold"]) != _plain(b["gold"]):
            return f"the runs were scored on different data (example {number}: {a.get('id')!r} and {b.get('id')!r})"
    return ""


def _plain(gold: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in gold.items() if name != "tags"}


def _table_of_tests(tests: Sequence[ScoreTest]) -> list[str]:
    rows = [
        [t.score, _number(t.first), _number(t.second), f"{_signed(t.bootstrap.difference)} "
         f"[{_signed(t.bootstrap.low)}, {_signed(t.bootstrap.high)}]", _probability(t.bootstrap.p_value),
         str(t.examples.only_first), str(t.examples.only_second), _probability(t.examples.p_value)]
        for t in tests
    ]  # fmt: skip
    head = ["score", "A", "B", "B - A [95%]", "p (bootstrap)", "only A right", "only B right", "p (McNemar)"]
    return [f"Tests on the same {tests[0].num_examples:,} examples", *table(head, rows)]


def to_text(comparison: Comparison, names: tuple[str, str]) -> str:
    """Format a comparison as tables."""
    lines = [f"A  {names[0]}", f"B  {names[1]}"]
    if comparison.settings:
        rows = [[key, show(a), show(b)] for key, (a, b) in comparison.settings.items()]
        lines += ["", *table(["setting", "A", "B"], rows)]
    if comparison.scores:
        rows = [
            [name, _number(a), _number(b), _signed(b - a) if a is not None and b is not None else ""]
            for name, (a, b) in comparison.scores.items()
        ]
        lines += ["", *table(["score", "A", "B", "B - A"], rows)]
    if comparison.tests:
        lines += ["", *_table_of_tests(comparison.tests)]
    return "\n".join([*lines, *(["", comparison.note] if comparison.note else [])])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns; those after the first are numbers if their values are."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def require_folder(path: Path) -> Path:
    """Return a folder; raises InputError if it does not exist."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder. Give a run folder, or a folder of runs.")
    return path
