"""Inverted index of the character n-grams of names, memory-mapped; cosine similarity of their TF-IDF vectors.

Weights are the inverse document frequencies of the grams of a name, each gram once. Names of the same words, in any
order, have one vector. 4 bytes a gram of a vector and 20 a name; a dictionary of 7.4 million names has about 50 grams a
name, 1.5 GB where no two names share a vector. Source of the idf: scikit-learn's TfidfTransformer, smooth_idf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..storage import save_array
from .name_keys import gram_hashes

BATCH_NAMES = 50_000
MAX_POSTINGS = 20_000
"""Entries of lists that a search adds up; those of more frequent grams are looked up for the best names only."""
NUM_RESCORED = 400
BITMAP_SHARE = 128
"""A gram that more than one of so many names has is kept as bits, too; they take up to four times its list's memory."""
BITMAP_BYTES = 1 << 25
ARRAYS = ("gram_hashes", "gram_counts", "gram_ends", "gram_vectors", "vector_norms", "vector_ends", "vector_names",
          "name_vectors")  # fmt: skip


@dataclass(frozen=True)
class GramQuery:
    """The grams of a query that names have, the rarest first, with what each adds to the similarity."""

    grams: NDArray[np.int64]
    weights: NDArray[np.float64]
    length: float
    """Of its vector, by which the weights are divided."""


