"""GLUE: the nine tasks of the General Language Understanding Evaluation, one class and a table."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schema import DataSettings, OptimizerSettings, Settings, TrainDataSettings, choice, linear_decay
from ..errors import ConfigError, InputError
from ..formats.json_lines import JSON_SUFFIXES
from ..formats.rows import Row
from ..formats.tables import split_rows
from .text_classification import (
    ClassifierModel,
    Example,
    Prediction,
    TextClassification,
    TextSettings,
    read_predictions,
)


@dataclass(frozen=True)
class GlueTask:
    """A task as the benchmark distributes and scores it."""

    name: str
    """That of its folder and of the file in a submission."""
    columns: tuple[str, ...]
    """Those that hold the sentence, or both."""
    label_column: str
    labels: tuple[str, ...]
    """In the order of their numbers; none: a number is predicted."""
    metrics: tuple[str, ...]
    dev_files: tuple[str, ...] = ("dev.tsv",)
    headless: tuple[str, ...] = ()
    """The columns of train.tsv and dev.tsv where they have no header."""
    num_broken_rows: int = 0
    """Rows of train.tsv as distributed that lack columns, and are left out by everyone."""


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
# Sources: gluebenchmark.com/tasks and /faq; Wang et al. 2019, arXiv:1804.07461; the files' own headers.
TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", ("0", "1"), ("matthews",), headless=("source", "label", "star", "sentence")
    ),
    "sst-2": GlueTask("SST-2", ("sentence",), "label", ("0", "1"), ("accuracy",)),
    "mrpc": GlueTask("MRPC", ("#1 string", "#2 string"), "quality", ("0", "1"), ("f1", "accuracy")),
    "sts-b": GlueTask("STS-B", _PAIR, "score", (), ("pearson", "spearman")),
    "qqp": GlueTask(
        "QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("f1", "accuracy"), num_broken_rows=3
    ),
    "mnli": GlueTask(
        "MNLI", _PAIR, "gold_label", ("contradiction", "entailment", "neutral"), ("accuracy",),
        dev_files=("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",)),
    "rte": GlueTask("RTE", _PAIR, "label", _ENTAILMENT, ("accuracy",)),
    "wnli": GlueTask("WNLI", _PAIR, "label", ("0", "1"), ("accuracy",)),
}  # fmt: skip


@dataclass
class DatasetSettings(TextSettings):
    """Where the data are, and how texts become tokens."""

    data_dir: str | None = None
    """The task's folder, with train.tsv and dev.tsv as GLUE distributes them."""
    max_seq_length: int = 128
    """Tokens of a text or pair with its special tokens; a longer one is read in windows."""


@dataclass
class GlueData:
    """Files by their names in model.dataset.data_dir, instead of `file`."""

    ds_item: Any = None
    """A file's name in data_dir, or a list of names."""


@dataclass
class GlueDataSettings(DataSettings, GlueData):
    """One set of data: `file`, or names in data_dir. Of validation_ds the default are the task's dev files."""


@dataclass
class GlueTrainSettings(TrainDataSettings, GlueData):
    """The training data: `file`, or names in data_dir."""

    batch_size: int = 32
    """Texts in a micro-batch."""
    ds_item: Any = "train.tsv"
    """A file's name in data_dir, or a list of names."""


@dataclass
class GlueModel(ClassifierModel):
    """The network, its data and its optimizer."""

    task_name: str | None = choice(None, *TASKS)
    """Which of the nine tasks."""
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    train_ds: GlueTrainSettings = field(default_factory=GlueTrainSettings)
    validation_ds: GlueDataSettings = field(default_factory=GlueDataSettings)
    test_ds: GlueDataSettings = field(default_factory=GlueDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(5e-5))


@dataclass
class GlueSettings(Settings):
    """All settings of a run."""

    model: GlueModel = field(default_factory=GlueModel)


