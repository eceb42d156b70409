"""Windows of texts that are split into words, and the logits of the words from those of windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizers.wordpiece import Tokenizer
from .packing import NO_TARGET, Features, LazyFeatures
from .windows import max_context_masks, window_spans

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class WordWindow:
    """A window of an example that is split into words: [CLS], its tokens, [SEP].

    For each token: `words`, the index of its word in the example, -1 at [CLS] and [SEP]; `is_first`, whether it is its
    word's first; `has_max_context`, whether no other window shows more context around it.
    """

    example: int
    token_ids: NDArray[np.int64]
    words: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    has_max_context: NDArray[np.bool_]

    def word_positions(self) -> NDArray[np.int64]:
        """Return the positions whose logits are those of their words; each word has one, in one of its windows."""
        return np.flatnonzero(self.is_first & self.has_max_context)

    def features(
        self,
        targets: Mapping[str, Any] | None = None,
        token_targets: Mapping[str, NDArray[np.int64]] | None = None,
        weight: float = 1.0,
    ) -> Features:
        """Make the window's features, with itself as their notes."""
        segment_ids = np.zeros(len(self.token_ids), dtype=np.int64)
        return Features(self.token_ids, segment_ids, dict(targets or {}), dict(token_targets or {}), weight, self)

    def targets(self, of_words: NDArray[np.int64], *, first_only: bool, edge: int = NO_TARGET) -> NDArray[np.int64]:
        """Expand the words' targets to the tokens, or to their first tokens; [CLS] and [SEP] have the target `edge`."""
        has_target = self.has_max_context & self.is_first if first_only else self.has_max_context
        targets = np.full(len(self.token_ids), NO_TARGET, dtype=np.int64)
        targets[has_target] = of_words[self.words[has_target]]
        targets[[0, -1]] = edge
        return targets


class WordWindows(LazyFeatures):
    """Windows of many examples, without targets; arrays have the tokens of one window after the other."""

    def __init__(
        self,
        lengths: Integers,
        examples: Integers,
        token_ids: Integers,
        words: Integers,
        is_first: NDArray[np.bool_],
        has_max_context: NDArray[np.bool_],
    ) -> None:
        self._lengths, self.examples = lengths, examples
        self.token_ids, self.words = token_ids, words
        self.is_first, self.has_max_context = is_first, has_max_context
        self._ends = np.cumsum(lengths, dtype=np.int64)

    @classmethod
    def of(cls, windows: Sequence[WordWindow]) -> "WordWindows":
        """Concatenate windows."""
        lengths = np.array([len(item.token_ids) for item in windows], dtype=np.int64)
        examples = np.array([item.example for item in windows], dtype=np.int64)
        names = ("token_ids", "words", "is_first", "has_max_context")
        if not windows:
            return cls(lengths, examples, lengths, lengths, lengths > 0, lengths > 0)
        return cls(lengths, examples, *(np.concatenate([getattr(item, name) for item in windows]) for name in names))

    def __len__(self) -> int:
        """Count the windows."""
        return len(self._lengths)

    def lengths(self) -> Integers:
        """Count the tokens of each window."""
        return self._lengths

    def sequence(self, index: int) -> Features:
        """Return a window as features."""
        return self.window(index).features()

    def window(self, index: int) -> WordWindow:
        """Return a window."""
        end = int(self._ends[index])
        own = slice(end - int(self._lengths[index]), end)
        return WordWindow(
            int(self.examples[index]),
            self.token_ids[own],
            self.words[own],
            self.is_first[own],
            self.has_max_context[own],
        )

    def windows(self) -> list[WordWindow]:
        """List the windows."""
        return [self.window(index) for index in range(len(self))]


def word_windows(
    examples: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int, margin: int | None = None
) -> WordWindows:
    """Tokenize examples that are split into words, as `token_windows` describes."""
    encoded = tokenizer.encode_words(examples)
    none = np.zeros(0, dtype=np.int64)
    token_ids, words = (
        np.concatenate([*parts, none]) for parts in (zip(*encoded, strict=True) if encoded else ((), ()))
    )
    num_tokens = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
    return token_windows(token_ids, words, num_tokens, tokenizer, length, margin)


