"""The commands on a trained run and its predictions: evaluate, predict, score."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import compose, quote
from ..config.schema import choice
from ..errors import ConfigError, InputError
from ..storage import atomic_file, atomic_write
from .console import Command, log, new_parser, new_settings_parser, progress_bar, require_not_input, show, to_json

if TYPE_CHECKING:
    from ..inference import Predictor

# A word with a key; any other one is a text.
KEY = r"[A-Za-z_][\w.]*="
# NeMo's two files, which settings of the run name: the data's folder is one of them, too.
PARALLEL_FILES = ("text_file", "labels_file")


@dataclass
class EvaluateSettings:
    """The settings of `megabert evaluate`."""

    file: str | None = None
    """Data file with labels, in the task's format; null: that of model.test_ds."""
    text_file: str | None = None
    """With labels_file: NeMo's two files instead, in model.dataset.data_dir."""
    labels_file: str | None = None
    """The labels of text_file's words."""
    output_dir: str | None = None
    """Folder for scores.json, predictions.jsonl (input, prediction, gold labels) and the predictions in the official
    scorer's format; null: only print the scores."""
    batch_size: int = 32
    """Token budget of a batch: the tokens of this many sequences of maximum length."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """Device type; auto: a GPU if there is one, else the CPU."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8")
    """Compute precision of the encoder; auto: bf16 on a GPU that supports it, and on a CPU that has it if the answers
    to the run's validation texts stay the same; else 32."""
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
    """Folder for predictions.jsonl and the predictions in the official scorer's format; null: none."""


def evaluate(words: Sequence[str]) -> None:
    """Evaluate a trained run on a data file: megabert evaluate RUN file=FILE."""
    given = _parse_words("evaluate", evaluate, EvaluateSettings, words)
    settings = _compose(EvaluateSettings, given.settings, "evaluate")
    if settings.file is None and not given.names_data():
        raise ConfigError(f"No data file is given. Add file=FILE: megabert evaluate {given.run} file=FILE.")
    from ..evaluation import evaluate_examples

    predictor = _load(given, settings)
    with progress_bar("evaluating") as progress:
        examples = _read(predictor, settings.file)
        folder = None if settings.output_dir is None else Path(settings.output_dir)
        evaluation, files = evaluate_examples(predictor, examples, folder, progress)
    if files:
        log(f"Wrote {', '.join(files)} in {settings.output_dir}.")
    show(to_json(evaluation.scores))


def predict(words: Sequence[str]) -> None:
    """Predict with a trained run: megabert predict RUN "text", or question=... context=..., or file=FILE."""
    given = _parse_words("predict", predict, PredictSettings, words)
    names = {field.name for field in fields(PredictSettings)}
    own = {key: value for key, value in given.settings.items() if key in names}
    settings = _compose(PredictSettings, own, "predict")
    example = {key: value for key, value in given.settings.items() if key not in names}
    if given.texts:
        example["text"] = _one_text(given.texts, example)
    has_file = settings.file is not None or given.names_data()
    if has_file == bool(example):
        raise ConfigError('Give either file=FILE or one example, such as "some text" or question=... context=....')
    named = [name for name in ("output", "output_dir") if getattr(settings, name) is not None]
    if settings.file == "-" and named:
        raise ConfigError(f"predictions of standard input are printed as it arrives, without {named[0]}: > FILE.")
    predictor = _load(given, settings, for_many=not example)
    if example:
        item = predictor.task.example(**example)
        predictions = predictor.predict_examples([item])
        if named:
            _write_predictions(predictor, settings, [item], predictions)
        else:
            show(to_json(predictor.task.to_row(item, predictions[0])))
    elif settings.file == "-":
        from .standard_input import predict_standard_input

        predict_standard_input(predictor)
    else:
        _predict_file(predictor, settings)


def _one_text(texts: Sequence[str], example: Mapping[str, str]) -> str:
    """Return the text of a command line without a key; raises ConfigError where it may be meant otherwise."""
    if len(texts) > 1:
        raise ConfigError(f'{len(texts)} words without a key. Write a text in quotes: "{" ".join(texts)[:60]}".')
    if "text" in example:
        raise ConfigError(f"text=... and {texts[0][:60]!r} are both given. Give one text.")
    if texts[0] and Path(texts[0]).exists():
        raise ConfigError(f"{texts[0]} is a file. Write file={texts[0]} to predict it, text={texts[0]} for the words.")
    return texts[0]


def _read(predictor: "Predictor", file: str | None) -> Sequence[Any]:
    """Read a data file, or those that the settings of model.test_ds name."""
    if file is not None:
        return predictor.task.read(Path(file))
    data = predictor.task.settings.model.test_ds
    for name in predictor.task.files(data):
        if not Path(name).exists():
            raise InputError(f"{name} does not exist (model.dataset.data_dir is the folder of such files).")
    return predictor.task.read_data(data)


def _predict_file(predictor: "Predictor", settings: PredictSettings) -> None:
    from ..formats.record_streams import RecordStream, large_files_streamed

    test_data = predictor.task.settings.model.test_ds
    names = predictor.task.files(test_data) if settings.file is None else [settings.file]
    require_not_input(settings.output, names)
    only_lines = settings.output is not None and settings.output_dir is None
    with large_files_streamed(names if only_lines else []):
        examples = _read(predictor, settings.file)
    if isinstance(examples, RecordStream):
        _predict_stream(predictor, examples, Path(str(settings.output)))
        return
    with progress_bar("predicting") as progress:
        predictions = predictor.predict_examples(examples, progress=progress)
    _write_predictions(predictor, settings, examples, predictions)


