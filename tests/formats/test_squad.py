import json

import pytest

from megabert.errors import InputError
from megabert.formats.squad import Answer, read_squad
from tests.conftest import squad_document


def write(tmp_path, content):
    file = tmp_path / "data.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def qa(**changes):
    question = {"id": "1", "question": "Where?", "answers": [{"text": "here", "answer_start": 6}]} | changes
    question = {key: value for key, value in question.items() if value is not ...}
    return {"data": [{"paragraphs": [{"context": "It is here.", "qas": [question]}]}]}


def test_a_file_is_read(squad_file):
    examples = read_squad(squad_file)
    assert [example.id for example in examples] == ["0.0", "0.1", "1.0", "1.1"]
    assert examples[0].answers[0].text == "Warsaw"
    assert examples[0].context[examples[0].answers[0].start :].startswith("Warsaw")


def test_answers_may_be_absent_or_impossible(tmp_path):
    assert read_squad(write(tmp_path, qa(answers=...)))[0].answers is None
    assert read_squad(write(tmp_path, qa(answers=[])))[0].answers == ()
    assert read_squad(write(tmp_path, qa(answers=..., is_impossible=True)))[0].answers == ()


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert len(read_squad(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(qa()).encode()))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("  \n", "is empty"),
        ("{", "data.json:1:2: not JSON"),
        ("[1, 2]", "not a SQuAD file"),
        ("null", "not a SQuAD file"),
        ("{}", "not a SQuAD file"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\x00\x01\x02", "a NUL character"),
        ({"data": []}, "holds no questions"),
        ({"data": {}}, "not a SQuAD file"),
        ({"data": ["text"]}, r"data\[0\] has no 'paragraphs'"),
        ({"data": [{"paragraphs": [{}]}]}, r"paragraphs\[0\] has no 'context'"),
        ({"data": [{"paragraphs": [{"context": 5, "qas": []}]}]}, "context is a int; expected str"),
        ({"data": [{"paragraphs": [{"context": "", "qas": [7]}]}]}, r"qas\[0\] has no 'id'"),
        (qa(question=...), "has no 'question'"),
        (qa(question="  "), "question is empty"),
        (qa(question=None), "question is a NoneType"),
        (qa(id=...), "has no 'id'"),
        (qa(answers="here"), "answers is a str"),
        (qa(answers=["here"]), "has no 'text'"),
        (qa(answers=[{"text": "", "answer_start": 0}]), "an answer is empty"),
        (qa(answers=[{"text": "here", "answer_start": "6"}]), "answer_start is a str"),
        (qa(answers=[{"text": "here", "answer_start": True}]), "answer_start is a bool"),
        (qa(answers=[{"text": "here", "answer_start": 5}]), "starts at 6: correct answer_start"),
        (qa(answers=[{"text": "there", "answer_start": 6}]), "nor anywhere else: correct the answer"),
        (qa(answers=[{"text": "here", "answer_start": -5}]), "is not at character -5"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_errors_name_location_and_remedy(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read_squad(write(tmp_path, content))
    assert "data.json" in str(caught.value)


def test_duplicate_ids_are_refused(tmp_path):
    document = squad_document()
    questions = document["data"][0]["paragraphs"][0]["qas"]
    questions[1]["id"] = questions[0]["id"]
    with pytest.raises(InputError, match=r"two questions have the id '0\.0'"):
        read_squad(write(tmp_path, document))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read: No such file"):
        read_squad(tmp_path / "nowhere.json")


def test_real_files_are_read(squad_v1, squad_v2):
    assert len(read_squad(squad_v1 / "dev.json")) == 964
    examples = read_squad(squad_v2 / "dev.json")
    assert (len(examples), sum(not example.answers for example in examples)) == (902, 491)


def test_what_is_impossible_is_true_or_false(tmp_path):
    document = squad_document(version="v2.0")
    question = document["data"][0]["paragraphs"][0]["qas"][0]
    for value in ("false", "true", 1, None):
        question["is_impossible"] = value
        (tmp_path / "x.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match=rf"paragraphs.0..qas.0. .id '0.0'.: is_impossible is {value!r}; expected"):
            read_squad(tmp_path / "x.json")
    question["is_impossible"] = True  # with answers
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"id '0.0'.: is_impossible is true; expected no answers"):
        read_squad(tmp_path / "x.json")


FLAT = {"id": "1", "title": "t", "context": "The quick fox.", "question": "Who?"}
LISTS = FLAT | {"answers": {"text": ["fox", "quick fox"], "answer_start": [10, 4]}}
NONE = FLAT | {"id": "2", "answers": {"text": [], "answer_start": []}}
MRQA = [{"header": {"dataset": "X"}}, {"id": "", "context": "The quick fox.", "qas": [
    {"question": "Who?", "id": "0", "qid": "1", "answers": ["Fox"], "detected_answers": [
        {"text": "Fox", "char_spans": [[10, 12]]}, {"text": "quick  fox", "char_spans": [[4, 12]]}]},
    {"question": "Why?", "id": "0", "qid": "2", "answers": [], "detected_answers": []}]}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", f"{json.dumps(LISTS)}\n{json.dumps(NONE)}\n"),
        ("a.json", f"\n{json.dumps(LISTS)}\n{json.dumps(NONE)}\n"),
        ("b.json", json.dumps([LISTS, NONE], indent=1)),
        ("c.json", json.dumps({"version": "1", "data": [LISTS, NONE]})),
        ("d.json", json.dumps({"data": [{"paragraphs": [{"context": LISTS["context"], "qas": [LISTS, NONE]}]}]})),
        ("mrqa.jsonl", "\n".join(map(json.dumps, MRQA))),
    ],
)
def test_questions_of_datasets_and_mrqa(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    first, second = read_squad(tmp_path / name)
    assert (first.id, first.question, first.context) == ("1", "Who?", "The quick fox.")
    assert first.answers == (Answer("fox", 10), Answer("quick fox", 4))
    assert (second.id, second.answers) == ("2", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"text": ["fox"], "answer_start": []}}, r"a\.jsonl:1.*1 texts of answers and 0 of their"),
        ({"answers": {"text": ["fox"], "answer_start": [9]}}, "not at character 9 of its context; it starts at 10"),
        ({"answers": "fox"}, "answers is a str; expected list"),
        ({"qas": 1}, "qas is a int; expected list"),
        ({"qas": [{"question": "q", "qid": "1", "detected_answers": [{"text": "fox", "char_spans": [[10, 13]]}]}]},
         r"qas\[0\].detected_answers: the answer 'fox' is not at the characters \[10, 13\].*where 'fox.' stands"),
        ({"qas": [{"question": "q", "detected_answers": [{"text": "fox", "char_spans": [10]}]}]}, "Correct char_spans"),
    ],
)  # fmt: skip
def test_rows_with_wrong_answers_are_named(change, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(FLAT | change), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_squad(tmp_path / "a.jsonl")
