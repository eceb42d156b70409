import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.packing import BatchSize, Features
from megabert.data.sampler import BatchSampler, EvaluationBatches


def features(count):
    return [Features(np.full(1 + index % 3, index), np.zeros(1 + index % 3, dtype=np.int64)) for index in range(count)]


def make_sampler(count=10, batch_size=3, **changes):
    return BatchSampler(features(count), batch_size, 9, 0, **({"seed": 7} | changes))


def steps(sampler, number):
    return [np.concatenate(sampler.indices(number * len(sampler) + step)).tolist() for step in range(len(sampler))]


def epoch(sampler, number):
    return [index for step in steps(sampler, number) for index in step]


def test_an_epoch_has_every_sequence_once_in_steps_of_nearly_equal_size():
    assert len(make_sampler()) == 4
    assert sorted(epoch(make_sampler(), 0)) == list(range(10))
    assert sorted(epoch(make_sampler(), 5)) == list(range(10))
    assert sorted(len(step) for step in steps(make_sampler(), 0)) == [2, 2, 3, 3]


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    assert epoch(make_sampler(), 1) == epoch(make_sampler(), 1)
    assert epoch(make_sampler(), 0) != epoch(make_sampler(), 1)
    assert epoch(make_sampler(), 0) != epoch(make_sampler(seed=8), 0)


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_gradient_accumulation_does_not_change_the_sequences_of_a_step(accumulate):
    whole, cut = make_sampler(batch_size=6), make_sampler(batch_size=6 // accumulate, accumulate=accumulate)
    assert [sorted(step) for step in steps(whole, 1)] == [sorted(step) for step in steps(cut, 1)]
    assert max(len(group) for group in cut.indices(0)) <= 6 // accumulate


def test_a_step_can_be_made_without_those_before_it():
    first = make_sampler()
    for number in range(9):
        first.indices(number)
    assert first.indices(9)[0].tolist() == make_sampler().indices(9)[0].tolist()


def test_drop_last_drops_the_incomplete_step():
    assert len(make_sampler(drop_last=True)) == 3
    assert [len(step) for step in steps(make_sampler(drop_last=True), 0)] == [3, 3, 3]
    assert len(make_sampler(count=2, drop_last=True)) == 1  # an incomplete step is kept where it is the only one


def test_without_shuffle_the_file_s_order_is_kept():
    assert epoch(make_sampler(shuffle=False), 3) == list(range(10))
    assert epoch(make_sampler(shuffle=False, accumulate=2), 3) == list(range(10))


def test_the_order_within_a_length_is_random():
    """Over many epochs each pair of sequences of equal length shares a step about as often as any other pair."""
    sampler = BatchSampler([Features(np.zeros(3), np.zeros(3)) for _ in range(8)], 4, 9, 0, seed=1)
    together = np.zeros((8, 8))
    for number in range(400):
        for step in steps(sampler, number):
            together[np.ix_(step, step)] += 1
    others = together[~np.eye(8, dtype=bool)] / 400
    assert abs(others - 3 / 7).max() < 0.1


def test_sequences_of_real_lengths_fill_a_static_size_to_97_per_cent():
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.0, 0.45, 3_000), 20, 384).astype(int)  # as SQuAD's windows
    items = [Features(np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64)) for length in lengths]
    sampler = BatchSampler(items, 32, 384, 0, seed=3, static_epochs=3)
    batches = [batch for step in range(len(sampler)) for batch in sampler.step(step)]
    assert all(batch.size == sampler.size for batch in batches)
    assert sum(batch.num_tokens for batch in batches) / (len(batches) * sampler.size.num_tokens) >= 0.97


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3), st.booleans())
def test_every_micro_batch_fits_the_static_size(lengths, batch_size, accumulate, shuffle):
    items = [Features(np.ones(length, dtype=np.int64), np.ones(length, dtype=np.int64)) for length in lengths]
    sampler = BatchSampler(items, batch_size, 30, 0, seed=3, accumulate=accumulate, static_epochs=2, shuffle=shuffle)
    for number in range(2 * len(sampler)):
        for batch in sampler.step(number):
            assert batch.size == sampler.size


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 5), st.booleans())
def test_evaluation_has_every_sequence_once_within_the_token_budget(lengths, batch_size, is_static):
    items = [Features(np.full(n, 1), np.zeros(n, dtype=np.int64)) for n in lengths]
    batches = EvaluationBatches(items, batch_size, 12, 0, static_size=is_static)
    packed = list(batches)
    assert len(packed) == len(batches)
    assert sorted(index for group, _ in packed for index in group) == list(range(len(items)))
    assert max(batch.num_tokens for _, batch in packed) <= batch_size * 12
    if is_static:
        assert len({batch.size for _, batch in packed}) == 1
    for group, batch in packed:
        lengths_N = batch.cu_seqlens_N1.diff().tolist()[: len(group)]
        assert lengths_N == [lengths[index] for index in group]


def test_an_empty_set_has_no_batches():
    assert list(EvaluationBatches([], 4, 12, 0)) == []
    assert BatchSampler(features(1), 1, 9, 0, seed=0, static_epochs=1).size == BatchSize(64, 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_data_parallel_processes_shard_a_step_into_equally_many_micro_batches(
    count, batch_size, accumulate, data_size, is_static
):
    def shard(rank):
        return make_sampler(
            count, batch_size, accumulate=accumulate, data_rank=rank, data_size=data_size, static_epochs=int(is_static)
        )

    shards = [shard(rank) for rank in range(data_size)]
    whole = make_sampler(count, batch_size, accumulate=accumulate * data_size)
    assert len({len(sampler) for sampler in (*shards, whole)}) == 1
    for number in range(len(whole)):
        shares = [sampler.step(number) for sampler in shards]
        assert len({len(share) for share in shares}) == 1
        batches = [batch for share in shares for batch in share]
        shown = [batch.token_ids_T[: batch.num_tokens].tolist() for batch in batches]
        expected = [batch.token_ids_T.tolist() for batch in whole.step(number)]
        assert sorted(filter(None, shown)) == sorted(expected)
        assert sum(batch.weight for batch in batches) == len(np.concatenate(whole.indices(number)))
        assert {sampler.count_tokens(number) for sampler in shards} == {sum(map(len, expected))}
        if is_static:
            assert len({batch.size for batch in batches}) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_data_parallel_processes_shard_an_evaluation_into_equally_many_batches(lengths, batch_size, data_size):
    items = [Features(np.full(n, 1), np.zeros(n, dtype=np.int64)) for n in lengths]
    shards = [
        EvaluationBatches(items, batch_size, 12, 0, data_rank=rank, data_size=data_size) for rank in range(data_size)
    ]
    packed = [list(batches) for batches in shards]
    assert {len(batches) for batches in packed} == {len(shards[0])}
    assert sorted(index for batches in packed for group, _ in batches for index in group) == list(range(len(items)))
    assert sum(batch.weight for batches in packed for _, batch in batches) == len(items)
