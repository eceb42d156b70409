"""Entity precision, recall and F1 of IOB tags, as CoNLL's conlleval and seqeval compute them."""

from collections.abc import Sequence

from .counts import MatchCounts, require_pairs, scores_by_label

Entity = tuple[str, int, int]
"""Type, first word, and the word after the last."""


def entities(tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """List the entities of a sentence's tags, in IOB1, IOB2 or IOBES.

    As in conlleval, an I- that cannot continue the tag before it begins an entity. Strict: only a B- does (or S-).
    Source: Sang and Buchholz 2000, conlleval's startOfChunk and endOfChunk; seqeval's default is the same.
    """
    spans: list[Entity] = []
    start, kind, end = 0, "", 0
    for position in [number for number, tag in enumerate(tags) if tag != "O"]:
        if kind and position > end:
            spans.append((kind, start, end))
            kind = ""
        tag, end = tags[position], position + 1
        prefix, _, tag_kind = tag.partition("-")
        tag_kind = tag_kind or "_"  # seqeval's type for tags without one
        begins = prefix in ("B", "S") or (prefix in ("I", "E") and tag_kind != kind)
        if kind and (begins or prefix not in ("I", "E")):
            spans.append((kind, start, position))
            kind = ""
        if begins and (not strict or prefix in ("B", "S")):
            start, kind = position, tag_kind
        if kind and prefix in ("E", "S"):
            spans.append((kind, start, position + 1))
            kind = ""
    if kind:
        spans.append((kind, start, end))
    return spans


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score entities: precision, recall and F1 over all types (micro) and of each type, in per cent.

    An entity is correct if its type and all its words agree, as in conlleval; for strict_ scores both sides have only
    the entities that begin with B-. macro_f1 is the mean over types.
    """
    require_pairs(gold, predicted)
    golds, predictions = ([set(entities(tags)) for tags in side] for side in (gold, predicted))
    strict = ([set(entities(tags, strict=True)) for tags in side] for side in (gold, predicted))
    by_kind = {
        kind: MatchCounts.of_sets(
            *([{i for i in items if i[0] == kind} for items in side] for side in (golds, predictions))
        )
        for kind in sorted({kind for items in (*golds, *predictions) for kind, _, _ in items})
    }
    macro_f1 = sum(counts.f1 for counts in by_kind.values()) / max(len(by_kind), 1)
    scores = MatchCounts.of_sets(golds, predictions).scores() | {"macro_f1": macro_f1} | scores_by_label(by_kind)
    return scores | MatchCounts.of_sets(*strict).scores("strict_")
