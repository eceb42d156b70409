"""Splitting of raw text into words, and word positions in joined text."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np


def split_words(text: str) -> tuple[tuple[int, int], ...]:
    """Split raw text into words, as [start, end) characters.

    Splits at white space, and around punctuation at both ends of a run without it, not inside: p53, IL-2.
    """
    words: list[tuple[int, int]] = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        first, last = start, end
        while first < last and unicodedata.category(text[first]).startswith("P"):
            first += 1
        while last > first and unicodedata.category(text[last - 1]).startswith("P"):
            last -= 1
        words += [(index, index + 1) for index in range(start, first)]
        words += [(first, last)] * (first < last)
        words += [(index, index + 1) for index in range(max(last, first), end)]
    return tuple(words)


def joined_words(words: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Locate words in their text joined by blanks, as [start, end) characters."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return tuple((int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True))
