"""Active learning: the measures by hand, greedy k-center, and the command on a small run."""

import json
import math

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.cli.correction import MEASURES as NAMES
from megabert.correction.selection import (
    MEASURES,
    RANDOM,
    SelectionOptions,
    k_center,
    select,
    split_into_sentences,
    word_uncertainties,
)
from megabert.formats.documents.convert_documents import read_documents
from megabert.formats.documents.document import Document, Entity, Passage
from tests.annotate.test_annotate import RUNS

TEXTS = (
    "Peter lives in Paris",
    "Anna left for Rome",
    "in in in",
    "Peter Peter",
    "(1999).",
    "\U0001f600 Paris and Rome",
)


@pytest.fixture(scope="module")
def folder():
    return next((RUNS / "token_classification" / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def predictor(folder):
    return megabert.load(folder, accelerator="cpu")


@pytest.fixture
def pool(tmp_path):
    """Six documents of a title, the last also with an abstract; and an empty one."""
    lines = [f"{number}|t|{text}\n" for number, text in enumerate(TEXTS)]
    lines[-1] += "5|a|Peter saw Anna in Paris.\n5\t2\t7\tParis\tLOC\n"
    path = tmp_path / "pool.pubtator"
    path.write_text("\n".join([*lines, "6|t|\n"]), encoding="utf-8")
    return path


def test_measures_are_those_computed_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    assert MEASURES["least-confidence"](probabilities) == pytest.approx([math.log(2), 0])
    assert MEASURES["margin"](probabilities) == pytest.approx([0.75, 0])
    assert MEASURES["entropy"](probabilities) == pytest.approx([1.5 * math.log(2), 0])
    assert MEASURES["margin"](np.ones((2, 1))).tolist() == [0, 0]
    assert set(NAMES) == {*MEASURES, RANDOM}


def test_k_center_takes_the_farthest_direction_each_time():
    vectors = np.array([[1, 0], [5, 0.1], [1, 1], [0, 2], [-3, 0]], dtype=np.float32)
    assert k_center(vectors, 1) == [0]
    assert k_center(vectors, 3) == [0, 4, 3]  # the opposite, then the right angle
    assert sorted(k_center(vectors, 9)) == [0, 1, 2, 3, 4]


def test_the_uncertainty_of_words_is_that_of_the_networks_probabilities(predictor):
    document = Document("1", (Passage(0, TEXTS[0]), Passage(30, " "), Passage(40, TEXTS[1])))
    (values,) = word_uncertainties(predictor, [document], "least-confidence")
    spans = [span for text in TEXTS[:2] for span in predictor.predict(text=text).spans]
    assert len(values) == sum(len(predictor.task.example(text=text).words) for text in TEXTS[:2])
    # The score of an entity of one word is the probability of its tag.
    single = [span.score for span in spans if " " not in span.text]
    assert single and all(np.isclose(np.exp(-values), score, atol=1e-6).any() for score in single)


def test_the_least_certain_documents_are_chosen_in_their_order(predictor):
    documents = [Document(str(number), (Passage(0, text),)) for number, text in enumerate(TEXTS)]
    means = [float(np.mean(item)) for item in word_uncertainties(predictor, documents, "margin")]
    expected = sorted(range(len(TEXTS)), key=lambda number: -means[number])
    found = select(predictor, documents, SelectionOptions(3, "margin", candidates=1))
    assert [document.id for document in found.documents] == [str(number) for number in expected[:3]]
    assert found.scores == pytest.approx([means[number] for number in expected[:3]])
    assert found.mean_score == pytest.approx(np.mean(means)) and found.num_documents == 6
    total = select(predictor, documents, SelectionOptions(1, "margin", is_total=True, candidates=1))
    sums = [float(np.sum(item)) for item in word_uncertainties(predictor, documents, "margin")]
    assert total.documents[0].id == str(int(np.argmax(sums)))
    spread = select(predictor, documents, SelectionOptions(2, "margin", candidates=3))
    assert spread.documents[0].id == str(expected[0]) and len(spread.documents) == 2
    assert select(predictor, [], SelectionOptions(2)).documents == []


def test_random_selection_is_of_the_seed_and_covers_all(predictor):
    documents = [Document(str(number), (Passage(0, "Peter"),)) for number in range(200)]

    def chosen(seed, excluded=()):
        found = select(predictor, documents, SelectionOptions(50, RANDOM, excluded=excluded, seed=seed))
        return {document.id for document in found.documents}

    assert chosen(1) == chosen(1) != chosen(2)
    assert len(chosen(1)) == 50 and len(set.union(*map(chosen, range(80)))) == 200
    assert not chosen(1, excluded=chosen(2)) & chosen(2)


def test_sentences_are_documents_with_their_entities():
    text = "Marie Curie lived. She found radium in Paris."
    entities = (Entity("T1", ((0, 11),), "Marie Curie", "PER"), Entity("T2", ((39, 44),), "Paris", "LOC"))
    first, second = split_into_sentences([Document("7", (Passage(0, text),), entities)])
    assert (first.id, first.text(), second.id, second.text()) == (
        "7.1", "Marie Curie lived.", "7.2", "She found radium in Paris.")  # fmt: skip
    assert [first.text()[item.start : item.end] for item in first.entities] == ["Marie Curie"]
    assert [second.text()[item.start : item.end] for item in second.entities] == ["Paris"]


def test_the_command_writes_suggestions_and_leaves_out_what_is_corrected(folder, predictor, pool, tmp_path, capsys):
    common = ["select", str(folder), str(pool), "--accelerator", "cpu"]
    assert main([*common, "--count", "2", "-o", str(tmp_path / "first.pubtator")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["documents"], summary["selected"], summary["excluded"]) == (6, 2, 0)
    assert summary["uncertainty"]["selected"] > summary["uncertainty"]["all"]
    first = list(read_documents([tmp_path / "first.pubtator"]))
    again = [*common, "--count", "9", "--exclude", str(tmp_path / "first.pubtator"), "--existing", "replace"]
    assert main([*again, "-o", str(tmp_path / "second.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["excluded"] == 2
    second = list(read_documents([tmp_path / "second.jsonl"]))
    assert {item.id for item in first} | {item.id for item in second} == set("012345") and len(second) == 4
    for document in second:
        expected = [
            (item.offset + span.start, item.offset + span.end, span.type)
            for item in document.passages if item.text.strip() for span in predictor.predict(text=item.text).spans
        ]  # fmt: skip
        assert [(entity.start, entity.end, entity.type) for entity in document.entities] == expected
    assert main([*common, "--count", "0", "-o", str(tmp_path / "x.jsonl")]) == 64
    relations = next((RUNS / "relation_extraction" / "run" / "checkpoints").iterdir())
    assert main(["select", str(relations), str(pool), "-o", str(tmp_path / "x.jsonl")]) == 64
