"""Linker: mentions in, concepts of a dictionary out, by character n-grams and, with a run, by embeddings.

A mention's abbreviations are written out first. A name that is the mention, its case and punctuation aside, comes
first; one whose initials it is, or that has a synonym of one of its words, comes before those that are only similar;
other names are ranked by the weighted sum of both similarities. A composite mention is split where its parts are found
better than the whole. A CandidateRanker, where one was learned, orders the first candidates anew and decides on splits.
The score of a link is the probability that it is right; below a threshold it is NIL. Same dictionary, run and mention,
same result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.documents.abbreviations import written_out
from ..formats.documents.composites import composite_splits
from ..inference import Session, list_of_texts
from .candidate_ranker import RANKED, CandidateRanker
from .candidates import LinkedPart, NameCandidate
from .dictionary import Dictionary
from .name_keys import initialism, normalized, number_hashes
from .protocols import DenseResult, DenseSearch, MentionReader

SearchedText = tuple[str, tuple[int, ...]]
"""A text with its abbreviations written out, and the taxa of the concepts that may be meant."""
ScoredNames = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Numbers of texts, names that were found for each, their scores, and the excess of their embeddings' similarity."""
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
SYNONYM = 0.9
"""Similarity of a name with another word in the place of one of the text's, times the share of such names that are of
the same concept."""
FIRST = 2.0
"""Score of names that are a text, above any similarity; 1 is shown."""
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
    context: str = ""
    """The sentence that it stands in, which a reader reads."""


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


