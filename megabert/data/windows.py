"""Overlapping windows of long sequences, and for each token the window with the most context around it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..tokenizers.wordpiece import Tokenizer

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
    if pair is None and len(ids) <= length - 2:
        token_ids = np.empty(len(ids) + 2, dtype=np.int64)
        token_ids[0], token_ids[1:-1], token_ids[-1] = tokenizer.cls_id, ids, tokenizer.sep_id
        return [(token_ids, np.zeros(len(token_ids), dtype=np.int64))], 0
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


def least_lengths(num_tokens: int, spans: Sequence[tuple[int, int]]) -> list[NDArray[np.int64]]:
    """Find for each token of each window the tokens of the shortest span from it that the window is to score.

    1 where the window has the most context around the token. Elsewhere only spans that the window with the most context
    does not show in full, so that each span that some window shows is scored.
    """
    best = best_windows(num_tokens, spans)
    rest = np.array([end for _, end in spans], dtype=np.int64)[best] - np.arange(num_tokens)
    return [np.where(best[start:end] == number, 1, rest[start:end] + 1) for number, (start, end) in enumerate(spans)]


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
