"""JSON with a value of another type, removed or added anywhere: read to the end, or refused with place and remedy."""

import copy
import json
import re

import numpy as np
import pytest

from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS
from tests.formats.test_dialogues import DIALOGUES, SCHEMA
from tests.tasks.test_contract import TINY

TOKENIZER = Tokenizer(WORDS)
SNIPPET = {"body": "who", "snippets": [{"text": "marie"}]}
# Task, file, what it holds, other files.
READERS = {
    "dialogues": ("dialogue_state_tracking", "x.json", DIALOGUES[:1], {"schema.json": SCHEMA}),
    "schema": ("dialogue_state_tracking", "schema.json", SCHEMA, {"x.json": DIALOGUES[:1]}),
    "race": ("multiple_choice", "x.txt", {"article": "a", "questions": ["who _", "b"], "options": [["x", "y"]] * 2,
                                          "answers": ["A", "B"]}, {}),
    "dream": ("multiple_choice", "x.json", [[["M: in", "W: a"], [{"question": "a", "choice": ["x", "y"],
                                                                 "answer": "y"}], "1"]], {}),
    "medmcqa": ("multiple_choice", "x.jsonl", {"id": "1", "question": "who", "opa": "a", "opb": "b", "opc": "c",
                                               "opd": "d", "cop": 1, "exp": "e"}, {}),
    "medqa": ("multiple_choice", "x.jsonl", {"question": "who", "options": {"A": "a", "B": "b", "C": "c"},
                                             "answer": "a", "answer_idx": "A", "metamap_phrases": ["x"]}, {}),
    "choices": ("multiple_choice", "x.jsonl", {"id": "1", "question": "who", "passage": "in", "choices": ["a", "b"],
                                               "label": 1, "group": "g"}, {}),
    "arc": ("multiple_choice", "x.jsonl", {"id": "1", "answerKey": "A", "question": {
        "stem": "who", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}}, {}),
    "bioasq": ("bioasq", "x.json", {"questions": [
        {"id": "1", "type": "factoid", "exact_answer": [["a", "b"]]} | SNIPPET,
        {"id": "2", "type": "yesno", "exact_answer": "yes"} | SNIPPET,
        {"id": "3", "type": "list", "exact_answer": [["x"], ["y"]]} | SNIPPET]}, {}),
    "pubmedqa": ("text_classification", "x.json", {
        name: {"QUESTION": "who", "CONTEXTS": ["a", "b"], "final_decision": answer, "LONG_ANSWER": "in"}
        for name, answer in (("1", "yes"), ("2", "no"))}, {}),
    "squad": ("question_answering", "x.json", {"version": "2", "data": [{"title": "a", "paragraphs": [
        {"context": "a b", "qas": [
            {"id": "1", "question": "who", "answers": [{"text": "a", "answer_start": 0}], "is_impossible": False},
            {"id": 2, "question": "who", "answers": [], "is_impossible": True}]}]}]}, {}),
    "lambada": ("causal_language_model", "x.jsonl", {"text": "marie curie was born", "id": "1"}, {}),
}  # fmt: skip
VALUES = (3, "", None, [], {}, float("nan"), [[1]], ["who"], 10**400)
REMEDY = re.compile(r"expected|Give|Make|Leave|List|Put|Name|correct|found|not JSON|has no|no object|holds no|is empty")


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(document):
    """Documents with a place replaced, removed, or doubled (in an object: an unexpected name)."""
    yield from VALUES
    paths = list(places(document))[1:]
    stride = 3 if len(paths) > 20 else 1  # of a large document each place has a third of the changes
    for number, path in enumerate(paths):
        for change in (*VALUES, "remove", "double")[number % stride :: stride]:
            copied = copy.deepcopy(document)
            owner, key = copied, path[-1]
            for step in path[:-1]:
                owner = owner[step]
            if change == "remove":
                del owner[key]
            elif change != "double":
                owner[key] = change
            elif isinstance(owner, list):
                owner.append(owner[key])
            else:
                owner[f"{key} "] = owner[key]
            yield copied


@pytest.mark.parametrize("name", READERS)
def test_json_changed_at_each_place(name, tmp_path):
    kind_name, file, document, beside = READERS[name]
    kind = registry.find(kind_name)
    task = kind(compose(kind.settings_type, [], owner=kind_name)[0])
    for other, content in beside.items():
        (tmp_path / other).write_text(json.dumps(content))
    read_from = tmp_path / next((other for other in beside if file == "schema.json"), file)
    refused = 0
    for content in changed(document):
        (tmp_path / file).write_text(json.dumps(content) + "\n")
        try:
            examples = list(task.read(read_from))
        except InputError as error:
            message = str(error)
            assert str(tmp_path) in message and REMEDY.search(message) and "\n" not in message, message
            refused += 1
            continue
        features = list(task.features(examples, TOKENIZER, with_targets=False))
        if kind_name == "dialogue_state_tracking":
            task.decode(examples, features, [np.zeros((len(item), 8), dtype=np.float32) for item in features])
    assert refused >= 12  # tests/tasks/test_malformed.py has 18 damaged files of each reader


@pytest.mark.parametrize("name", READERS)
def test_a_training_on_a_file_cut_in_the_middle_ends_with_65(name, tmp_path, vocab_file, capsys):
    task, file, document, beside = READERS[name]
    for other, content in beside.items():
        (tmp_path / other).write_text(json.dumps(content))
    text = json.dumps(document)
    (tmp_path / file).write_text(text[: len(text) // 2])
    data = tmp_path / ("x.json" if file == "schema.json" else file)
    words = [f"model.train_ds.file={data}", "model.language_model.pretrained_model_name=null", TINY,
             f"model.tokenizer.vocab_file={vocab_file}", "trainer.accelerator=cpu",
             f"exp_manager.explicit_log_dir={tmp_path / 'run'}"]  # fmt: skip
    assert main(["train", task, *words]) == 65
    error = capsys.readouterr().err
    assert str(tmp_path / file) in error and "not JSON" in error and "Traceback" not in error
