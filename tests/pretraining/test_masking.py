import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.pretraining.masking import Masking, apply_mask, choose_masked_positions

# [CLS] w ##w w | w ##w ##w w [SEP] w w ##w [SEP]
CONTINUATION = np.array([0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=bool)
MASKABLE = np.array([0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0], dtype=bool)
WORDS = [{1, 2}, {3}, {4, 5, 6}, {7}, {9}, {10, 11}]


def choose(masking=None, seed=0, continuation=CONTINUATION, maskable=MASKABLE):
    return choose_masked_positions(continuation, maskable, masking or Masking(), np.random.default_rng(seed))


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 1.0])
def test_whole_words_are_masked_and_special_tokens_are_not(share):
    for seed in range(200):
        positions = set(choose(Masking(masked_lm_prob=share), seed).tolist())
        assert not positions & {0, 8, 12}
        assert 1 <= len(positions) <= max(1, round(share * 13))
        assert all(word <= positions or not word & positions for word in WORDS)


def test_each_token_is_masked_equally_often_and_the_share_is_reached():
    counts = np.zeros(200)
    maskable = np.ones(200, dtype=bool)
    total = 0
    for seed in range(1500):
        positions = choose(Masking(), seed, np.zeros(200, dtype=bool), maskable)
        counts[positions] += 1
        total += len(positions)
    assert total == 1500 * 30  # round(0.15 * 200) single-token words: always reached
    assert counts[5:-5].std() < 3 * np.sqrt(1500 * 0.15 * 0.85)
    assert counts[5:-5].mean() == pytest.approx(1500 * 0.15, rel=0.05)


def test_ngram_lengths_are_as_frequent_as_megatron_s():
    # If only one n-gram fits, its length has the sampled probabilities: 6/11, 3/11, 2/11 for 1, 2 and 3 words.
    # The first run decides, and only one of three words makes the whole; two runs rarely touch.
    wholes = 0
    for seed in range(4000):
        positions = choose(Masking(masked_lm_prob=3 / 400), seed, np.zeros(400, dtype=bool), np.ones(400, dtype=bool))
        wholes += int(len(positions) == 3 and positions[2] - positions[0] == 2)
    assert wholes / 4000 == pytest.approx(2 / 11, abs=0.03)


def test_ngrams_end_before_special_tokens():
    for seed in range(100):
        positions = choose(Masking(masked_lm_prob=1.0, max_ngram=5), seed).tolist()
        assert 8 not in positions


def test_without_whole_words_pieces_are_masked_alone():
    actual = {
        tuple(choose(Masking(masked_lm_prob=0.08, whole_words=False, max_ngram=1), seed).tolist())
        for seed in range(300)
    }
    assert actual == {(position,) for position in np.flatnonzero(MASKABLE)}


def test_a_word_with_more_pieces_than_may_be_masked():
    continuation = np.array([0, 0, *[1] * 9, 0], dtype=bool)
    maskable = np.array([0, *[1] * 10, 0], dtype=bool)
    assert len(choose(Masking(), 0, continuation, maskable)) == 1
    assert len(choose(Masking(), 0, continuation, np.zeros(12, dtype=bool))) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 10**6))
def test_positions_are_sorted_unique_and_maskable(tokens, seed):
    continuation, maskable = (np.array(side, dtype=bool) for side in zip(*tokens, strict=True))
    positions = choose(Masking(), seed, continuation, maskable)
    assert (np.diff(positions) > 0).all()
    assert maskable[positions].all()
    assert len(positions) <= max(1, round(0.15 * len(tokens)))
    assert len(positions) >= min(1, maskable.sum())


def test_replacements_of_masked_positions():
    random = np.random.default_rng(1)
    token_ids = np.full(20_000, 7)
    positions = np.arange(0, 20_000, 2)
    seen = apply_mask(token_ids, positions, Masking(), random, mask_id=4, vocabulary_size=1000)
    assert (seen[1::2] == 7).all()
    assert (seen[positions] == 4).mean() == pytest.approx(0.8, abs=0.015)
    assert (seen[positions] == 7).mean() == pytest.approx(0.1, abs=0.015)
    others = seen[positions][(seen[positions] != 4) & (seen[positions] != 7)]
    assert len(np.unique(others)) > 500
    assert (token_ids == 7).all()