def _write_predictions(
    predictor: "Predictor", settings: PredictSettings, examples: Sequence[Any], predictions: Sequence[Any]
) -> None:
    """Write predictions to `output` and `output_dir`, or print them."""
    from ..formats.json_lines import is_json_lines, to_json_lines

    lines = to_json_lines(predictor.task.to_rows(examples, predictions))
    if settings.output_dir is not None:
        folder = Path(settings.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {"predictions.jsonl": lines, **predictor.task.write_predictions(examples, predictions)}
        for name, content in contents.items():
            atomic_write(folder / name, content)
        log(f"Wrote {', '.join(contents)} in {folder}.")
    if settings.output is not None:
        atomic_write(Path(settings.output), lines)
        how = "" if is_json_lines(Path(settings.output)) else ", as JSON lines"
        log(f"Wrote {len(predictions)} predictions to {settings.output}{how}.")
    elif settings.output_dir is None:
        show(lines, end="")


def _predict_stream(predictor: "Predictor", examples: Iterable[Any], output: Path) -> None:
    """Predict the examples of a large file in blocks, and write each block's rows."""
    from ..formats.json_lines import to_json_lines
    from ..tasks.task_data import example_blocks, merged_warnings, recorded_warnings

    num_predictions = 0
    with recorded_warnings() as caught, atomic_file(output) as file, progress_bar("predicting") as progress:
        for block in example_blocks(examples):
            predictions = predictor.predict_examples(block, progress=progress)
            file.write(to_json_lines(predictor.task.to_rows(block, predictions)).encode())
            num_predictions += len(block)
        caught[:] = merged_warnings(caught, num_predictions)
    log(f"Wrote {num_predictions} predictions to {output}.")


def score(words: Sequence[str]) -> None:
    """Score a file of predictions like the official script: megabert score TASK GOLD PREDICTIONS."""
    from ..tasks import registry

    parser = new_parser("score", score, "The scores are printed as JSON.")
    parser.add_argument("task", help="task name, for example question_answering; documents, linking or retrieval")
    parser.add_argument("gold", type=Path, help="data file with the gold labels or answers")
    parser.add_argument("predictions", type=Path, help='predictions; for question_answering {"id": "answer", ...}')
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings on which the scores depend")
    arguments = parser.parse_args(list(words))
    if arguments.task == "linking":
        from .linking_scores import score_linking as score_files
    elif arguments.task == "documents":
        score_files = _score_documents
    elif arguments.task == "retrieval":
        from ..retrieval.ranking_scores import score_retrieval as score_files
    else:
        score_files = registry.find(arguments.task).score_files
    show(to_json(score_files(arguments.gold, arguments.predictions, arguments.overrides)))


def _score_documents(gold: Path, predictions: Path, words: Sequence[str]) -> dict[str, Any]:
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.document_scores import document_scores

    if unknown := [word for word in words if not word.startswith("prefix=")]:
        raise ConfigError(f"{unknown[0]!r} is no setting of `score documents`: prefix.")
    prefix = words[-1].removeprefix("prefix=") if words else ""
    return document_scores(read_documents([gold]), read_documents([predictions]), prefix)


@dataclass(frozen=True)
class _Given:
    """The words of a command on a run."""

    run: Path
    task: str | None
    settings: Mapping[str, str]
    """key=value words, those of the run's own settings left out."""
    overrides: Sequence[str]
    """Words for the run's own settings."""
    texts: Sequence[str]
    """Words without a key."""

    def names_data(self) -> bool:
        """Whether the words name the run's test data."""
        return any(word.startswith("model.test_ds") for word in self.overrides)


def _parse_words(name: str, command: Command, schema: type, words: Sequence[str]) -> _Given:
    """Parse RUN and key=value words.

    The command's settings are split at = only, so that a question may contain any character.
    """
    parser = new_settings_parser(name, command, schema, "model.dataset.KEY=VALUE overrides a setting of the run.")
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="run folder, one of its checkpoint folders, or an exported folder"
    )
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--task", metavar="FILE", help="Python file of the task, if the run is of your own task")
    arguments = parser.parse_intermixed_args(list(words))
    if re.match(KEY, str(arguments.run)) and not arguments.run.exists():
        raise ConfigError(f"The run is missing. Give its folder first: megabert {name} RUN {arguments.run} ...")
    given: dict[str, str] = {}
    overrides, texts = [], []
    for word in arguments.words:
        key, _, value = word.partition("=")
        if not re.match(KEY, word):
            texts.append(word)
        elif key.startswith("model."):
            overrides.append(word)
        elif key in PARALLEL_FILES:
            overrides.append(f"model.test_ds.{key}={quote(value)}")
        else:
            given[key] = value
    if texts and schema is EvaluateSettings:
        example = f"file={texts[0]}" if Path(texts[0]).exists() else "key=value, for example file=dev.json"
        raise ConfigError(f"{texts[0]!r} is not a setting. Write {example}.")
    return _Given(arguments.run, arguments.task, given, overrides, texts)


def _compose(schema: type[Any], given: Mapping[str, str], command: str) -> Any:
    """Build the settings of a command; paths may contain any character."""
    paths = ("file", "output", "output_dir")
    overrides = [f"{key}={quote(value) if key in paths else value}" for key, value in given.items()]
    return compose(schema, overrides, owner=command)[0]


def _load(given: _Given, settings: EvaluateSettings, *, for_many: bool = True) -> "Predictor":
    from ..load_predictor import load_predictor

    predictor = load_predictor(
        given.run,
        accelerator=settings.accelerator,
        precision=settings.precision,
        compiled=settings.compile,
        task_name=given.task,
        overrides=given.overrides,
        for_many=for_many,
    )
    for note in predictor.notes:
        log(f"note: {note}")
    return replace(predictor, batch_size=settings.batch_size)
