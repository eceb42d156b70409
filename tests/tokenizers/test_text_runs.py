"""Many texts at once: the words and windows of each text alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.data.word_windows import token_windows, word_windows
from megabert.tokenizers import text_runs
from megabert.tokenizers.text_runs import KnownRuns, WordBounds
from megabert.tokenizers.wordpiece import SPECIAL_TOKENS, Tokenizer
from megabert.tokenizers.words import WordCuts, split_words

TOKENIZER = Tokenizer([*SPECIAL_TOKENS, *"abcpé.-/()", *(f"##{letter}" for letter in "abc53"), "in", "the"])
SPACES = [" ", "  ", "\t", "\n", "\x1c", "\x85", "\u2028", "\xa0"]
LETTERS = st.sampled_from([*SPACES, *"abp53é.-/()'", "\u0301", "\u200b", "\x01", "\U0001f600", "in the "])
TEXTS = st.lists(st.lists(LETTERS, max_size=40).map("".join), max_size=6)
CUTS = [WordCuts(), WordCuts(apart="-/"), WordCuts(others_apart=True, has_clitics=True, whole=("p.",))]


@given(TEXTS, st.sampled_from(CUTS), st.sampled_from([5, 9, 40]), st.sampled_from([None, 1]))
@settings(max_examples=150, deadline=None)
def test_words_and_windows_are_those_of_each_text(texts, cuts, length, margin):
    known = KnownRuns(cuts, TOKENIZER)
    known(texts[::2])  # some runs are known already
    found = known(texts)
    ends = np.cumsum(found.num_words)
    words = [split_words(text, cuts) for text in texts]
    for own, end, expected in zip(found.num_words, ends, words, strict=True):
        bounds = WordBounds(found.bounds_W2[end - own : end].ravel().tolist())
        assert bounds == expected
        assert [bounds[number] for number in range(len(bounds))] == list(bounds) == list(expected)
    actual = token_windows(found.token_ids, found.token_words, found.num_tokens, TOKENIZER, length, margin)
    strings = [[text[start:end] for start, end in own] for text, own in zip(texts, words, strict=True)]
    for name in ("token_ids", "words", "is_first", "has_max_context", "examples"):
        expected = getattr(word_windows(strings, TOKENIZER, length, margin), name)
        assert getattr(actual, name).tolist() == expected.tolist(), name


def test_runs_are_forgotten_when_they_are_many(monkeypatch):
    monkeypatch.setattr(text_runs, "MAX_RUNS_KEPT", 3)
    known = KnownRuns(CUTS[0], TOKENIZER)
    for text in ("a b c", "a p5 in", "the a (b)"):
        found = known([text])
        assert WordBounds(found.bounds_W2.ravel().tolist()) == split_words(text, CUTS[0])
        assert len(known([text]).token_ids) == len(found.token_ids)
