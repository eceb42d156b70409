"""Retrieval scores against trec_eval's own outputs, pytrec_eval on random rankings, and hand-computed values."""

import numpy as np
import pytest

from megabert.formats.relevance import read_qrels, read_run
from megabert.metrics.retrieval import (
    answer_accuracy,
    average,
    mrr_at_10,
    ranked,
    score_query,
    score_run,
    simple_tokens,
)


def random_case(number):
    random = np.random.default_rng(number)
    names = [f"d{index}" for index in random.permutation(60)]
    judged = {name: int(random.integers(-1, 4)) for name in names[: random.integers(1, 40)]}
    # Few different scores, so that there are ties; some differ in float64 only
    scores = random.integers(0, 12, 60) / 7 + random.choice([0.0, 1e-9], 60)
    return judged, {name: float(scores[index]) for index, name in enumerate(names[random.integers(0, 30) :])}


def test_measures_equal_pytrec_eval_on_random_rankings():
    pytrec_eval = pytest.importorskip("pytrec_eval")
    measures = {"map", "Rprec", "bpref", "recip_rank", "P", "recall", "success", "map_cut", "ndcg", "ndcg_cut", "set_P",
                "set_recall", "num_ret", "num_rel", "num_rel_ret"}  # fmt: skip
    for level in (1, 2):
        cases = {f"q{number}": random_case(1000 * level + number) for number in range(500)}
        qrels = {name: case[0] for name, case in cases.items()}
        run = {name: case[1] for name, case in cases.items()}
        official = pytrec_eval.RelevanceEvaluator(qrels, measures, relevance_level=level).evaluate(run)
        ours = score_run(qrels, run, level=level)
        assert official.keys() == ours.keys()
        for query, expected in official.items():
            assert {name: ours[query][name] for name in expected} == pytest.approx(expected, abs=1e-9), query


def outputs(path):
    """Read trec_eval's lines as query -> measure -> value."""
    values = {}
    for line in path.read_text().splitlines():
        name, query, value = line.split()
        if name not in ("runid", "relstring"):
            values.setdefault(query, {})[name] = float(value)
    return values


@pytest.mark.parametrize(
    ("expected", "qrels", "run", "all_queries"),
    [
        ("out.test.aq", "qrels.test", "results.test", False),
        ("out.test.a", "qrels.test.with-comments", "results.test", False),
        ("out.test.aqc", "qrels.test", "results.trunc", True),
    ],
)
def test_the_official_outputs_are_reproduced(datasets, expected, qrels, run, all_queries):
    folder = datasets("trec_eval") / "tests"
    judged, rankings = read_qrels(folder / qrels), read_run(folder / run)
    by_query = score_run(judged, rankings, complete=all_queries)
    ours = by_query | {"all": average(by_query)}
    compared = 0
    for query, values in outputs(folder / expected).items():
        shared = [name for name in values if name in ours.get(query, {})]
        compared += len(shared)
        for name in shared:
            assert ours[query][name] == pytest.approx(values[name], abs=0.51e-4), (query, name)
    assert compared >= 45


def test_ties_are_broken_by_id_and_in_float32():
    assert ranked({"a": 1.0, "b": 1.0 + 1e-9, "c": 1.0, "d": 2.0}) == ["d", "c", "b", "a"]
    assert ranked({"a": 1.0 + 1e-6, "b": 1.0}) == ["a", "b"]


def test_gain_is_linear_and_missing_queries_count_zero():
    values = score_query({"a": 2, "b": 1}, ["b", "a"])
    assert values["ndcg_cut_10"] == pytest.approx(0.8597, abs=1e-4)
    judged, run = {"q": {"a": 2, "b": 1}, "r": {"a": 1}}, {"q": {"b": 2.0, "a": 1.0}}
    assert average(score_run(judged, run))["ndcg_cut_10"] == values["ndcg_cut_10"] / 2
    assert average(score_run(judged, run, complete=False))["ndcg_cut_10"] == values["ndcg_cut_10"]
    assert mrr_at_10({"q": {"a": 1}, "r": {"a": 1}, "s": {"a": 0}}, {"q": ["b", "a"], "s": ["a"]}) == 0.5 / 3


def test_an_answer_is_found_by_words_not_by_letters():
    assert simple_tokens("Zoë's U.S. car") == ["zoe\u0308", "'", "s", "u", ".", "s", ".", "car"]
    passages = {"p": "The capital is Paris.", "q": "Parisian food"}
    assert answer_accuracy({"1": ["q", "p"]}, {"1": ["PARIS"]}, passages, 1) == 0
    assert answer_accuracy({"1": ["q", "p"]}, {"1": ["PARIS"]}, passages, 2) == 100
