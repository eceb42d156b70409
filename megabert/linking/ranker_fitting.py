"""Learn a CandidateRanker from annotated mentions: those of a document are ranked as if it were not known.

Names that a dictionary has of this document alone are no candidates there, and its mentions are not counted. The
weights maximize the probability of the right candidates among all (softmax), with a Gaussian prior.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..formats.dictionaries.curies import single_identifiers
from ..formats.dictionaries.gold_mentions import GoldMention
from ..formats.documents.abbreviations import written_out
from .candidate_ranker import RANKED, CandidateRanker, Features, part_features, split_features
from .candidates import LinkedPart, NameCandidate
from .linker import Calibration, Linker
from .linker_tuning import SMALLEST, fitted, with_weight

PRIOR = 1.0
LEAST = 5
"""Candidates that a feature must have to get a weight."""
HELD_OUT = 5
"""The first of so many documents is held out of the learning that the calibration is fitted by."""
ITERATIONS = 100
Group = tuple[list[Features], list[bool]]
"""The features of candidates, and which are right."""


@dataclass(frozen=True)
class CandidateExample:
    """A gold mention with its candidates, and how often its document has each concept."""

    gold: GoldMention
    whole: LinkedPart
    ways: list[tuple[LinkedPart, ...]]
    own: Counter[str]


def fit_ranker(linker: Linker, mentions: Sequence[GoldMention]) -> tuple[CandidateRanker, Calibration, dict[str, Any]]:
    """Learn to order the candidates of a linker, and the probability of a link and the threshold of NIL with it.

    These are fitted on a fifth of the documents by a ranker of the others; the report has the accuracy there.
    Candidates are found with the default weight of embeddings: what these are worth is learned as the weight of a
    feature. Raises InputError for few mentions, or a dictionary of another type.
    """
    linker = with_weight(linker, Calibration.weight)
    examples = examples_of(linker, mentions)
    accuracy, calibration, num_held = _held_out(examples, linker.calibration)
    ranker = _learned(examples)
    sizes = {"mentions": len(examples), "features": len(ranker.weights), "held_out": num_held}
    return ranker, calibration, {**sizes, "held_out_accuracy": round(100 * accuracy, 2)}


def _held_out(examples: Sequence[CandidateExample], calibration: Calibration) -> tuple[float, Calibration, int]:
    """Learn from four fifths of the documents: accuracy on the others, a calibration fitted on them, their mentions."""
    documents = list(dict.fromkeys(_document(item.gold) for item in examples))
    held_out = frozenset(documents[::HELD_OUT])
    ranker = _learned([item for item in examples if _document(item.gold) not in held_out])
    held = [item for item in examples if _document(item.gold) in held_out]
    found = [(ranker.best(item.whole, item.ways), item.gold) for item in held]
    similarities = np.array([min(part.similarity for part in parts) for parts, _ in found])
    right = np.array([all(is_right(part.candidates[:1], gold) for part in parts) for parts, gold in found], float)
    return float(right.mean()), fitted(calibration, similarities, right, len(held)), len(held)


def examples_of(linker: Linker, mentions: Sequence[GoldMention]) -> list[CandidateExample]:
    """Search mentions with identifiers, and leave out what their own document has brought into the dictionary.

    Raises InputError for few mentions, or a dictionary of another type.
    """
    known = [item for item in mentions if item.identifiers]
    if len(known) < SMALLEST:
        raise InputError(f"{len(known)} mentions with identifiers are too few to learn from; give {SMALLEST} and more.")
    linker.dictionary.require_any(
        name for item in known for name in item.identifiers | single_identifiers(item.identifiers)
    )
    by_document: dict[str, list[GoldMention]] = defaultdict(list)
    for item in known:
        by_document[_document(item)].append(item)
    texts = [(written_out(item.text, item.definitions), ()) for item in known]
    distinct = list(dict.fromkeys(texts))
    searched = dict(zip(distinct, linker.searched(distinct, RANKED), strict=True))
    examples = []
    for item, text in zip(known, texts, strict=True):
        others, (whole, ways) = by_document[_document(item)], searched[text]
        names = Counter((other.text.lower(), name) for other in others for name in other.identifiers)
        parts = [tuple(_without(part, names) for part in way) for way in ways]
        own = Counter(name for other in others for name in other.identifiers)
        examples.append(CandidateExample(item, _without(whole, names), parts, own))
    return examples


def _learned(examples: Sequence[CandidateExample]) -> CandidateRanker:
    counts = Counter(name for item in examples for name in item.gold.identifiers)
    weights: dict[str, float] = {}
    groups: list[list[Group]] = [[] for _ in examples]
    for is_again in (False, True):  # the first time the parts of splits have their most similar candidates first
        for number, item in enumerate(examples):
            if item.ways or not is_again:
                mentions = {name: counts[name] - item.own[name] for name in counts.keys() & _candidates(item)}
                groups[number] = _groups(CandidateRanker(weights, mentions), item)
        weights = _fit([group for own in groups for group in own if any(group[1])])
    return CandidateRanker(weights, dict(sorted(counts.items())))


def _candidates(item: CandidateExample) -> set[str]:
    parts = (item.whole, *(part for way in item.ways for part in way))
    return {candidate.identifiers[0] for part in parts for candidate in part.candidates}


def _document(item: GoldMention) -> str:
    return item.id.rpartition(":")[0] or item.id


def _without(part: LinkedPart, names: Mapping[tuple[str, str], int]) -> LinkedPart:
    """Leave out names that only this document has, and its mentions of others."""
    kept = list[NameCandidate]()
    for item in part.candidates:
        own = sum(names.get((item.name.lower(), name), 0) for name in item.identifiers)
        if item.is_listed or item.mentions > own:
            kept.append(item._replace(mentions=max(item.mentions - own, 0)) if own else item)
    return replace(part, candidates=tuple(kept))


def _groups(ranker: CandidateRanker, item: CandidateExample) -> list[Group]:
    """List the candidates of the whole, splits among them, and of the parts of a mention of several concepts.

    Where a split is right, one concept for all parts is not.
    """
    rows = part_features(item.whole, ranker.mentions)
    right = [is_right([candidate], item.gold) for candidate in item.whole.candidates]
    for way in item.ways:
        parts = tuple(map(ranker.ordered, way)) if ranker.weights else way
        if (row := split_features(item.whole.text, parts)) is not None:
            rows.append(row)
            right.append(all(is_right(part.candidates[:1], item.gold) for part in parts))
    num_wholes = len(item.whole.candidates)
    if any(right[num_wholes:]):
        right[:num_wholes] = [False] * num_wholes
    groups = [(rows, right)]
    if len(item.gold.identifiers) > 1 and item.ways:
        groups += [
            (part_features(part, ranker.mentions), [is_right([one], item.gold) for one in part.candidates])
            for part in item.ways[0]
        ]
    return groups


def is_right(best: Sequence[NameCandidate], gold: GoldMention) -> bool:
    """Whether any of the candidates has a gold identifier."""
    found = {name for item in best for name in item.identifiers}
    return not gold.identifiers.isdisjoint(found | single_identifiers(found))


def _fit(groups: Sequence[Group]) -> dict[str, float]:
    """Maximize the likelihood of the right candidates by L-BFGS; weights are rounded to 4 digits."""
    import torch

    counts = Counter(name for rows, _ in groups for row in rows for name in row)
    numbers = {name: number for number, name in enumerate(name for name, count in counts.items() if count >= LEAST)}
    entries = [
        (place, numbers[name], value)
        for place, row in enumerate(row for rows, _ in groups for row in rows)
        for name, value in row.items()
        if value and name in numbers
    ]
    places, columns, values = zip(*entries, strict=True)
    places_E, columns_E = torch.tensor(places), torch.tensor(columns)
    values_E = torch.tensor(values, dtype=torch.float64)
    is_right_N = torch.tensor([own for _, right in groups for own in right])
    groups_N = torch.repeat_interleave(torch.tensor([len(right) for _, right in groups]))
    weights_F = torch.zeros(len(numbers), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_F], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def log_sums(scores_N: "torch.Tensor", groups_N: "torch.Tensor") -> "torch.Tensor":
        most_G = torch.full((len(groups),), -torch.inf, dtype=torch.float64)
        most_G = most_G.scatter_reduce(0, groups_N, scores_N.detach(), "amax")
        return most_G + torch.zeros_like(most_G).index_add(0, groups_N, (scores_N - most_G[groups_N]).exp()).log()

    def loss() -> "torch.Tensor":
        optimizer.zero_grad()
        scores_N = torch.zeros(len(is_right_N), dtype=torch.float64)
        scores_N = scores_N.index_add(0, places_E, weights_F[columns_E] * values_E)
        right = log_sums(scores_N[is_right_N], groups_N[is_right_N])
        total = (log_sums(scores_N, groups_N) - right).sum() + PRIOR / 2 * weights_F.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = weights_F.detach().tolist()
    return {name: round(found[number], 4) for name, number in numbers.items() if round(found[number], 4)}
