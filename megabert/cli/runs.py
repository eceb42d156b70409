"""The commands about runs: train, evaluate, predict, score, config."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config.schema import choice
from ..errors import ConfigError, InputError
from ..parallel.launch import count_to_start, launch
from ..storage import atomic_write
from .console import new_parser, progress_bar, quote, say, to_json


@dataclasses.dataclass
class EvaluateSettings:
    """What `megabert evaluate` takes."""

    file: str | None = None
    """The data file to score, in the task's format."""
    output_dir: str | None = None
    """Folder for scores.json and the predictions in the official scorer's format; null: only print the scores."""
    batch_size: int = 32
    """Texts that are computed at once."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """auto takes a GPU where there is one."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8")
    """auto: bf16 on a GPU that has it, else 32."""
    compile: bool = False
    """Compile the layers, and on a GPU record batches in a CUDA graph: some 10 s more, then faster on large files."""


@dataclasses.dataclass
class PredictSettings:
    """What `megabert predict` takes besides the fields of an example."""

    file: str | None = None
    """A data file in the task's format, with or without answers; - reads standard input, a JSON object with an
    example's fields a line, or a plain text."""
    output: str | None = None
    """File for the predictions, a JSON object a line; null: print them."""
    output_dir: str | None = None
    """Folder for predictions.jsonl and the predictions in the official scorer's format."""
    batch_size: int = 32
    """Texts that are computed at once."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """auto takes a GPU where there is one."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8")
    """auto: bf16 on a GPU that has it, else 32."""
    compile: bool = False
    """Compile the layers, and on a GPU record batches in a CUDA graph: some 10 s more, then faster on large files."""


def train(words: Sequence[str]) -> int:
    """Fine-tune a checkpoint on a task, or pre-train: megabert train TASK key=value ...."""
    parser = new_parser("train", train, "megabert config TASK lists all settings.")
    parser.add_argument("task", help="the task, for example question_answering, or a file of your own, ./my_task.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's grammar")
    parser.add_argument("-m", "--multirun", action="store_true", help="run once for each value of seed=1,2,3")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; key=value wins over it")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="take up a run that was stopped, with its settings")
    parser.add_argument("--bert_config", metavar="FILE", help="same as model.language_model.config_file=FILE")
    parser.add_argument(
        "--bert_checkpoint", metavar="FILE_OR_FOLDER", help="same as model.language_model.lm_checkpoint=FILE_OR_FOLDER"
    )
    arguments = parser.parse_intermixed_args(list(words))
    overrides = list(arguments.overrides)
    for option, key in (("bert_config", "config_file"), ("bert_checkpoint", "lm_checkpoint")):
        if getattr(arguments, option) is not None:
            overrides.append(f"model.language_model.{key}={quote(getattr(arguments, option))}")
    if arguments.multirun and arguments.resume is not None:
        raise ConfigError("--resume takes up one run; -m starts several. Leave one of them out.")
    if arguments.multirun:
        return _train_each(arguments.task, overrides, arguments.config)
    _train_once(arguments.task, overrides, file=arguments.config, resume=arguments.resume)
    return 0


def _train_once(task_name: str, overrides: Sequence[str], *, file: Path | None, resume: Path | None = None) -> Any:
    from ..checkpoints.catalog import cache_home
    from ..config.parser import compose
    from ..tasks import registry

    task_type = registry.find(task_name)
    base, words = None, overrides
    if resume is not None:
        base = _settings_of_run(resume)
        overrides = [
            *overrides,
            f"exp_manager.explicit_log_dir={quote(str(resume))}",
            "exp_manager.resume_if_exists=true",
        ]
    settings, notices = compose(task_type.settings_type, overrides, owner=task_name, file=file, base=base)
    if os.environ.get("RANK", "0") == "0":
        for notice in notices:
            say(f"note: {notice}")
    if settings.do_training and (count := count_to_start(settings, os.environ)):
        options = [("--config", file), ("--resume", resume)]
        given = [word for name, path in options if path is not None for word in (name, str(path))]
        launch(["train", task_name, *words, *given], count)
        from ..training.run import past_outcome

        return past_outcome(settings, task_type.name())

    if not settings.do_training:
        if settings.pretrained_model is None:
            raise ConfigError("do_training=false evaluates a trained run: name it, pretrained_model=RUN.")
        from ..training.evaluation import evaluate_test_data

        print(to_json(evaluate_test_data(settings, Path(settings.pretrained_model)).scores))
        return None
    from ..training.run import train

    outcome = train(task_name, settings, home=cache_home(os.environ), log=say)
    if outcome is not None:
        _report(outcome)
    return outcome


