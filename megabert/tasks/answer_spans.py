"""Spans of a context as answers: targets of windows, search for the best spans, probabilities of candidates."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.drawn_features import DrawnFeatures
from ..data.packing import Features
from ..data.windows import least_lengths, window_spans
from ..tokenizers.wordpiece import Encoded, Tokenizer

# Letters of Thai, Lao, Tibetan, Myanmar, Khmer, Korean, Chinese and Japanese.
WITHOUT_WORD_EDGES = re.compile(
    "[\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)

# The logit of a token that is out of the question: its probability is 0, and finite numbers have no NaN as product.
NO_MASS = -1e4

ScoredSpan = tuple[float, int, int]
"""Score, first character, end character."""

# Of the best answer to a question whose context has no words: finite, since JSON and thresholds are.
LOWEST_SCORE = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Candidate:
    """A possible answer, characters [start, end) of the context; an empty one is "no answer"."""

    text: str
    start: int
    end: int
    score: float
    probability: float


@dataclass(frozen=True)
class ContextWindow:
    """The part of an example's context that a sequence shows."""

    example: int
    context_start: int
    """Position of the first context token in the sequence."""
    offsets: NDArray[np.int64]
    """Characters [start, end) of each context token, [T, 2]."""
    min_length: NDArray[np.int64]
    """For each context token, the tokens of the shortest span from it that this window scores, see `least_lengths`."""
    is_word_edge: NDArray[np.bool_]
    """For each context token, whether a word begins with it and whether one ends with it, [T, 2]."""


@dataclass(frozen=True)
class WindowedContext:
    """A context's tokens, and the edges of words in them as `word_edges` finds them."""

    tokens: Encoded
    edges: NDArray[np.bool_]


def context_windows(
    number: int, question_ids: NDArray[np.int64], context: WindowedContext, tokenizer: Tokenizer, dataset: Any
) -> list[Features]:
    """Cut a context into windows, [CLS] question [SEP] window [SEP]; the notes of each are its `ContextWindow`.

    `dataset` has max_seq_length, max_query_length, doc_stride and window_pooling, as in question answering.
    """
    num_cut, question_ids = len(question_ids), question_ids[: dataset.max_query_length]
    num_cut -= len(question_ids)
    cls, sep, tokens = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id]), context.tokens
    context_start, num_tokens = len(question_ids) + 2, len(tokens.token_ids)
    spans = window_spans(num_tokens, dataset.max_seq_length - context_start - 1, dataset.doc_stride)
    features: list[Features] = []
    for (start, end), min_length in zip(spans, least_lengths(num_tokens, spans), strict=True):
        if dataset.window_pooling == "maximum":
            min_length[:] = 1
        window = ContextWindow(number, context_start, tokens.offsets[start:end], min_length, context.edges[start:end])
        token_ids = np.concatenate([cls, question_ids, sep, tokens.token_ids[start:end], sep])
        segment_ids = (np.arange(len(token_ids)) >= context_start).astype(np.int64)
        features.append(Features(token_ids, segment_ids, notes=window, num_cut=0 if features else num_cut))
    return features


