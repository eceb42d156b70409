import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.data.windows import sequence_windows, truncated_pair, windowed_pair
from megabert.errors import InputWarning
from megabert.tasks.sequence_classification import Example
from megabert.tasks.text_classification import TextClassification, TextClassificationSettings
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TOKENIZER = Tokenizer(WORDS)


def truncate_seq_pair(first, second, room):
    """Google BERT's loop: pop from the longer one until both fit."""
    while first + second > room:
        first, second = (first - 1, second) if first > second else (first, second - 1)
    return first, second


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_pairs_are_truncated_as_google_s_bert_does(first, second, room):
    assert truncated_pair(first, second, room) == truncate_seq_pair(first, second, room)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40))
def test_windows_show_all_of_a_pair_but_what_is_counted(first, second, length):
    ids, pair = np.arange(first) + 100, np.arange(second) + 1000
    windows, num_cut = sequence_windows(ids, pair, length, TOKENIZER, is_truncated=False)
    seen = {int(token) for token_ids, _ in windows for token in token_ids if token >= 100}
    assert len(seen) + num_cut == first + second
    assert num_cut == max(min(first, second) - (length - 3) // 2, 0) * (first + second > length - 3)
    for token_ids, segment_ids in windows:
        assert len(token_ids) == len(segment_ids) <= length
        assert (token_ids[segment_ids == 1] == TOKENIZER.sep_id).sum() == 1
        assert not (token_ids[segment_ids == 0] >= 1000).any() and (token_ids >= 1000).any()
    assert windowed_pair(first, second, length - 3) == (first, second) or num_cut


@pytest.mark.parametrize("choice", ["windows", "truncate"])
def test_no_pair_stops_a_file_and_what_is_cut_is_counted(choice):
    words = ["model.dataset.max_seq_length=16", f"model.dataset.long_texts={choice}"]
    task = TextClassification(compose(TextClassificationSettings, words, owner="x")[0])
    pairs = [("the city", "a b"), ("the " * 45, "city " * 16), ("of " * 50, "in " * 50)]
    examples = [Example(str(n), a, b, None, f"x:{n}") for n, (a, b) in enumerate(pairs)]
    with pytest.warns(InputWarning, match=r"2 of 3 examples are truncated to 16 tokens, by .* tokens together; .* x:1"):
        features = task.features(examples, TOKENIZER, with_targets=False)
    assert {item.notes for item in features} == {0, 1, 2}
    assert sum(item.notes == 0 for item in features) == 1
    assert all(len(item.token_ids) <= 16 for item in features)
    if choice == "truncate":
        assert len(features) == 3


def test_a_text_may_be_truncated():
    words = ["model.dataset.max_seq_length=16", "model.dataset.long_texts=truncate"]
    task = TextClassification(compose(TextClassificationSettings, words, owner="x")[0])
    with pytest.warns(InputWarning, match="1 of 1 examples are truncated to 16 tokens, by 6 tokens together"):
        (feature,) = task.features([Example("0", "the " * 20, None, None, "x:1")], TOKENIZER, with_targets=False)
    assert len(feature.token_ids) == 16
