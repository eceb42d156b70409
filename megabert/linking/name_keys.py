"""Names as the search compares them, in lower case without accents and punctuation; their hashes and n-grams."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GRAM_SIZES = (2, 3, 4)
GRAM_BITS = 46
"""Bits of a gram's hash; a call hashes at most 2**18 names."""
_NO_WORD = re.compile(r"[\W_]+")
# British spellings, the plural of words of five letters and more, "non " before a word, ordinals, and Roman numbers:
# single letters at the end or after "type" only.
_VARIANTS = re.compile(r"ae|oe|tumour|(?<=[a-z]{3}[a-hj-rtv-z])s\b|(?<=\d)(?:st|nd|rd|th)\b")
_COMMON_FORMS = {"ae": "e", "oe": "e", "tumour": "tumor"}
_ROMAN_NUMBERS = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv"
_ROMAN = {letters: str(number) for number, letters in enumerate(_ROMAN_NUMBERS.split(), start=1)}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
_NUMBERS = {word: str(number) for number, word in enumerate(_ORDINALS.split(), start=1)} | {
    letters: number for letters, number in _ROMAN.items() if len(letters) > 1
}
_THREE_LETTERS = re.compile("[a-z]{3}")
_INITIALISM = re.compile(r"(?=(?:.*[A-Z]){2})[A-Z0-9][A-Za-z0-9-]{1,8}[A-Za-z0-9]")
_COMMON = ("", "of the and with due to in or by a an for from", "type", "syndrome disease disorder deficiency")
"""Words that initials leave out: none, and of each group besides those before it."""
MARK, SERIES, WORDS = "\n", "\t", "\r"
"""Begin the keys of initials, of series and of sets of words, which no normalized name does."""
_PARTS = re.compile(r"\d+[a-z]?\d*(?![a-z])|\d+|[^\W\d_]+")
_ROMAN_LETTER = re.compile(r"(i{1,3}|iv|vi{0,3}|ix|xi{0,3}|xiv|xv)([a-z]?)")
_GREEK_NAMES = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau
upsilon phi chi psi omega"""
_GREEK = {
    ord(letter): name
    for letter, name in zip(
        "αβγδεζηθικλμνξοπρστυφχψω",
        _GREEK_NAMES.split(),
        strict=True,
    )
}
_WORDS = re.compile(r"[^\W\d_]+|\d+")
_BLANK, _LINE_END = 32, 10
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=1 << 16)
def normalized(name: str) -> str:
    """Lower-case a name; accents, punctuation and a plural's s are removed, Greek letters and Roman numbers rewritten.

    A name of punctuation alone stays as it is.
    """
    key = name.lower()
    if not key.isascii():
        key = unicodedata.normalize("NFKD", key.translate(_GREEK))
        key = "".join(letter for letter in key if not unicodedata.combining(letter)).translate(_GREEK)
    key = _NO_WORD.sub(" ", key).strip()
    words = key.split(" ")
    forms = list(map(_common_form, words))
    if len(words) > 1 and (words[-1] in _ROMAN or "type" in words or "non" in words):
        for place, before in enumerate(words[:-1], start=1):
            if words[place] in _ROMAN and (before == "type" or place == len(words) - 1):
                forms[place] = _ROMAN[words[place]]
            if before != "non" or not _THREE_LETTERS.match(words[place]):
                forms[place] = " " + forms[place]
        return "".join(forms)
    return " ".join(forms) or " ".join(name.split())


@lru_cache(maxsize=1 << 16)
def _common_form(word: str) -> str:
    return _NUMBERS.get(word) or _VARIANTS.sub(lambda match: _COMMON_FORMS.get(match[0], ""), word)


def lookup_keys(key: str) -> set[str]:
    """Return the keys by which a normalized name is found.

    Itself, without blanks (IL-2 is IL2), initials, series, and its words in any order.
    """
    return {key, key.replace(" ", ""), *initials(key), *series_keys(*(series(key) or ())), words_key(key.split())}


def words_key(words: Iterable[str]) -> str:
    """Return the key of a set of words."""
    return WORDS + " ".join(sorted(set(words)))


def has_key(name: str, key: str) -> bool:
    """Whether a key is one of a normalized name's."""
    if key[:1] == MARK:
        return key in initials(name)
    if key[:1] == WORDS:
        return key == words_key(name.split())
    return key in (series_keys(*(series(name) or ())) if key[:1] == SERIES else (name, name.replace(" ", "")))


