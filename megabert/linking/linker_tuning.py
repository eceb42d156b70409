"""Fit a linker on gold mentions: the weight of embeddings, the probability of a link, the threshold of NIL."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.dictionaries.curies import single_identifiers
from ..formats.dictionaries.gold_mentions import GoldMention
from ..inference import Session
from ..metrics.linking import RankedMention, accuracy_scores
from .linker import Calibration, Link, Linker, LinkQuery
from .protocols import DenseResult, DenseSearch

WEIGHTS = tuple(number / 10 for number in range(11))
SMALLEST = 50


def tune(linker: Linker, mentions: Sequence[GoldMention]) -> tuple[Calibration, dict[str, Any]]:
    """Fit a calibration; returns it with the scores on the same mentions.

    The weight is that of `chosen_weight`, of a learned order the one that it was learned with; the threshold is that of
    the highest F1 of links, in which NIL is no link. Raises InputError for few mentions.
    """
    if len(mentions) < SMALLEST:
        raise InputError(f"{len(mentions)} mentions are too few to tune a linker; give {SMALLEST} and more.")
    linker.dictionary.require_any(
        name for item in mentions for name in item.identifiers | single_identifiers(item.identifiers)
    )
    queries = queries_of(mentions)
    known = [number for number, mention in enumerate(mentions) if mention.identifiers]
    found = {}
    if linker.dense is not None and linker.ranker is None:
        linker = replace(linker, dense=Remembered(linker.dense))
        for weight in WEIGHTS:
            links = with_weight(linker, weight).link([queries[number] for number in known])
            found[weight] = np.array(list(map(is_right, links, (mentions[number] for number in known))), float)
        linker = with_weight(linker, chosen_weight(found))
    links = linker.link(queries)
    right = np.array([is_right(*pair) for pair in zip(links, mentions, strict=True)], float)
    similarities = np.array([min(part.similarity for part in link.parts) for link in links])
    calibration = fitted(linker.calibration, similarities, right, len(known))
    num_nil = sum(calibration.probability(value) < calibration.threshold for value in similarities)
    scores = {
        "mentions": len(mentions),
        "accuracy": round(100 * float(right[known].mean()), 2) if known else 0.0,
        "nil": num_nil,
        "accuracy_by_weight": {str(weight): round(100 * float(own.mean()), 2) for weight, own in found.items()},
    }
    return calibration, scores


def chosen_weight(right: Mapping[float, NDArray[np.float64]]) -> float:
    """Choose among weights, given which mentions each links right (1, else 0): the one nearest to the default.

    Only those count whose accuracy is within a standard error of the highest, that of the paired differences (the
    1 SE rule, Breiman et al., Classification and Regression Trees, 1984): what is highest by chance does not decide.
    """
    best = max(right.values(), key=lambda own: float(own.mean()))

    def is_near(own: NDArray[np.float64]) -> bool:
        differences = best - own
        return float(differences.mean()) <= float(differences.std()) / math.sqrt(len(own))

    return min(
        (weight for weight in right if is_near(right[weight])), key=lambda weight: abs(weight - Calibration.weight)
    )


def fitted(
    calibration: Calibration, similarities: NDArray[np.float64], right: NDArray[np.float64], num_known: int
) -> Calibration:
    """Fit the probability that a link is right to its similarity, and the threshold of NIL."""
    slope, intercept = _logistic(similarities, right)
    calibration = replace(calibration, slope=slope, intercept=intercept)
    probabilities = np.array([calibration.probability(value) for value in similarities])
    return replace(calibration, threshold=_threshold(probabilities, right, num_known))


def queries_of(mentions: Sequence[GoldMention]) -> list[LinkQuery]:
    """Return what a linker is given of gold mentions."""
    return [LinkQuery(item.text, item.definitions, context=item.context) for item in mentions]


def ranked(link: Link, gold: GoldMention, subsets: Sequence[str] = ()) -> RankedMention:
    """Return a link's candidates beside the gold identifiers, as they are scored; a+b is both."""
    parts = [[single_identifiers(candidate.identifiers) for candidate in part.candidates] for part in link.parts]
    return RankedMention(gold.identifiers, parts, subsets)


def is_right(link: Link, gold: GoldMention) -> bool:
    """Whether a link is right by BioSyn's rule, NIL or not."""
    return accuracy_scores([ranked(link, gold)], ranks=(1,))["acc@1"] > 0


def with_weight(linker: Linker, weight: float) -> Linker:
    """Return the linker with another weight of embeddings."""
    return replace(linker, calibration=replace(linker.calibration, weight=weight))


def _logistic(values: NDArray[np.float64], is_one: NDArray[np.float64]) -> tuple[float, float]:
    """Fit slope and intercept by Newton's method, towards smaller slopes by a weak prior; rounded to 4 digits."""
    columns = np.stack([values, np.ones_like(values)], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        probabilities = 1 / (1 + np.exp(-columns @ weights))
        gradient = columns.T @ (probabilities - is_one) + 0.01 * weights
        curvature = columns.T @ (columns * (probabilities * (1 - probabilities))[:, None]) + 0.01 * np.eye(2)
        weights -= np.clip(np.linalg.solve(curvature, gradient), -5, 5)
    return round(float(weights[0]), 4), round(float(weights[1]), 4)


def _threshold(probabilities: NDArray[np.float64], right: NDArray[np.float64], num_known: int) -> float:
    """Return the probability from which links are kept, so that their F1 is highest; the lowest of equals."""
    order = np.argsort(-probabilities, kind="stable")
    num_right = np.cumsum(right[order])
    f1 = 2 * num_right / (np.arange(1, len(order) + 1) + max(num_known, 1))
    last = np.append(np.diff(probabilities[order]) < 0, True)  # equal probabilities are kept together
    best = np.flatnonzero(last & (f1 == f1[last].max()))[-1]
    return float(np.floor(probabilities[order][best] * 1e4) / 1e4)


@dataclass
class Remembered:
    """A dense search whose results are kept: each weight ranks the same ones."""

    whole: DenseSearch
    found: dict[str, DenseResult] = field(default_factory=dict)

    @property
    def run_digest(self) -> str:
        """The digest of the run."""
        return self.whole.run_digest

    @property
    def session(self) -> Session:
        """What embeds texts."""
        return self.whole.session

    def with_session(self, session: Session) -> DenseSearch:
        """Return the search with another session, without results."""
        return Remembered(self.whole.with_session(session))

    def search(self, texts: Sequence[str]) -> list[DenseResult]:
        """Search for what was not searched yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self.found]
        self.found.update(zip(new, self.whole.search(new) if new else (), strict=True))
        return [self.found[text] for text in texts]
