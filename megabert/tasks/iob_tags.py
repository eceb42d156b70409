"""IOB2 tags: conversion from IOB1 and IOBES, Viterbi decoding of valid sequences, spans of entities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
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


def is_entity_tag(tag: str) -> bool:
    """Return whether a tag is an IOB or IOBES tag other than O."""
    return tag[:2] in ("B-", "I-", "E-", "S-")


def to_iob2(tags: tuple[str, ...], outside: str, location: str) -> tuple[str, ...]:
    """Convert tags in IOB1, IOB2 or IOBES to IOB2; raises InputError for one of another kind."""
    for tag in tags:
        if tag != outside and not (is_entity_tag(tag) and tag[2:]):
            raise InputError(f"{location}: the tag {tag!r} is neither {outside} nor one such as B-TYPE or I-TYPE.")
    converted = [outside] * len(tags)
    for kind, start, end in tagging.entities(tags):
        converted[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(converted)


def add_prefixes(tags: Sequence[str]) -> tuple[str, ...]:
    """Convert slots without B- and I- to IOB2: equal neighbours are one slot."""
    before = [OUTSIDE, *tags[:-1]]
    return tuple(
        tag if tag == OUTSIDE else f"{'I' if tag == last else 'B'}-{tag}"
        for tag, last in zip(tags, before, strict=True)
    )


def decode_tags(
    logits_WC: NDArray[np.float64], labels: Sequence[str], *, constrained: bool
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Choose each word's tag, or (constrained) the most likely valid sequence; returns tags and their probabilities."""
    shifted_WC = logits_WC - logits_WC.max(axis=1, keepdims=True)
    log_probabilities_WC = shifted_WC - np.log(np.exp(shifted_WC).sum(axis=1, keepdims=True))
    chosen = best_valid_tags(log_probabilities_WC, labels) if constrained else log_probabilities_WC.argmax(axis=1)
    probabilities = np.exp(log_probabilities_WC[np.arange(len(chosen)), chosen])
    return tuple(labels[number] for number in chosen), probabilities


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
