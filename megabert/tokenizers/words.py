"""Words of raw text, cut as a training corpus cuts them, and word positions in joined text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from .characters import is_mark

Characters = tuple[int, int]
"""Start and end character."""
APOSTROPHES = "'\u2019"
# These stand between words or in numbers; only between digits do they show how words are cut.
SENTENCE_PUNCTUATION = ".,:;!?"
# A character is a word of its own if it was so three times or more, and one time in twenty inside a word at most.
MIN_COUNT, MAX_INSIDE = 3, 0.05
MAX_WHOLE = 500
MAX_RUNS_KEPT = 1 << 16
CHINESE = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)
"""Characters that BERT makes words of their own."""
_LISTS = ("whole", "tokens", "uncased_tokens")
RUN = re.compile(r"\S+")
"""What stands between white space; the same as str.split() returns."""


@dataclass(frozen=True)
class WordCuts:
    """Where raw text is cut inside of what stands between blanks, besides at the punctuation on its ends."""

    apart: str = ""
    """Characters that are words of their own wherever they stand."""
    joined: str = ""
    """Characters that are not, although `others_apart`."""
    others_apart: bool = False
    """Whether all other punctuation and symbols are words of their own."""
    has_clitics: bool = False
    """Whether an apostrophe between letters begins a word: the patient, 's."""
    whole: tuple[str, ...] = ()
    """Words with punctuation on their ends, such as U.S. and etc., that are not cut."""
    is_basic: bool = False
    """Whether BERT's basic tokenizer cuts: all punctuation, ASCII symbols and Chinese characters are apart."""
    tokens: tuple[str, ...] = ()
    """Added tokens of the tokenizer, such as IL-2 and [E1], that are words of their own wherever they stand."""
    uncased_tokens: tuple[str, ...] = ()
    """Those that are found in any case."""

    @classmethod
    def from_document(cls, values: Mapping[str, Any]) -> "WordCuts":
        """Read what `to_document` returned; without fields text is cut at blanks and punctuation on the ends only."""
        return cls(**{**values, **{name: tuple(values.get(name, ())) for name in _LISTS}})

    def to_document(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}

    @cached_property
    def known_runs(self) -> dict[str, tuple[Characters, ...]]:
        """The words of runs without blanks that were split before."""
        return {}

    @cached_property
    def token_pattern(self) -> re.Pattern[str] | None:
        """What finds `tokens` and `uncased_tokens`, the longest at a place; None without any."""
        own = [(token, re.escape(token)) for token in self.tokens]
        own += [(token, f"(?i:{re.escape(token)})") for token in self.uncased_tokens]
        patterns = [pattern for _, pattern in sorted(own, key=lambda item: -len(item[0]))]
        return re.compile("|".join(patterns)) if patterns else None

    def is_apart(self, letter: str) -> bool:
        """Return whether a character is a word of its own inside a word, too."""
        if self.is_basic:
            return _is_basic_word(letter)
        return letter in self.apart or (self.others_apart and letter not in self.joined and _is_punctuation(letter))


Passes = Callable[[Sequence[Sequence[str]], Callable[[Iterable[Sequence[str]]], Any]], Iterable[Any]]


def _one_pass(sentences: Sequence[Sequence[str]], function: Callable[[Iterable[Sequence[str]]], Any]) -> Iterable[Any]:
    return [function(sentences)]


def learn_cuts(sentences: Sequence[Sequence[str]], by_parts: Passes = _one_pass) -> WordCuts:
    """Learn from the words of a corpus how it cuts text: compare punctuation inside words and as words of its own.

    `by_parts` goes through the sentences and yields a function's results for parts of them.
    """
    inside, alone, ends, clitics = Counter[str](), Counter[str](), Counter[str](), 0
    for part in by_parts(sentences, _count_cuts):
        for counts, more in zip((inside, alone, ends), part, strict=False):
            counts.update(more)
        clitics += part[3]
    seen = {*alone, *inside}
    apart = {c for c in seen if alone[c] >= MIN_COUNT and inside[c] <= MAX_INSIDE * alone[c]}
    joiners = sum(count for c, count in alone.items() if c not in SENTENCE_PUNCTUATION and c in apart)
    others_apart = joiners >= MIN_COUNT and inside.total() <= MAX_INSIDE * joiners
    joined = {c for c in seen - apart if inside[c]}
    apostrophes = sum(inside[c] for c in APOSTROPHES)
    # Words such as U.S. and Dr., unless they are more often without their end: "I."
    stems = {word[:-1] for word, count in ends.items() if count > 1}
    num_stems = Counter[str]()
    if stems:
        for own in by_parts(sentences, lambda part: Counter(word for words in part for word in words if word in stems)):
            num_stems.update(own)
    frequent = ((word, count) for word, count in ends.most_common() if count > 1)
    whole = tuple(word for word, count in frequent if count > num_stems[word[:-1]])[:MAX_WHOLE]
    return WordCuts(
        "".join(sorted(apart)), "".join(sorted(joined)), others_apart, clitics > max(apostrophes, MIN_COUNT - 1), whole
    )