def series_keys(*series_and_number: str) -> tuple[str, ...]:
    """Return the keys of a series, and of its member of a number."""
    return (SERIES + series_and_number[0], SERIES + "\t".join(series_and_number)) if series_and_number else ()


def series(key: str) -> tuple[str, str] | None:
    """Split a normalized name into the words of a series, sorted, and a number; None without either.

    "spastic paraplegia type iiia" is ("paraplegia spastic", "3a"), "spg23" ("spg", "23"), "hepatitis b" ("hepatitis",
    "b").
    """
    parts = _PARTS.findall(key)
    for place in range(len(parts) - 1, -1, -1):
        number, before = parts[place], parts[place - 1] if place else ""
        if not number[0].isdigit():
            roman = _ROMAN_LETTER.fullmatch(number)
            is_marked = before == "type" or place == len(parts) - 1
            if not (is_marked and (len(number) == 1 or roman)) or before.isdigit():
                continue
            number = number if roman is None or len(number) == 1 else _ROMAN[roman[1]] + roman[2]
        elif number.isdigit() and len(parts) - place > 1 and len(parts[place + 1]) == 1:
            number += parts.pop(place + 1)  # type 4 a
        words = sorted(word for word in parts[:place] + parts[place + 1 :] if word != "type")
        return (" ".join(words), number) if words else None
    return None


def number_hashes(keys: Sequence[str]) -> NDArray[np.uint32]:
    """Hash the numbers of normalized names that are members of a series; 0 for others."""
    numbers = [(series(key) or ("", ""))[1] for key in keys]
    hashes = (key_hashes(numbers) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    return np.where(np.array([bool(number) for number in numbers], bool), hashes, np.uint32(0))


def initials(key: str) -> set[str]:
    """Return the initials of a normalized name's words, its numbers whole, as keys: all words, and without common ones.

    "amyotrophic lateral sclerosis type 10" has als10 and alst10.
    """
    words = _WORDS.findall(key)
    found, left_out = set(), set[str]()
    for words_too in _COMMON:
        left_out.update(words_too.split())
        kept = [word for word in words if word not in left_out]
        if sum(map(str.isalpha, kept)) > 1:
            found.add(MARK + "".join(word if word.isdecimal() else word[0] for word in kept))
    return found


def initialism(text: str) -> str | None:
    """Return the key of a text of 3 to 10 letters and digits, two of them upper-case, to look up as initials."""
    return MARK + text.lower().replace("-", "") if _INITIALISM.fullmatch(text) else None


def key_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Hash normalized names to 64 bits."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def gram_hashes(keys: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash the character 2- to 4-grams of normalized names: hashes and indexes of the names, each pair once, sorted.

    Grams lie within words, which have a blank on either side, as those of scikit-learn's analyzer char_wb.
    """
    text = "\n".join(f" {key} " for key in keys)
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    is_end, is_blank = letters == _LINE_END, letters == _BLANK
    owners = np.cumsum(is_end)
    hashes, names = [], []
    for size in GRAM_SIZES:
        count = len(letters) - size + 1
        if count <= 0:
            continue
        value = np.full(count, size, dtype=np.uint64)
        is_gram = ~(is_end[:count] | is_end[size - 1 :])
        for place in range(size):
            value = (value ^ letters[place : place + count]) * _MULTIPLIER
            value ^= value >> np.uint64(29)
            if 0 < place < size - 1:
                is_gram &= ~(is_blank[place : place + count] | is_end[place : place + count])
        is_gram &= ~(is_blank[:count] & is_blank[size - 1 :]) | (size > 2)
        hashes.append(value[is_gram] >> np.uint64(64 - GRAM_BITS))
        names.append(owners[:count][is_gram])
    if not hashes:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    # One sort of 64-bit numbers, of which the upper bits are the name.
    pairs = np.concatenate(names).astype(np.uint64) << np.uint64(GRAM_BITS) | np.concatenate(hashes)
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=~pairs[:1]) != 0]
    return pairs & np.uint64((1 << GRAM_BITS) - 1), (pairs >> np.uint64(GRAM_BITS)).astype(np.int64)
