"""Viterbi decoding of IOB2 tags."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits_WC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn logits into log-probabilities, row by row."""
    shifted = logits_WC - logits_WC.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def best_valid_tags(log_probabilities_WC: NDArray[np.float64], labels: Sequence[str]) -> NDArray[np.int64]:
    """Choose the likeliest sequence of IOB2 tags in which each I-X follows a B-X or I-X.

    Labels of another kind may follow each other in any way. Source: Viterbi's algorithm, without learnt transitions.
    """
    can_follow_CC = np.array([[_can_follow(before, label) for label in labels] for before in labels])
    can_start_C = np.array([_can_follow("O", label) for label in labels])
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
