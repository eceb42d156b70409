"""How a long text is cut into windows that overlap, and which window knows a token or a word best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizers.wordpiece import Tokenizer
from .packing import NO_TARGET, Features


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


@dataclass(frozen=True)
class WordWindow:
    """Part of a text that is cut into words, as the network takes it: [CLS], its tokens, [SEP].

    For each token: `words` is the number of its word in the text, -1 at [CLS] and [SEP]; `is_first` says that it is
    its word's first; `is_own` that no other window shows more of its surroundings.
    """

    text: int
    token_ids: NDArray[np.int64]
    words: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    is_own: NDArray[np.bool_]

    def asked(self) -> NDArray[np.int64]:
        """List the places of the tokens that answer for their words; each word has one in one of its text's windows."""
        return np.flatnonzero(self.is_first & self.is_own)

    def features(
        self,
        targets: dict[str, Any] | None = None,
        token_targets: dict[str, NDArray[np.int64]] | None = None,
        weight: float = 1.0,
    ) -> Features:
        """Give the window as the network takes it, with itself as the way back into the text."""
        segment_ids = np.zeros(len(self.token_ids), dtype=np.int64)
        return Features(self.token_ids, segment_ids, targets or {}, token_targets or {}, weight, self)

    def targets(self, of_words: NDArray[np.int64], *, first_only: bool, edge: int = NO_TARGET) -> NDArray[np.int64]:
        """Spread the words' targets over the tokens that learn them; [CLS] and [SEP] learn `edge`."""
        is_learnt = self.is_own & self.is_first if first_only else self.is_own
        found = np.full(len(self.token_ids), NO_TARGET, dtype=np.int64)
        found[is_learnt] = of_words[self.words[is_learnt]]
        found[[0, -1]] = edge
        return found


def word_windows(
    texts: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int, margin: int | None = None
) -> Iterator[WordWindow]:
    """Tokenize texts that are cut into words, a text longer than `length` tokens in several windows.

    Every token has at least `margin` tokens on both sides in one of them, as far as the text has so many; without a
    margin windows overlap by half.
    """
    room = length - 2
    stride = max(room // 2 if margin is None else room - 2 * margin, 1)
    for number, (ids, words) in enumerate(tokenizer.encode_words(texts)):
        is_first = np.diff(words, prepend=-1) != 0
        spans = window_spans(len(ids), room, stride)
        for (start, end), is_own in zip(spans, best_contexts(len(ids), spans), strict=True):
            yield WordWindow(
                number,
                np.concatenate([[tokenizer.cls_id], ids[start:end], [tokenizer.sep_id]]),
                np.concatenate([[-1], words[start:end], [-1]]),
                np.concatenate([[False], is_first[start:end], [False]]),
                np.concatenate([[False], is_own, [False]]),
            )


def word_logits(
    windows: Sequence[WordWindow], logits: Sequence[NDArray[np.float32]], num_words: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Gather the logits of each text's words, [W, C], from its windows' [T, C].

    A word that has no token, such as a control character, is surely of class 0.
    """
    num_classes = logits[0].shape[1] if logits else 0
    found = [np.full((count, num_classes), -np.inf) for count in num_words]
    for item in found:
        item[:, :1] = 0.0
    for window, scores in zip(windows, logits, strict=True):
        places = window.asked()
        found[window.text][window.words[places]] = scores[places]
    return found
