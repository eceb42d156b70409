"""Entities of IOB tags: precision, recall and F1 as conlleval counts them."""

from collections.abc import Sequence
from typing import Any

from .counts import MatchCounts, require_pairs

Entity = tuple[str, int, int]


def entities(tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """List the entities of a sentence's tags, in IOB1, IOB2 or IOBES.

    As conlleval: an I- that cannot continue what stands before it opens an entity. Strict: only a B- does (or S-).
    Source: Sang and Buchholz 2000, conlleval's startOfChunk and endOfChunk; seqeval's default is the same.
    """
    found: list[Entity] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        own = own or "_"  # tags without a type, as seqeval has it
        opens = prefix in ("B", "S") or (prefix in ("I", "E") and own != kind)
        if kind and (opens or prefix not in ("I", "E")):
            found.append((kind, start, place))
            kind = ""
        if opens and (not strict or prefix in ("B", "S")):
            start, kind = place, own
        if kind and prefix in ("E", "S"):
            found.append((kind, start, place + 1))
            kind = ""
    return found


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score entities by type and words: precision, recall and F1 of all together and of each type, in per cent.

    An entity counts if its type and all its words agree, as conlleval counts; strict_ figures count on both sides
    only entities that a B- opens. macro_f1 is the mean over types.
    """
    require_pairs(gold, predicted)
    scores: dict[str, float] = {}
    for prefix, strict in (("", False), ("strict_", True)):
        golds = [set(entities(tags, strict=strict)) for tags in gold]
        founds = [set(entities(tags, strict=strict)) for tags in predicted]
        total = MatchCounts(*_overlaps(golds, founds, None))
        scores |= {f"{prefix}{name}": getattr(total, name) for name in ("precision", "recall", "f1")}
        if strict:
            continue
        kinds = sorted({kind for items in (*golds, *founds) for kind, _, _ in items})
        of_kind = {
            kind: MatchCounts(
                *_overlaps(
                    [{item for item in items if item[0] == kind} for items in golds],
                    [{item for item in items if item[0] == kind} for items in founds],
                    None,
                )
            )
            for kind in kinds
        }
        scores["macro_f1"] = sum(counts.f1 for counts in of_kind.values()) / max(len(of_kind), 1)
        for kind, counts in of_kind.items():
            scores |= {f"{kind}/precision": counts.precision, f"{kind}/recall": counts.recall, f"{kind}/f1": counts.f1}
    return scores


def _counts_of(gold: Sequence[str], predicted: Sequence[str], label: str) -> MatchCounts:
    pairs = zip(gold, predicted, strict=True)
    return MatchCounts(
        sum(a == b == label for a, b in pairs), sum(a == label for a in gold), sum(b == label for b in predicted)
    )


def _overlaps(gold: Sequence[set[Any]], predicted: Sequence[set[Any]], of: set[Any] | None) -> tuple[int, int, int]:
    """Count what is in both, in gold, and in the prediction, of some items or (None) of all."""
    golds = gold if of is None else [items & of for items in gold]
    founds = predicted if of is None else [items & of for items in predicted]
    common = sum(len(a & b) for a, b in zip(golds, founds, strict=True))
    return common, sum(map(len, golds)), sum(map(len, founds))
