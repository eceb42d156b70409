"""BM25: an inverted index of words in memory-mapped arrays; k1 and b are chosen at search, so tuning needs one index.

Source: Robertson and Zaragoza 2009; idf as Lucene's, log(1 + (N - n + 0.5) / (n + 0.5)), which is never negative.
Words are runs of letters and digits in lower case, without stop words, stemmed by Porter's rules where chosen.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import atomic_write, save_array
from .stemmer import stem

WORD = re.compile(r"[^\W_]+")
# Lucene's list of English stop words.
STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
})  # fmt: skip
ARRAYS = ("starts", "documents", "counts", "lengths")
K1_VALUES = (0.6, 0.9, 1.2, 1.6, 2.0, 3.0)
B_VALUES = (0.1, 0.3, 0.4, 0.6, 0.75, 0.9)


class WordSplitter:
    """Splits texts into the words that are indexed; stems are remembered."""

    def __init__(self, *, stems: bool) -> None:
        self.stems = stems
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> list[str]:
        """Split a text."""
        words = [word for word in WORD.findall(text.lower()) if word not in STOP_WORDS]
        return [self._stem(word) for word in words] if self.stems else words

    def _stem(self, word: str) -> str:
        if word not in self._known:
            self._known[word] = stem(word)
        return self._known[word]


def build_bm25(folder: Path, texts: Iterable[str], *, stems: bool) -> "Bm25":
    """Build an index of texts in a folder; documents are numbered in their order."""
    split = WordSplitter(stems=stems)
    numbers: dict[str, int] = {}
    terms: list[NDArray[np.int32]] = []
    counts: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for text in texts:
        words = Counter(split(text))
        terms.append(np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int32))
        counts.append(np.fromiter(words.values(), dtype=np.int32, count=len(words)))
        lengths.append(words.total())
    if not lengths:
        raise InputError("there is no text to index.")
    all_terms = np.concatenate(terms)
    order = np.argsort(all_terms, kind="stable")
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(item) for item in terms])
    starts = np.concatenate([[0], np.cumsum(np.bincount(all_terms, minlength=len(numbers)))])
    arrays = (starts, documents[order], np.concatenate(counts)[order], np.array(lengths, dtype=np.int32))
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(ARRAYS, arrays, strict=True):
        save_array(folder / f"{name}.npy", array)
    atomic_write(folder / "words.json", json.dumps({"stems": stems, "words": list(numbers)}, ensure_ascii=False))
    return Bm25(folder)


class Bm25:
    """An index of words, opened."""

    def __init__(self, folder: Path) -> None:
        """Open an index. Raises InputError where a file is missing or damaged."""
        try:
            document: Mapping[str, Any] = json.loads((folder / "words.json").read_text(encoding="utf-8"))
            self._numbers = {word: number for number, word in enumerate(document["words"])}
            self.split = WordSplitter(stems=document["stems"])
            arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{folder} is no index of words, or is damaged: {error}. Build it again.") from None
        self._starts, self._documents, self._counts, lengths = arrays
        if self._starts[-1] != len(self._documents) or len(self._documents) != len(self._counts):
            raise InputError(f"{folder} is damaged: its arrays have different lengths. Build it again.")
        self._relative_lengths = np.asarray(lengths, dtype=np.float64) / max(float(lengths.mean()), 1e-9)

    def __len__(self) -> int:
        """Count the documents."""
        return len(self._relative_lengths)

    def scores(self, query: str, *, k1: float, b: float) -> NDArray[np.float64]:
        """Compute the scores of all documents."""
        scores = np.zeros(len(self))
        for word, count in Counter(self.split(query)).items():
            number = self._numbers.get(word)
            if number is None:
                continue
            start, end = self._starts[number], self._starts[number + 1]
            documents, counts = self._documents[start:end], self._counts[start:end]
            idf = np.log1p((len(self) - len(documents) + 0.5) / (len(documents) + 0.5))
            saturation = counts + k1 * (1 - b + b * self._relative_lengths[documents])
            scores[documents] += count * idf * counts * (k1 + 1) / saturation
        return scores

    def search(self, query: str, k: int, *, k1: float = 0.9, b: float = 0.4) -> list[tuple[int, float]]:
        """Find the documents of the k largest scores above 0: (number, score), equal ones by number."""
        scores = self.scores(query, k1=k1, b=b)
        if k < len(scores):
            candidates = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
        else:
            candidates = np.arange(len(scores))
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
        return [(int(number), float(scores[number])) for number in order if scores[number] > 0]
