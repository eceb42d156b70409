"""Choose BM25's k1 and b by nDCG@10 on a development split."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from ..metrics.retrieval import average, score_run
from .bm25 import B_VALUES, K1_VALUES, Bm25

DEPTH = 10


def tune(
    index: Bm25,
    ids: Sequence[str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, float], float]:
    """Return the best of a grid of parameters, {"k1": ..., "b": ...}, and its nDCG@10; of equal ones the first."""
    grid = list(product(K1_VALUES, B_VALUES))
    best, best_score = {"k1": K1_VALUES[0], "b": B_VALUES[0]}, -1.0
    judged = {name: text for name, text in queries.items() if name in qrels}
    for number, (k1, b) in enumerate(grid, 1):
        run = {  # by ranks, which decide equal scores as a search does
            name: {ids[row]: -rank for rank, (row, _) in enumerate(index.search(text, DEPTH, k1=k1, b=b))}
            for name, text in judged.items()
        }
        score = average(score_run(qrels, run))["ndcg_cut_10"]
        if score > best_score:
            best, best_score = {"k1": k1, "b": b}, score
        if progress is not None:
            progress(number, len(grid))
    return best, best_score
