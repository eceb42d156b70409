"""Scores of rankings against relevance judgements, as trec_eval computes them, and the MS MARCO and DPR scores.

A ranking is ordered by score, in float32, then by document id, both descending; the rank column is ignored. nDCG has a
linear gain. Sources: trec_eval 9.0.8; MS MARCO's MRR@10; DPR's answer-in-passage accuracy (arXiv:2004.04906).
Left out of trec_eval's `all_trec`: iprec_at_recall, 11pt_avg, infAP, utility, Rprec_mult, relstring, the binary G and
Rndcg variants, and set_F and set_map.
"""

import math
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

CUTOFFS = (5, 10, 15, 20, 30, 100, 200, 500, 1000)
SUCCESS_CUTOFFS = (1, 5, 10)
COUNTS = ("num_ret", "num_rel", "num_rel_ret")
MIN_AVERAGE_PRECISION = 1e-5
"""What gm_map takes for less, as trec_eval."""
Judgements = Mapping[str, int]
Scores = Mapping[str, float]


def ranked(scores: Scores) -> list[str]:
    """Sort document ids as trec_eval does: by score in float32, then by id, both descending."""
    return sorted(
        scores, key=lambda name: (np.float32(scores[name]), name.encode("utf-8", "surrogatepass")), reverse=True
    )


def score_query(judgements: Judgements, ranking: Sequence[str], *, level: int = 1) -> dict[str, float]:
    """Compute the measures of one query's ranking, by trec_eval's names; documents of `level` or more are relevant."""
    grades = [judgements.get(name) for name in ranking]
    hits = np.array([grade is not None and grade >= level for grade in grades], dtype=bool)
    num_rel = sum(grade >= level for grade in judgements.values())
    found = np.concatenate([[0], np.cumsum(hits)])
    positions = np.flatnonzero(hits) + 1
    precisions = found[positions] / positions if len(positions) else np.zeros(0)

    def at(k: int) -> int:
        return int(found[min(k, len(hits))])

    def share(count: float, total: float) -> float:
        return float(count / total) if total else 0.0

    values: dict[str, float] = {"num_ret": len(ranking), "num_rel": num_rel, "num_rel_ret": int(hits.sum())}
    values |= {"map": share(precisions.sum(), num_rel), "Rprec": share(at(num_rel), num_rel)}
    values["bpref"] = _bpref(grades, judgements, level)
    values["recip_rank"] = share(1, positions[0]) if len(positions) else 0.0
    values |= {f"P_{k}": at(k) / k for k in CUTOFFS}
    values |= {f"recall_{k}": share(at(k), num_rel) for k in CUTOFFS}
    values |= {f"success_{k}": float(at(k) > 0) for k in SUCCESS_CUTOFFS}
    values |= {f"map_cut_{k}": share(precisions[positions <= k].sum(), num_rel) for k in CUTOFFS}
    values |= _ndcg(grades, judgements)
    return values | {"set_P": share(hits.sum(), len(hits)), "set_recall": share(hits.sum(), num_rel)}


def _bpref(grades: Sequence[int | None], judgements: Judgements, level: int) -> float:
    """Compute bpref: the share of relevant documents that stand before judged ones that are not relevant."""
    num_rel = sum(grade >= level for grade in judgements.values())
    num_others = sum(0 <= grade < level for grade in judgements.values())
    total, others = 0.0, 0
    for grade in grades:
        if grade is None or grade < 0:
            continue
        if grade < level:
            others += 1
        elif others:
            total += 1 - min(others, num_rel) / min(num_others, num_rel)
        else:
            total += 1
    return total / num_rel if num_rel else 0.0


def _ndcg(grades: Sequence[int | None], judgements: Judgements) -> dict[str, float]:
    """Compute nDCG over the whole ranking and at the cut-offs; the ideal is over all judged documents."""
    gains = np.array([max(grade or 0, 0) for grade in grades], dtype=float)
    ideal = np.array(sorted((max(grade, 0) for grade in judgements.values()), reverse=True), dtype=float)

    def share(k: int | None) -> float:
        best = _dcg(ideal[:k])
        return _dcg(gains[:k]) / best if best else 0.0

    return {"ndcg": share(None), **{f"ndcg_cut_{k}": share(k) for k in CUTOFFS}}


def _dcg(gains: np.ndarray[Any, Any]) -> float:
    return float((gains / np.log2(np.arange(len(gains)) + 2)).sum())


def score_run(
    judgements: Mapping[str, Judgements], run: Mapping[str, Scores], *, level: int = 1, complete: bool = True
) -> dict[str, dict[str, float]]:
    """Compute the measures of each judged query; not `complete`: of those only that have a ranking.

    Complete is trec_eval's -c: a query without a ranking counts, with 0.
    """
    return {
        query: score_query(judged, ranked(run.get(query, {})), level=level)
        for query, judged in judgements.items()
        if complete or query in run
    }


def average(by_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average measures over queries; counts are summed."""
    count = len(by_query)
    names = next(iter(by_query.values()), score_query({}, []))
    sums = {name: math.fsum(values[name] for values in by_query.values()) for name in names}
    means = {name: int(total) if name in COUNTS else total / max(count, 1) for name, total in sums.items()}
    logs = [math.log(max(values["map"], MIN_AVERAGE_PRECISION)) for values in by_query.values()]
    return {"num_q": count, **means, "gm_map": math.exp(math.fsum(logs) / count) if count else 0.0}


def mrr_at_10(judgements: Mapping[str, Judgements], rankings: Mapping[str, Sequence[str]]) -> float:
    """Compute MS MARCO's MRR@10: over all judged queries, of which those without a ranking count 0."""
    total = 0.0
    for query, judged in judgements.items():
        ranks = (rank for rank, name in enumerate(rankings.get(query, ())[:10], 1) if judged.get(name, 0) > 0)
        total += 1 / next(ranks, math.inf)
    return total / max(len(judgements), 1)


def answer_accuracy(
    rankings: Mapping[str, Sequence[str]], answers: Mapping[str, Collection[str]], passages: Mapping[str, str], k: int
) -> float:
    """Compute DPR's top-k accuracy, per cent: questions of which one of the first k passages contains an answer."""
    tokens: dict[str, list[str]] = {}

    def words(name: str) -> list[str]:
        if name not in tokens:
            tokens[name] = simple_tokens(passages[name])
        return tokens[name]

    hits = 0
    for query, accepted in answers.items():
        wanted = [simple_tokens(answer) for answer in accepted]
        hits += any(_contains(words(name), item) for name in rankings.get(query, ())[:k] for item in wanted)
    return 100.0 * hits / max(len(answers), 1)


def simple_tokens(text: str) -> list[str]:
    """Split a text as DPR's SimpleTokenizer, in lower case: runs of letters, digits and marks; other signs singly."""
    tokens: list[str] = []
    in_word = False
    for character in unicodedata.normalize("NFD", text):
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            if in_word:
                tokens[-1] += character
            else:
                tokens.append(character)
        elif kind not in "ZC":
            tokens.append(character)
        in_word = kind in "LNM"
    return [token.lower() for token in tokens]


def _contains(words: Sequence[str], phrase: Sequence[str]) -> bool:
    size = len(phrase)
    return any(list(words[start : start + size]) == list(phrase) for start in range(len(words) - size + 1))
