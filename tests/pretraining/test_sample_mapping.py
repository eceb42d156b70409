import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.pretraining.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megabert.pretraining.sample_mapping import build_sample_mapping, split_documents

from .test_indexed_dataset import add_document


def corpus(prefix, documents):
    """Write documents as lists of sentence lengths; tokens are numbered through."""
    number = 0
    with IndexedDatasetBuilder(prefix, np.int32) as writer:
        for document in documents:
            sequences = []
            for length in document:
                sequences.append(np.arange(number, number + length))
                number += length
            add_document(writer, sequences)
    return IndexedDataset(prefix)


def runs(tokens, room, **more):
    actual = build_sample_mapping(tokens, 0, tokens.num_documents, room, **{"short_seq_prob": 0.0, "seed": 0} | more)
    return [tuple(row) for row in np.stack([actual.firsts, actual.ends, actual.offsets, actual.num_tokens], 1).tolist()]


def test_runs_of_known_documents(tmp_path):
    tokens = corpus(tmp_path / "x", [[3, 4, 2, 5], [9], [1, 25, 2]])
    assert runs(tokens, 10) == [
        (0, 3, 0, 9), (3, 4, 0, 5),  # 3 + 4 + 2 fit, 5 more do not; documents are not joined
        (4, 5, 0, 9),
        (5, 6, 0, 1), (6, 7, 0, 10), (6, 7, 10, 10), (6, 7, 20, 5), (7, 8, 0, 2),
    ]  # fmt: skip


DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, st.integers(2, 40), st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 1000))
def test_every_token_is_in_exactly_one_run(tmp_path_factory, documents, room, short_seq_prob, seed):
    tokens = corpus(tmp_path_factory.mktemp("corpus") / "x", documents)
    seen = []
    for first, end, offset, count in runs(tokens, room, short_seq_prob=short_seq_prob, seed=seed):
        assert 0 < count <= room
        text = np.concatenate([tokens[index] for index in range(first, end)])[offset : offset + count]
        assert len(text) == count
        document = np.searchsorted(tokens.documents, first, side="right")
        assert end <= tokens.documents[document]  # of one document
        seen += text.tolist()
    assert seen == list(range(sum(map(sum, documents))))


def test_a_share_of_the_runs_is_short(tmp_path):
    tokens = corpus(tmp_path / "x", [[1] * 5000])
    lengths = np.array([row[3] for row in runs(tokens, 50, short_seq_prob=0.5)])
    assert 0.3 < (lengths < 50).mean() < 0.7
    assert runs(tokens, 50, short_seq_prob=0.5) == runs(tokens, 50, short_seq_prob=0.5)
    assert runs(tokens, 50, short_seq_prob=0.5) != runs(tokens, 50, short_seq_prob=0.5, seed=1)


def test_a_range_of_documents(tmp_path):
    tokens = corpus(tmp_path / "x", [[3], [4, 4], [5]])
    actual = build_sample_mapping(tokens, 1, 2, 100, short_seq_prob=0.0, seed=0)
    assert (actual.firsts.tolist(), actual.ends.tolist(), actual.num_tokens.tolist()) == ([1], [3], [8])


@pytest.mark.parametrize(
    ("count", "shares", "expected"),
    [
        (1000, (949, 50, 1), [(0, 949), (949, 999), (999, 1000)]),
        (10, (0.9, 0.1), [(0, 9), (9, 10)]),
        (3, (1, 1), [(0, 1), (1, 3)]),  # 1.5 is rounded to 2 twice; one is taken off each end
        (7, (1,), [(0, 7)]),
    ],
)
def test_documents_are_split_as_megatron_splits_them(count, shares, expected):
    assert split_documents(count, shares) == expected
