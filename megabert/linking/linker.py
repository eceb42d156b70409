"""Linker: mentions in, concepts of a dictionary out, by character n-grams and, with a run, by embeddings.

A mention's abbreviations are written out first. A name that is the mention, its case and punctuation aside, comes
first, and one whose initials it is comes before those that are only similar; other names are ranked by the weighted sum
of both similarities. A composite mention is split where its parts are
found better than the whole. The score of a link is the probability that it is right; below a threshold it is NIL. Same
dictionary, run and mention, same result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats.documents.abbreviations import written_out
from ..formats.documents.composites import composite_splits
from ..inference import Session
from .dictionary import Dictionary
from .gram_index import GramQuery
from .name_keys import initialism, normalized, number_hashes

SearchedText = tuple[str, tuple[int, ...]]
"""A text with its abbreviations written out, and the taxa of the concepts that may be meant."""
NIL = "-"
SEPARATOR = "|"
NUM_CANDIDATES = 64
"""Names that each of the two searches finds; both similarities of all of them are computed."""
INITIALS = 0.9
"""Similarity of a text to the only concept with a name of these initials; several share it. Of the initials that the
Disease Ontology lists among its names, 93 % are those of another name of the same concept."""
OTHER_NUMBER, NO_NUMBER = 0.8, 0.95
"""Factors of the similarity of names with another number in their series than the text's, and where one has none. From
NCBI-disease's training mentions and held-out names of the Disease Ontology."""
CACHED_NAMES = 100_000


@dataclass(frozen=True)
class Calibration:
    """How similarities become a decision; the defaults were fitted on NCBI-disease's training documents with MEDIC."""

    weight: float = 0.5
    """Of the embeddings' similarity, the n-grams' has the rest."""
    slope: float = 8.02
    intercept: float = -5.97
    """Of the logistic function from the best similarity to the probability that the link is right."""
    threshold: float = 0.49
    """Links of a lower probability are NIL."""

    def probability(self, similarity: float) -> float:
        """Return the probability that a link is right."""
        return 1 / (1 + math.exp(-(self.slope * similarity + self.intercept)))


@dataclass(frozen=True)
class LinkQuery:
    """A mention, and what its document says about it."""

    text: str
    definitions: Mapping[str, str] = field(default_factory=dict)
    """Abbreviations of the document and what they stand for."""
    species: tuple[int, ...] = ()
    """Taxa of the concepts that may be meant; (): any."""


@dataclass(frozen=True)
class NameCandidate:
    """A name of the dictionary with its concept's identifiers, the concept's own first."""

    name: str
    identifiers: tuple[str, ...]
    similarity: float


@dataclass(frozen=True)
class LinkedPart:
    """A mention, or a part of a composite one, as it was searched, with candidates, the best first."""

    text: str
    candidates: tuple[NameCandidate, ...]

    @property
    def similarity(self) -> float:
        """That of the best candidate, 0 without any."""
        return self.candidates[0].similarity if self.candidates else 0.0


@dataclass(frozen=True)
class Link:
    """What a mention is linked to."""

    text: str
    parts: tuple[LinkedPart, ...]
    score: float
    """The probability that it is right, for a composite that of the part that is least certain."""
    is_nil: bool

    @property
    def identifier(self) -> str:
        """The identifiers of its parts, joined by |; - for NIL."""
        found = dict.fromkeys(part.candidates[0].identifiers[0] for part in self.parts if part.candidates)
        return NIL if self.is_nil else SEPARATOR.join(found)

    def described(self) -> dict[str, Any]:
        """Return it as plain values, candidates included."""
        parts = [
            {
                "mention": part.text,
                "candidates": [
                    {"name": item.name, "identifiers": list(item.identifiers), "similarity": round(item.similarity, 5)}
                    for item in part.candidates
                ],
            }
            for part in self.parts
        ]
        return {"identifier": self.identifier, "name": self.name, "score": round(self.score, 4), "parts": parts}

    @property
    def name(self) -> str:
        """The names of its concepts, joined by |; "" for NIL."""
        return "" if self.is_nil else SEPARATOR.join(part.candidates[0].name for part in self.parts)


class DenseSearch(Protocol):
    """The search by embeddings."""

    @property
    def run_digest(self) -> str:
        """The digest of the run that made the embeddings."""

    @property
    def session(self) -> Session:
        """What embeds texts."""

    def with_session(self, session: Session) -> "DenseSearch":
        """Return the search with the session of another process."""

    def search(self, texts: Sequence[str]) -> "Sequence[DenseResult]":
        """Embed texts and find the nearest names of each."""


