"""Rows of predictions judged by hand, and against the scores of the tasks themselves."""

import json

import pytest

from megabert.analysis.judgments import by_length, columns, confidences, group, judge, num_words, read_judged
from megabert.analysis.run_comparison import score_tests
from megabert.errors import InputError


def mention(kind, start, end, score=1.0, text=""):
    return {"type": kind, "text": text, "start": start, "end": end, "score": score}


ENTITIES = {
    "id": "1",
    "text": "a b c",
    "entities": [mention("X", 0, 1, 0.9), mention("Y", 2, 3, 0.6)],
    "tags": ["B-X", "B-Y", "O"],
    "gold": {"entities": [mention("X", 0, 1), mention("X", 2, 3), mention("X", 4, 5)], "tags": ["B-X", "B-X", "B-X"]},
}
ANSWER = {
    "question": "Who?", "context": "It was Marie Curie.", "answer": "Curie", "probability": 0.7,
    "gold": {"answers": [{"text": "Marie Curie", "start": 7}]},
}  # fmt: skip


def test_entities_answers_and_labels_by_hand():
    f1, words = judge(ENTITIES)["f1"], judge(ENTITIES)["word_accuracy"]
    assert (f1.numerator, f1.denominator, f1.is_correct) == (2, 5, False)
    assert (words.numerator, words.denominator) == (1, 3)
    assert confidences(ENTITIES) == [(0.9, True), (0.6, False)]
    answer = judge(ANSWER)
    assert answer["f1"].numerator == pytest.approx(2 / 3) and not answer["exact_match"].is_correct
    assert confidences(ANSWER) == [(0.7, False)] and num_words(ANSWER) == 4
    label = {"label": "a", "probability": 0.8, "gold": {"label": "a"}}
    assert judge(label)["accuracy"].is_correct and confidences(label) == [(0.8, True)]
    several = {"labels": ["a", "b"], "probabilities": {"a": 0.9, "b": 0.7, "c": 0.4}, "gold": {"labels": ["a", "c"]}}
    assert judge(several)["micro_f1"].numerator == 2
    assert confidences(several) == [(0.9, True), (0.7, False), (0.4, True)]
    marks = {"labels": "OU .O", "gold": {"labels": "OU OO"}}
    assert judge(marks)["word_accuracy"].numerator == 1
    assert list(judge({"value": 1.0, "gold": {"value": 2.0}})) == []
    assert judge({"state": {"a": 1}, "gold": {"state": {"a": 1}}})["state accuracy"].is_correct


def test_an_unanswerable_question_is_right_if_there_is_no_answer():
    assert judge({"answer": "", "gold": {"answers": []}})["exact_match"].is_correct
    assert not judge({"answer": "Paris", "gold": {"answers": []}})["exact_match"].is_correct


def test_lengths_are_grouped_by_words():
    assert [group(number, (1, 2, 3, 5)) for number in (1, 3, 4, 5, 6, 99)] == ["1", "3", "4-5", "4-5", "6+", "6+"]
    assert [group(number, (10, 20)) for number in (0, 10, 11, 20, 21)] == ["1-10", "1-10", "11-20", "11-20", "21+"]
    rows = [
        {"text": "a " * size, "label": "x", "gold": {"label": gold}} for size, gold in ((3, "x"), (4, "y"), (30, "x"))
    ]
    assert by_length(rows) == {"accuracy": {"1-10": (50.0, 2), "21-40": (100.0, 1)}}


def test_scores_of_words_without_entities_are_left_out():
    row = {"entities": [], "tags": ["N"], "gold": {"entities": [], "tags": ["N"]}}
    assert list(columns([row])) == ["word_accuracy"]


def test_the_tests_of_two_systems():
    right, wrong = ({"id": "1", "label": label, "gold": {"label": "a"}} for label in ("a", "b"))
    (test,) = score_tests([right] * 3 + [wrong] * 5, [right] * 8)
    assert (test.score, test.first, test.second, test.num_examples) == ("accuracy", 37.5, 100, 8)
    assert (test.examples.only_first, test.examples.only_second, test.examples.p_value) == (0, 5, 2 / 32)
    assert test.bootstrap.difference == 62.5


def test_predictions_without_gold_labels_are_refused(tmp_path):
    file = tmp_path / "predictions.jsonl"
    with pytest.raises(InputError, match="does not exist"):
        read_judged(file)
    file.write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_judged(file)
    file.write_text(json.dumps({"id": "1", "label": "a"}) + "\n")
    with pytest.raises(InputError, match=r"predictions.jsonl:1: there are no gold labels"):
        read_judged(file)