@dataclass(frozen=True)
class GramIndex:
    """`vectors[ends[i - 1] : ends[i]]` are the vectors that have the gram of the hash `hashes[i]`, in their order."""

    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    """How many names have each gram."""
    ends: NDArray[np.int64]
    vectors: NDArray[np.uint32]
    norms: NDArray[np.float32]
    vector_ends: NDArray[np.int64]
    """Where the names of each vector end in `names`."""
    names: NDArray[np.uint32]
    name_vectors: NDArray[np.uint32]

    @classmethod
    def open(cls, folder: Path) -> "GramIndex":
        """Memory-map the index of a folder."""
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS))

    def queries(self, keys: Sequence[str]) -> list[GramQuery]:
        """Look up the grams of normalized names, one query a name."""
        hashes, owners = gram_hashes(keys)
        places = np.searchsorted(self.hashes, hashes)
        is_known = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes
        counts = np.where(is_known, self.counts[np.where(is_known, places, 0)], 0)
        # Grams that no name has count in the query's length, so that strange names have low scores.
        squares = _idf(counts, len(self.name_vectors)) ** 2
        ends = np.searchsorted(owners, np.arange(len(keys)), side="right").tolist()
        return [
            _query(places[part], counts[part], squares[part], is_known[part]) for part in map(slice, [0, *ends], ends)
        ]

    def search(
        self, query: GramQuery, k: int, is_allowed: NDArray[np.bool_] | None = None, *, share: float = 0.0
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find the k most similar names, the best first, equal ones in their order; fewer if fewer share a gram.

        Exact up to MAX_POSTINGS entries of lists; beyond, names that share only the frequent grams are not found.
        Names below a share of the best similarity may be left out, which is faster.
        """
        num_added = max(int(self.counts[query.grams].cumsum().searchsorted(MAX_POSTINGS, side="right")), 1)
        lists = [self._vectors_of(gram) for gram in query.grams[:num_added].tolist()]
        if not lists:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        vectors, scores = self._added_up(lists, query.weights[:num_added])
        if is_allowed is not None:
            names, owners = self._names_of(vectors)
            kept = np.unique(owners[is_allowed[names]])
            vectors, scores = vectors[kept], scores[kept]
        if num_added < len(query.grams):
            best = _best(scores, max(NUM_RESCORED, k))
            sizes = self._sizes[vectors[best]]
            best = np.sort(best[sizes.cumsum() - sizes < max(NUM_RESCORED, k)])
            rest = GramQuery(query.grams[num_added:], query.weights[num_added:], query.length)
            if share and len(best):
                best = best[self._can_be_best(rest, vectors[best], scores[best], share)]
            vectors = vectors[best]
            scores = scores[best] + self._similarities(rest, vectors)
        # Sums of the same numbers in another order differ in the last bits: what is shown decides.
        shown = scores.astype(np.float32).round(6)
        best = _best(shown, k)
        names, owners = self._names_of(vectors[best])
        shown = shown[best][owners]
        if is_allowed is not None:
            names, shown = names[is_allowed[names]], shown[is_allowed[names]]
        order = np.lexsort((names, -shown))[:k]
        return names[order], shown[order]

    def _added_up(
        self, lists: Sequence[NDArray[np.uint32]], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Add up the weights of each vector, over its length: vectors in their order, and their sums."""
        found, added = np.concatenate(lists), weights.repeat(list(map(len, lists)))
        if len(found) * 8 <= len(self.norms):
            own, inverse = np.unique(found, return_inverse=True)
            return own.astype(np.int64), np.bincount(inverse, added) / self.norms[own]
        sums = np.bincount(found, added, minlength=len(self.norms))
        vectors = (sums > 0).nonzero()[0]  # much faster than of the numbers
        return vectors, sums[vectors] / self.norms[vectors]

    def _names_of(self, vectors: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """List the names of vectors, and the place of the vector of each."""
        sizes = self._sizes[vectors]
        owners, shifts = np.arange(len(vectors)).repeat(sizes), self.vector_ends[vectors] - sizes.cumsum()
        return self.names[np.arange(len(owners)) + shifts[owners]].astype(np.int64), owners

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """How many names each vector has."""
        return np.diff(self.vector_ends, prepend=0)

    def _can_be_best(
        self, rest: GramQuery, vectors: NDArray[np.int64], scores: NDArray[np.float64], share: float
    ) -> NDArray[np.bool_]:
        """Whether vectors may reach a share of the best similarity with the rest of a query's grams.

        The rest adds no more than all its grams, nor (Cauchy-Schwarz) than grams of the squared length that a vector
        has beside those that it was found by.
        """
        norms, total = self.norms[vectors].astype(np.float64), rest.weights.sum()
        free = np.maximum(norms**2 * (1 + 1e-6) - scores * norms * rest.length, 0)
        limits = scores + np.minimum(total, np.sqrt(total / rest.length * free)) / norms
        first = scores.argmax()
        least = share * (scores[first] + self._similarities(rest, vectors[first : first + 1])[0])
        return np.asarray(limits >= least - 1e-5)

    def scores(self, query: GramQuery, names: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the similarity of given names."""
        return self._similarities(query, self.name_vectors[names].astype(np.int64))

    def _similarities(self, query: GramQuery, vectors: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = self._bitmap_rows[query.grams]
        places = (rows >= 0).nonzero()[0]
        octets = self._bitmaps.ravel().take((rows[places] * self._bitmaps.shape[1])[:, None] + (vectors >> 3))
        sums = query.weights[places] @ (octets >> (7 - (vectors & 7)).astype(np.uint8) & 1)
        for place in (rows < 0).nonzero()[0]:
            owners = self._vectors_of(int(query.grams[place]))
            has_gram = owners[np.minimum(owners.searchsorted(vectors), len(owners) - 1)] == vectors
            sums += query.weights[place] * has_gram
        return np.asarray((sums / self.norms[vectors]).round(6).astype(np.float32))

    @cached_property
    def _bitmap_rows(self) -> NDArray[np.int64]:
        """The row of each gram in the bitmaps, -1 without one."""
        size = -(-len(self.norms) // 8)
        counts = np.diff(self.ends, prepend=0)
        frequent = np.flatnonzero(counts * BITMAP_SHARE > len(self.norms))
        frequent = frequent[np.argsort(-counts[frequent], kind="stable")[: BITMAP_BYTES // max(size, 1)]]
        rows = np.full(len(self.hashes), -1)
        rows[frequent] = np.arange(len(frequent))
        return rows

    @cached_property
    def _bitmaps(self) -> NDArray[np.uint8]:
        """Which vectors have the most frequent grams, eight vectors a byte."""
        rows = self._bitmap_rows
        bitmaps = np.zeros((int(rows.max(initial=-1)) + 1, -(-len(self.norms) // 8)), np.uint8)
        for gram in np.flatnonzero(rows >= 0).tolist():
            has_gram = np.zeros(len(self.norms), bool)
            has_gram[self._vectors_of(gram)] = True
            bitmaps[rows[gram]] = np.packbits(has_gram)
        return bitmaps

    def _vectors_of(self, gram: int) -> NDArray[np.uint32]:
        return self.vectors[self.ends[gram - 1] if gram else 0 : self.ends[gram]]


def _query(
    grams: NDArray[np.int64], counts: NDArray[np.int64], squares: NDArray[np.float64], is_known: NDArray[np.bool_]
) -> GramQuery:
    known, counts = squares[is_known], counts[is_known]
    length = np.sqrt(known.sum() + squares[~is_known].sum()) or 1.0
    order = counts.argsort(kind="stable")
    return GramQuery(grams[is_known][order], known[order] / length, float(length))


def _idf(counts: NDArray[np.int64] | NDArray[np.float64], num_names: int) -> NDArray[np.float64]:
    return np.asarray(np.log((1 + num_names) / (1 + counts)) + 1)


def _best(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Return the places of the k largest scores, the largest first, equal ones in their order."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = (scores >= limit).nonzero()[0]
    else:
        places = np.arange(len(scores))
    return places[(-scores[places]).argsort(kind="stable")][:k]


def write_gram_index(
    folder: Path,
    name_vectors: NDArray[np.uint32],
    keys: Callable[[int, int], Sequence[str]],
    progress: Callable[[int, int], None],
) -> None:
    """Build the index of normalized names in a folder; `keys(start, end)` returns some of them.

    `name_vectors` has the number of each name's vector, counted by their first names. Two passes over the names, in
    batches: which grams there are, and how often; the lists.
    """
    num_names = len(name_vectors)
    batches = [(start, min(start + BATCH_NAMES, num_names)) for start in range(0, num_names, BATCH_NAMES)]
    names = np.argsort(name_vectors, kind="stable")
    vector_ends = np.cumsum(np.bincount(name_vectors)) if num_names else np.empty(0, np.int64)
    is_first = np.zeros(num_names, bool)
    is_first[names[np.append(0, vector_ends)[:-1]]] = True
    hashes, counts = np.empty(0, np.uint64), np.empty((2, 0), np.int64)
    for number, (start, end) in enumerate(batches):
        all_found, owners = gram_hashes(keys(start, end))
        found, places = np.unique(all_found, return_inverse=True)
        own = np.bincount(places), np.bincount(places, is_first[start:end][owners])
        merged = np.union1d(hashes, found)
        total = np.zeros((2, len(merged)), np.int64)
        total[:, np.searchsorted(merged, hashes)] = counts
        total[:, np.searchsorted(merged, found)] += np.array(own, np.int64)
        hashes, counts = merged, total
        progress(number, 2 * len(batches))
    ends = np.cumsum(counts[1])
    arrays = {"gram_hashes": hashes, "gram_counts": counts[0], "gram_ends": ends, "name_vectors": name_vectors,
              "vector_ends": vector_ends, "vector_names": names.astype(np.uint32)}  # fmt: skip
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array)
    vectors = np.lib.format.open_memmap(folder / "gram_vectors.npy", "w+", np.uint32, (int(counts[1].sum()),))
    norms = np.zeros(len(vector_ends), np.float32)
    squares = _idf(counts[0], num_names) ** 2
    free = ends - counts[1]  # where the next vector of each gram goes
    for number, (start, end) in enumerate(batches):
        firsts = np.flatnonzero(is_first[start:end])
        texts = keys(start, end)
        found, owners = gram_hashes([texts[place] for place in firsts.tolist()])
        grams, first = np.searchsorted(hashes, found), int(name_vectors[start + firsts[0]]) if len(firsts) else 0
        norms[first : first + len(firsts)] = np.sqrt(np.bincount(owners, squares[grams], minlength=len(firsts)))
        _append(vectors, free, grams, owners, first)
        progress(len(batches) + number, 2 * len(batches))
    norms[norms == 0] = 1
    save_array(folder / "vector_norms.npy", norms)
    vectors.flush()


def _append(
    vectors: NDArray[np.uint32],
    free: NDArray[np.int64],
    grams: NDArray[np.int64],
    owners: NDArray[np.int64],
    first: int,
) -> None:
    """Append vectors, counted from the first, to the lists of their grams."""
    pairs = np.sort(grams << 18 | owners)
    grams, owners = pairs >> 18, pairs & (1 << 18) - 1
    starts = np.flatnonzero(np.diff(grams, prepend=-1))
    lengths = np.diff(starts, append=len(grams))
    within = np.arange(len(grams)) - np.repeat(starts, lengths)
    vectors[free[grams] + within] = owners + first
    free[grams[starts]] += lengths