def _report(outcome: Any) -> None:
    figure = "" if outcome.best.figure is None else f", validation {outcome.monitor} {outcome.best.figure:.4g}"
    say(f"Done. Best checkpoint: step {outcome.best.step}{figure}.")
    if outcome.test is not None:
        print(to_json(outcome.test))
    say(f"Use it: megabert evaluate {outcome.folder} file=FILE   or   megabert predict {outcome.folder} ...")


def _train_each(task_name: str, overrides: Sequence[str], file: Path | None) -> int:
    """Train once for each combination of a sweep, each in a folder of its own, and end with a table."""
    from ..config.parser import expand_sweep

    combinations = expand_sweep(overrides)
    swept = [index for index in range(len(overrides)) if len({words[index] for words in combinations}) > 1]
    explicit = next((word for word in overrides if word.startswith("exp_manager.explicit_log_dir=")), None)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    rows = []
    for number, combination in enumerate(combinations):
        label = ", ".join(combination[index] for index in swept)
        say(f"Run {number + 1} of {len(combinations)}: {label}")
        folder = f"{number}_{''.join(c if c.isalnum() or c in '=._-' else '_' for c in label)}"[:100]
        if explicit is not None:
            parent = explicit.partition("=")[2].strip("'\"")
            own = [f"exp_manager.explicit_log_dir={quote(f'{parent}/{folder}')}"]
        else:
            own = [f"exp_manager.version={quote(f'{stamp}/{folder}')}"]
        rows.append((label, _train_once(task_name, [*combination, *own], file=file)))
    _print_sweep(rows)
    return 0


def _print_sweep(rows: Sequence[tuple[str, Any]]) -> None:
    """Print each run's figure, then mean and sample deviation of every score; they are in sweep.json too."""
    import statistics

    done = [(label, outcome) for label, outcome in rows if outcome is not None]
    width = max((len(label) for label, _ in done), default=0)
    for label, outcome in done:
        figure = "" if outcome.best.figure is None else f"{outcome.monitor} {outcome.best.figure:.2f}"
        print(f"{label:<{width}}  {figure}  {outcome.folder}")
    if len(done) < 2:
        return
    scores = [outcome.validation for _, outcome in done]
    names = [name for name in scores[0] if all(name in own for own in scores)]
    table = {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values), "values": values}
        for name in names
        for values in [[own[name] for own in scores]]
    }
    if table:
        print(f"\nlast validation, mean ± sample deviation of {len(done)} runs")
    for name, row in table.items():
        if "/" not in name and name != "total":
            print(f"  {name:<{max(map(len, names))}}  {row['mean']:.2f} ± {row['deviation']:.2f}")
    parent = Path(done[0][1].folder).parent
    atomic_write(
        parent / "sweep.json", to_json({"runs": [str(item.folder) for _, item in done], "scores": table}) + "\n"
    )


def _settings_of_run(folder: Path) -> dict[str, Any]:
    """Read the settings with which a run was started."""
    file = folder / "run.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Give the folder of a run that training wrote.") from None


def evaluate(words: Sequence[str]) -> int:
    """Score a trained run on a data file: megabert evaluate RUN file=FILE."""
    arguments, given, overrides = _run_and_words("evaluate", evaluate, EvaluateSettings, words)
    settings = _typed(EvaluateSettings, given, "evaluate")
    if settings.file is None:
        raise ConfigError("Which data? Give file=FILE.")
    predictor = _load(arguments, settings, overrides)
    with progress_bar("evaluating") as progress:
        result = predictor.evaluate_file(Path(settings.file), progress=progress)
    if settings.output_dir is not None:
        from ..training.evaluation import write_evaluation

        names = write_evaluation(Path(settings.output_dir), predictor.task, result)
        say(f"Wrote {', '.join(names)} in {settings.output_dir}.")
    print(to_json(result.scores))
    return 0


def predict(words: Sequence[str]) -> int:
    """Answer with a trained run: megabert predict RUN question=... context=..., or file=FILE."""
    arguments, given, overrides = _run_and_words("predict", predict, PredictSettings, words)
    names = {field.name for field in dataclasses.fields(PredictSettings)}
    settings = _typed(PredictSettings, {key: value for key, value in given.items() if key in names}, "predict")
    fields = {key: value for key, value in given.items() if key not in names}
    if (settings.file is None) == (not fields):
        raise ConfigError("Give either file=FILE or one example, such as question=... context=....")
    predictor = _load(arguments, settings, overrides)
    if settings.file is None:
        print(to_json(predictor.task.to_json(predictor.predict(**fields))))
        return 0
    if settings.file == "-":
        return _answer_lines(predictor)
    examples = predictor.task.read(Path(settings.file))
    with progress_bar("predicting") as progress:
        predictions = predictor.predict_examples(examples, progress=progress)
    lines = [_line(predictor, item) for item in predictions]
    if settings.output_dir is not None:
        folder = Path(settings.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"predictions.jsonl": "".join(lines)}
        files |= predictor.task.write_predictions(folder, examples, predictions)
        for name, content in files.items():
            atomic_write(folder / name, content)
        say(f"Wrote {', '.join(files)} in {folder}.")
    if settings.output is not None:
        atomic_write(Path(settings.output), "".join(lines))
        say(f"Wrote {len(lines)} predictions to {settings.output}.")
    elif settings.output_dir is None:
        sys.stdout.writelines(lines)
    return 0