class Glue(TextClassification):
    r"""Fine-tune and score on the nine tasks of GLUE: cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli.

        megabert train glue model.task_name=mrpc model.dataset.data_dir=MRPC \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN file=MRPC/test.tsv output_dir=OUT
        megabert score glue MRPC/dev.tsv OUT/MRPC.tsv

    Data: the tab-separated files as GLUE distributes them, in `model.dataset.data_dir`; MNLI is validated on both its
    dev files. A row that lacks columns stops the reading; three such rows of QQP's train.tsv are known, and left out
    as everyone does.

    Answers: as text classification's; with `output_dir` also CoLA.tsv and so on, in the format of a submission.

    Scores: those of the benchmark: Matthews' correlation for CoLA; F1 of class 1 and accuracy for MRPC and QQP;
    Pearson's and Spearman's correlation for STS-B; accuracy for the others. `glue` is the task's figure in GLUE's
    average: the mean of its metrics. The figures of MNLI's second file begin with its name.
    """

    settings_type = GlueSettings
    main_score = "glue"

    def __init__(self, settings: GlueSettings) -> None:
        if settings.model.task_name is None:
            raise ConfigError(f"Which task of GLUE? Set model.task_name to one of {', '.join(TASKS)}.")
        self.row = TASKS[settings.model.task_name]
        super().__init__(settings)
        self.main_score = Glue.main_score

    @property
    def problem(self) -> str:
        """A class, or of STS-B a number."""
        return "single_label" if self.row.labels else "regression"

    def files(self, data: Any) -> list[str]:
        """Give `file`, or those of data_dir."""
        if data.file is not None:
            return [data.file]
        items = data.ds_item
        if items is None and data is self.settings.model.validation_ds:
            items = list(self.row.dev_files)
        if items is None or self.dataset.data_dir is None:
            return []
        return [str(Path(self.dataset.data_dir) / item) for item in ([items] if isinstance(items, str) else items)]

    def read_files(self, files: Sequence[str]) -> list[Example]:
        """Read one file after the other."""
        return [example for file in files for example in self.read(Path(file))]

    def read(self, path: Path) -> list[Example]:
        """Read a file of GLUE, or JSON lines with text, text_b and label."""
        if path.suffix in JSON_SUFFIXES:
            return super().read(path)
        rows = split_rows(path)
        header = [name.strip().lower() for name in rows[0][0]]
        if all(name in header for name in self.row.columns):
            rows = rows[1:]
        elif len(header) == len(self.row.headless):
            header = list(self.row.headless)
        else:
            raise InputError(
                f"{path}:1: not a file of {self.row.name}: its header should name {', '.join(self.row.columns)}. "
                f"Is model.task_name right?"
            )
        whole = [row for row in rows if len(row[0]) == len(header)]
        if len(rows) - len(whole) > self.row.num_broken_rows:
            values, place = next(row for row in rows if len(row[0]) != len(header))
            raise InputError(f"{place}: {len(values)} columns where the first line has {len(header)}. Mend the row.")
        return [
            self._glue_example(dict(zip(header, values, strict=True)), place, number)
            for number, (values, place) in enumerate(whole)
        ]

    def _glue_example(self, values: Mapping[str, str], place: str, number: int) -> Example:
        texts = [values[name] for name in self.row.columns]
        labels = None
        if self.row.label_column in values:
            labels = self._labels(values[self.row.label_column], place)
        if labels is not None and self.row.labels and labels[0] not in self.row.labels:
            raise InputError(
                f"{place}: the label {labels[0]!r} is none of {self.row.name}'s {', '.join(self.row.labels)}."
            )
        return Example(values.get("index", str(number)), texts[0], texts[1] if len(texts) > 1 else None, labels, place)

    def ordered(self, labels: Collection[str]) -> list[str]:
        """Take the task's labels, also those that these data do not show."""
        return list(self.row.labels)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute the task's metrics, of each file apart; those of files after the first begin with its name."""
        groups: dict[str, list[tuple[Example, Prediction]]] = {}
        for example, prediction in zip(examples, predictions, strict=True):
            groups.setdefault(_stem(example), []).append((example, prediction))
        scores: dict[str, float] = {}
        for stem, pairs in groups.items():
            prefix = f"{stem}/" if scores else ""
            scores |= {f"{prefix}{name}": value for name, value in self._score_one(*zip(*pairs, strict=True)).items()}
        return scores | {"total": len(examples)}

    def _score_one(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        found = super().score(examples, predictions)
        if "f1" in self.row.metrics:
            found["f1"] = found["1/f1"]
        scores = {name: found[name] for name in self.row.metrics}
        return {"glue": sum(scores.values()) / len(scores)} | scores

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score a submission's file, JSON lines as `megabert predict` writes them, or a label a line."""
        task = task_of(gold)
        task.labels = list(task.row.labels)
        rows = read_predictions(predictions)
        name = "value" if task.is_regression else "label"
        if rows[0].values.get("label") == "index\tprediction":
            rows = [Row({name: str(row.values["label"]).partition("\t")[2]}, row.place) for row in rows[1:]]
        elif task.is_regression:
            rows = [Row({"value": row.values.get("value", row.values.get("label"))}, row.place) for row in rows]
        return task.score_rows(task.read(gold), rows, str(predictions))

    def write_predictions(
        self, folder: Path, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, str]:
        """Give the files of a submission, such as CoLA.tsv."""
        files: dict[str, list[str]] = {}
        for example, prediction in zip(examples, predictions, strict=True):
            lines = files.setdefault(_submission_name(self.row.name, _stem(example)), ["index\tprediction\n"])
            answer = prediction.labels[0] if prediction.value is None else f"{min(max(prediction.value, 0), 5):.3f}"
            lines.append(f"{example.id}\t{answer}\n")
        return {name: "".join(lines) for name, lines in files.items()}


def task_of(path: Path) -> Glue:
    """Tell by a file's header, and by its labels where headers are alike, of which task it is."""
    header = split_rows(path)[0][0]
    for name, row in TASKS.items():
        if row.headless and set(row.columns) & set(header):
            continue  # a file that has a header is another task's
        task = Glue(GlueSettings(model=GlueModel(task_name=name)))
        try:
            examples = task.read(path)
        except InputError:
            continue
        if examples and examples[0].labels is not None:
            return task
    raise InputError(f"{path} has the columns of no task of GLUE. Give a file with labels as GLUE distributes it.")


def _stem(example: Example) -> str:
    return Path(example.place.rpartition(":")[0]).stem


def _submission_name(name: str, stem: str) -> str:
    if name == "MNLI":
        name = {"mismatched": "MNLI-mm", "diagnostic": "AX", "AX": "AX"}.get(stem.rpartition("_")[2], "MNLI-m")
    return f"{name}.tsv"
