"""Active learning: choose the documents that a person should correct next, the least certain ones, spread out.

Documents in, in a stream; those that are chosen out, least certain first. The uncertainty of a document is the mean, or
the sum, over its words. Sources: least confidence, margin and entropy of sequences, Settles and Craven 2008; the mean
log probability of tokens, Shen et al. 2018, arXiv:1707.05928; greedy k-center over embeddings, Sener and Savarese 2018,
arXiv:1708.00489.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.documents.document import Document, Passage
from ..formats.documents.training_examples import sentences_of
from ..inference import Predictor

CHUNK = 256
_SMALLEST = 1e-12


def _least_confidence(probabilities_WC: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log(np.maximum(probabilities_WC.max(axis=1), _SMALLEST))


def _margin(probabilities_WC: NDArray[np.float64]) -> NDArray[np.float64]:
    """One minus the difference of the two largest probabilities."""
    if probabilities_WC.shape[1] < 2:
        return np.zeros(len(probabilities_WC))
    largest_W2 = np.sort(probabilities_WC, axis=1)[:, -2:]
    return 1 - (largest_W2[:, 1] - largest_W2[:, 0])


def _entropy(probabilities_WC: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats."""
    return -(probabilities_WC * np.log(np.maximum(probabilities_WC, _SMALLEST))).sum(axis=1)


# Name -> the uncertainty of each word, from the probabilities of its tags
MEASURES: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "least-confidence": _least_confidence,
    "margin": _margin,
    "entropy": _entropy,
}
RANDOM = "random"


@dataclass(frozen=True)
class SelectionOptions:
    """What is chosen, and how."""

    count: int
    by: str = "entropy"
    """One of MEASURES, or RANDOM."""
    is_total: bool = False
    """Add the words' uncertainties up instead of taking their mean: prefers long documents."""
    candidates: float = 2.0
    """The documents are a k-center of this many times as many least certain ones; 1: the least certain themselves."""
    excluded: Collection[str] = ()
    """Identifiers of documents that are not to be chosen."""
    seed: int = 0


@dataclass
class Selection:
    """The chosen documents, least certain first, with their uncertainties; those of all are summarized."""

    documents: list[Document] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    num_documents: int = 0
    num_excluded: int = 0
    mean_score: float = 0.0


def select(predictor: Predictor, documents: Iterable[Document], options: SelectionOptions) -> Selection:
    """Choose documents for a run of token classification; only the candidates are held in memory."""
    is_random = options.by == RANDOM
    score = _random_scores(options.seed) if is_random else _uncertainty_scores(predictor, options)
    num_kept = max(round(options.count * (1 if is_random else options.candidates)), options.count)
    found, total = Selection(), 0.0
    kept: list[tuple[float, int, Document]] = []
    stream = _without(documents, options.excluded, found)
    while chunk := list(itertools.islice(stream, CHUNK)):
        for document, value in zip(chunk, score(chunk), strict=True):
            total += value
            found.num_documents += 1
            item = (value, -found.num_documents, document)  # of equal ones the first
            if len(kept) < num_kept:
                heapq.heappush(kept, item)
            else:
                heapq.heappushpop(kept, item)
    ranked = sorted(kept, reverse=True)
    if len(ranked) > options.count:
        vectors = predictor.embed([document.text() for _, _, document in ranked])
        ranked = [ranked[number] for number in sorted(k_center(vectors, options.count))]
    found.documents = [document for _, _, document in ranked]
    found.scores = [value for value, _, _ in ranked]
    found.mean_score = total / max(found.num_documents, 1)
    return found


def _without(documents: Iterable[Document], excluded: Collection[str], found: Selection) -> Iterator[Document]:
    """Leave out the excluded documents, which are counted, and those without any text."""
    for document in documents:
        if document.id in excluded:
            found.num_excluded += 1
        elif any(passage.text.strip() for passage in document.passages):
            yield document


def _random_scores(seed: int) -> Callable[[Sequence[Document]], list[float]]:
    numbers = random.Random(seed)  # noqa: S311  (a sample, no secret)
    return lambda documents: [numbers.random() for _ in documents]


def _uncertainty_scores(predictor: Predictor, options: SelectionOptions) -> Callable[[Sequence[Document]], list[float]]:
    reduce = np.sum if options.is_total else np.mean

    def score(documents: Sequence[Document]) -> list[float]:
        values = word_uncertainties(predictor, documents, options.by)
        return [float(reduce(item)) if len(item) else 0.0 for item in values]

    return score


def word_uncertainties(predictor: Predictor, documents: Sequence[Document], by: str) -> list[NDArray[np.float64]]:
    """Compute the uncertainty of each word of documents, by one of MEASURES; words without tokens are left out."""
    passages = [(number, item) for number, document in enumerate(documents) for item in document.passages]
    passages = [(number, item) for number, item in passages if item.text.strip()]
    task: Any = predictor.task
    examples = [task.example(text=item.text) for _, item in passages]
    features = task.features(examples, predictor.tokenizer, with_targets=False)
    probabilities = task.word_probabilities(examples, features, predictor.run(features).logits)
    found: list[list[NDArray[np.float64]]] = [[np.zeros(0)] for _ in documents]
    for (number, _), item_WC in zip(passages, probabilities, strict=True):
        found[number].append(MEASURES[by](item_WC[~np.isnan(item_WC).any(axis=1)]))
    return [np.concatenate(items) for items in found]


def k_center(vectors_ND: NDArray[np.float32], count: int) -> list[int]:
    """Choose vectors greedily, each the farthest from those before, beginning with the first; returns their numbers.

    Distances are those of the vectors' directions.
    """
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    directions_ND = vectors_ND / np.maximum(lengths_N1, _SMALLEST)
    chosen = [0]
    nearest_N = directions_ND @ directions_ND[0]  # the cosine with the nearest that is chosen
    while len(chosen) < min(count, len(vectors_ND)):
        nearest_N[chosen[-1]] = np.inf
        chosen.append(int(nearest_N.argmin()))
        nearest_N = np.maximum(nearest_N, directions_ND @ directions_ND[chosen[-1]])
    return chosen


def split_into_sentences(documents: Iterable[Document]) -> Iterator[Document]:
    """Make a document of each sentence, named ID.NUMBER; no sentence ends within an entity, and relations are lost."""
    for document in documents:
        text = document.text()
        for number, (start, end) in enumerate(sentences_of(document, document.entities), start=1):
            entities = tuple(
                replace(entity, fragments=tuple((first - start, last - start) for first, last in entity.fragments))
                for entity in document.entities
                if start <= entity.start < end
            )
            name = f"{document.id}.{number}"
            yield Document(name, (Passage(0, text[start:end]),), entities, location=f"{document.location} ({name})")
