"""Scores of entity linking: accuracy of ranked candidates, and F1 of linked mentions and of documents' identifiers.

Sources: BioSyn's evaluation (Acc@k), HunFlair2's evaluate.py (mentions with a tolerance of one character, documents).
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .counts import MatchCounts, require_pairs

RANKS = (1, 5, 20)
TOLERANCE = 1
Identifiers = AbstractSet[str]


@dataclass(frozen=True)
class RankedMention:
    """A mention's gold identifiers, and for each part of it (one if it is no composite) candidates, best first."""

    gold: Identifiers
    parts: Sequence[Sequence[Identifiers]]
    """The identifiers of each candidate name."""
    subsets: Sequence[str] = ()
    """Groups in which it is scored, too, such as unseen_mention."""


def accuracy_scores(mentions: Sequence[RankedMention], ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """Score rankings in per cent: over all mentions, and as SUBSET/... over each subset.

    acc@k is BioSyn's: each part has a candidate with any of the gold identifiers among the first k names.
    concept_acc@k counts distinct concepts instead of names; all_acc@k requires each gold identifier.
    """
    if not mentions:
        raise InputError("There is nothing to score.")
    groups: dict[str, list[RankedMention]] = {"": list(mentions)}
    for mention in mentions:
        for name in mention.subsets:
            groups.setdefault(f"{name}/", []).append(mention)
    scores: dict[str, float] = {}
    for prefix, items in groups.items():
        scores[f"{prefix}mentions"] = len(items)
        for rank in ranks:
            for name, is_right in _RULES.items():
                scores[f"{prefix}{name}@{rank}"] = 100.0 * sum(is_right(item, rank) for item in items) / len(items)
    return scores


def _names_agree(mention: RankedMention, rank: int) -> bool:
    gold = mention.gold
    return bool(mention.parts) and all(any(gold & ids for ids in part[:rank]) for part in mention.parts)


def _concepts_agree(mention: RankedMention, rank: int) -> bool:
    parts = [list(dict.fromkeys(map(frozenset, part))) for part in mention.parts]
    return _names_agree(RankedMention(mention.gold, parts), rank)


def _all_agree(mention: RankedMention, rank: int) -> bool:
    found = {item for part in mention.parts for ids in part[:rank] for item in ids}
    return _names_agree(mention, rank) and mention.gold <= found


_RULES = {"acc": _names_agree, "concept_acc": _concepts_agree, "all_acc": _all_agree}


@dataclass(frozen=True)
class LinkedMention:
    """A mention in a document; without identifiers it is NIL."""

    start: int
    end: int
    type: str
    identifiers: Identifiers


def linked_scores(
    gold: Sequence[Sequence[LinkedMention]], predicted: Sequence[Sequence[LinkedMention]]
) -> dict[str, Any]:
    """Score the linked mentions of documents: of all types together, and as TYPE/... of each type.

    mention_ are HunFlair2's: either end may differ by one character, any common identifier is right, and gold NIL
    mentions are left out with what is predicted there. A predicted NIL is wrong. strict_ need the same span, type and
    identifiers, NIL included. document_ are the means over documents of the sets of identifiers, as HunFlair2 has
    them; document_set_ count all pairs of document and identifier.
    """
    require_pairs(gold, predicted)
    types = sorted({item.type for document in (*gold, *predicted) for item in document})
    scores = _scores_of(gold, predicted, types)
    for kind in types if len(types) > 1 else ():
        scores |= {f"{kind}/{name}": value for name, value in _scores_of(gold, predicted, [kind]).items()}
    return scores


def _scores_of(
    gold: Sequence[Sequence[LinkedMention]], predicted: Sequence[Sequence[LinkedMention]], types: Sequence[str]
) -> dict[str, Any]:
    tolerant, strict, pairs = MatchCounts(0, 0, 0), MatchCounts(0, 0, 0), MatchCounts(0, 0, 0)
    precisions, recalls = list[float](), list[float]()
    for own_gold, own_predicted in zip(gold, predicted, strict=True):
        identifiers: tuple[set[tuple[str, str]], set[tuple[str, str]]] = (set(), set())
        for kind in types:
            golds, found = (_by_span(item for item in side if item.type == kind) for side in (own_gold, own_predicted))
            strict = _sum(strict, len(golds.keys() & found.keys() & _same(golds, found)), len(golds), len(found))
            kept = {span: ids for span, ids in golds.items() if ids}
            nil = [span for span, ids in golds.items() if not ids]
            found = {
                span: ids
                for span, ids in found.items()
                if not (any(_close(span, other) for other in nil) and not any(_close(span, other) for other in kept))
            }
            tolerant = _sum(tolerant, _num_matched(kept, found), len(kept), len(found))
            identifiers[0].update((kind, item) for ids in kept.values() for item in ids)
            identifiers[1].update((kind, item) for ids in found.values() for item in ids or {"-1"})
        num_common = len(identifiers[0] & identifiers[1])
        num_nil = sum(item == "-1" for _, item in identifiers[1])
        pairs = _sum(pairs, num_common, len(identifiers[0]), len(identifiers[1]) - num_nil)
        if identifiers[0]:
            precisions.append(num_common / max(len(identifiers[1]), 1))
            recalls.append(num_common / len(identifiers[0]))
    precision, recall = (100.0 * sum(values) / max(len(values), 1) for values in (precisions, recalls))
    means = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / ((precision + recall) or 1.0)}
    counts = {"tp": tolerant.num_correct, "fp": tolerant.num_predicted - tolerant.num_correct}
    counts["fn"] = tolerant.num_gold - tolerant.num_correct
    return {
        **{f"mention_{name}": value for name, value in counts.items()},
        **tolerant.scores("mention_"),
        **strict.scores("strict_"),
        **{f"document_{name}": value for name, value in means.items()},
        **pairs.scores("document_set_"),
    }


def _by_span(mentions: Iterable[LinkedMention]) -> dict[tuple[int, int], Identifiers]:
    """Return the identifiers at each span; of several mentions there the last counts."""
    return {(item.start, item.end): item.identifiers for item in mentions}


def _same(
    gold: Mapping[tuple[int, int], Identifiers], found: Mapping[tuple[int, int], Identifiers]
) -> set[tuple[int, int]]:
    return {span for span, ids in gold.items() if found.get(span) == ids}


def _close(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(span[0] - other[0]) <= TOLERANCE and abs(span[1] - other[1]) <= TOLERANCE


def _num_matched(gold: Mapping[tuple[int, int], Identifiers], found: Mapping[tuple[int, int], Identifiers]) -> int:
    """Count gold mentions that a prediction matches, each prediction once: the same span first, then the first one."""
    free = dict(found)
    num_matched = 0
    for is_same_span in (True, False):
        for span, ids in gold.items():
            candidates = [span] if is_same_span else [other for other in free if other != span and _close(span, other)]
            if not is_same_span and found.get(span, frozenset()) & ids:
                continue  # matched in the first round
            match = next((other for other in candidates if other in free and free[other] & ids), None)
            if match is not None:
                del free[match]
                num_matched += 1
    return num_matched


def _sum(counts: MatchCounts, num_correct: int, num_gold: int, num_predicted: int) -> MatchCounts:
    return MatchCounts(
        counts.num_correct + num_correct, counts.num_gold + num_gold, counts.num_predicted + num_predicted
    )