def target_span(window: ContextWindow, answer: tuple[int, int] | None) -> NDArray[np.int64]:
    """Find the positions of the answer's first and last token; 0 and 0, the [CLS], unless the window shows all of it.

    Answers in the middle of tokens are extended to whole tokens.
    """
    if answer is None or not len(window.offsets):
        return np.zeros(2, dtype=np.int64)
    start, end = answer
    if window.offsets[0, 0] > start or window.offsets[-1, 1] < end:
        return np.zeros(2, dtype=np.int64)
    # The first token that ends after the answer's start, and the last one that starts before its end.
    first = int(np.searchsorted(window.offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(window.offsets[:, 0], end, side="left")) - 1
    if last < first:
        return np.zeros(2, dtype=np.int64)
    return np.array([first, last], dtype=np.int64) + window.context_start


def draw_null_windows(features: Sequence[Features], share: float, seed: int) -> Sequence[Features]:
    """Keep the windows with an answer, and for each of them `share` of the others, resampled each epoch."""
    is_null = np.array([not np.any(item.targets["span"]) for item in features], dtype=np.bool_)
    kept, others = np.flatnonzero(~is_null), np.flatnonzero(is_null)
    count = int(share * len(kept))
    return DrawnFeatures(features, kept, others, count, seed) if count < len(others) else features


def log_probabilities(logits_T2: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalize a window's logits as the loss does: log probabilities of its tokens as start and as end."""
    shifted = logits_T2 - logits_T2.max(axis=0)
    return shifted - np.log(np.exp(shifted).sum(axis=0))


def shared_characters(own: Features, other: Features) -> int:
    """Count the characters of the context that two windows of one example show both."""
    first, second = own.notes.offsets, other.notes.offsets
    if not len(first) or not len(second):
        return 0
    return int(min(first[-1, 1], second[-1, 1]) - max(first[0, 0], second[0, 0]))


def aligned_spans(own: Features, logits_T2: NDArray[np.float32], other: Features) -> NDArray[np.float32]:
    """Transfer start and end logits from a window to one of other tokens of the same context, by characters.

    A start goes to the token that shows its first character, an end to that of its last one; probabilities that meet
    are added. Those of tokens that the other window does not show go to its [CLS], as those of the question do.
    """
    theirs, ours = other.notes.offsets, own.notes.offsets
    aligned = np.full((len(other), 2), NO_MASS)
    first = own.notes.context_start
    inside = np.zeros(len(own), dtype=np.bool_)
    if len(theirs) and len(ours):
        inside[first : first + len(ours)] = (ours[:, 0] >= theirs[0, 0]) & (ours[:, 1] <= theirs[-1, 1])
        shown = ours[inside[first : first + len(ours)]]
        starts = np.searchsorted(theirs[:, 0], shown[:, 0], side="right") - 1
        ends = np.searchsorted(theirs[:, 1], shown[:, 1], side="left")
        for column, places in enumerate((starts, ends)):
            np.logaddexp.at(aligned[:, column], places + other.notes.context_start, logits_T2[inside, column])
    aligned[0] = np.logaddexp.reduce(logits_T2[~inside].astype(np.float64), axis=0)
    return aligned.astype(np.float32)


def word_edges(context: str, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each token whether a word begins with it, and whether one ends with it, [T, 2].

    A word is a run of letters, digits and combining marks; Chinese, Japanese, Thai and others that write no blanks
    between words, and Korean, which joins particles to them, have an edge at each character.
    """
    letters = np.fromiter(map(_is_in_word, context), dtype=np.bool_, count=len(context))
    is_edge = np.ones(len(context) + 1, dtype=np.bool_)
    np.logical_and(letters[:-1], letters[1:], out=is_edge[1:-1])
    np.logical_not(is_edge[1:-1], out=is_edge[1:-1])
    return is_edge[offsets]


@lru_cache(maxsize=2**12)
def _is_in_word(letter: str) -> bool:
    return (letter.isalnum() or unicodedata.category(letter)[0] == "M") and not WITHOUT_WORD_EDGES.match(letter)


def best_spans(
    window: ContextWindow, logits_T2: NDArray[np.float32], *, count: int, max_length: int, whole_words: bool
) -> list[ScoredSpan]:
    """Find the `count` best spans of at most `max_length` tokens that this window is to score.

    With `whole_words` only those that neither begin nor end inside a word, where there are any.
    """
    num_tokens = len(window.offsets)
    if not num_tokens:
        return []
    context = slice(window.context_start, window.context_start + num_tokens)
    starts, ends = logits_T2[context, 0].astype(np.float64), logits_T2[context, 1].astype(np.float64)
    longest = min(max_length, num_tokens)
    # sums[s, d] is the score of the span of d + 1 tokens that starts at token s.
    padded = np.concatenate([ends, np.full(longest, -np.inf)])
    sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)[:num_tokens]
    sums[np.arange(1, longest + 1) < window.min_length[:, None]] = -np.inf
    if whole_words:
        ends_word = np.concatenate([window.is_word_edge[:, 1], np.zeros(longest, dtype=np.bool_)])
        is_whole = (
            window.is_word_edge[:, :1] & np.lib.stride_tricks.sliding_window_view(ends_word, longest)[:num_tokens]
        )
        if np.isfinite(sums[is_whole]).any():
            sums[~is_whole] = -np.inf
    flat = sums.ravel()
    count = min(count, flat.size)
    top = np.argpartition(flat, -count)[-count:]
    spans = []
    for index in top[np.isfinite(flat[top])]:
        first, length = divmod(int(index), longest)
        spans.append((float(flat[index]), int(window.offsets[first, 0]), int(window.offsets[first + length, 1])))
    return spans


def rank_answers(
    context: str, spans: Sequence[ScoredSpan], *, count: int, null_score: float | None
) -> tuple[list[Candidate], float]:
    """Rank the best `count` different answers, best first, and compute their probabilities.

    With a null score "no answer" is one more candidate. Also returns the best answer's score, LOWEST_SCORE without any.
    """
    ordered = sorted(spans, key=lambda span: (-span[0], span[1:]))
    by_text = {context[start:end]: (score, start, end) for score, start, end in reversed(ordered)}
    # A dict keeps the order in which its keys came first: sort again, best first.
    kept = sorted(by_text.items(), key=lambda item: (-item[1][0], item[1][1:]))[:count]
    best_score = kept[0][1][0] if kept else LOWEST_SCORE
    if null_score is not None:
        kept.append(("", (null_score, 0, 0)))
        kept.sort(key=lambda item: -item[1][0])
    if not kept:
        return [], best_score
    scores = np.array([item[1][0] for item in kept])
    weights = np.exp(scores - scores.max())
    candidates = [
        Candidate(text, start, end, score, float(weight / weights.sum()))
        for (text, (score, start, end)), weight in zip(kept, weights, strict=True)
    ]
    return candidates, best_score
