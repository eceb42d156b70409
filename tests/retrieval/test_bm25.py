"""BM25 by hand, its words and stems, the fusion of rankings, and the published figures of real collections."""

import math

import numpy as np
import pytest

from megabert.errors import InputError
from megabert.formats.passages import read_texts
from megabert.formats.relevance import read_qrels
from megabert.metrics.retrieval import mrr_at_10
from megabert.retrieval.bm25 import Bm25, WordSplitter, build_bm25
from megabert.retrieval.fusion import choose_fusion, fuse, fuse_scores
from megabert.retrieval.stemmer import stem

TEXTS = ["aspirin aspirin pain", "aspirin fever", "The fever of dogs and cats"]


def test_scores_are_those_of_the_formula(tmp_path):
    index = build_bm25(tmp_path / "bm25", TEXTS, stems=True)
    found = index.search("Aspirins?", 5, k1=1.2, b=0.75)
    idf = math.log(1 + 1.5 / 2.5)
    mean = 8 / 3
    expected = [idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean)) for tf, length in ((2, 3), (1, 2))]
    assert [number for number, _ in found] == [0, 1]
    assert [score for _, score in found] == pytest.approx(expected)
    assert index.search("nothing", 5) == [] and len(index.search("fever aspirin", 1)) == 1


def test_a_damaged_index_is_named(tmp_path):
    build_bm25(tmp_path / "bm25", TEXTS, stems=False)
    path = tmp_path / "bm25" / "counts.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged"):
        Bm25(tmp_path / "bm25")
    with pytest.raises(InputError, match="no text"):
        build_bm25(tmp_path / "none", [], stems=False)


def test_words_and_stems_follow_porter():
    assert WordSplitter(stems=True)("The IL-2 relations, dogs'") == ["il", "2", "relat", "dog"]
    pairs = "caresses caress ponies poni agreed agre hopping hop falling fall filing file sky sky valenci valenc " + (
        "triplicate triplic electrical electr adoption adopt rate rate cease ceas controll control roll roll beta beta"
    )
    words = pairs.split()
    assert [stem(word) for word in words[::2]] == words[1::2]


def test_fusion_adds_reciprocal_ranks():
    fused = fuse([["a", "b"], ["b", "c"]])
    assert [name for name, _ in fused] == ["b", "a", "c"]
    assert fused[0][1] == pytest.approx(1 / 62 + 1 / 61)
    first = fuse([["a", "b"], ["b", "a"]], weights=[0.9, 0.1])
    assert first == [("a", pytest.approx(0.9 / 61 + 0.1 / 62)), ("b", pytest.approx(0.9 / 62 + 0.1 / 61))]


def test_scores_are_fused_by_their_standard_scores():
    first, new = {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": -1.0, "b": 0.0, "c": 100.0}
    fused = dict(fuse_scores(first, new, 0.75))
    values, others = np.array(list(first.values())), np.array(list(new.values()))
    assert next(iter(fused)) == "c"
    expected = (values - 2) / values.std() / 4 + (others - others.mean()) / others.std() * 0.75
    assert [fused[name] for name in "abc"] == pytest.approx(expected.tolist())
    assert [name for name, _ in fuse_scores(first, dict.fromkeys("abc", 5.0), 0.9)] == ["a", "b", "c"]
    assert [name for name, _ in fuse_scores({"b": 1.0, "a": 1.0}, {"a": 0.0, "b": 0.0}, 1.0)] == ["b", "a"]


def test_depth_and_weight_are_chosen_on_judged_queries():
    names = [f"d{n:02}" for n in range(30)]
    first = {query: {name: -float(n) for n, name in enumerate(names)} for query in ("q1", "q2", "unjudged")}
    right = {name: float(name == "d12") for name in names}  # found by the network alone, not among the first 10
    chosen = choose_fusion(
        {"q1": {"d12": 1}, "q2": {"d12": 2}, "other": {"d01": 1}}, first, dict.fromkeys(first, right)
    )
    assert chosen["queries"] == 2 and chosen["k"] == 30 and chosen["ndcg@10"] == 1 and chosen["first_stage"] == 0
    assert [*chosen["ndcg@10_by_k_and_weight"]] == ["10", "20", "30"]
    harmful = choose_fusion(
        {"q1": {"d00": 1}}, first, {query: {name: float(n) for n, name in enumerate(names)} for query in first}
    )
    assert (harmful["k"], harmful["weight"], harmful["ndcg@10"]) == (10, 0.0, 1)


def test_the_published_mrr_is_reached(datasets, tmp_path):
    folder = datasets("cranfield")
    collection, queries = (read_texts(folder / file) for file in ("collection.tsv", "queries.dev.tsv"))
    index, ids = build_bm25(tmp_path / "bm25", collection.values(), stems=True), list(collection)
    rankings = {query: [ids[number] for number, _ in index.search(text, 10)] for query, text in queries.items()}
    assert mrr_at_10(read_qrels(folder / "qrels.dev.txt"), rankings) >= 0.488 + 0.05
