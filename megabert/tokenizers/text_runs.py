"""Words and tokens of many raw texts at once: each run without blanks is split and tokenized when it is first seen.

A text is then a list of numbers of runs, and all else is arithmetic on arrays: annotation in bulk spends most of its
time here. Results are those of `split_words` and `Tokenizer.encode_words`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .wordpiece import Tokenizer
from .words import RUN, Characters, WordCuts, words_of_run

MAX_RUNS_KEPT = 1 << 17
"""Runs whose words and tokens are kept for later texts; some 30 MB."""

Integers = NDArray[np.int64]


class WordBounds(Sequence[Characters]):
    """Words of a text as [start, end) characters; pairs are made where one is looked at."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        """Start and end in turn."""

    def __len__(self) -> int:
        """Count the words."""
        return len(self.numbers) // 2

    def __getitem__(self, index: Any) -> Any:
        """Return a word, or those of a slice."""
        if isinstance(index, slice):
            return tuple(self)[index]
        place = 2 * index
        return self.numbers[place], self.numbers[place + 1]

    def __iter__(self) -> Iterator[Characters]:
        """Yield the words."""
        return zip(self.numbers[::2], self.numbers[1::2], strict=True)

    def __eq__(self, other: object) -> bool:
        """Compare with other words, a tuple of pairs too."""
        return isinstance(other, WordBounds | tuple) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """Hash as the tuple of pairs."""
        return hash(tuple(self))


@dataclass(frozen=True)
class SplitTexts:
    """Words of texts, [W, 2] as [start, end) characters of their text, and their tokens, one text after the other."""

    bounds_W2: Integers
    num_words: Integers
    """Of each text."""
    token_ids: Integers
    token_words: Integers
    """Index of each token's word in its text."""
    num_tokens: Integers
    """Of each text."""


class _RunNumbers(dict[str, int]):
    """Numbers of runs in the order in which they are first looked up."""

    def __missing__(self, run: str) -> int:
        number = self[run] = len(self)
        return number


class _Table:
    """Rows of two numbers, some for each run."""

    def __init__(self) -> None:
        self._rows: Integers = np.zeros((0, 2), dtype=np.int64)
        self._starts: Integers = np.zeros(1, dtype=np.int64)

    def extend(self, groups: Sequence[Integers]) -> None:
        """Add the rows of further runs."""
        self._rows = np.concatenate([self._rows, *groups])
        ends = np.cumsum([len(group) for group in groups]) + self._starts[-1]
        self._starts = np.concatenate([self._starts, ends])

    def of(self, runs: Integers) -> tuple[Integers, Integers]:
        """Return the rows of runs, and how many each has."""
        starts = self._starts[runs]
        counts = self._starts[runs + 1] - starts
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)
        return self._rows[places], counts


class KnownRuns:
    """Splits texts at `cuts` and tokenizes their words."""

    def __init__(self, cuts: WordCuts, tokenizer: Tokenizer) -> None:
        self.cuts, self.tokenizer = cuts, tokenizer
        self._clear()

    def _clear(self) -> None:
        self._numbers, self._num_known = _RunNumbers(), 0
        self._bounds, self._tokens = _Table(), _Table()

    def __call__(self, texts: Sequence[str]) -> SplitTexts:
        """Split and tokenize texts."""
        if len(self._numbers) > MAX_RUNS_KEPT:
            self._clear()
        runs_of = [text.split() for text in texts]
        runs = list(chain.from_iterable(runs_of))
        numbers = np.fromiter(map(self._numbers.__getitem__, runs), dtype=np.int64, count=len(runs))
        self._learn()
        num_runs = np.fromiter(map(len, runs_of), dtype=np.int64, count=len(texts))
        bounds_W2, words_of_runs = self._bounds.of(numbers)
        bounds_W2 += np.repeat(_starts(texts, runs, num_runs), words_of_runs)[:, None]
        tokens_T2, tokens_of_runs = self._tokens.of(numbers)
        num_words, num_tokens = (_sums(counts, num_runs) for counts in (words_of_runs, tokens_of_runs))
        # A token's word is counted within its run: add the words of the text's runs before.
        words_before = np.cumsum(words_of_runs) - words_of_runs - np.repeat(np.cumsum(num_words) - num_words, num_runs)
        token_words = tokens_T2[:, 1] + np.repeat(words_before, tokens_of_runs)
        return SplitTexts(bounds_W2, num_words, tokens_T2[:, 0], token_words, num_tokens)

    def _learn(self) -> None:
        """Split and tokenize the runs that got their numbers since the last time."""
        new = list(self._numbers)[self._num_known :] if len(self._numbers) > self._num_known else []
        if not new:
            return
        self._num_known = len(self._numbers)
        bounds = [list(words_of_run(run, self.cuts)) for run in new]
        words = [[run[start:end] for start, end in own] for run, own in zip(new, bounds, strict=True)]
        self._bounds.extend([np.array(own, dtype=np.int64).reshape(-1, 2) for own in bounds])
        self._tokens.extend([np.stack(pair, axis=1) for pair in self.tokenizer.encode_words(words)])


def _starts(texts: Sequence[str], runs: Sequence[str], num_runs: Integers) -> Integers:
    """Locate the runs of all texts, each in its text."""
    behind = np.cumsum(np.fromiter(map(len, runs), dtype=np.int64, count=len(runs)) + 1)
    starts = np.concatenate([[0], behind[:-1]])[: len(runs)]
    ends = np.cumsum(num_runs)
    firsts = np.concatenate([[0], behind])[ends - num_runs]
    starts -= np.repeat(firsts, num_runs)
    sizes = np.concatenate([[0], behind])[ends] - firsts - 1
    for number in np.flatnonzero(sizes != np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))).tolist():
        own = slice(ends[number] - num_runs[number], ends[number])  # other white space than one blank between each two
        starts[own] = [match.start() for match in RUN.finditer(texts[number])]
    return starts


def _sums(values: Integers, counts: Integers) -> Integers:
    """Sum the values of each group of so many."""
    totals = np.concatenate([[0], np.cumsum(values)])
    ends = np.cumsum(counts)
    sums: Integers = totals[ends] - totals[ends - counts]
    return sums
