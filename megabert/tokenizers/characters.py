"""Characters that are no letters of their own: marks that follow a token, and lone surrogates, which are no text."""

import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_mark(letter: str) -> bool:
    """Return whether a character belongs to the one before: combining, a variation selector, of zero width."""
    return letter > "\x7f" and unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf")


def end_with_marks(text: str, end: int) -> int:
    """Return the end of a token that takes the marks that follow it, which tokenizers drop."""
    while end < len(text) and is_mark(text[end]):
        end += 1
    return end


def add_following_marks(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move the ends of tokens, [L, 2], behind the marks that follow, but not into the next token."""
    if text.isascii() or not len(offsets):
        return offsets
    limits = [*offsets[1:, 0].tolist(), len(text)]
    ends = [
        end if limit <= end else min(end_with_marks(text, end), limit)
        for end, limit in zip(offsets[:, 1].tolist(), limits, strict=True)
    ]
    return np.stack([offsets[:, 0], np.array(ends, dtype=np.int64)], axis=1)


def require_characters(value: Any, location: str) -> None:
    """Raise InputError if a string in nested lists and objects has a lone surrogate, half of a character."""
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, dict):
            values += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            values += item
        elif isinstance(item, str) and (match := _SURROGATE.search(item)):
            part = item[max(match.start() - 20, 0) : match.end() + 20].encode("ascii", "backslashreplace").decode()
            raise InputError(
                f"{location}: invalid Unicode: a lone surrogate at character {match.start()} of {part!r}. Write the "
                "whole character, or U+FFFD where it is lost."
            )
