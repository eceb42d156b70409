"""Split composite mentions: "breast and ovarian cancer" into "breast cancer" and "ovarian cancer".

Words that the last conjunct and the others share (a head behind, or what stands before) are given to each.
"""

import re

_JOINT = re.compile(r"\s*(?:,?\s(?:and/or|and|or|as well as|plus)\s|[,;|/&+](?=\s|[^\W\d_]{3}))\s*")
_MAX_WORDS = 12


def composite_splits(mention: str) -> list[tuple[str, ...]]:
    """List the ways in which a mention may be a composite, the likeliest first; [] if it joins nothing."""
    conjuncts = [part.split() for part in _JOINT.split(mention)]
    if not 2 <= len(conjuncts) <= 6 or not all(conjuncts) or sum(map(len, conjuncts)) > _MAX_WORDS:
        return []
    *others, last = conjuncts
    splits = []
    # "breast and ovarian cancer": what follows the first word of the last conjunct, or less of it, is the head of all.
    for start in range(1, len(last)):
        head = last[start:]
        splits.append((*(" ".join([*words, *head]) for words in others), " ".join(last)))
    # "cancer of the breast and ovary", "hepatitis B and C": the last words of the first one are exchanged.
    first = others[0]
    if len(first) > 1 and all(len(words) < len(first) for words in conjuncts[1:]):
        kept = [first[: len(first) - len(words)] for words in conjuncts[1:]]
        rest = (" ".join([*start, *words]) for start, words in zip(kept, conjuncts[1:], strict=True))
        splits.append((" ".join(first), *rest))
    splits.append(tuple(map(" ".join, conjuncts)))
    return splits
