"""The commands evaluate, predict, score and import on runs of labels: what they read, print and write."""

import io
import json
import subprocess
import sys

import pytest

from megabert.cli import main
from megabert.formats import record_streams
from megabert.tasks import task_data
from tests.tasks.test_contract import CASES, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vocab_file):
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("runs")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MEGABERT_HOME", str(folder / "home"))
                made[name] = train(CASES[name], folder, vocab_file, "trainer.max_epochs=40")
        return made[name]

    return make


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_standard_input_is_predicted_line_by_line(runs, monkeypatch, capsys):
    run, _ = runs("text_classification")
    content = (
        b'\xef\xbb\xbf{"text": "the river in paris", "id": "a"}\n\nradium in france\r\n{"text": "x", "text_b": "y"}\n'
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    capsys.readouterr()
    assert main(["predict", str(run), "file=-", "accelerator=cpu"]) == 0
    found = lines(capsys)
    assert [item["id"] for item in found] == ["a", "3", "4"]
    assert [item["label"] for item in found[:2]] == ["no", "maybe"]
    assert found[2]["text_b"] == "y"
    assert main(["predict", str(run), "file=-", "output=x.jsonl", "accelerator=cpu"]) == 64
    assert "printed as it arrives, without output: > FILE" in capsys.readouterr().err


def test_the_prediction_of_one_text_is_written_where_it_is_told(runs, tmp_path, capsys):
    run, _ = runs("text_classification")
    words = ["predict", str(run), "text=radium in france", "accelerator=cpu"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main([*words, f"output={tmp_path / 'x.jsonl'}", f"output_dir={tmp_path / 'x'}"]) == 0
    assert capsys.readouterr().out == ""
    for file in (tmp_path / "x.jsonl", tmp_path / "x" / "predictions.jsonl"):
        assert json.loads(file.read_text()) == printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "standard input:2: not JSON"),
        (b'{"text": ""}', "standard input:2: text is missing"),
        (b'{"txt": "a"}', "standard input:2: text is missing. Give text=... (also possible: text_b). Found 'txt'."),
        (b'{"text": ["a"]}', "standard input:2: text is a list; expected a string"),
        (b'{"text": "a \\ud800"}', "standard input:2"),
        (b"a\xff", "standard input:2: not UTF-8"),
    ],
)
def test_a_malformed_line_of_standard_input_is_reported_and_all_others_are_predicted(
    line, message, runs, monkeypatch, capsys
):
    run, _ = runs("text_classification")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the river in paris\n" + line + b"\nwho\n")))
    capsys.readouterr()
    assert main(["predict", str(run), "file=-", "accelerator=cpu"]) == 65
    captured = capsys.readouterr()
    assert [json.loads(row)["id"] for row in captured.out.splitlines()] == ["1", "3"]
    assert message in captured.err
    assert captured.err.splitlines()[-1] == "megabert: standard input: 1 of 3 lines could not be predicted."


def test_an_answer_comes_before_the_next_line(runs):
    run, _ = runs("text_classification")
    words = [sys.executable, "-m", "megabert", "predict", str(run), "file=-", "accelerator=cpu"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        for number in ("1", "2"):
            process.stdin.write(b"marie was born\n")
            assert json.loads(process.stdout.readline())["id"] == number
        process.stdin.close()
    assert process.returncode == 0


def test_other_fields_are_passed_through_from_standard_input_and_files(runs, tmp_path, monkeypatch, capsys):
    run, _ = runs("text_classification")
    rows = [{"id": 7, "text": "who", "pmid": 12, "label": "no"}, {"text": "a", "place": {"page": 1}, "label": "yes"}]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["predict", str(run), f"file={file}", "accelerator=cpu"]) == 0
    of_file = lines(capsys)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert main(["predict", str(run), "file=-", "accelerator=cpu"]) == 0
    assert lines(capsys) == of_file
    assert (of_file[0]["id"], of_file[0]["pmid"], of_file[0]["gold"]) == ("7", 12, {"label": "no"})
    assert (of_file[1]["id"], of_file[1]["place"]) == ("2", {"page": 1})


