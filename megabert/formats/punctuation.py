"""Punctuation and capitalization labels of words: read from a text, and restored in one without.

A word is a maximal run without blanks and dashes, less the punctuation at its ends. Its label is a mark (the first of
the known marks after it, O for none) and a case: U for a capital first letter, A for all capitals, O else.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

NONE = "O"
CAPITALIZED, ALL_CAPITALS = "U", "A"
_SENTENCE_MARKS = frozenset(".,;:!?…")
_PIECES = re.compile(r"(?:(?!--|—|–)\S)+")


@dataclass(frozen=True)
class Word:
    """Characters [start, end) of a text, with the mark after them and their case."""

    start: int
    end: int
    mark: str
    case: str


def find_words(text: str, marks: str) -> list[Word]:
    """Find the words of a text with their marks and cases."""
    words = []
    for match in _PIECES.finditer(text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while end > start and _is_punctuation(text[end - 1]):
            end -= 1
        if start < end:
            mark = next((letter for letter in text[end : match.end()] if letter in marks), NONE)
            words.append(Word(start, end, mark, _case_of(text[start:end])))
        elif words and words[-1].mark == NONE and text[match.start()] in marks:
            words[-1] = replace(words[-1], mark=text[match.start()])  # a mark between blanks
    return words


def _case_of(word: str) -> str:
    letters = [letter for letter in word if letter.isupper() or letter.islower()]
    if len(letters) > 1 and all(letter.isupper() for letter in letters):
        return ALL_CAPITALS
    return CAPITALIZED if word[:1].isupper() else NONE


def _in_case(word: str, case: str) -> str:
    # A word that has capitals already keeps them.
    if case == NONE or word != word.lower():
        return word
    return word.upper() if case == ALL_CAPITALS else word[:1].upper() + word[1:]


def restore(text: str, words: Sequence[Word], marks: Sequence[str], cases: Sequence[str]) -> str:
    """Add the marks and capitals given for each word of a text, keeping those that are there.

    A mark follows the symbols and brackets that end a word, 100% and f(x), and precedes a closing quotation mark.
    """
    parts, done = [], 0
    for word, mark, case in zip(words, marks, cases, strict=True):
        parts += [text[done : word.start], _in_case(text[word.start : word.end], case)]
        done = word.end
        rest = _PIECES.match(text, word.end)
        if mark != NONE and word.mark == NONE and not (rest and _SENTENCE_MARKS & set(rest[0])):
            done = word.end if rest is None else _end_of_symbols(text, *rest.span())
            parts += [text[word.end : done], mark]
    return "".join([*parts, text[done:]])


def _end_of_symbols(text: str, start: int, end: int) -> int:
    return next((place for place in range(start, end) if _is_quote(text[place])), end)


def _is_quote(letter: str) -> bool:
    return letter in "\"'`" or unicodedata.category(letter) in ("Pi", "Pf")


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"
