"""GLUE: the nine tasks of the General Language Understanding Evaluation, one class and a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.parser import compose
from ..config.schema import DataSettings, OptimizerSettings, Settings, TrainDataSettings, choice, linear_decay
from ..errors import ConfigError, InputError
from ..formats.json_lines import has_objects, object_rows
from ..formats.record_streams import derived
from ..formats.rows import Row
from ..formats.tables import split_rows
from .labels import LabelKind
from .sequence_classification import Example, Prediction, SequenceClassificationTask
from .sequence_settings import SequenceClassifierModel, SequenceSettings


@dataclass(frozen=True)
class GlueTask:
    """A task as the benchmark distributes and scores it."""

    name: str
    """The name of its folder and of its file in a submission."""
    columns: tuple[str, ...]
    """The columns of the sentence, or of both."""
    label_column: str
    labels: tuple[str, ...]
    """In the order of the head's outputs; none: the task is a regression."""
    metrics: tuple[str, ...]
    dev_files: tuple[str, ...] = ("dev.tsv",)
    headless: tuple[str, ...] = ()
    """The columns of train.tsv and dev.tsv if these have no header."""
    num_broken_rows: int = 0
    """Number of rows of train.tsv as distributed that lack columns; they are skipped, as is customary."""
    names: tuple[str, ...] = ()
    """The labels 0, 1, ... of the task's files in the library datasets."""

    def label_of(self, name: str) -> str:
        """Return the label that has a name or number in the library datasets; others stay."""
        index = self.names.index(name) if name in self.names else int(name) if name.isdecimal() else len(self.names)
        known = (*self.names[index : index + 1], str(index))
        return next((label for label in known if label in self.labels), name)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
# Sources: gluebenchmark.com/tasks and /faq; Wang et al. 2019, arXiv:1804.07461; the files' own headers; glue.py of the
# library datasets.
TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA", ("sentence",), "label", ("0", "1"), ("matthews",),
        headless=("source", "label", "star", "sentence"), names=("unacceptable", "acceptable"),
    ),
    "sst-2": GlueTask("SST-2", ("sentence",), "label", ("0", "1"), ("accuracy",), names=("negative", "positive")),
    "mrpc": GlueTask(
        "MRPC", ("#1 string", "#2 string"), "quality", ("0", "1"), ("f1", "accuracy"),
        names=("not_equivalent", "equivalent"),
    ),
    "sts-b": GlueTask("STS-B", _PAIR, "score", (), ("pearson", "spearman")),
    "qqp": GlueTask(
        "QQP", ("question1", "question2"), "is_duplicate", ("0", "1"), ("f1", "accuracy"), num_broken_rows=3,
        names=("not_duplicate", "duplicate"),
    ),
    "mnli": GlueTask(
        "MNLI", _PAIR, "gold_label", ("contradiction", "entailment", "neutral"), ("accuracy",),
        dev_files=("dev_matched.tsv", "dev_mismatched.tsv"), names=("entailment", "neutral", "contradiction"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), names=_ENTAILMENT),
    "rte": GlueTask("RTE", _PAIR, "label", _ENTAILMENT, ("accuracy",), names=_ENTAILMENT),
    "wnli": GlueTask("WNLI", _PAIR, "label", ("0", "1"), ("accuracy",), names=("not_entailment", "entailment")),
}  # fmt: skip


@dataclass
class GlueExampleSettings(SequenceSettings):
    """Where the data are, and how examples become tokens."""

    data_dir: str | None = None
    """The task's folder, with train.tsv and dev.tsv as GLUE distributes them."""
    max_seq_length: int = 128
    """Tokens of a sentence or pair with its special tokens; a longer one is read in overlapping windows."""


@dataclass
class GlueDataSettings(DataSettings):
    """One set of data: `file`, or names in data_dir. The default of validation_ds is the task's dev files."""

    ds_item: Any = None
    """A file's name in data_dir, or a list of names."""


@dataclass
class GlueTrainSettings(TrainDataSettings):
    """The training data: `file`, or names in data_dir."""

    batch_size: int = 32
    """Sequences in a micro-batch."""
    ds_item: Any = "train.tsv"
    """A file's name in data_dir, or a list of names."""