class DenseResult(Protocol):
    """What the search by embeddings finds for a text."""

    @property
    def names(self) -> NDArray[np.int64]:
        """The numbers of the nearest names."""

    def similarities(self, names: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosine similarities of names."""


@dataclass
class Linker:
    """Links mentions to the concepts of a dictionary. `megabert.load_linker(DICT, RUN)` returns one."""

    dictionary: Dictionary
    calibration: Calibration = field(default_factory=Calibration)
    dense: DenseSearch | None = None
    _known: dict[tuple[SearchedText, int], tuple[LinkedPart, ...]] = field(default_factory=dict, init=False, repr=False)
    """Results by searched text and number of candidates: most mentions of a corpus occur again. A copy has none."""

    @property
    def digest(self) -> list[Any]:
        """All on which links depend, as plain values."""
        run = self.dense.run_digest if self.dense is not None else ""
        return [self.dictionary.digest, run, list(vars(self.calibration).values())]

    def with_sessions(self, sessions: Iterator[Session]) -> "Linker":
        """Return a linker whose embeddings are computed by the next of the sessions; without embeddings, the same."""
        if self.dense is None:
            return replace(self)
        return replace(self, dense=self.dense.with_session(next(sessions)))

    def link(self, mentions: Sequence[str | LinkQuery], *, k: int = 1, species: Sequence[int] = ()) -> list[Link]:
        """Link mentions; each part of a link has the k best names.

        `species` holds for mentions that name none themselves. Raises InputError for one that the dictionary lacks.
        """
        queries = [LinkQuery(item) if isinstance(item, str) else item for item in mentions]
        wanted = [(written_out(item.text, item.definitions), item.species or tuple(species)) for item in queries]
        if new := [item for item in dict.fromkeys(wanted) if (item, k) not in self._known]:
            if len(self._known) + len(new) > CACHED_NAMES:
                self._known.clear()
                new = list(dict.fromkeys(wanted))
            self._known.update(((item, k), parts) for item, parts in zip(new, self._parts(new, k), strict=True))
        return [self._link(query.text, self._known[item, k]) for query, item in zip(queries, wanted, strict=True)]

    def _parts(self, wanted: Sequence[SearchedText], k: int) -> Iterator[tuple[LinkedPart, ...]]:
        """Search each text, and the parts of those that may be composites."""
        wholes = self._ranked(wanted, k)
        splits = [
            [] if self._is_exact(whole, text) else composite_splits(text)
            for whole, (text, _) in zip(wholes, wanted, strict=True)
        ]
        needed = [
            (part, species) for (_, species), ways in zip(wanted, splits, strict=True) for way in ways for part in way
        ]
        ranked = iter(self._ranked(needed, k))
        for whole, ways in zip(wholes, splits, strict=True):
            best: tuple[LinkedPart, ...] = (whole,)
            for way in ways:
                parts = tuple(next(ranked) for _ in way)
                if self._is_better(parts, best):
                    best = parts
            yield best

    def _link(self, text: str, parts: tuple[LinkedPart, ...]) -> Link:
        similarity = min(part.similarity for part in parts)
        score = self.calibration.probability(similarity) if all(part.candidates for part in parts) else 0.0
        return Link(text, parts, score, score < self.calibration.threshold or similarity == 0)

    @staticmethod
    def _is_exact(part: LinkedPart, text: str) -> bool:
        return bool(part.candidates) and normalized(part.candidates[0].name) == normalized(text)

    @staticmethod
    def _is_better(parts: tuple[LinkedPart, ...], than: tuple[LinkedPart, ...]) -> bool:
        """Whether the parts of a split are found better, and are different concepts."""
        concepts = {part.candidates[0].identifiers for part in parts if part.candidates}
        return len(concepts) == len(parts) and min(part.similarity for part in parts) > min(
            part.similarity for part in than
        )

    def _ranked(self, wanted: Sequence[SearchedText], k: int) -> list[LinkedPart]:
        """Rank the names for each text; a text that occurs twice is searched once."""
        distinct = list(dict.fromkeys(wanted))
        keys = [normalized(text) for text, _ in distinct]
        exact = {
            item: self._exact(key, item[1])
            or self._exact(key.replace(" ", ""), item[1])
            or self._in_series(key, item[1])
            for item, key in zip(distinct, keys, strict=True)
        }
        # With k = 1 the similarities of others cannot change the result.
        inexact = [item for item in distinct if k > 1 or not exact[item]]
        queries = self.dictionary.grams.queries([normalized(text) for text, _ in inexact])
        grams = dict(zip(inexact, queries, strict=True))
        dense: dict[SearchedText, DenseResult] = {}
        if self.dense is not None:
            results = self.dense.search([text for text, _ in inexact])
            dense = dict(zip(inexact, results, strict=True))
        found = {
            item: self._combined(item, grams.get(item), dense.get(item), exact[item], number, k)
            for item, number in zip(distinct, number_hashes(keys), strict=True)
        }
        return [LinkedPart(item[0], found[item]) for item in wanted]

    def _exact(self, key: str, species: tuple[int, ...]) -> list[int]:
        """Look up the names that have a key."""
        return self._allowed(self.dictionary.exact(key), species)

    def _in_series(self, key: str, species: tuple[int, ...]) -> list[int]:
        return self._allowed(self.dictionary.in_series(key), species)

    def _allowed(self, names: list[int], species: tuple[int, ...]) -> list[int]:
        is_allowed = self.dictionary.allowed(species)
        return [name for name in names if is_allowed is None or is_allowed[name]]

    def _combined(
        self,
        item: SearchedText,
        query: GramQuery | None,
        dense: DenseResult | None,
        exact: list[int],
        number: np.uint32,
        k: int,
    ) -> tuple[NameCandidate, ...]:
        """Rank the names of both searches: the text itself first, then by similarity.

        Of equals those that are mentions more often come first, then preferred names, then those of concepts with more
        names.
        """
        names, lexical = np.empty(0, np.int64), np.empty(0, np.float32)
        is_allowed, grams = self.dictionary.allowed(item[1]), self.dictionary.grams
        if query is not None:
            names, lexical = grams.search(query, NUM_CANDIDATES, is_allowed)
        scores: NDArray[np.floating[Any]] = lexical
        if query is not None and dense is not None:
            others = dense.names if is_allowed is None else dense.names[is_allowed[dense.names]]
            others = np.setdiff1d(others, names)
            lexical = np.concatenate([lexical, grams.scores(query, others)])
            names = np.concatenate([names, others])
            weight = self.calibration.weight
            scores = (weight * dense.similarities(names) + (1 - weight) * lexical).round(5)
        numbers = self.dictionary.arrays["name_numbers"][names]
        is_lacking = (numbers == 0) | (number == 0)
        scores = scores * np.where(numbers == number, 1.0, np.where(is_lacking, NO_NUMBER, OTHER_NUMBER))
        spelled, share = exact, 1.0
        if not exact and (key := initialism(item[0])):
            spelled = self._exact(key, item[1])
            share = INITIALS / max(len(set(self.dictionary.concepts_of(np.array(spelled, np.int64)).tolist())), 1)
        names, scores, is_other = _with_names(names, np.minimum(scores, 1.0), spelled, share)
        is_exact = is_other & bool(exact)
        concepts = self.dictionary.concepts_of(names)
        ends = self.dictionary.arrays["concept_ends"]
        starts = np.where(concepts > 0, ends[concepts - 1], 0)
        num_names = ends[concepts] - starts
        mentions = -self.dictionary.arrays["name_mentions"][names].astype(np.int64)
        order = np.lexsort((names, -num_names, names != starts, mentions, -scores, ~is_exact))[:k]
        return tuple(
            NameCandidate(
                self.dictionary.name(int(names[place])),
                self.dictionary.identifiers(int(concepts[place])),
                float(scores[place]),
            )
            for place in order
        )


def _with_names(
    names: NDArray[np.int64], scores: NDArray[np.floating[Any]], others: Sequence[int], score: float
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]], NDArray[np.bool_]]:
    """Add names that are not there yet, give them all the score where theirs is lower, and return which they are."""
    if not others:
        return names, scores, np.zeros(len(names), bool)
    missing = np.setdiff1d(np.array(others, np.int64), names)
    names = np.concatenate([names, missing])
    scores = np.append(scores, np.zeros(len(missing)))
    is_one = np.isin(names, others)
    return names, np.where(is_one, np.maximum(scores, score), scores), is_one