@dataclass
class Linker:
    """Links mentions to the concepts of a dictionary. `megabert.load_linker(DICT, RUN)` returns one."""

    dictionary: Dictionary
    calibration: Calibration = field(default_factory=Calibration)
    dense: DenseSearch | None = None
    ranker: CandidateRanker | None = None
    reader: MentionReader | None = None
    _known: dict[tuple[SearchedText, int], tuple[LinkedPart, ...]] = field(default_factory=dict, init=False, repr=False)
    """Results by searched text and number of candidates: most mentions of a corpus occur again. A copy has none."""

    @property
    def digest(self) -> list[Any]:
        """All on which links depend, as plain values."""
        run = self.dense.run_digest if self.dense is not None else ""
        further = [item.digest for item in (self.ranker, self.reader) if item is not None]
        return [self.dictionary.digest, run, list(vars(self.calibration).values()), *further]

    def with_sessions(self, sessions: Iterator[Session]) -> "Linker":
        """Return a linker whose networks are the next of the sessions."""
        dense = self.dense.with_session(next(sessions)) if self.dense is not None else None
        reader = self.reader.with_session(next(sessions)) if self.reader is not None else None
        return replace(self, dense=dense, reader=reader)

    @property
    def sessions(self) -> list[Session]:
        """The networks of embeddings and of the reader, as far as there are any."""
        dense = [self.dense.session] if self.dense is not None else []
        return [*dense, self.reader.predictor.session] if self.reader is not None else dense

    def link(self, mentions: Sequence[str | LinkQuery], *, k: int = 1, species: Sequence[int] = ()) -> list[Link]:
        """Link mentions; each part of a link has the k best names.

        `species` holds for mentions that name none themselves. Raises InputError for one that the dictionary lacks.
        """
        mentions = list_of_texts(mentions, "link")
        queries = [LinkQuery(item) if isinstance(item, str) else item for item in mentions]
        if wrong := [number for number, item in enumerate(queries) if not isinstance(item, LinkQuery)]:
            kind = type(queries[wrong[0]]).__name__
            raise InputError(f"mention {wrong[0] + 1} is a {kind}; expected a string or a LinkQuery.")
        wanted = [(written_out(item.text, item.definitions), item.species or tuple(species)) for item in queries]
        depth = k if self.reader is None else max(k, RANKED)
        if new := [item for item in dict.fromkeys(wanted) if (item, depth) not in self._known]:
            if len(self._known) + len(new) > CACHED_NAMES:
                self._known.clear()
                new = list(dict.fromkeys(wanted))
            self._known.update(((item, depth), parts) for item, parts in zip(new, self._parts(new, depth), strict=True))
        found = [self._known[item, depth] for item in wanted]
        if self.reader is not None:
            read = self.reader.reordered(found, [item.context for item in queries], self.calibration.slope)
            found = [_first(parts, k) for parts in read]
        return [self._link(query.text, parts) for query, parts in zip(queries, found, strict=True)]

    def _parts(self, wanted: Sequence[SearchedText], k: int) -> Iterator[tuple[LinkedPart, ...]]:
        """Choose between each text and the ways to split it."""
        if self.ranker is not None:
            for whole, ways in self.searched(wanted, max(k, RANKED)):
                yield _first(self.ranker.best(whole, ways), k)
            return
        for whole, ways in self.searched(wanted, k):
            best: tuple[LinkedPart, ...] = (whole,)
            for parts in ways:
                if self._is_better(parts, best):
                    best = parts
            yield best

    def searched(
        self, wanted: Sequence[SearchedText], k: int
    ) -> Iterator[tuple[LinkedPart, list[tuple[LinkedPart, ...]]]]:
        """Search each text and, of those that may be composites, the parts of each way to split them."""
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
            yield whole, [tuple(next(ranked) for _ in way) for way in ways]

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
        """Rank the names for each text; a text that occurs twice is searched once.

        Names that are the text come first, then names by similarity. Of equals those that are mentioned more often come
        first, then preferred names, then those of concepts with more names.
        """
        distinct = list(dict.fromkeys(wanted))
        exact = self._exact(distinct)
        # With k = 1 the similarities of others cannot change the result.
        is_searched = np.array([k > 1 or not names for names in exact], bool)
        searched = self._similar(distinct, np.flatnonzero(is_searched), k)
        owners, names, scores, excess = _merged(searched, self._spelled(distinct, exact))
        concepts = self.dictionary.concepts_of(names)
        order = self._order(owners, names, scores, concepts)
        order = order[np.arange(len(order)) - np.searchsorted(owners, owners) < k]  # owners keep their places
        ranked: list[list[NameCandidate]] = [[] for _ in distinct]
        similarities = np.minimum(scores[order], 1.0)
        candidates = self.dictionary.candidates(names[order], concepts[order], similarities, excess[order])
        for owner, candidate in zip(owners[order].tolist(), candidates, strict=True):
            ranked[owner].append(candidate)
        parts = {item: LinkedPart(item[0], tuple(own)) for item, own in zip(distinct, ranked, strict=True)}
        return [parts[item] for item in wanted]

    def _order(
        self,
        owners: NDArray[np.int64],
        names: NDArray[np.int64],
        scores: NDArray[np.float64],
        concepts: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Sort names by owner and score; of equals by mentions, by preference, and by the names of their concepts."""
        ends = self.dictionary.arrays["concept_ends"]
        starts = np.where(concepts > 0, ends[concepts - 1], 0)
        mentions = self.dictionary.arrays["name_mentions"][names].astype(np.int64)
        is_other, num_names = names != starts, ends[concepts] - starts  # a concept's first name is its preferred one
        return np.lexsort((names, -num_names, is_other, -mentions, -scores, owners))

    def _exact(self, wanted: Sequence[SearchedText]) -> list[list[int]]:
        """Look up the names that are each text, blanks aside, else those of its number in a series."""
        keys = [normalized(text) for text, _ in wanted]
        found = self.dictionary.exact_names(keys), self.dictionary.exact_names([key.replace(" ", "") for key in keys])
        return [
            self._allowed(whole, species)
            or self._allowed(joined, species)
            or self._allowed(self.dictionary.in_series(key), species)
            for key, whole, joined, (_, species) in zip(keys, *found, wanted, strict=True)
        ]

    def _allowed(self, names: list[int], species: tuple[int, ...]) -> list[int]:
        is_allowed = self.dictionary.allowed(species)
        return names if is_allowed is None else [name for name in names if is_allowed[name]]

    def _similar(self, wanted: Sequence[SearchedText], places: NDArray[np.int64], k: int) -> ScoredNames:
        """Search the texts at some places by n-grams and embeddings; names with another number are less similar."""
        texts, grams = [wanted[place] for place in places.tolist()], self.dictionary.grams
        keys = [normalized(text) for text, _ in texts]
        numbers = number_hashes(keys)
        dense: Sequence[DenseResult | None] = [None] * len(texts)
        if self.dense is not None:
            dense = self.dense.search([text for text, _ in texts])
        rows: list[tuple[NDArray[Any], ...]] = [(np.empty(0, np.int64), np.empty(0), np.empty(0))]
        for (_, species), query, near, number in zip(texts, grams.queries(keys), dense, numbers.tolist(), strict=True):
            is_allowed = self.dictionary.allowed(species)
            # A name that is less similar by more than the factor of another number cannot come first.
            share = (OTHER_NUMBER if number else NO_NUMBER) - 1e-3 if k == 1 and near is None else 0.0
            names, scores = grams.search(query, NUM_CANDIDATES, is_allowed, share=share)
            excess: NDArray[Any] = np.zeros(len(names))
            if near is not None:
                others = near.names if is_allowed is None else near.names[is_allowed[near.names]]
                others = np.setdiff1d(others, names)
                scores = np.concatenate([scores, grams.scores(query, others)])
                names, weight = np.concatenate([names, others]), self.calibration.weight
                dense_scores = near.similarities(names)
                excess = (dense_scores - scores).round(5)
                scores = (weight * dense_scores + (1 - weight) * scores).round(5)
            rows.append((names, scores, excess))
        counts = [len(names) for names, *_ in rows[1:]]
        names, scores, excess = (np.concatenate(column) for column in zip(*rows, strict=True))
        factors = _number_factors(np.repeat(numbers, counts), self.dictionary.arrays["name_numbers"][names])
        return np.repeat(places, counts), names, np.minimum(scores * factors, 1.0), excess * factors

    def _spelled(self, wanted: Sequence[SearchedText], exact: Sequence[list[int]]) -> ScoredNames:
        """Return the names that are the texts, of other texts those of these initials, or with a synonym of a word."""
        initials = {
            place: key for place, names in enumerate(exact) if not names and (key := initialism(wanted[place][0]))
        }
        spelled = dict(zip(initials, self.dictionary.exact_names(list(initials.values())), strict=True))
        rows = []
        for place, (names, (text, species)) in enumerate(zip(exact, wanted, strict=True)):
            share = FIRST
            if place in spelled:
                names = self._allowed(spelled[place], species)
                share = INITIALS / max(len(set(self.dictionary.concepts_of(np.array(names, np.int64)).tolist())), 1)
            rows += [(place, name, share) for name in names]
            if not names and (keys := self.dictionary.synonym_keys(normalized(text))):
                for own, sure in zip(self.dictionary.exact_names(list(keys)), keys.values(), strict=True):
                    rows += [(place, name, SYNONYM * sure) for name in self._allowed(own, species)]
        owners, numbers, scores = zip(*rows, strict=True) if rows else ((), (), ())
        numbered = np.array(owners, np.int64), np.array(numbers, np.int64)
        return *numbered, np.array(scores, np.float64), np.zeros(len(rows))


def _first(parts: tuple[LinkedPart, ...], k: int) -> tuple[LinkedPart, ...]:
    return tuple(LinkedPart(part.text, part.candidates[:k], part.scores) for part in parts)


def _merged(*found: ScoredNames) -> ScoredNames:
    """Join the results of several searches; a name that two of them find for a text has the higher score."""
    owners, names, scores, excess = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((-scores, names, owners))
    is_new = (np.diff(owners[order], prepend=-1) != 0) | (np.diff(names[order], prepend=-1) != 0)
    kept = order[is_new]
    return owners[kept], names[kept], scores[kept], excess[kept]


def _number_factors(numbers: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return the factors of similarities, from the numbers in a series of texts and of the names; 0: there is none."""
    has_none = (numbers == 0) | (others == 0)
    return np.where(numbers == others, 1.0, np.where(has_none, NO_NUMBER, OTHER_NUMBER))