@dataclass
class GlueModel(SequenceClassifierModel):
    """The network, its data and its optimizer."""

    task_name: str | None = choice(None, *TASKS)
    """Which of the nine tasks."""
    dataset: GlueExampleSettings = field(default_factory=GlueExampleSettings)
    train_ds: GlueTrainSettings = field(default_factory=GlueTrainSettings)
    validation_ds: GlueDataSettings = field(default_factory=GlueDataSettings)
    test_ds: GlueDataSettings = field(default_factory=GlueDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(5e-5))


@dataclass
class GlueSettings(Settings):
    """All settings of a run."""

    model: GlueModel = field(default_factory=GlueModel)


class Glue(SequenceClassificationTask):
    r"""Fine-tune and score on the nine tasks of GLUE: cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli.

        megabert train glue model.task_name=mrpc model.dataset.data_dir=MRPC \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN file=MRPC/test.tsv output_dir=OUT
        megabert score glue MRPC/dev.tsv OUT/MRPC.tsv

    Data: the tab-separated files as GLUE distributes them, in `model.dataset.data_dir`; MNLI is validated on both its
    dev files. A row that lacks columns is an error; three such rows of QQP's train.tsv are known, and skipped as is
    customary. JSON lines and Parquet of the library datasets have its labels, names or numbers, and its idx.

    Predictions: as those of text classification; with `output_dir` also CoLA.tsv and so on, in the format of a
    submission.

    Metrics: those of the benchmark: Matthews' correlation for CoLA; F1 of class 1 and accuracy for MRPC and QQP;
    Pearson's and Spearman's correlation for STS-B; accuracy for the others. `glue` is the task's part of GLUE's
    average: the mean of its metrics. The names of the metrics of MNLI's second file begin with the file's name.
    """

    settings_type = GlueSettings
    main_score = "glue"

    def __init__(self, settings: GlueSettings) -> None:
        if settings.model.task_name is None:
            raise ConfigError(f"model.task_name is not given. Set it to one of {', '.join(TASKS)}.")
        self.row = TASKS[settings.model.task_name]
        super().__init__(settings, "single_label" if self.row.labels else "regression")

    def file_groups(self, data: Any) -> list[list[str]]:
        """Return those of `file`, or of data_dir."""
        if data.file is not None:
            return super().file_groups(data)
        items = data.ds_item
        # NeMo's configuration has dev.tsv, for MNLI's two files, too.
        if items in (None, "dev.tsv") and data is self.settings.model.validation_ds:
            items = list(self.row.dev_files)
        if items is None or self.dataset.data_dir is None:
            return []
        return [[str(Path(self.dataset.data_dir) / item)] for item in ([items] if isinstance(items, str) else items)]

    def read(self, path: Path) -> Sequence[Example]:
        """Read a file of GLUE, or JSON lines with text, text_b and label, or with the names of GLUE's columns."""
        if has_objects(path):
            return derived(super().read(path), lambda examples: map(self._of_datasets, examples))
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
        complete = [row for row in rows if len(row[0]) == len(header)]
        if len(rows) - len(complete) > self.row.num_broken_rows:
            values, location = next(row for row in rows if len(row[0]) != len(header))
            raise InputError(
                f"{location}: {len(values)} columns where the first line has {len(header)}. Correct the row."
            )
        return [
            self._glue_example(dict(zip(header, values, strict=True)), location, number)
            for number, (values, location) in enumerate(complete)
        ]

    def columns_of(self, path: Path) -> Mapping[str, Any]:
        """Return GLUE's own names of columns if JSON lines have these: question and sentence of QNLI."""
        names, own = object_rows(path)[0].values, self.row.columns
        if self.dataset.columns or not set(own) <= names.keys():
            return super().columns_of(path)
        labels = [name for name in (self.row.label_column, "label") if name in names]
        own_id = "id" if "id" in names else "idx"
        more = {role: name for role, name in (("label", "".join(labels[:1])), ("id", own_id)) if name in names}
        return dict(zip(("text", "text_b"), own, strict=False)) | more

    def _of_datasets(self, example: Example) -> Example:
        """Give an example of the library datasets GLUE's label, and the index that a submission needs."""
        labels = None if example.labels is None else tuple(map(self.row.label_of, example.labels))
        given = dict(example.given)
        index = given.pop("idx", None)
        name = example.id if index is None else str(index)
        return replace(example, id=name, labels=labels, given=given)

    def _glue_example(self, values: Mapping[str, str], location: str, number: int) -> Example:
        texts = [values[name] for name in self.row.columns]
        labels = None
        if self.row.label_column in values:
            labels = self.parse_labels(values[self.row.label_column], location)
        if labels is not None and self.row.labels and labels[0] not in self.row.labels:
            raise InputError(
                f"{location}: the label {labels[0]!r} is none of {self.row.name}'s {', '.join(self.row.labels)}."
            )
        pair = texts[1] if len(texts) > 1 else None
        return Example(values.get("index", str(number)), texts[0], pair, labels, location)

    def ordered(self, kind: LabelKind, labels: Collection[str]) -> list[str]:
        """Return the task's labels, including those without a training example."""
        return list(self.row.labels)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Compute the task's metrics of each file; the names of those of later files begin with the file's name."""
        groups: dict[str, list[tuple[Example, Prediction]]] = {}
        for example, prediction in zip(examples, predictions, strict=True):
            groups.setdefault(_stem(example), []).append((example, prediction))
        scores: dict[str, float] = {}
        for stem, pairs in groups.items():
            prefix = f"{stem}/" if scores else ""
            scores |= {f"{prefix}{name}": value for name, value in self._score_one(*zip(*pairs, strict=True)).items()}
        return scores | {"total": len(examples)}

    def _score_one(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        computed = super().score(examples, predictions)
        if "f1" in self.row.metrics:
            computed["f1"] = computed["1/f1"]
        scores = {name: computed[name] for name in self.row.metrics}
        return {"glue": sum(scores.values()) / len(scores)} | scores

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read a submission's file, JSON lines as `megabert predict` writes them, or a label a line."""
        rows = super().read_predictions(path)
        if rows[0].values.get("label") != "index\tprediction":
            return rows
        return [
            Row({"id": name, "label": label}, row.location)
            for row in rows[1:]
            for name, _, label in [str(row.values["label"]).partition("\t")]
        ]

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the label or value of an example; in files other than JSON lines a value is a label, too."""
        if self.is_regression and "value" not in row.values:
            row = Row({"value": row.values.get("label")}, row.location)
        return super().from_json(example, row)

    @classmethod
    def scorer(cls, gold: Path, rows: Sequence[Row], words: Sequence[str] = ()) -> Glue:
        """Infer the task from the header of a labelled file, and from its labels where headers are alike."""
        header = split_rows(gold)[0][0]
        for name, row in TASKS.items():
            if row.headless and set(row.columns) & set(header):
                continue  # the file has a header, that of another task
            task = cls(compose(GlueSettings, [f"model.task_name={name}", *words], owner="glue")[0])
            try:
                examples = task.read(gold)
            except InputError:
                continue
            if examples and examples[0].labels is not None:
                task.labels = list(task.row.labels)
                return task
        raise InputError(f"{gold} has the columns of no task of GLUE. Give a file with labels as GLUE distributes it.")

    def write_predictions(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return the files of a submission, such as CoLA.tsv."""
        files: dict[str, list[str]] = {}
        for example, prediction in zip(examples, predictions, strict=True):
            lines = files.setdefault(_submission_name(self.row.name, _stem(example)), ["index\tprediction\n"])
            answer = prediction.labels[0] if prediction.value is None else f"{min(max(prediction.value, 0), 5):.3f}"
            lines.append(f"{example.id}\t{answer}\n")
        return {name: "".join(lines) for name, lines in files.items()}


def _stem(example: Example) -> str:
    return Path(example.location.rpartition(":")[0]).stem


def _submission_name(name: str, stem: str) -> str:
    if name == "MNLI":
        name = {"mismatched": "MNLI-mm", "diagnostic": "AX", "AX": "AX"}.get(stem.rpartition("_")[2], "MNLI-m")
    return f"{name}.tsv"
