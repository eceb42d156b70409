import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.packing import BatchSize, Features
from megabert.data.sampler import BatchSampler, EvaluationBatches


def texts(count):
    return [Features(np.full(1 + index % 3, index), np.zeros(1 + index % 3, dtype=np.int64)) for index in range(count)]


def loader(count=10, batch_size=3, **changes):
    return BatchSampler(texts(count), batch_size, 9, 0, **({"seed": 7} | changes))


def steps(of, number):
    return [np.concatenate(of.indices(number * len(of) + step)).tolist() for step in range(len(of))]


def epoch(of, number):
    return [index for step in steps(of, number) for index in step]


def test_an_epoch_shows_every_text_once_in_steps_of_like_size():
    assert len(loader()) == 4
    assert sorted(epoch(loader(), 0)) == list(range(10))
    assert sorted(epoch(loader(), 5)) == list(range(10))
    assert sorted(len(step) for step in steps(loader(), 0)) == [2, 2, 3, 3]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    assert epoch(loader(), 1) == epoch(loader(), 1)
    assert epoch(loader(), 0) != epoch(loader(), 1)
    assert epoch(loader(), 0) != epoch(loader(seed=8), 0)


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_step_is_the_same_however_it_is_cut(accumulate):
    whole, cut = loader(batch_size=6), loader(batch_size=6 // accumulate, accumulate=accumulate)
    assert [sorted(step) for step in steps(whole, 1)] == [sorted(step) for step in steps(cut, 1)]
    assert max(len(group) for group in cut.indices(0)) <= 6 // accumulate


def test_a_step_can_be_made_without_those_before_it():
    first = loader()
    for number in range(9):
        first.indices(number)
    assert first.indices(9)[0].tolist() == loader().indices(9)[0].tolist()


def test_drop_last_leaves_the_rest_out():
    assert len(loader(drop_last=True)) == 3
    assert [len(step) for step in steps(loader(drop_last=True), 0)] == [3, 3, 3]
    assert len(loader(count=2, drop_last=True)) == 1  # what there is, where it fills no batch


def test_without_shuffle_the_file_s_order_is_kept():
    assert epoch(loader(shuffle=False), 3) == list(range(10))
    assert epoch(loader(shuffle=False, accumulate=2), 3) == list(range(10))


def test_the_order_within_a_length_is_random():
    """Which texts meet in a step: over many epochs each pair of equal length about as often as any other."""
    of = BatchSampler([Features(np.zeros(3), np.zeros(3)) for _ in range(8)], 4, 9, 0, seed=1)
    together = np.zeros((8, 8))
    for number in range(400):
        for step in steps(of, number):
            together[np.ix_(step, step)] += 1
    others = together[~np.eye(8, dtype=bool)] / 400
    assert abs(others - 3 / 7).max() < 0.1


def test_texts_of_real_lengths_fill_a_static_size_to_97_per_cent():
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.0, 0.45, 3_000), 20, 384).astype(int)  # as SQuAD's windows
    items = [Features(np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64)) for length in lengths]
    of = BatchSampler(items, 32, 384, 0, seed=3, static_epochs=3)
    batches = [batch for step in range(len(of)) for batch in of.step(step)]
    assert all(batch.size == of.size for batch in batches)
    assert sum(batch.num_tokens for batch in batches) / (len(batches) * of.size.num_tokens) >= 0.97


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3), st.booleans())
def test_every_micro_batch_fits_the_static_size(lengths, batch_size, accumulate, shuffle):
    items = [Features(np.ones(length, dtype=np.int64), np.ones(length, dtype=np.int64)) for length in lengths]
    of = BatchSampler(items, batch_size, 30, 0, seed=3, accumulate=accumulate, static_epochs=2, shuffle=shuffle)
    for number in range(2 * len(of)):
        for batch in of.step(number):
            assert batch.size == of.size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 5), st.booleans())
def test_evaluation_covers_every_text_once_within_the_room(lengths, batch_size, is_static):
    items = [Features(np.full(n, 1), np.zeros(n, dtype=np.int64)) for n in lengths]
    batches = EvaluationBatches(items, batch_size, 12, 0, static_size=is_static)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(index for group, _ in found for index in group) == list(range(len(items)))
    assert max(batch.num_tokens for _, batch in found) <= batch_size * 12
    if is_static:
        assert len({batch.size for _, batch in found}) == 1
    for group, batch in found:
        lengths_N = batch.cu_seqlens_N1.diff().tolist()[: len(group)]
        assert lengths_N == [lengths[index] for index in group]


def test_nothing_makes_no_batches():
    assert list(EvaluationBatches([], 4, 12, 0)) == []
    assert BatchSampler(texts(1), 1, 9, 0, seed=0, static_epochs=1).size == BatchSize(64, 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_processes_share_a_step_and_have_as_many_micro_batches(count, batch_size, accumulate, data_size, is_static):
    def part(rank):
        return loader(
            count, batch_size, accumulate=accumulate, data_rank=rank, data_size=data_size, static_epochs=int(is_static)
        )

    parts = [part(rank) for rank in range(data_size)]
    whole = loader(count, batch_size, accumulate=accumulate * data_size)
    assert len({len(of) for of in (*parts, whole)}) == 1
    for number in range(len(whole)):
        batches = [of.step(number) for of in parts]
        assert len({len(own) for own in batches}) == 1
        shown = [batch.token_ids_T[: batch.num_tokens].tolist() for own in batches for batch in own]
        expected = [batch.token_ids_T.tolist() for batch in whole.step(number)]
        assert sorted(filter(None, shown)) == sorted(expected)
        assert sum(batch.weight for own in batches for batch in own) == len(np.concatenate(whole.indices(number)))
        assert {of.count_tokens(number) for of in parts} == {sum(map(len, expected))}
        if is_static:
            assert len({batch.size for own in batches for batch in own}) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_processes_share_an_evaluation_and_have_as_many_batches(lengths, batch_size, data_size):
    items = [Features(np.full(n, 1), np.zeros(n, dtype=np.int64)) for n in lengths]
    shares = [
        EvaluationBatches(items, batch_size, 12, 0, data_rank=rank, data_size=data_size) for rank in range(data_size)
    ]
    found = [list(batches) for batches in shares]
    assert {len(batches) for batches in found} == {len(shares[0])}
    assert sorted(index for batches in found for group, _ in batches for index in group) == list(range(len(items)))
    assert sum(batch.weight for batches in found for _, batch in batches) == len(items)
