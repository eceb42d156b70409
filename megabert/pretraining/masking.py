"""Masking for masked language models: n-gram and whole-word choice of masked positions, and their replacement."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Masking:
    """How tokens are masked; the defaults are Megatron-LM's for BERT."""

    masked_lm_prob: float = 0.15
    """Share of a sequence's tokens to mask; at least one token is."""
    max_ngram: int = 3
    """Mask runs of up to so many words; the probability of n words is proportional to 1 / n."""
    whole_words: bool = True
    """Mask all pieces of a word together, or each piece by itself."""
    mask_share: float = 0.8
    """Share of the masked positions that become [MASK]."""
    random_share: float = 0.1
    """Share of the masked positions that become a random token; the rest keeps its token."""


def choose_masked_positions(
    is_continuation: NDArray[np.bool_], is_maskable: NDArray[np.bool_], masking: Masking, random: np.random.Generator
) -> NDArray[np.int64]:
    """Choose the masked positions of a sequence, in ascending order.

    `is_continuation` marks pieces that continue a word, `is_maskable` tokens that are not special. N-grams are tried in
    random order; one that overlaps another is skipped, one that is too long is shortened, and one that would include
    a special token ends before it.
    Source: Megatron-LM, megatron/data/dataset_utils.py, create_masked_lm_predictions.
    """
    candidates = np.flatnonzero(is_maskable)
    num_masked = min(max(1, round(masking.masked_lm_prob * len(is_maskable))), len(candidates))
    starts_word = ~is_continuation[candidates] if masking.whole_words else np.ones(len(candidates), dtype=np.bool_)
    # Any piece after a special token starts a word.
    starts_run = np.diff(candidates, prepend=-2) > 1
    firsts = np.flatnonzero(starts_word | starts_run)
    bounds = [*firsts.tolist(), len(candidates)]
    run_of_word = np.cumsum(starts_run)[firsts].tolist()
    sizes = np.arange(1, masking.max_ngram + 1)
    probabilities = (1 / sizes) / (1 / sizes).sum()
    order = random.permutation(len(firsts)).tolist()
    ngrams = random.choice(sizes, size=len(firsts), p=probabilities).tolist()
    is_taken = [False] * len(firsts)
    chosen: list[int] = []
    for word, size in zip(order, ngrams, strict=True):
        if len(chosen) >= num_masked:
            break
        end = min(word + size, len(firsts))
        while end > word and (
            run_of_word[end - 1] != run_of_word[word] or len(chosen) + bounds[end] - bounds[word] > num_masked
        ):
            end -= 1
        if end == word or any(is_taken[word:end]):
            continue
        is_taken[word:end] = [True] * (end - word)
        chosen += range(bounds[word], bounds[end])
    if not chosen and num_masked:
        chosen = [int(random.integers(len(candidates)))]  # every word has more pieces than may be masked
    return candidates[np.sort(np.array(chosen, dtype=np.int64))]


def apply_mask(
    token_ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    masking: Masking,
    random: np.random.Generator,
    *,
    mask_id: int,
    vocabulary_size: int,
) -> NDArray[np.int64]:
    """Replace masked positions: most by [MASK], some by a random token, some not at all."""
    draws = random.random(len(positions))
    others = random.integers(vocabulary_size, size=len(positions))
    masked_ids = token_ids.copy()
    is_random = draws < masking.mask_share + masking.random_share
    masked_ids[positions[is_random]] = others[is_random]
    masked_ids[positions[draws < masking.mask_share]] = mask_id
    return masked_ids