def token_windows(
    token_ids: Integers, words: Integers, num_tokens: Integers, tokenizer: Tokenizer, length: int,
    margin: int | None = None,
) -> WordWindows:  # fmt: skip
    """Make windows of tokenized examples, concatenated; one of more than `length` tokens has several.

    Each token has at least `margin` tokens of context on both sides in one of the windows, as far as the example has
    so many; without a margin windows overlap by half.
    """
    room = length - 2
    stride = max(room // 2 if margin is None else room - 2 * margin, 1)
    firsts = np.cumsum(num_tokens) - num_tokens
    is_first = np.ones(len(token_ids), dtype=np.bool_)
    np.not_equal(words[1:], words[:-1], out=is_first[1:])
    is_first[firsts[num_tokens > 0]] = True
    examples, starts, ends = np.arange(len(num_tokens)), firsts, firsts + num_tokens
    inside, is_best = np.arange(len(token_ids)), np.ones(len(token_ids), dtype=np.bool_)
    if len(num_tokens) and num_tokens.max() > room:
        spans = [window_spans(count, room, stride) for count in num_tokens.tolist()]
        counts = list(map(len, spans))
        within = np.array(list(chain.from_iterable(spans))) + np.repeat(firsts, counts)[:, None]
        examples, starts, ends = np.repeat(examples, counts), within[:, 0], within[:, 1]
        inside = np.concatenate([np.arange(*span) for span in within])
        masks = (max_context_masks(count, own) for count, own in zip(num_tokens.tolist(), spans, strict=True))
        is_best = np.concatenate(list(chain.from_iterable(masks)))
    lengths = ends - starts + 2
    is_token = np.ones(int(lengths.sum()), dtype=np.bool_)
    last = np.cumsum(lengths) - 1
    is_token[last] = is_token[last - lengths + 1] = False

    def with_edges(values: NDArray[Any], edge: Any) -> NDArray[Any]:
        padded = np.full(len(is_token), edge, dtype=values.dtype)
        padded[is_token] = values
        return padded

    ids = with_edges(token_ids[inside], tokenizer.cls_id)
    ids[last] = tokenizer.sep_id
    flags = with_edges(is_first[inside], False), with_edges(is_best, False)
    return WordWindows(lengths, examples, ids, with_edges(words[inside], -1), *flags)


def word_logits(
    features: Sequence[Features],
    logits: Sequence[NDArray[np.float32]],
    num_words: Sequence[int],
    pooling: str = "best_context",
) -> list[NDArray[np.float64]]:
    """Gather the logits of each example's words, [W, C], from those of its windows, [T, C].

    Those of a word without tokens, such as a control character, are NaN. `pooling` is how the logits of several windows
    become one: best_context takes those of the window with the most context, others are `POOLED_LOGITS`.
    """
    windows = as_windows(features)
    num_classes = logits[0].shape[1] if logits else 0
    ends = np.cumsum(num_words, dtype=np.int64)
    gathered = np.full((ends[-1] if len(ends) else 0, num_classes), np.nan)
    by_example = [gathered[end - count : end] for end, count in zip(ends.tolist(), num_words, strict=True)]
    if not logits:
        return by_example
    starts = np.repeat((ends - num_words)[windows.examples], windows.lengths())
    if pooling == "best_context":
        is_used = windows.is_first & windows.has_max_context
        gathered[(windows.words + starts)[is_used]] = np.concatenate(logits)[is_used]
        return by_example
    counts = [np.zeros((count, 1)) for count in num_words]
    for window, window_logits in zip(windows.windows(), logits, strict=True):
        positions = np.flatnonzero(window.is_first)
        words, values = window.words[positions], window_logits[positions].astype(np.float64)
        own, seen = by_example[window.example], counts[window.example]
        if pooling == "mean":  # of the windows so far
            seen[words] += 1
            values = np.where(seen[words] == 1, values, own[words] + (values - own[words]) / seen[words])
        else:
            values = np.fmax(own[words], values)
        own[words] = values
    return by_example


def as_windows(features: Sequence[Features]) -> WordWindows:
    """Return the windows that features are made of."""
    return features if isinstance(features, WordWindows) else WordWindows.of([item.notes for item in features])
