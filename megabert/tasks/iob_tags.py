"""IOB2 tags: Viterbi decoding of valid sequences, words without tokens, spans of entities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import tagging

OUTSIDE = "O"


@dataclass(frozen=True)
class Span:
    """An entity: characters [start, end) of the original text; `score` is the mean probability of its words' tags."""

    type: str
    text: str
    start: int
    end: int
    score: float


def decode_tags(
    logits_WC: NDArray[np.float64], labels: Sequence[str], *, constrained: bool
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Choose each word's tag, or (constrained) the most likely valid sequence; returns tags and their probabilities.

    A word without tokens, whose logits are NaN, continues the entity around it.
    """
    has_tokens_W: NDArray[np.bool_] = np.logical_not(np.isnan(logits_WC).any(axis=1))
    if not has_tokens_W.all():
        tags, probabilities = decode_tags(logits_WC[has_tokens_W], labels, constrained=constrained)
        return _fill_gaps(tags, probabilities, has_tokens_W, OUTSIDE if OUTSIDE in labels else labels[0])
    shifted_WC = logits_WC - logits_WC.max(axis=1, keepdims=True)
    log_probabilities_WC = shifted_WC - np.log(np.exp(shifted_WC).sum(axis=1, keepdims=True))
    chosen = best_valid_tags(log_probabilities_WC, labels) if constrained else log_probabilities_WC.argmax(axis=1)
    probabilities = np.exp(log_probabilities_WC[np.arange(len(chosen)), chosen])
    return tuple(labels[number] for number in chosen), probabilities


def _fill_gaps(
    tags: Sequence[str], probabilities: NDArray[np.float64], has_tokens_W: NDArray[np.bool_], outside: str
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Tag words without tokens: as inside of an entity that goes on behind them, else as outside."""
    filled_tags, filled = [], np.ones(len(has_tokens_W))
    following = 0
    for word, has_tokens in enumerate(has_tokens_W):
        goes_on = tags[following][2:] if following < len(tags) and tags[following].startswith("I-") else None
        if has_tokens:
            filled_tags.append(tags[following])
            filled[word] = probabilities[following]
            following += 1
        elif following and goes_on and tags[following - 1] in (f"B-{goes_on}", f"I-{goes_on}"):
            filled_tags.append(f"I-{goes_on}")
            filled[word] = probabilities[following]
        else:
            filled_tags.append(outside)
    return tuple(filled_tags), filled


def best_valid_tags(log_probabilities_WC: NDArray[np.float64], labels: Sequence[str]) -> NDArray[np.int64]:
    """Find the most likely sequence of IOB2 tags in which each I-X follows a B-X or I-X.

    Labels of another kind may follow each other in any order. Source: the Viterbi algorithm, with transitions that are
    either allowed or not.
    """
    can_follow_CC = np.array([[_can_follow(before, label) for label in labels] for before in labels])
    can_start_C = np.array([_can_follow(OUTSIDE, label) for label in labels])
    penalty_CC = np.where(can_follow_CC, 0.0, -np.inf)
    total_C = np.where(can_start_C, 0.0, -np.inf) + (log_probabilities_WC[0] if len(log_probabilities_WC) else 0.0)
    back_WC = np.zeros(log_probabilities_WC.shape, dtype=np.int64)
    for word in range(1, len(log_probabilities_WC)):
        reached_CC = total_C[:, None] + penalty_CC
        back_WC[word] = reached_CC.argmax(axis=0)
        total_C = reached_CC.max(axis=0) + log_probabilities_WC[word]
    path = np.zeros(len(log_probabilities_WC), dtype=np.int64)
    if len(path):
        path[-1] = total_C.argmax()
    for word in range(len(path) - 1, 0, -1):
        path[word - 1] = back_WC[word, path[word]]
    return path


def _can_follow(before: str, tag: str) -> bool:
    return not tag.startswith("I-") or (before[2:] == tag[2:] and before[:2] in ("B-", "I-"))


def find_spans(
    text: str, words: Sequence[tuple[int, int]], tags: Sequence[str], probabilities: NDArray[np.float64]
) -> tuple[Span, ...]:
    """Return the entities that tags mark; `words` are the words' [start, end) characters."""
    spans = []
    for kind, first, end in tagging.entities(tags):
        start, stop = words[first][0], words[end - 1][1]
        score = np.add.reduce(probabilities[first:end]) / (end - first)  # mean() takes four times as long
        spans.append(Span(kind, text[start:stop], start, stop, float(score)))
    return tuple(spans)
