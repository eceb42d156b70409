"""IOB2 tags: Viterbi decoding of valid sequences, words without tokens, spans of entities."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ..metrics import tagging
from ..tokenizers.text_runs import WordBounds

OUTSIDE = "O"


@dataclass(frozen=True, init=False)
class Span:
    """An entity: characters [start, end) of the original text; `score` is the mean probability of its words' tags."""

    type: str
    text: str
    start: int
    end: int
    score: float

    def __init__(self, type: str, text: str, start: int, end: int, score: float) -> None:
        values = self.__dict__  # as in `Entity`
        values["type"], values["text"], values["start"], values["end"], values["score"] = type, text, start, end, score


def decode_tags(
    logits: Sequence[NDArray[np.float64]], labels: Sequence[str], *, constrained: bool
) -> list[tuple[tuple[str, ...], NDArray[np.float64]]]:
    """Choose the tag of each word of each example, or (constrained) the most likely valid sequences.

    `logits` are [W, C] for each example. Returns tags and their probabilities, 1 for that outside. A word without
    tokens, whose logits are NaN, continues the entity around it.
    """
    if not logits:
        return []
    ends = np.cumsum([len(item) for item in logits])[:-1]
    logits_TC = np.concatenate(logits)
    has_tokens_T: NDArray[np.bool_] = np.logical_not(np.isnan(logits_TC[:, 0]))
    counts = [len(item) for item in logits]
    if not has_tokens_T.all():
        logits_TC = logits_TC[has_tokens_T]
        counts = [int(part.sum()) for part in np.split(has_tokens_T, ends)]
    outside = labels.index(OUTSIDE) if OUTSIDE in labels else 0
    if constrained:
        parts = np.split(_log_softmax(logits_TC), np.cumsum(counts)[:-1])
        chosen_T = np.concatenate([best_valid_tags(part, labels) for part in parts])
    else:
        chosen_T = logits_TC.argmax(axis=1)
    probabilities_T = np.ones(len(chosen_T))
    (inside,) = np.nonzero(chosen_T != outside)  # few
    probabilities_T[inside] = np.exp(_log_softmax(logits_TC[inside])[np.arange(len(inside)), chosen_T[inside]])
    tags = np.array([*labels, None], dtype=object)[chosen_T].tolist()
    decoded, start = [], 0
    for item, count, has_tokens_W in zip(logits, counts, np.split(has_tokens_T, ends), strict=True):
        own = tuple(tags[start : start + count]), probabilities_T[start : start + count]
        decoded.append(own if count == len(item) else _fill_gaps(*own, has_tokens_W, labels[outside]))
        start += count
    return decoded


def _log_softmax(logits_TC: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted_TC = logits_TC - logits_TC.max(axis=1, keepdims=True)
    log_probabilities_TC: NDArray[np.float64] = shifted_TC - np.log(np.exp(shifted_TC).sum(axis=1, keepdims=True))
    return log_probabilities_TC


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
    return _traced_back(back_WC, total_C)


def _traced_back(back_WC: NDArray[np.int64], total_C: NDArray[np.float64]) -> NDArray[np.int64]:
    """Follow the best predecessors from the best last tag."""
    path = np.zeros(len(back_WC), dtype=np.int64)
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
    found = tagging.entities(tags)
    if not found:
        return ()
    spans, values = [], probabilities.tolist()
    numbers = words.numbers if isinstance(words, WordBounds) else list(chain.from_iterable(words))
    for kind, first, end in found:
        start, stop = numbers[2 * first], numbers[2 * end - 1]
        # The sum of few is that of numpy, whose calls take longer than all else here.
        total = sum(values[first:end]) if end - first < 8 else float(np.add.reduce(probabilities[first:end]))
        spans.append(Span(kind, text[start:stop], start, stop, total / (end - first)))
    return tuple(spans)
