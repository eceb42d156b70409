"""Data of the tasks of retrieval: negatives of a ranking, NeMo's files, a teacher's scores, prompts, losses."""

import json

import numpy as np
import pytest

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry
from megabert.tasks.retrieval_data import read_pairs
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS


def task(name, folder, *words):
    files = {"passages": "c.tsv", "queries": "q.tsv"}
    given = [f"model.{ds}.{key}={folder / file}" for ds in ("train_ds", "validation_ds") for key, file in files.items()]
    kind = registry.find(name)
    return kind(compose(kind.settings_type, [*given, *words], owner=name)[0])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c.tsv").write_text("".join(f"p{number}\tpassage {number}\n" for number in range(5)))
    (tmp_path / "q.tsv").write_text("q1\tfirst\nq2\tsecond\n")
    (tmp_path / "qrels.txt").write_text("q1 0 p0 2\nq1 0 p1 1\nq2 0 p2 1\nq2 0 p3 0\n")
    (tmp_path / "r.trec").write_text(
        "".join(f"q1 Q0 {name} 1 {score} a\n" for name, score in (("p0", 10), ("p4", 9.8), ("p1", 9), ("p3", 5)))
    )
    (tmp_path / "candidates.tsv").write_text("q1\tp0\tp3\tp4\nq2\tp2\tp1\n")
    return tmp_path


def groups(made, data):
    return [(item.id, item.passage_ids) for item in made.read_data(data)]


def test_negatives_are_the_first_passages_that_are_not_relevant(folder):
    words = [f"model.train_ds.qrels={folder / 'qrels.txt'}", f"model.train_ds.run={folder / 'r.trec'}"]
    made = task("text_embedding", folder, *words)
    expected = [("q1", ("p0", "p4", "p3")), ("q1", ("p1", "p4", "p3")), ("q2", ("p2",))]
    assert groups(made, made.settings.model.train_ds) == expected
    made = task(
        "text_embedding", folder, *words, "model.train_ds.negative_margin=0.95", "model.train_ds.max_positives=1"
    )
    assert groups(made, made.settings.model.train_ds) == [("q1", ("p0", "p3")), ("q2", ("p2",))]
    made = task("text_embedding", folder, *words, "model.embedding.loss=margin_mse")
    assert [item.scores for item in made.read_data(made.settings.model.train_ds)] == [(10, 9.8, 5), (9, 9.8, 5)]
    assert made.notes == ["1 examples without a teacher's scores are left out."]


def test_nemo_s_files_and_keys(folder):
    name = "candidates.tsv"
    words = [f"model.{ds}.query_to_passages={folder / name}" for ds in ("train_ds", "validation_ds")]
    words += [
        "model.train_ds.num_negatives=1",
        "model.train_ds.psg_cache_format=npz",
        "model.dataset.max_passage_length=190",
    ]
    made = task("text_ranking", folder, *words)
    assert made.row_length == 190
    assert groups(made, made.settings.model.train_ds) == [("q1", ("p0", "p3")), ("q2", ("p2", "p1"))]
    judged = made.read_data(made.settings.model.validation_ds)
    assert [(item.passage_ids, item.grades) for item in judged] == [
        (("p0", "p3", "p4"), {"p0": 1}),
        (("p2", "p1"), {"p2": 1}),
    ]


def test_a_group_is_one_feature_of_several_sequences_with_prompts_and_targets(folder):
    made = task("text_embedding", folder, f"model.train_ds.query_to_passages={folder / 'candidates.tsv'}",
                "model.dataset.query_prompt='who '", "model.embedding.num_encoders=2")  # fmt: skip
    examples = made.read_data(made.settings.model.train_ds)
    tokenizer = Tokenizer(WORDS, lower_case=True)
    features = made.features(examples, tokenizer, with_targets=True)
    first = features[0]
    assert len(first.parts) == 4 and sum(first.parts) == len(first)
    assert tokenizer.tokens[first.token_ids[1]] == "who"
    assert first.targets["passage"][0] == -1 and len(set(first.targets["passage"])) == 4
    assert np.diff(first.token_targets["role"]).sum() == 1
    plain = made.text_features(["first"], tokenizer, "query")[0]
    np.testing.assert_array_equal(plain.token_ids, first.token_ids[: first.parts[0]])


def test_a_row_without_a_positive_or_with_too_few_scores_is_refused(folder):
    file = folder / "x.jsonl"
    for row, text in (({"query": "a"}, "there is no 'positive'"),
                      ({"query": "a", "positive": "b", "scores": []}, "'scores' has not one number")):  # fmt: skip
        file.write_text(json.dumps(row) + "\n")
        made = task("text_embedding", folder, f"model.train_ds.file={file}")
        with pytest.raises(InputError, match=f"x.jsonl:1: {text}"):
            made.read_data(made.settings.model.train_ds)


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "p", "negatives": ["a", "b"]},
        {"anchor": "q", "positive": "p", "negative_1": "a", "negative_2": "b", "negative_3": None},
        {"query": "q", "positive": "p", "negative": ["a", "b"]},
        {"query": "q", "pos": ["p"], "neg": ["a", "b"]},
        {"question": "q", "answers": ["x"], "positive_ctxs": [{"title": "", "text": "p"}],
         "hard_negative_ctxs": [{"title": "a", "text": ""}], "negative_ctxs": [{"text": "b"}]},
    ],
)  # fmt: skip
def test_no_negative_is_lost_whatever_its_name(row, folder):
    for name, content in (("rows.jsonl", json.dumps(row)), ("rows.json", json.dumps([row]))):
        (folder / name).write_text(content)
        made = task("text_embedding", folder, f"model.train_ds.file={folder / name}")
        (example,) = made.read_data(made.settings.model.train_ds)
        assert (example.query, example.passages) == ("q", ("p", "a", "b"))
        (judged,) = read_pairs(folder / name)
        assert (judged.passages, judged.grades) == (("p", "a", "b"), {"p": 1, "a": 0, "b": 0})


def test_unknown_passages_and_queries_of_judgements_are_named(folder):
    (folder / "qrels.txt").write_text("q9 0 p0 1\n")
    made = task("text_embedding", folder, f"model.validation_ds.qrels={folder / 'qrels.txt'}")
    with pytest.raises(InputError, match="the query 'q9' is not in"):
        made.read_data(made.settings.model.validation_ds)


def test_judgements_of_other_passages_are_refused(folder):
    (folder / "other.txt").write_text("q1 0 x7 1\nq2 0 x8 1\n")
    words = [f"model.{ds}.qrels={folder / 'other.txt'}" for ds in ("train_ds", "validation_ds")]
    made = task("text_embedding", folder, *words, f"model.train_ds.run={folder / 'r.trec'}")
    with pytest.raises(InputError, match=r"other.txt: no judged passage is known, such as 'x7'"):
        made.read_data(made.settings.model.validation_ds)
    with pytest.raises(InputError, match="no query has a relevant passage"):
        made.read_data(made.settings.model.train_ds)
