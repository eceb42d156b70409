"""Overlapping windows of long sequences, and for each token or word the window with the most context around it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizers.wordpiece import Tokenizer
from .packing import NO_TARGET, Features

# How the logits of an example's windows become one: their mean, or the largest of each class.
POOLED_LOGITS = ("mean", "maximum")


def pool_windows(logits: Sequence[NDArray[np.float64]], pooling: str) -> NDArray[np.float64]:
    """Pool the logits of an example's windows, each [C], to [C]."""
    pooled: NDArray[np.float64] = np.mean(logits, axis=0) if pooling == "mean" else np.max(logits, axis=0)
    return pooled


def window_spans(num_tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Split [0, num_tokens) into windows of `room` tokens, each starting `stride` after the one before.

    The last window ends with the sequence. Source: Google BERT's run_squad.py.
    """
    spans = [(0, min(room, num_tokens))]
    while spans[-1][1] < num_tokens:
        start = spans[-1][0] + min(stride, room)
        spans.append((start, min(start + room, num_tokens)))
    return spans


def half_overlapping_spans(num_tokens: int, room: int) -> list[tuple[int, int]]:
    """Split a sequence into windows that overlap by half; a sequence that fits is one window."""
    return window_spans(num_tokens, room, max(room // 2, 1))


def windowed_pair(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each sequence windows show together: of the shorter at most half the room."""
    if num_first + num_second <= room:
        return num_first, num_second
    short = min(num_first, num_second, room // 2)
    return (short, num_second) if num_first < num_second else (num_first, short)


def truncated_pair(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each sequence fit, the longer one cut first.

    Source: Google BERT's run_classifier.py, _truncate_seq_pair.
    """
    first = min(num_first, max(room - room // 2, room - num_second))
    return first, min(num_second, room - first)


def sequence_windows(
    ids: NDArray[np.int64],
    pair: NDArray[np.int64] | None,
    length: int,
    tokenizer: Tokenizer,
    *,
    is_truncated: bool,
) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], int]:
    """Make the windows of a sequence or pair, [CLS] ids [SEP] pair [SEP]: token ids and segment ids of each.

    Windows of the longer sequence overlap by half; the shorter one of a pair is in each. Truncated there is one window.
    Also returns the number of tokens that are in no window.
    """
    if pair is None:
        room = length - 2
        spans = [(0, min(len(ids), room))] if is_truncated else half_overlapping_spans(len(ids), room)
        num_cut = len(ids) - spans[-1][1]
        parts = [[ids[slice(*span)]] for span in spans]
    else:
        room = length - 3
        kept = (truncated_pair if is_truncated else windowed_pair)(len(ids), len(pair), room)
        num_cut = len(ids) + len(pair) - sum(kept)
        ids, pair, short = ids[: kept[0]], pair[: kept[1]], min(kept)
        spans = half_overlapping_spans(max(kept), room - short)
        parts = [[ids[slice(*span)], pair] if len(ids) >= len(pair) else [ids, pair[slice(*span)]] for span in spans]
    cls, sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    windows = []
    for first, *second in parts:
        token_ids = np.concatenate([cls, first, sep, *(item for ids in second for item in (ids, sep))])
        windows.append((token_ids, (np.arange(len(token_ids)) >= len(first) + 2).astype(np.int64)))
    return windows, num_cut


def max_context_masks(num_tokens: int, spans: Sequence[tuple[int, int]]) -> list[NDArray[np.bool_]]:
    """Mark in each window the tokens that have more context in it than in any other window.

    A token's context is the smaller number of tokens on its left and right in the window, plus 0.01 of the window's
    length; of equal windows the first counts. Source: Google BERT's run_squad.py, _check_is_max_context.
    """
    best = best_windows(num_tokens, spans)
    return [best[start:end] == number for number, (start, end) in enumerate(spans)]


def best_windows(num_tokens: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Find for each token the window with the most context, as `max_context_masks` defines it: [T]."""
    best = np.zeros(num_tokens, dtype=np.int64)
    if len(spans) == 1:
        return best
    most = np.full(num_tokens, -np.inf)
    for number, (start, end) in enumerate(spans):
        position = np.arange(end - start)
        context = np.minimum(position, end - start - 1 - position) + 0.01 * (end - start)
        is_more = context > most[start:end]
        best[start:end][is_more] = number
        most[start:end][is_more] = context[is_more]
    return best


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


def word_windows(
    examples: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int, margin: int | None = None
) -> Iterator[WordWindow]:
    """Tokenize examples that are split into words; one of more than `length` tokens in several windows.

    Each token has at least `margin` tokens of context on both sides in one of the windows, as far as the example has
    so many; without a margin windows overlap by half.
    """
    room = length - 2
    stride = max(room // 2 if margin is None else room - 2 * margin, 1)
    for number, (ids, words) in enumerate(tokenizer.encode_words(examples)):
        is_first = np.ones(len(ids), dtype=np.bool_)
        np.not_equal(words[1:], words[:-1], out=is_first[1:])
        spans = window_spans(len(ids), room, stride)
        for (start, end), has_max_context in zip(spans, max_context_masks(len(ids), spans), strict=True):
            yield WordWindow(
                number,
                _with_edges(ids[start:end], tokenizer.cls_id, tokenizer.sep_id),
                _with_edges(words[start:end], -1, -1),
                _with_edges(is_first[start:end], False, False),
                _with_edges(has_max_context, False, False),
            )


def _with_edges(values: NDArray[Any], first: int, last: int) -> NDArray[Any]:
    """Put a value before and one behind."""
    padded = np.empty(len(values) + 2, dtype=values.dtype)
    padded[0], padded[1:-1], padded[-1] = first, values, last
    return padded


def word_logits(
    windows: Sequence[WordWindow],
    logits: Sequence[NDArray[np.float32]],
    num_words: Sequence[int],
    pooling: str = "best_context",
) -> list[NDArray[np.float64]]:
    """Gather the logits of each example's words, [W, C], from those of its windows, [T, C].

    Those of a word without tokens, such as a control character, are NaN. `pooling` is how the logits of several windows
    become one: best_context takes those of the window with the most context, others are `POOLED_LOGITS`.
    """
    num_classes = logits[0].shape[1] if logits else 0
    ends = np.cumsum(num_words, dtype=np.int64)
    gathered = np.full((ends[-1] if len(ends) else 0, num_classes), np.nan)
    by_example = [gathered[end - count : end] for end, count in zip(ends.tolist(), num_words, strict=True)]
    if pooling == "best_context" and windows:
        is_used = np.concatenate([window.is_first & window.has_max_context for window in windows])
        starts = np.repeat([ends[item.example] - num_words[item.example] for item in windows], list(map(len, logits)))
        rows = (np.concatenate([window.words for window in windows]) + starts)[is_used]
        gathered[rows] = np.concatenate(logits)[is_used]
        return by_example
    counts = [np.zeros((count, 1)) for count in num_words]
    for window, window_logits in zip(windows, logits, strict=True):
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
