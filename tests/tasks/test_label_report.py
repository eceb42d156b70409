"""Every training prints its labels with counts, and warns where they look like something else."""

import json

import pytest

from megabert.tasks.label_report import LabelReport, label_warnings
from tests.tasks.test_contract import CASES, train


@pytest.mark.parametrize(
    ("counts", "words", "message"),
    [
        ({f"text {number}": 1 for number in range(9)}, (), "9 different labels (tag) for 9 of them"),
        ({"the drug helped a lot": 9, "pain got much worse": 8}, (), "are texts: the drug helped a lot"),
        ({"O": 9, "show": 4, "acute": 5}, {"show", "acute", "now"}, "are words of the data: show, acute"),
        ({"O": 9, "1": 4, "2": 5}, {"acute"}, "are numbers: 1, 2"),
        ({"0.98": 9, "0.5": 4}, (), "are numbers: 0.98, 0.5"),
        ({"good": 9, "bad": 9, "sentiment": 1}, (), "'sentiment' (tag) occurs once. Is it a header line?"),
        ({"Yes": 9, "no": 9, "yes": 1}, (), "look alike are different labels: 'Yes' (9), 'yes' (1)"),
        ({"B-Drug": 9, "B-Drug\u00a0": 2}, (), "look alike are different labels: 'B-Drug' (9), 'B-Drug\\xa0' (2)"),
        ({"x": 9, "y": 9, "x;y": 3}, (), "'x;y' (tag) joins others"),
        ({"1": 9, "1.0": 9, "0": 3}, (), "look alike are different labels: '1' (9), '1.0' (9)"),
    ],
)
def test_labels_that_look_like_something_else_are_named(counts, words, message):
    assert any(message in warning for warning in label_warnings("tag", counts, "O", words or None))


@pytest.mark.parametrize(
    "counts",
    [
        {"O": 103, "B-Chemical": 5, "I-Chemical": 1}, {"0": 9, "1": 8}, {"entailment": 3, "contradiction": 2},
        {"NOUN": 86, "PUNCT": 60, "X": 1}, {".": 9, ",": 4, "?": 1}, {"C++": 3, "C#": 3, "C": 2}, {"+": 3, "-": 3},
        {"CPR:3": 9, "CPR:30": 1, "false": 80}, {"yes": 1, "no": 2, "maybe": 1},
    ],
)  # fmt: skip
def test_usual_labels_are_not_warned_of(counts):
    assert label_warnings("label", counts, "O", None) == []


def test_counts_are_shown_most_frequent_first_and_cut_after_twenty():
    (line,) = LabelReport({"tag": {f"T{number}": 50 - number for number in range(30)} | {"x" * 99: 1234}}).lines()
    assert line.startswith("Labels (tag, 31): T0 50, T1 49, ")
    assert line.endswith(", T19 31, and 11 more")


PRINTED = {
    "token_classification": "Labels (tag, 4): O 6, B-LOC 3, B-PER 1, I-PER 1",
    "several labels": "Labels (label, 3): a 2, b 2, c 1",
    "intent_slot": "Labels (intent, 2): ask 2, tell 2",
    "punctuation_capitalization": "Labels (mark, 4): O 12, . 2, ",
    "zero_shot": "Labels (label, 2): contradiction 2, entailment 2",
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_training_prints_its_labels_also_from_the_cache(name, tmp_path, vocab_file, monkeypatch, capsys):
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    for folder in ("a", "b"):
        run, _ = train(CASES[name], tmp_path / folder, vocab_file, "trainer.max_epochs=1")
        printed = capsys.readouterr().err
        assert PRINTED[name] in printed, printed
        assert json.loads((run / "run.json").read_text())["labels"]
