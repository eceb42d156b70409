from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.packing import Features
from megabert.errors import ConfigError
from megabert.pretraining.blend import Blend, SequenceCorpus, apportion, parse_blend


class Numbered(SequenceCorpus):
    """A corpus whose sequence n has n + 3 tokens; the first three are its corpus, index and pass."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def lengths(self, number):
        return np.arange(self.size) + 3

    def sequence(self, index, number):
        ids = np.array([self.name, index, number] + [0] * index)
        return Features(ids, np.zeros_like(ids))

    def fingerprint(self):
        return f"{self.name} {self.size}"


def seen(sequences):
    return [tuple(item.token_ids[:3].tolist()) for item in sequences]


def test_without_weights_an_epoch_has_each_sequence_once():
    blend = Blend([Numbered(0, 3), Numbered(1, 2)], None, seed=5)
    assert seen(blend) == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0)]
    assert seen(blend.resampled(4)) == [(0, 0, 4), (0, 1, 4), (0, 2, 4), (1, 0, 4), (1, 1, 4)]


def test_weights_are_met_and_every_sequence_of_a_corpus_is_sampled_equally_often():
    blend = Blend([Numbered(0, 7), Numbered(1, 3)], [0.2, 0.8], seed=5)
    counts = Counter(item[:2] for epoch in range(21) for item in seen(blend.resampled(epoch)))
    assert len(blend) == 10
    assert sum(count for (name, _), count in counts.items() if name == 0) == 2 * 21
    assert {count for (name, _), count in counts.items() if name == 0} == {6}  # 42 draws of 7 sequences
    assert {count for (name, _), count in counts.items() if name == 1} == {56}  # 168 draws of 3 sequences


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_lengths_match_and_an_epoch_does_not_depend_on_those_before_it(sizes, data):
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    blend = Blend(
        [Numbered(name, size) for name, size in enumerate(sizes)],
        weights,
        seed=data.draw(st.integers(0, 9)),
    )
    expected = seen(blend.resampled(3))
    for epoch in (0, 1, 3, 2):
        sequences = blend.resampled(epoch)
        assert sequences.lengths().tolist() == [len(item) for item in sequences]
        assert [item.notes for item in sequences] == [name for name, _, _ in seen(sequences)]
    assert seen(blend.resampled(3)) == expected


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_apportioned_counts_add_up_and_are_less_than_one_off(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1 for part, weight in zip(parts, weights, strict=True))


def test_apportioned_counts_by_hand():
    assert apportion(10, [0.5, 0.3, 0.2]) == [5, 3, 2]
    assert apportion(7, [1, 1, 1]) == [3, 2, 2]


def test_megatron_s_blends_are_parsed():
    assert parse_blend(["a", "b/c"], "k") == (["a", "b/c"], None)
    assert parse_blend([0.3, "a", "2", "b"], "k") == (["a", "b"], [0.3, 2.0])


@pytest.mark.parametrize("items", [[0.3], [0.3, "a", "b"], ["a", 0.3], [0, "a"], [-1, "a"], [1, 2]])
def test_malformed_blends_are_refused(items):
    with pytest.raises(ConfigError, match=r"k=.*give"):
        parse_blend(items, "k")
