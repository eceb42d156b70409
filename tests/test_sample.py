"""The sample data matches its README, and every answer is at its offset."""

import json
import re
import unicodedata
from itertools import chain
from typing import Any

import pytest

from megabert.metrics.squad import squad_v1
from megabert.sample import squad_file

SPLITS = ("train", "dev")
README = squad_file("train").with_name("README.md").read_text(encoding="utf-8")


def articles(split: str) -> list[dict[str, Any]]:
    document = json.loads(squad_file(split).read_text(encoding="utf-8"))
    assert document["version"] == "1.1"
    return document["data"]


def paragraphs(split: str) -> list[dict[str, Any]]:
    return [paragraph for article in articles(split) for paragraph in article["paragraphs"]]


def questions(split: str) -> list[dict[str, Any]]:
    return [question for paragraph in paragraphs(split) for question in paragraph["qas"]]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_at_its_offset_and_consists_of_whole_words(split):
    for paragraph in paragraphs(split):
        context = paragraph["context"]
        for question in paragraph["qas"]:
            for answer in question["answers"]:
                start, text = answer["answer_start"], answer["text"]
                assert context[start : start + len(text)] == text
                before, after = context[:start][-1:], context[start + len(text) :][:1]
                assert not before.isalnum() and not after.isalnum(), (text, context)


@pytest.mark.parametrize("split", SPLITS)
def test_the_preferred_answer_occurs_once_in_its_context(split):
    for paragraph in paragraphs(split):
        for question in paragraph["qas"]:
            text = question["answers"][0]["text"]
            # "4" must not match in "1984" or "4,478", nor "21" in "21.5".
            whole = rf"(?<!\w)(?<!\d[,.]){re.escape(text)}(?!\w)(?![,.]\d)"
            assert len(re.findall(whole, paragraph["context"])) == 1, (text, paragraph["context"])


def test_ids_are_unique_across_both_files():
    ids = [question["id"] for question in chain(questions("train"), questions("dev"))]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", SPLITS)
def test_no_paragraph_has_the_same_question_twice(split):
    for paragraph in paragraphs(split):
        questions = [question["question"] for question in paragraph["qas"]]
        assert len(set(questions)) == len(questions), questions


def test_no_paragraph_is_in_both_files():
    contexts = [paragraph["context"] for paragraph in chain(paragraphs("train"), paragraphs("dev"))]
    assert len(set(contexts)) == len(contexts)


def test_the_table_of_the_readme_is_right():
    rows = dict(re.findall(r"^\| ([a-z][\w ]*) \| (\d+ \| \d+) \|$", README, re.MULTILINE))
    long = {split: [p for p in paragraphs(split) if len(p["context"].split()) >= 50] for split in SPLITS}
    counts = {
        "articles": [len(articles(split)) for split in SPLITS],
        "paragraphs of 50 to 110 words": [len(long[split]) for split in SPLITS],
        "notes of one sentence": [len(paragraphs(split)) - len(long[split]) for split in SPLITS],
        "questions": [len(questions(split)) for split in SPLITS],
        "answers": [sum(len(question["answers"]) for question in questions(split)) for split in SPLITS],
    }
    assert rows == {name: f"{train} | {dev}" for name, (train, dev) in counts.items()}


@pytest.mark.parametrize("split", SPLITS)
def test_a_paragraph_has_50_to_110_words_or_is_one_sentence(split):
    for paragraph in paragraphs(split):
        context = paragraph["context"]
        num_words, num_questions = len(context.split()), len(paragraph["qas"])
        if num_words < 50:
            assert context.count(". ") == 0 and context.endswith(".") and num_questions == 3
        else:
            assert num_words <= 110 and 4 <= num_questions <= 8


def test_dev_questions_have_two_or_three_answers_and_train_questions_one():
    assert {len(question["answers"]) for question in questions("train")} == {1}
    assert {len(question["answers"]) for question in questions("dev")} == {2, 3}


@pytest.mark.parametrize("split", SPLITS)
def test_the_text_is_composed_unicode_without_stray_white_space(split):
    for text in [p["context"] for p in paragraphs(split)] + [q["question"] for q in questions(split)]:
        assert text == unicodedata.normalize("NFC", text)
        assert text == " ".join(text.split(" ")) == text.strip() and "\n" not in text and "  " not in text


def test_both_files_together_stay_small():
    assert sum(squad_file(split).stat().st_size for split in SPLITS) < 150_000


@pytest.mark.parametrize("split", SPLITS)
def test_the_preferred_answers_score_100(split):
    gold = {question["id"]: [answer["text"] for answer in question["answers"]] for question in questions(split)}
    result = squad_v1(gold, {question_id: answers[0] for question_id, answers in gold.items()})
    assert (result["exact_match"], result["f1"], result["missing"]) == (100, 100, 0)
