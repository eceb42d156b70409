"""A search index: words (BM25), embeddings, or both, of one collection; searched by either or by their fusion.

A folder with index.json (the passages' ids are in ids.json), `bm25/` and `dense/`, an embedding store.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..storage import atomic_write
from .bm25 import Bm25
from .embedding_store import EmbeddingStore
from .fusion import fuse

INDEX_FILE, IDS_FILE, WORDS, DENSE = "index.json", "ids.json", "bm25", "dense"
METHODS = ("bm25", "dense", "hybrid")
BATCH = 256
Ranking = list[tuple[str, float]]


class Embedder(Protocol):
    """What embeds queries: a Predictor."""

    @property
    def digest(self) -> str:
        """Identifies the weights."""

    def embed(self, texts: Sequence[str], *, role: str = "passage") -> NDArray[np.float32]:
        """Compute [N, D]."""


@dataclass(frozen=True)
class Bm25Parameters:
    """Saturation of counts, and how far long documents are penalized."""

    k1: float = 1.2
    b: float = 0.75


def write_index(folder: Path, ids: Sequence[str], document: Mapping[str, Any]) -> None:
    """Write what completes an index, behind its parts."""
    atomic_write(folder / IDS_FILE, json.dumps(list(ids), ensure_ascii=False))
    atomic_write(folder / INDEX_FILE, json.dumps(document, indent=1))


class SearchIndex:
    """An index, opened."""

    def __init__(self, folder: Path) -> None:
        """Open an index, or a folder of embeddings. Raises InputError where it is incomplete or damaged."""
        self.folder = folder
        self.bm25: Bm25 | None = None
        self.store: EmbeddingStore | None = None
        self.document: dict[str, Any]
        if not (folder / INDEX_FILE).exists() and (folder / "manifest.json").exists():
            self.store = EmbeddingStore(folder)
            self.document, self.ids = {"parts": [DENSE]}, self.store.ids()
            return
        try:
            self.document = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            self.ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
            parts = self.document["parts"]
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder} is no complete index. Make it by megabert index build.") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{folder} is damaged. Build the index again.") from None
        if WORDS in parts:
            self.bm25 = Bm25(folder / WORDS)
        if DENSE in parts:
            self.store = EmbeddingStore(folder / DENSE)
        sizes = [len(part) for part in (self.bm25, self.store) if part is not None]
        if any(size != len(self.ids) for size in sizes):
            raise InputError(f"{folder} is damaged: its parts have different numbers of passages. Build it again.")

    @property
    def parameters(self) -> Bm25Parameters:
        """BM25's parameters, tuned or default."""
        return Bm25Parameters(**self.document.get("bm25", {}))

    def method(self, wanted: str | None) -> str:
        """Return the method of a search; by default the best that the index has parts for."""
        possible = {"bm25": self.bm25 is not None, "dense": self.store is not None}
        possible["hybrid"] = all(possible.values())
        chosen = wanted or next(name for name in reversed(METHODS) if possible[name])
        if not possible[chosen]:
            missing = WORDS if self.bm25 is None else DENSE
            raise ConfigError(
                f"{self.folder} has no part {missing}, which {chosen} needs. Build it: megabert index build."
            )
        return chosen

    def check_run(self, embedder: Embedder) -> None:
        """Raise InputError where the embeddings are those of another run."""
        if self.store is not None and self.store.digest != embedder.digest:
            raise InputError(
                f"{self.folder} has embeddings of another run ({self.store.digest}, not {embedder.digest}). Give the "
                "run that made them, or build the index again."
            )

    def search(
        self, queries: Mapping[str, str], k: int, *, method: str, embedder: Embedder | None, searcher: Any = None
    ) -> Iterator[tuple[str, Ranking]]:
        """Yield each query with its k best passages: (id, score), best first.

        `searcher` searches the embeddings: an exact_search.DeviceSearch, or None for numpy on the CPU.
        """
        names = list(queries)
        for start in range(0, len(names), BATCH):
            chunk = names[start : start + BATCH]
            texts = [queries[name] for name in chunk]
            words = self._by_words(texts, k) if method != "dense" else []
            dense = self._by_vectors(texts, k, embedder, searcher) if method != "bm25" else []
            for number, name in enumerate(chunk):
                if method == "hybrid":
                    rankings = [[item for item, _ in part[number]] for part in (words, dense)]
                    yield name, fuse(rankings)[:k]
                else:
                    yield name, (words or dense)[number]

    def _by_words(self, texts: Sequence[str], k: int) -> list[Ranking]:
        assert self.bm25 is not None
        best = self.parameters
        return [
            [(self.ids[number], score) for number, score in self.bm25.search(text, k, k1=best.k1, b=best.b)]
            for text in texts
        ]

    def _by_vectors(self, texts: Sequence[str], k: int, embedder: Embedder | None, searcher: Any) -> list[Ranking]:
        from .embedding_store import reduced
        from .exact_search import search

        assert self.store is not None and embedder is not None
        vectors = reduced(embedder.embed(texts, role="query"), self.store.dimensions)
        scores, rows = search(self.store, vectors, k) if searcher is None else searcher.search(vectors, k)
        return [
            [(self.ids[row], float(score)) for row, score in zip(own_rows, own_scores, strict=True)]
            for own_rows, own_scores in zip(rows, scores, strict=True)
        ]
