"""Find abbreviations and their definitions in text: "tumor necrosis factor (TNF)", "TNF (tumor necrosis factor)".

Source: Schwartz and Hearst 2003, "A simple algorithm for identifying abbreviation definitions in biomedical text",
Pacific Symposium on Biocomputing 8:451-462.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...tokenizers.sentences import split_sentences
from .document import Document

INFON = "abbreviations"
_PARENTHESES = re.compile(r"[(\[]([^()\[\]]{1,500})[)\]]")
_MAX_SHORT, _MAX_SHORT_WORDS = 10, 2


@dataclass(frozen=True)
class Abbreviation:
    """A short form and its definition, each with its first character in the text."""

    short: str
    long: str
    short_start: int
    long_start: int


def find_abbreviations(text: str) -> list[Abbreviation]:
    """Find the abbreviations that a text defines, in its order."""
    matches = list(_PARENTHESES.finditer(text))
    spans = split_sentences(text) if matches else []
    found = list[Abbreviation]()
    for match in matches:
        start, end = spans[bisect_right(spans, (match.start(), len(text))) - 1]
        if match.end() <= end:  # brackets of two sentences are no pair
            found += _of_brackets(text, start, match)
    return found


def _of_brackets(text: str, start: int, match: re.Match[str]) -> Iterator[Abbreviation]:
    """Find the abbreviation that brackets define, in the sentence that starts at a character."""
    before = text[start : match.start()].rstrip()
    inside = re.split(r"[;,] ", match[1])[0]
    inside_start = match.start(1) + len(inside) - len(inside.lstrip())
    inside = inside.strip()
    if _is_short_form(inside):
        place = _long_form_start(inside, before, _first_word(before, _max_words(inside)))
        place = _initials_start(inside, before) if place is None else place
        if place is not None:
            yield Abbreviation(inside, before[place:], inside_start, start + place)
            return
    # The short form may stand before its definition in parentheses.
    short = before.rpartition(" ")[2].lstrip("([")
    if _is_short_form(short) and len(match[1].split()) >= 2:
        long = match[1].strip()
        if long[:1].lower() == short[0].lower() and _defines(short, long):
            long_start = match.start(1) + len(match[1]) - len(match[1].lstrip())
            yield Abbreviation(short, long, start + len(before) - len(short), long_start)


def _initials_start(short: str, before: str) -> int | None:
    """Return where as many words as a short form of capitals has letters start, if they begin with them in any order.

    "myotonic dystrophy (DM)", whose short form is that of the Latin name.
    """
    words = list(re.finditer(r"[^\W_]+", before))[-len(short) :]
    if not (short.isalpha() and short.isupper()) or sorted(word[0][0].upper() for word in words) != sorted(short):
        return None
    return words[0].start()


def _is_short_form(form: str) -> bool:
    """Two to ten characters of at most two words, the first a letter or digit, one of them a letter."""
    return (
        2 <= len(form) <= _MAX_SHORT
        and len(form.split()) <= _MAX_SHORT_WORDS
        and form[0].isalnum()
        and any(character.isalpha() for character in form)
    )


def _max_words(short: str) -> int:
    size = sum(character.isalnum() for character in short)
    return min(size + 5, size * 2)


def _first_word(before: str, count: int) -> int:
    """Return where the last so many words start."""
    words = before.rsplit(None, count)
    return len(before) - len(before[len(words[0]) :].lstrip()) if len(words) > count else 0


def _long_form_start(short: str, text: str, first: int) -> int | None:
    """Match the characters of a short form from the end of a text backwards, its first at the start of a word."""
    position = len(text) - 1
    for index in range(len(short) - 1, -1, -1):
        wanted = short[index].lower()
        if not wanted.isalnum():
            continue
        while position >= first and (
            text[position].lower() != wanted or (index == 0 and position > first and text[position - 1].isalnum())
        ):
            position -= 1
        if position < first:
            return None
        position -= 1
    start = text.rfind(" ", first, position + 2) + 1 or first
    long = re.sub(r"^[^\w]+", "", text[start:])
    start = len(text) - len(long)
    # What only repeats the short form defines nothing.
    is_definition = len(long) > len(short) and f"{short} " not in long and not long.endswith(short)
    return start if is_definition and len(long.split()) <= _max_words(short) else None


def _defines(short: str, long: str) -> bool:
    """Whether a whole text is the definition of a short form: it has its characters in their order."""
    characters = iter(long.lower())
    has_all = all(wanted in characters for wanted in short.lower() if wanted.isalnum())
    return has_all and len(long) > len(short) and len(long.split()) <= _max_words(short)


def abbreviations_of(document: Document) -> dict[str, str]:
    """Return the short forms that a document defines, with the first definition of each."""
    found: dict[str, str] = {}
    for passage in document.passages:
        for item in find_abbreviations(passage.text):
            found.setdefault(item.short, item.long)
    return found


def with_abbreviations(document: Document) -> Document:
    """Return the document with its abbreviations as an infon, short form to definition."""
    found = abbreviations_of(document)
    return replace(document, infons={**document.infons, INFON: found}) if found else document


def written_out(text: str, definitions: Mapping[str, str]) -> str:
    """Replace the short forms in a text, where they are whole words, by their definitions."""
    present = [short for short in definitions if short in text]
    if not present:
        return text
    pattern = "|".join(map(re.escape, sorted(present, key=len, reverse=True)))
    return re.sub(rf"(?<![^\W_])(?:{pattern})(?![^\W_])", lambda match: definitions[match[0]], text)
