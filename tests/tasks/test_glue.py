import json

import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from megabert.config.parser import compose
from megabert.config.schema import DataSettings
from megabert.errors import ConfigError
from megabert.tasks.glue import TASKS, Glue, GlueSettings
from megabert.tasks.sequence_classification import Prediction

HEADERS = {  # the header lines as GLUE distributes them; CoLA's files have none
    "sst-2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "sts-b": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
    "wnli": "index\tsentence1\tsentence2\tlabel",
}


def task(name):
    return Glue(compose(GlueSettings, [f"model.task_name={name}"], owner="glue")[0])


def write(folder, name, labels, file="dev.tsv"):
    rows = []
    for number, label in enumerate(labels):
        if name == "cola":
            rows.append(f"gj04\t{label}\t\tsentence {number}")
            continue
        glue = task(name).row
        values = dict.fromkeys(glue.columns, f"text {number}") | {glue.label_column: label, "index": str(number)}
        rows.append("\t".join(values.get(column.lower(), "x") for column in HEADERS[name].split("\t")))
    header = [] if name == "cola" else [HEADERS[name]]
    (folder / file).write_text("\n".join([*header, *rows]) + "\n")
    return folder / file


GOLD = {name: [*row.labels * 3][:7] if row.labels else ["0", "5.0", "2.5", "3", "1", "4.2", "0.5"]
        for name, row in TASKS.items()}  # fmt: skip


def prediction(example, label, regression):
    if regression:
        return Prediction(example.id, example.text, (), {}, float(label))
    return Prediction(example.id, example.text, (label,), {label: 1.0})


@pytest.mark.parametrize("name", TASKS)
def test_each_task_s_metrics_are_those_of_the_benchmark(name, tmp_path):
    glue = task(name)
    examples = glue.read(write(tmp_path, name, GOLD[name]))
    glue.learn_labels(examples)
    predicted = [*GOLD[name][1:], GOLD[name][0]]
    predicted[2] = GOLD[name][2]
    regression = glue.is_regression
    predictions = [prediction(item, label, regression) for item, label in zip(examples, predicted, strict=True)]
    scores = glue.score(examples, predictions)
    numbers = (
        [[float(item) for item in side] for side in (GOLD[name], predicted)] if regression else [GOLD[name], predicted]
    )
    expected = {
        "matthews": lambda: matthews_corrcoef(*numbers),
        "accuracy": lambda: accuracy_score(*numbers),
        "f1": lambda: f1_score(*numbers, pos_label="1"),
        "pearson": lambda: stats.pearsonr(*numbers).statistic,
        "spearman": lambda: stats.spearmanr(*numbers).statistic,
    }
    expected_scores = [100 * expected[metric]() for metric in glue.row.metrics]
    assert [scores[metric] for metric in glue.row.metrics] == pytest.approx(expected_scores)
    assert scores["glue"] == pytest.approx(sum(expected_scores) / len(expected_scores))


@pytest.mark.parametrize("name", TASKS)
def test_a_submission_scores_the_same_as_the_predictions(name, tmp_path):
    glue = task(name)
    gold = write(tmp_path, name, GOLD[name], "dev_matched.tsv" if name == "mnli" else "dev.tsv")
    examples = glue.read(gold)
    regression = glue.is_regression
    predicted = [*GOLD[name][1:], GOLD[name][0]]
    predictions = [prediction(item, label, regression) for item, label in zip(examples, predicted, strict=True)]
    ((file, content),) = glue.write_predictions(examples, predictions).items()
    assert file == ("MNLI-m.tsv" if name == "mnli" else f"{glue.row.name}.tsv")
    assert content.startswith("index\tprediction\n0\t")
    (tmp_path / file).write_text(content)
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(glue.to_json(item)) + "\n" for item in predictions))
    glue.learn_labels(examples)
    expected = glue.score(examples, predictions)
    assert Glue.score_files(gold, tmp_path / file) == pytest.approx(expected)
    assert Glue.score_files(gold, tmp_path / "found.jsonl") == pytest.approx(expected)
    # RTE and WNLI have the same columns; only their labels differ.
    assert Glue.scorer(gold, []).row.name == glue.row.name


