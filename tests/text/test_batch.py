import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.errors import InputError
from megabert.text.batch import Features, pack


def text(*token_ids, segment=0, **targets):
    ids = np.array(token_ids, dtype=np.int64)
    return Features(ids, np.full(len(ids), segment, dtype=np.int64), targets)


def test_texts_are_placed_longest_first_where_they_fit():
    batch = pack([text(1, 2), text(3, 4, 5, segment=1), text(6)], row_length=4, pad_id=9)
    assert batch.token_ids_BL.tolist() == [[3, 4, 5, 6], [1, 2, 9, 9]]
    assert batch.document_ids_BL.tolist() == [[1, 1, 1, 2], [1, 1, 0, 0]]
    assert batch.position_ids_BL.tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert batch.segment_ids_BL.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert batch.starts_N.tolist() == [4, 0, 3]
    assert batch.lengths_N.tolist() == [2, 3, 1]
    assert (batch.num_tokens, batch.weight) == (6, 3.0)


def test_rows_are_no_longer_than_needed():
    assert pack([text(1, 2)], row_length=100, pad_id=0).token_ids_BL.shape == (1, 2)


def test_targets_are_stacked_in_the_order_given():
    batch = pack([text(1, span=np.array([0, 0])), text(1, 2, span=np.array([1, 1]))], row_length=9, pad_id=0)
    assert batch.targets["span"].tolist() == [[0, 0], [1, 1]]


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match="5 tokens does not fit a row of 4"):
        pack([text(1, 2, 3, 4, 5)], row_length=4, pad_id=0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_every_text_is_found_again_whole(lengths):
    start = 1
    texts = []
    for length in lengths:
        texts.append(text(*range(start, start + length)))
        start += length
    batch = pack(texts, row_length=12, pad_id=0)
    ids_NT = batch.by_document(batch.token_ids_BL, fill=-1, longest=12)
    for row, item in zip(ids_NT, texts, strict=True):
        assert row[: len(item)].tolist() == item.token_ids.tolist()
        assert (row[len(item) :] == -1).all()
    assert (batch.document_ids_BL > 0).sum() == sum(lengths)


def test_by_document_takes_further_dims_along():
    batch = pack([text(1, 2), text(3)], row_length=3, pad_id=0)
    values_NTC = batch.by_document(torch.arange(6.0).reshape(1, 3, 2), fill=-5.0, longest=2)
    assert values_NTC.tolist() == [[[0, 1], [2, 3]], [[4, 5], [-5, -5]]]