def test_a_text_needs_no_key(runs, tmp_path, monkeypatch, capsys):
    run, _ = runs("text_classification")
    capsys.readouterr()
    assert main(["predict", str(run), "x = 5: the river", "accelerator=cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "x = 5: the river"
    (tmp_path / "notes.txt").write_text("a")
    for words, message in (
        (["the", "river"], 'Write a text in quotes: "the river"'),
        (["a", "text=b"], "Give one text."),
        ([str(tmp_path / "notes.txt")], f"Write file={tmp_path / 'notes.txt'} to predict it"),
    ):
        assert main(["predict", str(run), *words]) == 64
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["predict", "text=a"], ["evaluate", "file=x"]])
def test_a_missing_run_is_named(words, capsys):
    assert main(words) == 64
    assert f"The run is missing. Give its folder first: megabert {words[0]} RUN {words[1]}" in capsys.readouterr().err


def test_an_evaluation_writes_scores_predictions_report_and_confusion(runs, tmp_path, capsys, whole_pictures):
    run, file = runs("token_classification")
    assert main(["evaluate", str(run), f"file={file}", f"output_dir={tmp_path}", "accelerator=cpu"]) == 0
    names = {"scores.json", "predictions.jsonl", "predictions.txt"}
    names |= {"report_tag.txt", "confusion_tag.tsv", "confusion_tag.png", "calibration.png", "lengths.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(capsys.readouterr().out)
    assert all(file.stat().st_size > 1000 for file in tmp_path.glob("*.png"))
    table = [row.split("\t") for row in (tmp_path / "confusion_tag.tsv").read_text().splitlines()]
    assert sum(int(count) for row in table[1:] for count in row[1:]) == 11
    assert {path.name for path in (run / "validation").iterdir()} == names
    first = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert first["text"] == "marie curie was born in warsaw"
    assert first["words"][1] == [6, 11]
    (person, place) = first["gold"]["entities"]
    assert (person["type"], person["start"], person["end"]) == ("PER", 0, 11)
    assert first["tags"] == first["gold"]["tags"] == ["B-PER", "I-PER", "O", "O", "O", "B-LOC"]
    assert place["text"] == first["entities"][1]["text"] == "warsaw"


def test_an_evaluation_names_labels_that_the_run_lacks(runs, tmp_path, capsys):
    run, _ = runs("text_classification")
    (tmp_path / "x.tsv").write_text("the river in paris\tyess\nradium in france\tno\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={tmp_path / 'x.tsv'}", "accelerator=cpu"]) == 0
    assert "x.tsv:1: 'yess' is no label that the run was trained on" in capsys.readouterr().err


def test_the_two_files_of_nemo_are_evaluated_in_data_dir(runs, tmp_path, capsys):
    run, file = runs("token_classification")
    (tmp_path / "text_dev.txt").write_text("marie curie was born in warsaw\nthe seine is in paris\n")
    (tmp_path / "labels_dev.txt").write_text("B-PER I-PER O O O B-LOC\nO B-LOC O O B-LOC\n")
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu"]) == 0
    expected = capsys.readouterr().out
    folder = f"model.dataset.data_dir={tmp_path}"
    for names in (
        ["text_file=text_dev.txt", "labels_file=labels_dev.txt"],
        ["model.test_ds.text_file=text_dev.txt", "model.test_ds.labels_file=labels_dev.txt"],
    ):
        assert main(["evaluate", str(run), folder, *names, "accelerator=cpu"]) == 0
        assert capsys.readouterr().out == expected
    assert main(["predict", str(run), folder, "text_file=text_dev.txt", "accelerator=cpu"]) == 0
    assert len(lines(capsys)) == 2
    assert main(["evaluate", str(run), folder, "text_file=nowhere.txt", "accelerator=cpu"]) == 65
    assert f"{tmp_path / 'nowhere.txt'} does not exist" in capsys.readouterr().err


