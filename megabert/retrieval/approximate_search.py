"""Approximate search by usearch's graph of neighbours (HNSW): the graph finds rows, the store gives their scores.

Shape legend: Q queries, D dimensions, K results.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..storage import atomic_write
from .embedding_store import EmbeddingStore
from .exact_search import check_dimensions, search

GRAPH_FILE = "graph.usearch"
BLOCK_ROWS, SAMPLE, RANK = 65_536, 256, 10
EXPANSION = 4
"""Rows that a search compares with the query, in times of the results that are wanted."""


def _library() -> Any:
    try:
        from usearch import index
    except ImportError:
        raise ConfigError("approximate search needs usearch: pip install 'megabert[approximate]'.") from None
    return index


class ApproximateSearch:
    """Search in the graph of an index."""

    def __init__(self, folder: Path, store: EmbeddingStore) -> None:
        """Memory-map the graph. Raises InputError where there is none of the store's rows."""
        self.store, file = store, folder / GRAPH_FILE
        if not file.exists():
            raise InputError(f"{folder} has no graph. Build it by megabert index build --approximate.")
        try:
            self.graph = _library().Index.restore(str(file), view=True)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{file} is damaged: {error}. Build the index again.") from None
        if len(self.graph) != len(store) or self.graph.ndim != store.dimensions:
            raise InputError(f"{file} is of {len(self.graph)} rows, the index of {len(store)}. Build the index again.")

    def search(self, queries_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search: scores [Q, K] in descending order, equal ones by row, and row numbers [Q, K]."""
        check_dimensions(self.store, queries_QD)
        k = min(k, len(self.store))
        self.graph.expansion_search = max(EXPANSION * k, self.graph.expansion_search)
        found = [self.graph.search(query_D, k).keys for query_D in queries_QD]
        if any(len(keys) < k for keys in found):  # a part of the graph that no path reaches
            return search(self.store, queries_QD, k)
        rows = np.sort(np.stack(found).astype(np.int64), axis=1)
        scores = np.stack([self.store.rows(own) @ query for own, query in zip(rows, queries_QD, strict=True)])
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def build_graph(folder: Path, store: EmbeddingStore) -> dict[str, float]:
    """Write the graph of a store's rows; returns its recall against exact search, of at most 256 rows as queries."""
    graph = _library().Index(ndim=store.dimensions, metric="ip", dtype="f16")
    for block in store.blocks(BLOCK_ROWS):
        vectors = block.vectors()
        graph.add(np.arange(block.start, block.start + len(vectors)), vectors)
    atomic_write(folder / GRAPH_FILE, bytes(graph.save()))
    sample = np.sort(np.random.default_rng(0).permutation(len(store))[:SAMPLE])
    queries, k = store.rows(sample), min(RANK, len(store))
    exact, found = search(store, queries, k)[1], ApproximateSearch(folder, store).search(queries, k)[1]
    shared = [len(set(own) & set(wanted)) for own, wanted in zip(found.tolist(), exact.tolist(), strict=True)]
    return {f"recall@{k}": round(sum(shared) / exact.size, 4)}
