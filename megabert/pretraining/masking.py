"""Which tokens of a text a masked language model must guess, and what it sees in their place."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Masking:
    """How tokens are masked; the defaults are Megatron-LM's for BERT."""

    masked_lm_prob: float = 0.15
    """Of a text's tokens, the share that is asked for; at least one token is."""
    max_ngram: int = 3
    """Words that are masked together, at most; a run of n words is drawn with a probability that falls as 1 / n."""
    whole_words: bool = True
    """Mask all pieces of a word, or each piece by itself."""
    mask_share: float = 0.8
    """Of the tokens that are asked for, the share that is replaced by [MASK]."""
    random_share: float = 0.1
    """Of the tokens that are asked for, the share that is replaced by a random one; the rest stays as it is."""


def choose_masked_positions(
    is_continuation: NDArray[np.bool_], is_maskable: NDArray[np.bool_], masking: Masking, random: np.random.Generator
) -> NDArray[np.int64]:
    """Choose the places of a text's tokens to ask for, in their order.

    `is_continuation` marks pieces that go on with a word, `is_maskable` tokens that are not special. Runs of words are
    tried in random order; one that overlaps another is passed over, one that is too long is made shorter, and one that
    would reach over a special token ends before it.
    Source: Megatron-LM, megatron/data/dataset_utils.py, create_masked_lm_predictions.
    """
    places = np.flatnonzero(is_maskable)
    num_asked = max(1, round(masking.masked_lm_prob * len(is_maskable))) if len(places) else 0
    num_asked = min(num_asked, len(places))
    starts_word = ~is_continuation[places] if masking.whole_words else np.ones(len(places), dtype=np.bool_)
    # A piece behind a special token starts a word, whatever it is.
    starts_run = np.diff(places, prepend=-2) > 1
    firsts = np.flatnonzero(starts_word | starts_run)
    bounds = [*firsts.tolist(), len(places)]
    run_of_word = np.cumsum(starts_run)[firsts].tolist()
    sizes = np.arange(1, masking.max_ngram + 1)
    chances = (1 / sizes) / (1 / sizes).sum()
    order = random.permutation(len(firsts)).tolist()
    wanted = random.choice(sizes, size=len(firsts), p=chances).tolist()
    is_taken = [False] * len(firsts)
    chosen: list[int] = []
    for word, size in zip(order, wanted, strict=True):
        if len(chosen) >= num_asked:
            break
        end = min(word + size, len(firsts))
        while end > word and (
            run_of_word[end - 1] != run_of_word[word] or len(chosen) + bounds[end] - bounds[word] > num_asked
        ):
            end -= 1
        if end == word or any(is_taken[word:end]):
            continue
        is_taken[word:end] = [True] * (end - word)
        chosen += range(bounds[word], bounds[end])
    if not chosen and num_asked:
        chosen = [int(random.integers(len(places)))]  # every word is longer than what may be asked for
    return places[np.sort(np.array(chosen, dtype=np.int64))]


def apply_mask(
    token_ids: NDArray[np.int64],
    places: NDArray[np.int64],
    masking: Masking,
    random: np.random.Generator,
    *,
    mask_id: int,
    vocabulary_size: int,
) -> NDArray[np.int64]:
    """Give the tokens as the network sees them: most of those asked for as [MASK], some random, some as they are."""
    draws = random.random(len(places))
    others = random.integers(vocabulary_size, size=len(places))
    seen = token_ids.copy()
    is_random = draws < masking.mask_share + masking.random_share
    seen[places[is_random]] = others[is_random]
    seen[places[draws < masking.mask_share]] = mask_id
    return seen
