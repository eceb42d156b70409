"""The commands on a trained run and its predictions: evaluate, predict, score."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import compose, quote
from ..config.schema import choice
from ..errors import ConfigError, InputError
from ..storage import atomic_write
from .console import log, new_parser, new_settings_parser, progress_bar, to_json

if TYPE_CHECKING:
    from ..inference import Predictor

# Lines of standard input that are predicted together.
CHUNK = 1024


@dataclass
class EvaluateSettings:
    """The settings of `megabert evaluate`."""

    file: str | None = None
    """Data file with labels, in the task's format."""
    output_dir: str | None = None
    """Folder for scores.json and the predictions in the official scorer's format; null: only print the scores."""
    batch_size: int = 32
    """Token budget of a batch: the tokens of this many sequences of maximum length."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """Device type; auto: a GPU if there is one, else the CPU."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8")
    """Compute precision of the encoder; auto: bf16 on a GPU that supports it, else 32."""
    compile: bool = False
    """Compile the layers, and on a GPU capture batches in a CUDA graph: 10 s at the start, then faster."""


@dataclass
class PredictSettings(EvaluateSettings):
    """The settings of `megabert predict`, besides the fields of an example."""

    file: str | None = None
    """Data file in the task's format, labels optional; - reads standard input, one example per line: a JSON object
    with the fields of an example, or plain text."""
    output: str | None = None
    """File for the predictions, one JSON object per line; null: print them."""
    output_dir: str | None = None
    """Folder for predictions.jsonl and the predictions in the official scorer's format."""


def evaluate(words: Sequence[str]) -> int:
    """Evaluate a trained run on a data file: megabert evaluate RUN file=FILE."""
    arguments, given, overrides = _parse_run_and_words("evaluate", evaluate, EvaluateSettings, words)
    settings = _compose(EvaluateSettings, given, "evaluate")
    if settings.file is None:
        raise ConfigError("No data file is given. Add file=FILE.")
    from ..training.evaluation import evaluate_examples

    predictor = _load(arguments, settings, overrides)
    with progress_bar("evaluating") as progress:
        examples = predictor.task.read(Path(settings.file))
        folder = None if settings.output_dir is None else Path(settings.output_dir)
        evaluation, files = evaluate_examples(predictor, examples, folder, progress)
    if files:
        log(f"Wrote {', '.join(files)} in {settings.output_dir}.")
    print(to_json(evaluation.scores))
    return 0


def predict(words: Sequence[str]) -> int:
    """Predict with a trained run: megabert predict RUN question=... context=..., or file=FILE."""
    arguments, given, overrides = _parse_run_and_words("predict", predict, PredictSettings, words)
    names = {field.name for field in fields(PredictSettings)}
    settings = _compose(PredictSettings, {key: value for key, value in given.items() if key in names}, "predict")
    example = {key: value for key, value in given.items() if key not in names}
    if (settings.file is None) == (not example):
        raise ConfigError("Give either file=FILE or one example, such as question=... context=....")
    predictor = _load(arguments, settings, overrides)
    if settings.file is None:
        print(to_json(predictor.task.to_json(predictor.predict(**example))))
    elif settings.file == "-":
        _predict_lines(predictor)
    else:
        _predict_file(predictor, Path(settings.file), settings)
    return 0


def _predict_file(predictor: "Predictor", file: Path, settings: PredictSettings) -> None:
    examples = predictor.task.read(file)
    with progress_bar("predicting") as progress:
        predictions = predictor.predict_examples(examples, progress=progress)
    lines = [_json_line(predictor, prediction) for prediction in predictions]
    if settings.output_dir is not None:
        folder = Path(settings.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"predictions.jsonl": "".join(lines)}
        files |= predictor.task.write_predictions(folder, examples, predictions)
        for name, content in files.items():
            atomic_write(folder / name, content)
        log(f"Wrote {', '.join(files)} in {folder}.")
    if settings.output is not None:
        atomic_write(Path(settings.output), "".join(lines))
        log(f"Wrote {len(lines)} predictions to {settings.output}.")
    elif settings.output_dir is None:
        sys.stdout.writelines(lines)


def _predict_lines(predictor: "Predictor") -> None:
    """Predict standard input as it arrives, in chunks of lines."""
    numbered = enumerate(sys.stdin.buffer, start=1)
    while chunk := list(itertools.islice(numbered, CHUNK)):
        examples = [_parse_example(predictor, line, number) for number, line in chunk if line.strip()]
        if examples:
            sys.stdout.writelines(_json_line(predictor, item) for item in predictor.predict_examples(examples))
        sys.stdout.flush()


def _parse_example(predictor: "Predictor", line: bytes, number: int) -> Any:
    """Parse a JSON object with the fields of an example, or plain text, whose id is the line number."""
    from ..formats.json_lines import json_row

    location = f"standard input:{number}"
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise InputError(f"{location}: not UTF-8 text.") from None
    values = json_row(text, location).values if text.lstrip().startswith("{") else {"text": text, "id": str(number)}
    try:
        return predictor.task.example(**values)
    except InputError as error:
        raise InputError(f"{location}: {error}") from None


def _json_line(predictor: "Predictor", prediction: Any) -> str:
    return json.dumps(predictor.task.to_json(prediction), ensure_ascii=False) + "\n"


def score(words: Sequence[str]) -> int:
    """Score a file of predictions like the official script: megabert score TASK GOLD PREDICTIONS."""
    from ..tasks import registry

    parser = new_parser("score", score, "The scores are printed as JSON.")
    parser.add_argument("task", help="task name, for example question_answering")
    parser.add_argument("gold", type=Path, help="data file with the gold labels or answers")
    parser.add_argument("predictions", type=Path, help='predictions; for question_answering {"id": "answer", ...}')
    arguments = parser.parse_args(list(words))
    print(to_json(registry.find(arguments.task).score_files(arguments.gold, arguments.predictions)))
    return 0


def _parse_run_and_words(
    name: str, command: Callable[[Sequence[str]], int], schema: type, words: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str], list[str]]:
    """Parse RUN and key=value words; returns the arguments, the command's settings, the overrides of the run's.

    The command's settings are split at = only, so that a question may contain any character.
    """
    parser = new_settings_parser(name, command, schema, "model.dataset.KEY=VALUE overrides a setting of the run.")
    parser.add_argument("run", type=Path, help="run folder, or one of its checkpoint folders")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--task", metavar="FILE", help="Python file of the task, if the run is of your own task")
    arguments = parser.parse_intermixed_args(list(words))
    given, overrides = {}, []
    for word in arguments.words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not a setting. Write key=value, for example file=dev.json.")
        if key.startswith("model."):
            overrides.append(word)
        else:
            given[key] = value
    return arguments, given, overrides


def _compose(schema: type[Any], given: Mapping[str, str], command: str) -> Any:
    """Build the settings of a command; paths may contain any character."""
    paths = ("file", "output", "output_dir")
    overrides = [f"{key}={quote(value) if key in paths else value}" for key, value in given.items()]
    return compose(schema, overrides, owner=command, list_command=f"megabert {command} --help")[0]


def _load(arguments: argparse.Namespace, settings: EvaluateSettings, overrides: Sequence[str]) -> "Predictor":
    from ..build import load_run

    predictor = load_run(
        arguments.run,
        accelerator=settings.accelerator,
        precision=settings.precision,
        compiled=settings.compile,
        task_name=arguments.task,
        overrides=overrides,
    )
    return replace(predictor, batch_size=settings.batch_size)
