"""Runs of version 1's format (runs_v1, a tiny one of each task) predict, evaluate and resume with the same results."""

import json
import shutil
from pathlib import Path

import pytest

import megabert
from megabert.cli import main

RUNS = Path(__file__).parent / "runs_v1"
# text_classification has four runs: one label, pairs, several labels, a number.
PREDICTING = [
    "glue", "intent_slot", "punctuation_capitalization", "question_answering", "relation_extraction",
    "text_classification", "text_classification_multi_label", "text_classification_pairs",
    "text_classification_regression", "token_classification", "zero_shot",
]  # fmt: skip
PRETRAINING = ["causal_language_model", "masked_language_model"]
# Fields of an example, where a text alone is not enough.
FIELDS = {
    "glue": {"text": "marie found radium", "text_b": "radium was found"},
    "text_classification_pairs": {"text": "marie", "text_b": "paris"},
    "relation_extraction": {"text": "marie was born in paris", "head": "marie", "tail": "paris"},
    "masked_language_model": {"text": "marie curie [MASK] radium"},
    "zero_shot": {"text": "the river", "labels": "born,river"},
}


def stored(name, file="answers.json"):
    return json.loads((RUNS / name / file).read_text(encoding="utf-8"))


def input_of(name):
    (file,) = (RUNS / name).glob("input.*")
    return file


def assert_same(actual, expected, tolerance=1e-6):
    """Strings, integers, keys and their order must be equal, floats nearly."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert type(actual) is type(expected)
        assert actual == expected


def test_every_stored_run_is_tested():
    assert sorted(folder.name for folder in RUNS.iterdir()) == sorted(PREDICTING + PRETRAINING)


@pytest.mark.parametrize("name", PREDICTING)
def test_a_stored_run_predicts_the_same(name, tmp_path, capsys):
    run, output = RUNS / name / "run", tmp_path / "answers.jsonl"
    assert main(["predict", str(run), f"file={input_of(name)}", f"output={output}", "accelerator=cpu"]) == 0
    rows, expected = map(json.loads, output.read_text(encoding="utf-8").splitlines()), stored(name)
    # Later versions add inputs, offsets and gold labels; the text of a relation was what is `marked` now.
    rows = [row | ({"text": row["marked"]} if "marked" in row else {}) for row in rows]
    assert_same([{key: row[key] for key in one} for row, one in zip(rows, expected, strict=True)], expected)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_stored_pre_training_run_evaluates_the_same(name, capsys):
    assert main(["evaluate", str(RUNS / name / "run"), f"file={input_of(name)}", "accelerator=cpu"]) == 0
    assert_same(json.loads(capsys.readouterr().out), stored(name))


@pytest.mark.parametrize("name", [*PREDICTING, *PRETRAINING])
def test_a_stored_run_is_loaded_from_python(name):
    predictor = megabert.load(RUNS / name / "run", accelerator="cpu")
    if name == "question_answering":
        paragraph = json.loads(input_of(name).read_text(encoding="utf-8"))["data"][0]["paragraphs"][0]
        for question, expected in zip(paragraph["qas"], stored(name), strict=False):
            answer = predictor.predict(question=question["question"], context=paragraph["context"])
            assert answer.text == expected["answer"]
    else:
        assert predictor.predict(**FIELDS.get(name, {"text": "marie was born"})) is not None


def test_a_stored_training_resumes_the_same(tmp_path, monkeypatch):
    shutil.copytree(RUNS / "text_classification", tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")  # its settings name the data by a relative path
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    words = ["trainer.max_steps=36", "trainer.log_every_n_steps=1", "exp_manager.resume_past_end=true"]
    assert main(["train", "text_classification", "--resume", "run", *words]) == 0
    lines = (tmp_path / "a" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
    expected = stored("text_classification", "resumed.json")
    assert_same([{key: row[key] for key in expected[0]} for row in rows], expected, tolerance=1e-4)
