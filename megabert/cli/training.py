"""The command `train`: one run, or a sweep of runs."""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import compose, expand_sweep, quote
from ..errors import ConfigError, Interrupted, MegabertError
from ..parallel.launch import count_to_start, launch
from ..storage import atomic_write
from .console import log, new_parser, show, to_json

if TYPE_CHECKING:
    from ..training.run import Outcome


def train(words: Sequence[str]) -> None:
    """Fine-tune a checkpoint on a task, or pre-train: megabert train TASK key=value ..."""
    parser = new_parser("train", train, "`megabert config TASK` lists all settings.")
    parser.add_argument(
        "task", nargs="?", help="task name, for example question_answering, or Python file of your own task"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep: train once per value of seed=1,2,3")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; key=value takes precedence")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="resume an interrupted run, with its settings")
    parser.add_argument("--step", type=int, metavar="N", help="with --resume: from the checkpoint of step N")
    parser.add_argument("--bert_config", metavar="FILE", help="same as model.language_model.config_file=FILE")
    parser.add_argument("--bert_checkpoint", metavar="PATH", help="same as model.language_model.lm_checkpoint=PATH")
    arguments = parser.parse_intermixed_args(list(words))
    task, overrides = _task_and_overrides(arguments)
    for option, key in (("bert_config", "config_file"), ("bert_checkpoint", "lm_checkpoint")):
        if getattr(arguments, option) is not None:
            overrides.append(f"model.language_model.{key}={quote(getattr(arguments, option))}")
    if arguments.step is not None and arguments.resume is None:
        raise ConfigError(f"--step {arguments.step} chooses a checkpoint of a run to resume. Give --resume RUN, too.")
    if not arguments.multirun:
        train_once(task, overrides, file=arguments.config, resume=arguments.resume, step=arguments.step)
    elif arguments.resume is None:
        _train_sweep(task, overrides, file=arguments.config)
    else:
        raise ConfigError("--resume continues one run, -m starts several. Remove one of them.")


