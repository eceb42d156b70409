"""Inverted index of the character n-grams of names, memory-mapped; cosine similarity of their TF-IDF vectors.

Weights are the inverse document frequencies of the grams of a name, each gram once. 4 bytes a gram of a name and 4 a
name; a dictionary of 7.4 million names has about 50 grams a name, 1.5 GB. Source of the idf: scikit-learn's
TfidfTransformer, smooth_idf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..storage import save_array
from .name_keys import gram_hashes

BATCH_NAMES = 50_000
MAX_POSTINGS = 50_000
"""Entries of lists that a search adds up; those of more frequent grams are looked up for the best names only."""
NUM_RESCORED = 200
ARRAYS = ("gram_hashes", "gram_ends", "gram_names", "gram_norms")


@dataclass(frozen=True)
class GramQuery:
    """The grams of a query that names have, the rarest first, with what each adds to the similarity."""

    grams: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class GramIndex:
    """`names[ends[i - 1] : ends[i]]` are the names that have the gram of the hash `hashes[i]`, in their order."""

    hashes: NDArray[np.uint64]
    ends: NDArray[np.int64]
    names: NDArray[np.uint32]
    norms: NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path) -> "GramIndex":
        """Memory-map the index of a folder."""
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS))

    def query(self, key: str) -> GramQuery:
        """Look up the grams of a normalized name."""
        hashes, _ = gram_hashes([key])
        places = np.searchsorted(self.hashes, hashes)
        is_known = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes
        grams = places[is_known]
        counts = self._counts(grams)
        squares = _idf(counts, len(self.norms)) ** 2
        # Grams that no name has count in the query's length, so that strange names have low scores.
        unknown = np.sum(~is_known) * _idf(np.zeros(1), len(self.norms))[0] ** 2
        length = np.sqrt(squares.sum() + unknown) or 1.0
        order = np.argsort(counts, kind="stable")
        return GramQuery(grams[order], squares[order] / length)

    def search(
        self, query: GramQuery, k: int, is_allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the k most similar names, the best first, equal ones in their order; fewer if fewer share a gram.

        Exact up to MAX_POSTINGS entries of lists; beyond, names that share only the frequent grams are not found.
        """
        counts = self._counts(query.grams)
        num_added = max(int(np.searchsorted(np.cumsum(counts), MAX_POSTINGS, side="right")), 1)
        lists = [self._names_of(gram) for gram in query.grams[:num_added]]
        if not lists:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        found = np.concatenate(lists)
        weights = np.repeat(query.weights[:num_added], counts[:num_added])
        if len(found) * 8 > len(self.norms):
            sums = np.bincount(found, weights, minlength=len(self.norms))
            names = np.flatnonzero(sums)
            sums = sums[names]
        else:
            names, inverse = np.unique(found, return_inverse=True)
            sums = np.bincount(inverse, weights)
            names = names.astype(np.int64)
        if is_allowed is not None:
            sums, names = sums[is_allowed[names]], names[is_allowed[names]]
        scores = sums / self.norms[names]
        if num_added < len(query.grams):
            best = np.sort(_best(scores, max(NUM_RESCORED, k)))
            names = names[best]
            rest = GramQuery(query.grams[num_added:], query.weights[num_added:])
            scores = scores[best] + self.scores(rest, names)
        # Sums of the same numbers in another order differ in the last bits: what is shown decides.
        shown = scores.astype(np.float32).round(6)
        best = _best(shown, k)
        return names[best], shown[best]

    def scores(self, query: GramQuery, names: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the similarity of given names."""
        sums = np.zeros(len(names))
        order = np.argsort(names, kind="stable")
        wanted = names[order].astype(np.uint32)
        for gram, weight in zip(query.grams, query.weights, strict=True):
            owners = self._names_of(gram)
            places = np.minimum(np.searchsorted(owners, wanted), len(owners) - 1)
            sums += weight * (owners[places] == wanted)
        scores = np.empty(len(names), np.float32)
        scores[order] = (sums / self.norms[names[order]]).round(6)
        return scores

    def _counts(self, grams: NDArray[np.int64]) -> NDArray[np.int64]:
        starts = np.where(grams > 0, self.ends[grams - 1], 0)
        return np.asarray(self.ends[grams] - starts)

    def _names_of(self, gram: int) -> NDArray[np.uint32]:
        return self.names[self.ends[gram - 1] if gram else 0 : self.ends[gram]]


def _idf(counts: NDArray[np.int64] | NDArray[np.float64], num_names: int) -> NDArray[np.float64]:
    return np.asarray(np.log((1 + num_names) / (1 + counts)) + 1)


def _best(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the places of the k largest scores, the largest first, equal ones in their order."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= limit)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]


def write_gram_index(
    folder: Path, num_names: int, keys: Callable[[int, int], Sequence[str]], progress: Callable[[int, int], None]
) -> None:
    """Build the index of normalized names in a folder; `keys(start, end)` returns some of them.

    Three passes over the names, in batches: which grams there are, how often, and the lists.
    """
    batches = [(start, min(start + BATCH_NAMES, num_names)) for start in range(0, num_names, BATCH_NAMES)]
    hashes, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for number, (start, end) in enumerate(batches):
        found, own = np.unique(gram_hashes(keys(start, end))[0], return_counts=True)
        merged = np.union1d(hashes, found)
        total = np.zeros(len(merged), np.int64)
        total[np.searchsorted(merged, hashes)] = counts
        total[np.searchsorted(merged, found)] += own
        hashes, counts = merged, total
        progress(number, 2 * len(batches))
    ends = np.cumsum(counts)
    save_array(folder / "gram_hashes.npy", hashes)
    save_array(folder / "gram_ends.npy", ends)
    size = int(ends[-1]) if len(ends) else 0
    names = np.lib.format.open_memmap(folder / "gram_names.npy", "w+", np.uint32, (size,))
    norms = np.zeros(num_names, np.float32)
    squares = _idf(counts, num_names) ** 2
    free = ends - counts  # where the next name of each gram goes
    for number, (start, end) in enumerate(batches):
        found, owners = gram_hashes(keys(start, end))
        grams = np.searchsorted(hashes, found)
        norms[start:end] = np.sqrt(np.bincount(owners, squares[grams], minlength=end - start))
        pairs = np.sort(grams << 18 | owners)
        grams, owners = pairs >> 18, pairs & (1 << 18) - 1
        firsts = np.flatnonzero(np.diff(grams, prepend=-1))
        lengths = np.diff(firsts, append=len(grams))
        within = np.arange(len(grams)) - np.repeat(firsts, lengths)
        names[free[grams] + within] = owners + start
        free[grams[firsts]] += lengths
        progress(len(batches) + number, 2 * len(batches))
    norms[norms == 0] = 1
    save_array(folder / "gram_norms.npy", norms)
    names.flush()