# So many lines of standard input are answered at once.
CHUNK = 1024


def _answer_lines(predictor: Any) -> int:
    """Answer the lines of standard input as they come: JSON objects with an example's fields, or plain texts."""
    numbered = enumerate(sys.stdin.buffer, start=1)
    while chunk := list(itertools.islice(numbered, CHUNK)):
        examples = [_example(predictor, line, number) for number, line in chunk if line.strip()]
        sys.stdout.writelines(_line(predictor, item) for item in predictor.predict_examples(examples) if examples)
        sys.stdout.flush()
    return 0


def _example(predictor: Any, line: bytes, number: int) -> Any:
    from ..formats.json_lines import json_row

    place = f"standard input:{number}"
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{place}: not UTF-8 text.") from None
    fields = json_row(text, place).values if text.lstrip().startswith("{") else {"text": text, "id": str(number)}
    try:
        return predictor.task.example(**fields)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _line(predictor: Any, prediction: Any) -> str:
    return json.dumps(predictor.task.to_json(prediction), ensure_ascii=False) + "\n"


def score(words: Sequence[str]) -> int:
    """Score a file of predictions as the official script does: megabert score TASK GOLD PREDICTIONS."""
    from ..tasks import registry

    parser = new_parser("score", score, "The scores are printed as JSON.")
    parser.add_argument("task", help="the task, for example question_answering")
    parser.add_argument("gold", type=Path, help="the data file with the answers")
    parser.add_argument("predictions", type=Path, help='the predictions, for question_answering {"id": "answer", ...}')
    arguments = parser.parse_args(list(words))
    print(to_json(registry.find(arguments.task).score_files(arguments.gold, arguments.predictions)))
    return 0


def config(words: Sequence[str]) -> int:
    """List every setting of a task with default and help: megabert config TASK."""
    from ..config.listing import list_settings, show
    from ..tasks import registry

    parser = new_parser("config", config, "")
    parser.add_argument("task", help=f"one of {', '.join(registry.NAMES)}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--page", action="store_true", help="print the task's documentation page, in Markdown")
    arguments = parser.parse_args(list(words))
    if arguments.page:
        sys.stdout.write(registry.page(arguments.task))
        return 0
    settings = list(list_settings(registry.find(arguments.task).settings_type))
    if arguments.json:
        print(to_json([dataclasses.asdict(setting) for setting in settings]))
        return 0
    for setting in settings:
        options = f" ({' | '.join(setting.choices)})" if setting.choices else f" ({setting.type_name})"
        print(f"{setting.key}={show(setting.default)}{options}\n    {setting.help}")
    return 0


def _run_and_words(
    name: str, command: Callable[[Sequence[str]], int], schema: type, words: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str], list[str]]:
    """Parse RUN and key=value words; returns the arguments, the command's own words, the overrides of the model's.

    The own words are taken as they stand, so that a question may hold any character.
    """
    from ..config.listing import list_settings, show

    listed = "\n".join(f"  {item.key}={show(item.default)}  {item.help}" for item in list_settings(schema))
    parser = new_parser(name, command, f"settings:\n{listed}\n  model.dataset.KEY=VALUE  a setting of the run, changed")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--task", metavar="FILE", help="file of your own task, where the run is of one")
    arguments = parser.parse_intermixed_args(list(words))
    own: dict[str, str] = {}
    overrides = []
    for word in arguments.words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not a setting. Write key=value, for example file=dev.json.")
        if key.startswith("model."):
            overrides.append(word)
        else:
            own[key] = value
    return arguments, own, overrides


def _typed(schema: type[Any], given: Mapping[str, str], owner: str) -> Any:
    from ..config.parser import compose

    plain = [f"{key}={quote(value)}" if key in ("file", "output", "output_dir") else f"{key}={value}"
             for key, value in given.items()]  # fmt: skip
    return compose(schema, plain, owner=owner)[0]


def _load(arguments: argparse.Namespace, settings: Any, overrides: Sequence[str]) -> Any:
    from ..build import load_run

    predictor = load_run(
        arguments.run,
        accelerator=settings.accelerator,
        precision=settings.precision,
        compiled=settings.compile,
        task_name=arguments.task,
        overrides=overrides,
    )
    return dataclasses.replace(predictor, batch_size=settings.batch_size)
