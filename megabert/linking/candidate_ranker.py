"""CandidateRanker: a log-linear model that orders a mention's candidates anew, learned from annotated mentions.

Features of a candidate are its similarity, how much more similar its embedding is than its n-grams, the words that
only it or only the mention has, the kind of its identifier, and how often its concept and its name were mentioned; a
split of a composite mention is one candidate more. All are of normalized names. `ranker_fitting` learns the weights.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import mul
from typing import NamedTuple

from .candidates import LinkedPart, NameCandidate
from .name_keys import normalized

RANKED = 20
"""Candidates that are ordered anew."""
Features = dict[str, float]
VALUES = ("similarity", "embedding", "behind", "name mentioned", "is first", "same last", "same first",
          "part of mention", "has mention", "exact mentioned", "more words", "fewer words")  # fmt: skip
"""Features that every pair of a mention and a candidate has."""


@dataclass(frozen=True)
class CandidateRanker:
    """Weights of features, and how often each concept was mentioned in the documents that they were learned from."""

    weights: Mapping[str, float]
    mentions: Mapping[str, int]

    @cached_property
    def digest(self) -> str:
        """Identifies the weights and counts."""
        return hashlib.sha256(json.dumps([self.weights, self.mentions], sort_keys=True).encode()).hexdigest()

    def best(self, whole: LinkedPart, ways: Sequence[tuple[LinkedPart, ...]]) -> tuple[LinkedPart, ...]:
        """Order the candidates of a mention and of the parts of each way to split it, and choose the best way."""
        choice: tuple[LinkedPart, ...] = (self.ordered(whole),)
        if not whole.candidates:
            return choice
        best = choice[0].scores[0]
        for way in ways:
            parts = tuple(map(self.ordered, way))
            row = split_features(whole.text, parts)
            if row is not None and (score := self.score(row)) > best:
                best, choice = score, parts
        return choice

    def ordered(self, part: LinkedPart) -> LinkedPart:
        """Order the candidates of a part by score, equal ones as they are."""
        values, more_weights, fewer_weights = self._pair_weights
        scores = []
        for item, row, is_exact, more, fewer in _pairs(part):
            always, if_exact = self._identifier_scores(item.identifiers[0])
            score = always + if_exact if is_exact else always
            for word in more:
                score += more_weights.get(word, 0.0)
            for word in fewer:
                score += fewer_weights.get(word, 0.0)
            scores.append(round(score + sum(map(mul, row, values)), 6))
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        candidates = tuple(part.candidates[place] for place in order)
        return LinkedPart(part.text, candidates, tuple(scores[place] for place in order))

    @cached_property
    def _pair_weights(self) -> tuple[list[float], dict[str, float], dict[str, float]]:
        """The weights of VALUES, and of words that only the candidate, and only the mention has."""
        more, fewer = ({name[1:]: own for name, own in self.weights.items() if name[0] == sign} for sign in "+-")
        return [self.weights.get(name, 0.0) for name in VALUES], more, fewer

    def _identifier_scores(self, identifier: str) -> tuple[float, float]:
        """Add up the weights of an identifier's features, and of those of an exact name besides."""
        key = identifier if identifier in self.mentions else kind_of(identifier)  # the others of a kind are equal
        found = self._known_scores.get(key)
        if found is None:
            rows = identifier_features(identifier, self.mentions), exact_features(identifier)
            always, if_exact = (sum(value * self.weights.get(name, 0.0) for name, value in row.items()) for row in rows)
            found = self._known_scores[key] = always, if_exact
        return found

    @cached_property
    def _known_scores(self) -> dict[str, tuple[float, float]]:
        return {}

    def score(self, row: Features) -> float:
        """Add up the weights of features."""
        return round(sum(value * self.weights.get(name, 0.0) for name, value in row.items()), 6)


def part_features(part: LinkedPart, mentions: Mapping[str, int]) -> list[Features]:
    """Return the features of each candidate of a part, in the order of their similarity."""
    return [
        dict(zip(VALUES, values, strict=True))
        | identifier_features(item.identifiers[0], mentions)
        | (exact_features(item.identifiers[0]) if is_exact else {})
        | word_features(more, fewer)
        for item, values, is_exact, more, fewer in _pairs(part)
    ]


def identifier_features(identifier: str, mentions: Mapping[str, int]) -> Features:
    """Return the kind of an identifier, and how often its concept was mentioned."""
    count = mentions.get(identifier, 0)
    return {f"kind {kind_of(identifier)}": 1.0, "mentioned": math.log1p(count) / 3, "is mentioned": float(count > 0)}


def exact_features(identifier: str) -> Features:
    """Return the features of a name that is the mention."""
    return {"exact": 1.0, f"exact {kind_of(identifier)}": 1.0}


def word_features(more: Iterable[str], fewer: Iterable[str]) -> Features:
    """Return the words that only the candidate, and only the mention has."""
    return dict.fromkeys((*("+" + word for word in more), *("-" + word for word in fewer)), 1.0)


class NameWords(NamedTuple):
    """The words of a normalized name, in their order, without blanks, and each once."""

    words: list[str]
    joined: str
    distinct: frozenset[str]


@lru_cache(maxsize=1 << 16)
def _words(name: str) -> NameWords:
    words = normalized(name).split()
    return NameWords(words, "".join(words), frozenset(words))


def _pairs(
    part: LinkedPart,
) -> Iterator[tuple[NameCandidate, tuple[float, ...], bool, frozenset[str], frozenset[str]]]:
    """Yield each candidate of a part, the values of VALUES, whether it is exact, and the words of one side only."""
    (words, joined, mine), most = _words(part.text), part.similarity
    for place, item in enumerate(part.candidates):
        own, own_joined, others = _words(item.name)
        more, fewer, is_exact = others - mine, mine - others, joined == own_joined
        values = (
            item.similarity,
            item.embedding_excess,
            most - item.similarity,
            math.log1p(item.mentions) / 3,
            place == 0,
            words[-1:] == own[-1:],
            words[:1] == own[:1],
            not more,
            not fewer,
            is_exact and item.mentions > 0,
            len(more) / 3,
            len(fewer) / 3,
        )
        yield item, values, is_exact, more, fewer


def split_features(text: str, parts: Sequence[LinkedPart]) -> Features | None:
    """Return the features of a split by the first candidates of its parts; None if these are not distinct concepts."""
    best = [part.candidates[0] for part in parts if part.candidates]
    if len({item.identifiers for item in best}) < len(parts):
        return None
    own, mine = [_words(item.name) for item in best], _words(text)
    more = frozenset[str]().union(*(item.distinct for item in own)) - mine.distinct
    fewer = mine.distinct.difference(*(item.distinct for item in own))
    is_exact = all(item.words == _words(part.text).words for item, part in zip(own, parts, strict=True))
    least = min(best, key=lambda item: item.similarity)
    row = {
        "similarity": least.similarity,
        "embedding": least.embedding_excess,
        "is split": 1.0,
        "exact split": float(is_exact),
        "parts": len(parts) / 3,
        "more words": len(more) / 3,
        "fewer words": len(fewer) / 3,
    }
    return row | word_features(more, fewer)


@lru_cache(maxsize=1 << 16)
def kind_of(identifier: str) -> str:
    """Return the vocabulary of an identifier with its local part's first letter: "mesh D", "omim"."""
    prefix, _, local = identifier.partition(":")
    return f"{prefix} {local[0]}" if local[:1].isalpha() else prefix
