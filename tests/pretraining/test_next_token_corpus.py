import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.packing import NO_TARGET
from megabert.errors import InputError
from megabert.pretraining.indexed_dataset import InMemoryTokens
from megabert.pretraining.next_token_corpus import NextTokenCorpus, index_samples


def held(lengths):
    """Documents of one sequence each, tokens numbered through."""
    ends = np.cumsum(lengths)
    return InMemoryTokens([[np.arange(end - length, end)] for length, end in zip(lengths, ends, strict=True)])


def corpus(lengths, length, **more):
    tokens = held(lengths)
    options = {"vocabulary_size": 1000, "seed": 0, "source": "x"} | more
    return NextTokenCorpus(tokens, (0, len(lengths)), length, **options)


def megatron_sample_index(sizes, doc_idx, seq_length, num_samples):
    """Walk through documents as the description of build_sample_idx specifies: pairs of (document, offset)."""
    rows, document, offset = [(0, 0)], 0, 0
    for _ in range(num_samples):
        remaining = seq_length + 1
        while remaining:
            length = sizes[doc_idx[document]] - offset
            remaining -= length
            if remaining <= 0:
                # The next sequence begins with this one's last token.
                offset += remaining + length - 1
                remaining = 0
            else:
                document, offset = document + 1, 0
        rows.append((document, offset))
    return rows


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 15), st.integers(0, 9))
def test_the_sample_index_equals_megatron_s(sizes, length, seed):
    order = np.arange(len(sizes))
    np.random.RandomState(seed).shuffle(order)
    actual = index_samples(np.array(sizes), order, length)
    num_samples = (sum(sizes) - 1) // length
    expected = megatron_sample_index(sizes, order, length, num_samples)
    pairs = list(zip(actual.documents.tolist(), actual.offsets.tolist(), strict=True))
    # A position at the end of a document has two notations; both are the same token.
    stream = np.concatenate([np.arange(sizes[document]) + 100 * document for document in order])
    starts = np.concatenate([[0], np.cumsum(np.array(sizes)[order])])
    positions = [[starts[document] + offset for document, offset in rows] for rows in (pairs, expected)]
    assert [stream[position] for position in positions[0]] == [stream[position] for position in positions[1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 15))
def test_sequences_of_a_pass_are_its_concatenated_documents(sizes, length):
    made = corpus(sizes, length)
    for number in range(3):
        order = np.arange(len(sizes))
        np.random.RandomState(number).shuffle(order)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        stream = np.concatenate([np.arange(bounds[item], bounds[item + 1]) for item in order])
        assert len(made) == (len(stream) - 1) // length
        for index in range(len(made)):
            item = made.sequence(index, number)
            assert item.token_ids.tolist() == stream[index * length : (index + 1) * length].tolist()
            assert item.token_targets["token"].tolist() == stream[index * length + 1 :][:length].tolist()
            assert item.weight == length


def test_tokens_of_no_loss_after_have_no_target():
    item = corpus([3, 3], 5, no_loss_after=[5]).sequence(0, 0)
    assert 5 in item.token_ids
    masked = item.token_targets["token"] == NO_TARGET
    assert item.token_ids[masked].tolist() == [5]
    assert item.weight == 4


def test_the_sentences_of_a_document_are_concatenated():
    tokens = InMemoryTokens([[np.array([1, 2]), np.array([3]), np.array([4, 5, 6])]])
    made = NextTokenCorpus(tokens, (0, 1), 2, vocabulary_size=9, seed=0, source="x")
    assert [made.sequence(index, 0).token_ids.tolist() for index in range(len(made))] == [[1, 2], [3, 4]]


def test_a_corpus_that_is_too_short_has_no_sequences():
    assert len(corpus([3], 5)) == 0
    assert corpus([3], 5).lengths(0).tolist() == []


def test_tokens_beyond_the_vocabulary_are_named():
    with pytest.raises(InputError, match="x holds the token 5; the vocabulary has 3"):
        corpus([6], 5, vocabulary_size=3).sequence(0, 0)
