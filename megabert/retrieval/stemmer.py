"""Porter's stemmer of English words (Porter 1980, doi:10.1108/eb046814), by the rules of the paper."""

import re

_C, _V = "[^aeiou](?:[^aeiouy])*", "[aeiouy](?:[aeiou])*"
_MEASURE_ABOVE_0 = re.compile(f"^(?:{_C})?{_V}{_C}")
_MEASURE_1 = re.compile(f"^(?:{_C})?{_V}{_C}(?:{_V})?$")
_MEASURE_ABOVE_1 = re.compile(f"^(?:{_C})?{_V}{_C}{_V}{_C}")
_VOWEL = re.compile(f"^(?:{_C})?[aeiouy]")
_CVC = re.compile(f"^{_C}[aeiouy][^aeiouwxy]$")
_DOUBLE = re.compile(r"([^aeiouylsz])\1$")
_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "abli": "able", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
)  # fmt: skip
_LONGEST_FIRST = tuple((table, sorted(table, key=len, reverse=True)) for table in (_STEP_2, _STEP_3))
_REMOVED = sorted(_STEP_4, key=len, reverse=True)


def stem(word: str) -> str:
    """Return the stem of a word in lower case; what is not of the letters a to z stays."""
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return word
    word = ("Y" + word[1:]) if word[0] == "y" else word
    word = _plurals(word)
    word = _past_and_gerund(word)
    if word.endswith("y") and _VOWEL.match(word[:-1]):
        word = word[:-1] + "i"
    for table, suffixes in _LONGEST_FIRST:
        word = _replace_suffix(word, table, suffixes)
    return _ending_e(_remove_suffix(word)).lower()


def _plurals(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_gerund(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _MEASURE_ABOVE_0.match(word[:-3]) else word
    base = next((word.removesuffix(suffix) for suffix in ("ed", "ing") if word.endswith(suffix)), None)
    if base is None or not _VOWEL.match(base):
        return word
    if base.endswith(("at", "bl", "iz")) or _CVC.match(base):
        return base + "e"
    return base[:-1] if _DOUBLE.search(base) else base


def _replace_suffix(word: str, table: dict[str, str], suffixes: list[str]) -> str:
    suffix = next((suffix for suffix in suffixes if word.endswith(suffix)), None)
    if suffix is None:
        return word
    base = word.removesuffix(suffix)
    return base + table[suffix] if _MEASURE_ABOVE_0.match(base) else word


def _remove_suffix(word: str) -> str:
    suffix = next((suffix for suffix in _REMOVED if word.endswith(suffix)), None)
    if suffix is None:
        return word
    base = word.removesuffix(suffix)
    is_removed = _MEASURE_ABOVE_1.match(base) and (suffix != "ion" or base.endswith(("s", "t")))
    return base if is_removed else word


def _ending_e(word: str) -> str:
    if word.endswith("e"):
        base = word[:-1]
        if _MEASURE_ABOVE_1.match(base) or (_MEASURE_1.match(base) and not _CVC.match(base)):
            word = base
    return word[:-1] if word.endswith("ll") and _MEASURE_ABOVE_1.match(word) else word