def _task_and_overrides(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the task, that of the run which is resumed where none is given, and the settings."""
    task, overrides = arguments.task, list(arguments.overrides)
    if task is not None and "=" in task:
        task, overrides = None, [task, *overrides]
    if task is None and arguments.resume is not None:
        task = str(_facts_of_run(arguments.resume).get("task"))
    if task is None:
        raise ConfigError("The task is missing: megabert train TASK key=value ... Details: `megabert train --help`.")
    for word in overrides:
        if "=" not in word and Path(word).exists():
            raise ConfigError(f"{word!r} is not a setting. To train on this file write model.train_ds.file={word}.")
    return task, overrides


def train_once(
    task_name: str, words: Sequence[str], *, file: Path | None, resume: Path | None = None, step: int | None = None
) -> "Outcome | None":
    """Train one run, in this process or in several that are started here; returns its outcome on rank zero."""
    from ..checkpoints.catalog import cache_home
    from ..tasks import registry

    task_type = registry.find(task_name)
    base, overrides = None, list(words)
    if resume is not None:
        base = _facts_of_run(resume)["settings"]
        overrides += [f"exp_manager.explicit_log_dir={quote(str(resume))}", "exp_manager.resume_if_exists=true"]
    settings, notices = compose(task_type.settings_type, overrides, owner=task_name, file=file, base=base)
    if os.environ.get("RANK", "0") == "0":
        for notice in notices:
            log(f"note: {notice}")
    num_processes = count_to_start(settings, os.environ) if settings.do_training else 0
    if num_processes:
        options = [("--config", file), ("--resume", resume), ("--step", step)]
        given = [word for name, value in options if value is not None for word in (name, str(value))]
        launch(["train", task_name, *words, *given], num_processes)
    from ..evaluation import evaluate_test_data
    from ..training.run import past_outcome, train

    if num_processes:
        return past_outcome(settings, task_type.name())
    if not settings.do_training:
        if settings.pretrained_model is None:
            raise ConfigError("do_training=false evaluates a trained run. Set pretrained_model=RUN.")
        run = Path(settings.pretrained_model)
        settings, _ = compose(task_type.settings_type, overrides, owner=task_name, file=file, base=_model_of_run(run))
        show(to_json(evaluate_test_data(task_name, settings, run).scores))
        return None
    outcome = train(task_name, settings, home=cache_home(os.environ), log=log, step=step)
    if outcome is not None:
        _report(outcome)
    return outcome


def _facts_of_run(folder: Path) -> dict[str, Any]:
    """Read a run.json; raises ConfigError where it cannot be read, or has no settings."""
    file = folder / "run.json"
    try:
        facts = dict(json.loads(file.read_text(encoding="utf-8")))
        return facts | {"settings": dict(facts["settings"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Give the run folder of a training.") from None


def _model_of_run(path: Path) -> dict[str, Any]:
    """Read the settings of a run's model, without those of data and training."""
    from ..checkpoints.native.run_checkpoints import read_best

    _, contents = read_best(path, groups=())
    training = ("train_ds", "validation_ds", "test_ds", "optim")
    model = contents.documents.get("settings", {}).get("model", {})
    return {"model": {name: value for name, value in model.items() if name not in training}}


def _report(outcome: "Outcome") -> None:
    best = outcome.best
    metric = "" if best.figure is None else f", validation {outcome.monitor} {best.figure:.4g}"
    log(f"Done. Best checkpoint: step {best.step}{metric}.")
    if outcome.test is not None:
        show(to_json(outcome.test))
    log(f"Next: megabert evaluate {outcome.folder} file=FILE   or   megabert predict {outcome.folder} ...")


def _train_sweep(task_name: str, overrides: Sequence[str], *, file: Path | None) -> None:
    """Train once per combination of a sweep, each in its own run folder; print a table of all runs at the end.

    A run that fails does not end the sweep. Raises the first error after the table.
    """
    combinations = expand_sweep(overrides)
    swept = [index for index in range(len(overrides)) if len({words[index] for words in combinations}) > 1]
    explicit = next((word for word in overrides if word.startswith("exp_manager.explicit_log_dir=")), None)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    runs: list[tuple[str, Outcome | MegabertError]] = []
    try:
        for number, combination in enumerate(combinations):
            label = ", ".join(combination[index] for index in swept)
            log(f"Run {number + 1} of {len(combinations)}: {label}")
            name = f"{number}_{''.join(c if c.isalnum() or c in '=._-' else '_' for c in label)}"[:100]
            if explicit is None:
                folder = f"exp_manager.version={quote(f'{stamp}/{name}')}"
            else:
                parent = explicit.partition("=")[2].strip("'\"")
                folder = f"exp_manager.explicit_log_dir={quote(f'{parent}/{name}')}"
            try:
                outcome = train_once(task_name, [*combination, folder], file=file)
            except MegabertError as error:
                if error.exit_code == Interrupted.exit_code:
                    raise
                runs.append((label, error))
                log(f"megabert: this run failed, the sweep goes on: {error}")
                continue
            if outcome is not None:
                runs.append((label, outcome))
    finally:  # whatever ended the sweep: the runs before it keep their table
        _print_table(runs)
    if errors := [result for _, result in runs if isinstance(result, MegabertError)]:
        errors[0].is_reported = True
        raise errors[0]


def _print_table(runs: Sequence[tuple[str, "Outcome | MegabertError"]]) -> None:
    """Print a line for each run of a sweep, then the scores over those that did not fail."""
    width = max((len(label) for label, _ in runs), default=0)
    outcomes = []
    for label, result in runs:
        if isinstance(result, MegabertError):
            show(f"{label:<{width}}  failed: {result}")
            continue
        outcomes.append(result)
        metric = "" if result.best.figure is None else f"{result.monitor} {result.best.figure:.2f}"
        show(f"{label:<{width}}  {metric}  {result.folder}")
    if len(outcomes) > 1:
        _summarize_scores(outcomes)


def _deviations(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Compute mean and sample standard deviation of each score that all runs have."""
    import statistics

    names = [name for name in scores[0] if all(name in others for others in scores)]
    by_name = {name: [run_scores[name] for run_scores in scores] for name in names}
    return {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
        for name, values in by_name.items()
    }


def _summarize_scores(outcomes: Sequence["Outcome"]) -> None:
    """Print mean and sample standard deviation of each score over the runs, and write them to sweep.json."""
    from ..checkpoints.model_card import write_run_card

    table = _deviations([outcome.validation for outcome in outcomes])
    if table:
        show(f"\nlast validation, mean ± sample deviation of {len(outcomes)} runs")
    for name, row in table.items():
        if "/" not in name and name != "total":
            show(f"  {name:<{max(map(len, table))}}  {row['mean']:.2f} ± {row['deviation']:.2f}")
    document = {"runs": [str(outcome.folder) for outcome in outcomes], "scores": table}
    atomic_write(outcomes[0].folder.parent / "sweep.json", to_json(document) + "\n")
    for outcome in outcomes:  # their cards have the deviation, too
        write_run_card(outcome.folder, outcome.best.path)