def test_predictions_in_a_folder_can_be_scored(runs, tmp_path, capsys):
    run, file = runs("intent_slot")
    assert main(["predict", str(run), f"file={file}", f"output_dir={tmp_path}", "accelerator=cpu"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["score", "intent_slot", str(file), str(tmp_path / "predictions.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected)


@pytest.mark.parametrize("held", [10**6, -1])
@pytest.mark.parametrize("name", ["several labels", "a number", "punctuation_capitalization", "token_classification"])
def test_predictions_score_the_same_from_a_file(name, held, runs, tmp_path, capsys, monkeypatch):
    run, file = runs(name)
    task = CASES[name].task
    monkeypatch.setattr(record_streams, "MAX_HELD", held)
    monkeypatch.setattr(task_data, "BLOCK_SIZE", 1)
    assert main(["predict", str(run), f"file={file}", f"output={tmp_path / 'found.jsonl'}", "accelerator=cpu"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), f"file={file}", "accelerator=cpu"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["score", task, str(file), str(tmp_path / "found.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_a_sweep_ends_with_mean_and_deviation(tmp_path, vocab_file, monkeypatch, capsys):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    run, _ = train(CASES["text_classification"], tmp_path / "a", vocab_file, "trainer.max_epochs=2", "-m", "seed=1,2,3")
    printed = capsys.readouterr().out
    assert "last validation, mean ± sample deviation of 3 runs" in printed
    sweep = json.loads((run / "sweep.json").read_text())
    assert len(sweep["runs"]) == 3
    values = sweep["scores"]["accuracy"]["values"]
    assert sweep["scores"]["accuracy"]["mean"] == pytest.approx(sum(values) / 3)
    assert f"{sweep['scores']['accuracy']['mean']:.2f} ±" in printed


def test_zero_shot_predicts_labels_that_are_given_at_prediction(runs, tmp_path, capsys):
    run, _ = runs("zero_shot")
    (tmp_path / "topics.tsv").write_text("the river\triver\nmarie was born\tborn\n")
    assert main(["evaluate", str(run), f"file={tmp_path / 'topics.tsv'}", "accelerator=cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 2
    for more in ((), ("model.dataset.multi_label=true",)):
        assert main(["predict", str(run), "text=the river", "labels=born,river", "accelerator=cpu", *more]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer["probabilities"]) == {"born", "river"}
        assert more or sum(answer["probabilities"].values()) == pytest.approx(1)
    assert main(["predict", str(run), "text=the river", "accelerator=cpu"]) == 65
    assert "There are no labels to choose from" in capsys.readouterr().err
    words = ["text=a", "labels=b", "accelerator=cpu", "model.dataset.entailment_label=yes"]
    assert main(["predict", str(run), *words]) == 64
    assert "Set it to the label of hypotheses that follow" in capsys.readouterr().err


def test_columns_are_imported_as_nemo_s_two_files(tmp_path):
    (tmp_path / "x.conll").write_text("EU NNP B-ORG\nrejects VBZ O\n\nBonn NNP B-LOC\n")
    assert main(["import", "iob", "--data_file", str(tmp_path / "x.conll")]) == 0
    assert (tmp_path / "text_x.txt").read_text() == "EU rejects\nBonn\n"
    assert (tmp_path / "labels_x.txt").read_text() == "B-ORG O\nB-LOC\n"
    assert main(["import", "iob", "--data_file", str(tmp_path / "x.conll"), "--max_length", "1", "--name", "y"]) == 0
    assert (tmp_path / "text_y.txt").read_text() == "EU\nBonn\n"


def test_plain_text_is_imported_for_punctuation(tmp_path):
    (tmp_path / "x.txt").write_text("Hello, NATO. Is it?\n\n--\nYes!\n")
    words = ["import", "punctuation", "-s", str(tmp_path / "x.txt"), "-o", str(tmp_path / "out")]
    assert main(words) == 0
    assert (tmp_path / "out" / "text_x.txt").read_text() == "hello nato is it\nyes\n"
    assert (tmp_path / "out" / "labels_x.txt").read_text() == ",U .U OU ?O\nOU\n"
    assert main([*words, "--all_capitals", "--marks", "!"]) == 0
    assert (tmp_path / "out" / "labels_x.txt").read_text() == "OU OA OU OO\n!U\n"