def test_mnli_s_two_files_are_scored_separately(tmp_path):
    glue = task("mnli")
    files = [str(write(tmp_path, "mnli", ["neutral"] * 4, name)) for name in ("dev_matched.tsv", "dev_mismatched.tsv")]
    examples = glue.read_data(DataSettings(file=files))
    glue.learn_labels(examples)
    predicted = ["neutral", "neutral", "neutral", "entailment", "neutral", *["entailment"] * 3]
    predictions = [
        Prediction(item.id, item.text, (label,), {}) for item, label in zip(examples, predicted, strict=True)
    ]
    scores = glue.score(examples, predictions)
    assert (scores["accuracy"], scores["dev_mismatched/accuracy"], scores["total"]) == (75, 25, 8)
    assert set(glue.write_predictions(examples, predictions)) == {"MNLI-m.tsv", "MNLI-mm.tsv"}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("qnli", {"question": "a", "sentence": "b", "label": "entailment", "idx": 7}, ("a", "b", ("entailment",))),
        ("qqp", {"id": 3, "question1": "a", "question2": "b", "is_duplicate": 1}, ("a", "b", ("1",))),
        ("sst-2", {"sentence": "a", "label": 1}, ("a", None, ("1",))),
        ("rte", {"text": "a", "text_b": "b", "label": "entailment"}, ("a", "b", ("entailment",))),
    ],
)
def test_json_lines_may_have_the_names_of_glue_s_columns(name, row, expected, tmp_path, recwarn):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (example,) = task(name).read(tmp_path / "a.jsonl")
    assert (example.text, example.pair, example.labels) == expected
    assert example.id == str(row.get("id", row.get("idx", 1)))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("mnli", {0: "entailment", 1: "neutral", 2: "contradiction", "neutral": "neutral"}),
        ("rte", {0: "entailment", 1: "not_entailment", "not_entailment": "not_entailment"}),
        ("wnli", {0: "0", 1: "1", "entailment": "1", "not_entailment": "0"}),
        ("mrpc", {0: "0", 1: "1", "equivalent": "1"}),
        ("sst-2", {0: "0", "positive": "1", 2: "2", "other": "other"}),
        ("sts-b", {3.5: "3.5", 0: "0.0"}),
    ],
)
def test_labels_of_the_library_datasets_are_those_of_glue(name, labels, tmp_path):
    texts = {"sentence": "a"} if name == "sst-2" else {"sentence1": "a", "sentence2": "b"}
    rows = [texts | {"label": label, "idx": number} for number, label in enumerate(labels)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.labels for item in task(name).read(tmp_path / "a.jsonl")] == [(label,) for label in labels.values()]
    assert [item.id for item in task(name).read(tmp_path / "a.jsonl")] == [str(row["idx"]) for row in rows]
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps(row | {"label": -1.0}) for row in rows))
    assert {item.labels for item in task(name).read(tmp_path / "test.jsonl")} == {None}


def test_files_lie_in_the_data_folder(tmp_path):
    words = ["model.task_name=mnli", f"model.dataset.data_dir={tmp_path}", "model.test_ds.ds_item=[a.tsv,b.tsv]"]
    glue = Glue(compose(GlueSettings, words, owner="glue")[0])
    model = glue.settings.model
    assert glue.files(model.train_ds) == [f"{tmp_path}/train.tsv"]
    assert glue.files(model.validation_ds) == [f"{tmp_path}/dev_matched.tsv", f"{tmp_path}/dev_mismatched.tsv"]
    assert glue.files(model.test_ds) == [f"{tmp_path}/a.tsv", f"{tmp_path}/b.tsv"]


def test_a_task_must_be_named():
    with pytest.raises(ConfigError, match=r"Set it to one of cola, sst-2"):
        Glue(GlueSettings())
