import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.packing import BatchSize, Features, PlainSequences, pack
from megabert.errors import InputError


def sequence(*token_ids, segment=0, **targets):
    ids = np.array(token_ids, dtype=np.int64)
    return Features(ids, np.full(len(ids), segment, dtype=np.int64), targets)


def test_sequences_are_concatenated():
    batch = pack([sequence(1, 2), sequence(3, 4, 5, segment=1), sequence(6)], max_seqlen=4, pad_id=9)
    assert batch.token_ids_T.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.position_ids_T.tolist() == [0, 1, 0, 1, 2, 0]
    assert batch.segment_ids_T.tolist() == [0, 0, 1, 1, 1, 0]
    assert batch.cu_seqlens_N1.tolist() == [0, 2, 5, 6]
    assert batch.cu_seqlens_N1.dtype == torch.int32
    assert (batch.num_tokens, batch.num_sequences, batch.weight) == (6, 3, 3.0)
    assert batch.size == BatchSize(6, 3)


def test_a_static_size_is_reached_with_filler_sequences():
    item = Features(
        np.array([1, 2]),
        np.array([1, 1]),
        targets={"span": np.array([0, 1]), "value": 0.5},
        token_targets={"label": np.array([7, 8])},
    )
    batch = pack([item], max_seqlen=4, pad_id=9, size=BatchSize(8, 5))
    assert batch.token_ids_T.tolist() == [1, 2, 9, 9, 9, 9, 9, 9]
    assert batch.position_ids_T.tolist() == [0, 1, 0, 1, 2, 3, 0, 1]
    assert batch.segment_ids_T.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batch.cu_seqlens_N1.tolist() == [0, 2, 6, 8, 8, 8]
    assert batch.targets["span"].tolist() == [[0, 1]] + 4 * [[-100, -100]]
    assert batch.targets["value"][0] == 0.5
    assert batch.targets["value"][1:].isnan().all()
    assert batch.token_targets["label"].tolist() == [7, 8, *6 * [-100]]
    assert (batch.num_tokens, batch.num_sequences, batch.size) == (2, 1, BatchSize(8, 5))


def test_targets_are_stacked_in_the_order_given():
    batch = pack([sequence(1, span=np.array([0, 0])), sequence(1, 2, span=np.array([1, 1]))], max_seqlen=9, pad_id=0)
    assert batch.targets["span"].tolist() == [[0, 0], [1, 1]]


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(InputError, match="5 tokens is longer than 4"):
        pack([sequence(1, 2, 3, 4, 5)], max_seqlen=4, pad_id=0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(0, 30))
def test_unpacking_returns_every_sequence(lengths, padding):
    start = 1
    sequences = []
    for length in lengths:
        sequences.append(sequence(*range(start, start + length)))
        start += length
    batch = pack(sequences, max_seqlen=12, pad_id=0, size=BatchSize(sum(lengths) + padding, len(lengths) + 3))
    ids_NL = batch.by_sequence(batch.token_ids_T, fill=-1, max_seqlen=12)
    for row, item in zip(ids_NL, sequences, strict=False):
        assert row[: len(item)].tolist() == item.token_ids.tolist()
        assert (row[len(item) :] == -1).all()
    assert (batch.token_ids_T > 0).sum() == sum(lengths)
    assert int(batch.cu_seqlens_N1.diff().max()) <= 12
    assert batch.size == BatchSize(sum(lengths) + padding, len(lengths) + 3)


def test_by_sequence_keeps_trailing_dims():
    batch = pack([sequence(1, 2), sequence(3)], max_seqlen=3, pad_id=0)
    values_NLC = batch.by_sequence(torch.arange(6.0).reshape(3, 2), fill=-5.0, max_seqlen=2)
    assert values_NLC.tolist() == [[[0, 1], [2, 3]], [[4, 5], [-5, -5]]]


def test_a_batch_is_copied_in_place():
    first, second = (
        pack([sequence(1, 2, label=1)], 4, 0, BatchSize(4, 2)),
        pack([sequence(3, label=0)], 4, 0, BatchSize(4, 2)),
    )
    pointers = [tensor.data_ptr() for tensor in first.tensors()]
    first.copy_from(second)
    assert first.token_ids_T.tolist() == [3, 0, 0, 0]
    assert first.targets["label"].tolist() == [0, -100]
    assert [tensor.data_ptr() for tensor in first.tensors()] == pointers
    with pytest.raises(AssertionError, match="does not fit"):
        first.copy_from(pack([sequence(3, label=0)], 4, 0))


@pytest.mark.parametrize("size", [None, BatchSize(16, 6)])
def test_plain_sequences_are_packed_as_features_are(size):
    tokens, starts, lengths = np.arange(10, 20), np.array([3, 0, 7]), np.array([4, 0, 2])
    columns = {"notes": np.array([5, 6, 7]), "num_cut": np.array([1, 0, 2])}
    plain = PlainSequences.between(([1, 2], [3]), tokens, starts, lengths, **columns)
    assert [item.token_ids.tolist() for item in plain] == [[1, 2, 13, 14, 15, 16, 3], [1, 2, 3], [1, 2, 17, 18, 3]]
    assert [(item.notes, item.num_cut) for item in plain] == [(5, 1), (6, 0), (7, 2)]
    some = plain.take(np.array([2, 0]))
    batch, expected = (pack(items, 7, 0, size) for items in (some, [plain[2], plain[0]]))
    for name, value in vars(expected).items():
        found = getattr(batch, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name
    assert (
        len(PlainSequences.between(([], []), tokens, starts[:0], lengths[:0], notes=starts[:0], num_cut=starts[:0]))
        == 0
    )
