"""CandidateRanker: a log-linear model that orders a mention's candidates anew, learned from annotated mentions.

Features of a candidate are its similarity, the words that only it or only the mention has, the kind of its identifier,
and how often its concept and its name were mentioned; a split of a composite mention is one candidate more. All are of
normalized names. `ranker_fitting` learns the weights.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import mul
from typing import NamedTuple

from .candidates import LinkedPart
from .name_keys import normalized

RANKED = 20
"""Candidates that are ordered anew."""
Features = dict[str, float]
VALUES = ("similarity", "behind", "mentioned", "is mentioned", "name mentioned", "is first", "same last", "same first",
          "part of mention", "has mention", "exact mentioned", "more words", "fewer words")  # fmt: skip
"""Features that every candidate has."""


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
        get, values = self.weights.get, self._value_weights
        scores = [
            round(sum(map(mul, row, values)) + sum([get(name, 0.0) for name in names]), 6)
            for row, names in _rows(part, self.mentions)
        ]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        candidates = tuple(part.candidates[place] for place in order)
        return LinkedPart(part.text, candidates, tuple(scores[place] for place in order))

    @cached_property
    def _value_weights(self) -> list[float]:
        return [self.weights.get(name, 0.0) for name in VALUES]

    def score(self, row: Features) -> float:
        """Add up the weights of features."""
        return round(sum(value * self.weights.get(name, 0.0) for name, value in row.items()), 6)


def part_features(part: LinkedPart, mentions: Mapping[str, int]) -> list[Features]:
    """Return the features of each candidate of a part, in the order of their similarity."""
    rows = _rows(part, mentions)
    return [dict(zip(VALUES, values, strict=True)) | dict.fromkeys(names, 1.0) for values, names in rows]


class NameWords(NamedTuple):
    """The words of a normalized name, and the names of the features that they are where the other side lacks them."""

    words: tuple[str, ...]
    joined: str
    more: frozenset[str]
    """Those of words that only the candidate has, +word."""
    fewer: frozenset[str]
    """Those of words that only the mention has, -word."""


@lru_cache(maxsize=1 << 16)
def _words(name: str) -> NameWords:
    words = tuple(normalized(name).split())
    return NameWords(words, "".join(words), frozenset(map("+".__add__, words)), frozenset(map("-".__add__, words)))


def _rows(part: LinkedPart, mentions: Mapping[str, int]) -> Iterator[tuple[tuple[float, ...], list[str]]]:
    """Yield the values of VALUES for each candidate of a part, and the names of features that are 1, others being 0."""
    (words, joined, mine, mine_alone), most = _words(part.text), part.similarity
    for place, item in enumerate(part.candidates):
        own, own_joined, others, others_alone = _words(item.name)
        more, fewer, identifier = others - mine, mine_alone - others_alone, item.identifiers[0]
        kind, exact_kind = _kind_features(identifier)
        is_exact, count = joined == own_joined, mentions.get(identifier, 0)
        values = (
            item.similarity,
            most - item.similarity,
            math.log1p(count) / 3,
            count > 0,
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
        yield values, [kind, "exact", exact_kind, *more, *fewer] if is_exact else [kind, *more, *fewer]


def split_features(text: str, parts: Sequence[LinkedPart]) -> Features | None:
    """Return the features of a split by the first candidates of its parts; None if these are not distinct concepts."""
    best = [part.candidates[0] for part in parts if part.candidates]
    if len({item.identifiers for item in best}) < len(parts):
        return None
    own, mine = [_words(item.name) for item in best], _words(text)
    more = frozenset[str]().union(*(item.more for item in own)) - mine.more
    fewer = mine.fewer.difference(*(item.fewer for item in own))
    is_exact = all(item.words == _words(part.text).words for item, part in zip(own, parts, strict=True))
    row = {
        "similarity": min(item.similarity for item in best),
        "is split": 1.0,
        "exact split": float(is_exact),
        "parts": len(parts) / 3,
        "more words": len(more) / 3,
        "fewer words": len(fewer) / 3,
    }
    return row | dict.fromkeys((*more, *fewer), 1.0)


@lru_cache(maxsize=1 << 16)
def _kind_features(identifier: str) -> tuple[str, str]:
    kind = kind_of(identifier)
    return f"kind {kind}", f"exact {kind}"


def kind_of(identifier: str) -> str:
    """Return the vocabulary of an identifier with its local part's first letter: "mesh D", "omim"."""
    prefix, _, local = identifier.partition(":")
    return f"{prefix} {local[0]}" if local[:1].isalpha() else prefix
