"""The commands on finished runs: runs (a table; a comparison of two) and errors (an analysis of wrong predictions)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, MegabertError
from ..storage import atomic_write
from .console import log, new_parser, show, to_json

if TYPE_CHECKING:
    from ..analysis.run_records import RunRecord

SPLITS = ("validation", "test")


def runs(words: Sequence[str]) -> None:
    """List the runs in a folder with their scores, or compare two: megabert runs [FOLDER], megabert runs A B."""
    parser = new_parser(
        "runs",
        runs,
        "A and B are run folders, or folders of megabert evaluate ... output_dir=FOLDER. The tests are McNemar's of "
        "the examples that only one of the two has right, and the bootstrap of the score over the same examples.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folder of runs (default: runs), or A B"
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="data of a comparison (default: validation)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    if len(arguments.folders) > 2:
        raise ConfigError(
            f"{len(arguments.folders)} folders are given. Give one folder of runs, or two runs to compare."
        )
    if len(arguments.folders) == 2:
        first, second = arguments.folders
        _compare(first, second, arguments.split, as_json=arguments.json)
        return
    folder = arguments.folders[0] if arguments.folders else Path("runs")
    from ..analysis.run_comparison import require_folder
    from ..analysis.run_records import find_runs, read_run

    records = []
    for path in find_runs(require_folder(folder)):
        try:
            records.append(read_run(path))
        except CheckpointError as error:
            log(f"megabert: {error}")
    show(to_json([record.to_document() for record in records]) if arguments.json else _table(records, folder))


def _table(records: "Sequence[RunRecord]", folder: Path) -> str:
    from ..analysis.run_comparison import table

    if not records:
        return f"There are no runs in {folder}."
    rows = []
    for record in records:
        steps = f"{record.steps:,}" + ("" if record.is_complete else f" of {record.total_steps:,}")
        best = "" if record.best is None else f"{record.best:.2f}"
        test = record.scores.get("test", {}).get(record.monitor)
        name = record.folder.relative_to(folder) if record.folder != folder else record.folder
        rows.append([str(name), record.task, record.encoder, record.started, steps, record.monitor, best,
                     "" if test is None else f"{test:.2f}"])  # fmt: skip
    return "\n".join(table(["run", "task", "encoder", "started", "steps", "metric", "best", "test"], rows))


def _compare(first: Path, second: Path, split: str, *, as_json: bool) -> None:
    from ..analysis.run_comparison import compare, require_folder, to_text

    comparison = compare(require_folder(first), require_folder(second), split)
    names = str(first), str(second)
    show(to_json({"a": names[0], "b": names[1], **comparison.to_document()}) if as_json else to_text(comparison, names))


def errors(words: Sequence[str]) -> None:
    """Analyse the errors of a run's predictions: megabert errors RUN."""
    parser = new_parser(
        "errors",
        errors,
        "Entities: missed, spurious, wrong boundary or type; by type, seen or unseen in the training data, length, "
        "abbreviation. Labels: gold -> predicted. Answers: boundary, other words, none. errors.html shows the "
        "costliest examples, errors.tsv lists all.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or folder of evaluate ... output_dir=FOLDER")
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="the run's predictions (default: validation)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="default: the folder of the predictions")
    parser.add_argument("--training", type=Path, metavar="RUN", help="run whose training data decide what is seen")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="examples on the page (default: 200)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    from ..analysis.error_cases import cases
    from ..analysis.error_report import summarize, to_page, to_text, to_tsv
    from ..analysis.judgments import read_judged
    from ..analysis.run_comparison import predictions_file, require_folder

    file = predictions_file(require_folder(arguments.run), arguments.split)
    rows = read_judged(file)
    found = cases(rows, _training_mentions(arguments.training or arguments.run) if _has_mentions(rows) else None)
    folder = arguments.output or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "errors.tsv", to_tsv(found))
    atomic_write(folder / "errors.html", to_page(found, str(file.parent), arguments.limit))
    summary = summarize(found)
    show(to_json(summary) if arguments.json else to_text(summary))
    log(f"Wrote errors.html and errors.tsv in {folder}.")


def _has_mentions(rows: Sequence[dict[str, Any]]) -> bool:
    return any("entities" in row["gold"] or "slots" in row["gold"] for row in rows)


def _training_examples(record: "RunRecord") -> tuple[Any, Sequence[Any]]:
    from ..config.parser import compose
    from ..tasks import registry

    task_type = registry.find(record.task)
    settings, _ = compose(task_type.settings_type, [], owner=record.task, base=record.settings)
    task = task_type(settings)
    task.check_files()
    return task, task.read_data(settings.model.train_ds)


def _training_mentions(run: Path) -> set[str] | None:
    """Read the texts of the entities of a run's training data, in lower case; None, with a note, if there are none."""
    from ..analysis.run_records import RUN_JSON, read_run

    if not (run / RUN_JSON).is_file():
        log(f"note: {run} is no run folder; without --training RUN seen and unseen entities are not distinguished.")
        return None
    record = read_run(run)
    try:
        task, examples = _training_examples(record)
    except MegabertError as error:
        log(f"note: seen and unseen entities are not distinguished, since the training data cannot be read: {error}")
        return None
    golds = (task.gold(example) for example in examples)
    return {item["text"].lower() for gold in golds for name in ("entities", "slots") for item in gold.get(name, ())}
