"""Tags of words, raw text cut into words, and the best sequence of tags that is a valid one."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    """Cut raw text into words, as [start, end) characters.

    At blanks, and before and behind punctuation at the ends of what stands between them, not inside: p53, IL-2.
    """
    words: list[tuple[int, int]] = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        first, last = start, end
        while first < last and unicodedata.category(text[first]).startswith("P"):
            first += 1
        while last > first and unicodedata.category(text[last - 1]).startswith("P"):
            last -= 1
        words += [(place, place + 1) for place in range(start, first)]
        words += [(first, last)] * (first < last)
        words += [(place, place + 1) for place in range(max(last, first), end)]
    return tuple(words)


def joined_words(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Say where words stand, as [start, end) characters, when they are joined with blanks."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return tuple((int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True))
