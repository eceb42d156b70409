"""How a long text is cut into windows that overlap, and which window knows a token best."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def window_spans(num_tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Cut [0, num_tokens) into windows of `room` tokens, each starting `stride` after the one before.

    The last window ends with the text. Source: Google BERT's run_squad.py.
    """
    spans = [(0, min(room, num_tokens))]
    while spans[-1][1] < num_tokens:
        start = spans[-1][0] + min(stride, room)
        spans.append((start, min(start + room, num_tokens)))
    return spans


def best_window_spans(num_tokens: int, room: int) -> list[tuple[int, int]]:
    """Cut a text into windows that overlap by half; a text that fits is one."""
    return window_spans(num_tokens, room, max(room // 2, 1))


def best_contexts(num_tokens: int, spans: Sequence[tuple[int, int]]) -> list[NDArray[np.bool_]]:
    """Say for each window which of its tokens have more context around them there than in any other window.

    A token's context is the smaller of the tokens on its left and right in the window, plus 0.01 of the window's
    length; of equal windows the first counts. Source: Google BERT's run_squad.py, _check_is_max_context.
    """
    if len(spans) == 1:
        return [np.ones(num_tokens, dtype=np.bool_)]
    around = np.full((len(spans), num_tokens), -np.inf)
    for number, (start, end) in enumerate(spans):
        place = np.arange(end - start)
        around[number, start:end] = np.minimum(place, end - start - 1 - place) + 0.01 * (end - start)
    best = around.argmax(axis=0)
    return [best[start:end] == number for number, (start, end) in enumerate(spans)]
