"""Fuse rankings by ranks, and scores of the same passages by their standard scores, whose weight may be chosen."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..metrics.retrieval import Judgements, Scores, ranked, score_query

DEPTHS = (10, 20, 50, 100)
WEIGHTS = tuple(round(0.1 * n, 1) for n in range(11))


def fuse(rankings: Sequence[Sequence[str]], *, weights: Sequence[float] | None = None) -> list[tuple[str, float]]:
    """Fuse rankings by reciprocal ranks, each with a weight, 1 by default: (id, score), best first, equal ones by id.

    Source: Cormack, Clarke and Büttcher 2009, doi:10.1145/1571941.1572114.
    """
    scores: dict[str, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, name in enumerate(ranking, 1):
            scores[name] = scores.get(name, 0.0) + weight / (60.0 + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def fuse_scores(first: Scores, new: Scores, weight: float) -> list[tuple[str, float]]:
    """Fuse two scores of the passages of `first`: (id, score), best first, equal ones as in `first`.

    Each is standardized: less its mean, over its standard deviation. `weight` is that of the new ones.
    """
    names = ranked(first)
    values = np.array([[scores[name] for name in names] for scores in (first, new)], dtype=float)
    spread = values.std(axis=1, keepdims=True)
    standard = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    fused = (1 - weight) * standard[0] + weight * standard[1]
    return [(names[place], float(fused[place])) for place in np.argsort(-fused, kind="stable")]


def choose_fusion(
    qrels: Mapping[str, Judgements], first: Mapping[str, Scores], new: Mapping[str, Scores]
) -> dict[str, Any]:
    """Choose depth `k` and `weight` of a fusion by nDCG@10 of judged queries; `new` has scores of the first passages.

    Of equal ones the smaller weight and depth are chosen.
    """
    rankings = {query: ranked(scores) for query, scores in first.items() if query in qrels}
    deepest = max((len(new[query]) for query in rankings), default=0)
    depths = [depth for depth in DEPTHS if depth < deepest] + [deepest]
    means = {}
    for weight, depth in product(WEIGHTS, depths):
        total = 0.0
        for query, names in rankings.items():
            top = {name: first[query][name] for name in names[:depth]}
            order = [name for name, _ in fuse_scores(top, new[query], weight)]
            total += score_query(qrels[query], order + names[depth:])["ndcg_cut_10"]
        means[depth, weight] = total / max(len(rankings), 1)
    best = max(means, key=lambda setting: means[setting])
    table = {str(depth): {str(weight): round(means[depth, weight], 4) for weight in WEIGHTS} for depth in depths}
    chosen = {"k": best[0], "weight": best[1], "ndcg@10": means[best], "first_stage": means[depths[0], 0.0]}
    return {**chosen, "queries": len(rankings), "ndcg@10_by_k_and_weight": table}