def _count_cuts(sentences: Iterable[Sequence[str]]) -> tuple[Counter[str], Counter[str], Counter[str], int]:
    """Count punctuation inside words and as words of its own, words with punctuation at their ends, and clitics."""
    inside, alone, ends, clitics = Counter[str](), Counter[str](), Counter[str](), 0
    for words in sentences:
        for number, word in enumerate(words):
            if word.isalnum():
                continue
            if word[:1].isalpha() and _is_split_off(word[-1]):
                ends[word] += 1
            before, after = (words[number - 1] if number else ""), "".join(words[number + 1 : number + 2])
            if len(word) == 1 and _joins(before[-1:], word, after[:1]):
                alone[word] += 1
            inside.update(b for a, b, c in zip(word, word[1:], word[2:], strict=False) if _joins(a, b, c))
            clitics += word[0] in APOSTROPHES and word[1:].isalpha() and before[-1:].isalpha()
    return inside, alone, ends, clitics


def _joins(before: str, letter: str, after: str) -> bool:
    """Return whether punctuation stands between two letters or digits, sentence punctuation between digits."""
    if not (_is_punctuation(letter) and before.isalnum() and after.isalnum()):
        return False
    return letter not in SENTENCE_PUNCTUATION or (before.isdecimal() and after.isdecimal())


def split_words(text: str, cuts: WordCuts = WordCuts()) -> tuple[Characters, ...]:
    """Split raw text into words, as [start, end) characters.

    Splits at white space, around punctuation at both ends of a run without it, and at `cuts`: p53, IL-2. A word
    has the marks that follow its characters.
    """
    return tuple(
        (match.start() + start, match.start() + end)
        for match in RUN.finditer(text)
        for start, end in words_of_run(match[0], cuts)
    )


def words_of_run(run: str, cuts: WordCuts) -> tuple[Characters, ...]:
    """Split what stands between blanks into words."""
    known = cuts.known_runs
    if len(known) > MAX_RUNS_KEPT:
        known.clear()
    return known.get(run) or known.setdefault(run, tuple(_words_around_tokens(run, cuts)))


def _words_around_tokens(run: str, cuts: WordCuts) -> Iterator[Characters]:
    """Split a run at added tokens, and what is between them into words."""
    end = 0
    for match in cuts.token_pattern.finditer(run) if cuts.token_pattern is not None else ():
        if end < match.start():
            yield from _words_of_run(run, end, match.start(), cuts)
        yield match.span()
        end = match.end()
    if end < len(run):
        yield from _words_of_run(run, end, len(run), cuts)


def _words_of_run(text: str, start: int, end: int, cuts: WordCuts) -> Iterator[Characters]:
    """Split a run: its characters that are apart, and what is between them less punctuation on ends."""
    if text[start:end] in cuts.whole:
        yield start, end
        return
    units = _units(text, start, end)
    first = 0
    for number, unit in enumerate([*units, None]):
        if unit is None or cuts.is_apart(_base(text, unit)):
            yield from _strip(text, units[first:number], cuts)
            first = number + 1
            if unit is not None:
                yield unit


def _strip(text: str, units: Sequence[Characters], cuts: WordCuts) -> Iterator[Characters]:
    """Split punctuation off both ends, and a clitic off what is left."""
    first, last = 0, len(units)
    while first < last and _is_split_off(_base(text, units[first])):
        first += 1
    while last > first and _is_split_off(_base(text, units[last - 1])):
        if text[units[first][0] : units[last - 1][1]] in cuts.whole:
            break
        last -= 1
    yield from units[:first]
    if first < last:
        start, end = units[first][0], units[last - 1][1]
        clitic = re.search(rf"(?<=\w)[{APOSTROPHES}](?=[^\W\d_]+$)", text[start:end]) if cuts.has_clitics else None
        if clitic is not None:
            yield start, start + clitic.start()
            start += clitic.start()
        yield start, end
    yield from units[max(last, first) :]


def _units(text: str, start: int, end: int) -> list[Characters]:
    """Split [start, end) into characters with the marks that follow; marks at the start belong to the first."""
    starts = [place for place in range(start, end) if not is_mark(text[place])] or [start]
    return list(zip([start, *starts[1:]], [*starts[1:], end], strict=True))


def _base(text: str, unit: Characters) -> str:
    return next((letter for letter in text[slice(*unit)] if not is_mark(letter)), text[unit[0]])


def _is_punctuation(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"


def _is_basic_word(letter: str) -> bool:
    """Return whether BERT's basic tokenizer makes a character a word (google-research/bert, tokenization.py)."""
    if letter < "\x80":
        return _is_punctuation(letter)
    return _is_split_off(letter) or CHINESE.fullmatch(letter) is not None


def _is_split_off(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "P"


def joined_words(words: Sequence[str]) -> tuple[Characters, ...]:
    """Locate words in their text joined by blanks, as [start, end) characters."""
    ends = list(accumulate(len(word) + 1 for word in words))
    return tuple((end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True))
