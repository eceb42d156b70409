import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.tokenizers.words import WordCuts, learn_cuts, split_words

BIOMEDICAL = "Doxorubicin - induced injury ( 0 . 5 mg / kg ) of TNF - alpha and IL - 2 in patient ' s liver ."
NEWS = "EU rejects Bonn 's call to boycott up-to-date U.S. and non-EU 1,000 lamb , and/or O.K. beef ."


def cut(text, cuts):
    return [text[start:end] for start, end in split_words(text, cuts)]


def test_words_of_raw_text_keep_inner_punctuation():
    assert cut("The (p53)  and IL-2, «été»!", WordCuts()) == [
        "The", "(", "p53", ")", "and", "IL-2", ",", "«", "été", "»", "!"]  # fmt: skip


def test_text_is_cut_at_every_hyphen_if_the_training_words_are():
    cuts = learn_cuts([BIOMEDICAL.split()] * 3)
    assert cut("Aspirin-induced (0.3mg/kg) Crohn's Ca+, IL=6.", cuts) == [
        "Aspirin", "-", "induced", "(", "0", ".", "3mg", "/", "kg", ")", "Crohn", "'", "s", "Ca", "+", ",", "IL", "=",
        "6", "."]  # fmt: skip


def test_text_is_not_cut_at_hyphens_if_training_words_contain_them():
    cuts = learn_cuts([NEWS.split()] * 4)
    assert cut("Paris's state-of-the-art U.S., 2,500 and/or 3,5.", cuts) == [
        "Paris", "'s", "state-of-the-art", "U.S.", ",", "2,500", "and/or", "3,5", "."]  # fmt: skip


def test_words_without_any_punctuation_change_nothing():
    assert learn_cuts([["Patients", "with", "asthma"], ["."]]) == WordCuts()


def test_cuts_are_stored_as_plain_values():
    for cuts in (learn_cuts([NEWS.split()] * 4), learn_cuts([BIOMEDICAL.split()] * 3), WordCuts()):
        assert WordCuts.from_document(cuts.to_document()) == cuts
    assert WordCuts.from_document({}) == WordCuts()


def test_a_word_takes_the_marks_that_follow():
    text = "asthma\u200b, cafe\u0301) \u200f(\ufe0fx\u0301."
    assert cut(text, WordCuts()) == ["asthma\u200b", ",", "cafe\u0301", ")", "\u200f(\ufe0f", "x\u0301", "."]


LETTERS = st.text(st.sampled_from("ab1 -.,/'()+%\u0301\u200b\t\u00a0é"), max_size=40)
CUTS = st.sampled_from(
    [WordCuts(), WordCuts(is_basic=True), learn_cuts([NEWS.split()] * 4), learn_cuts([BIOMEDICAL.split()] * 3)]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), LETTERS), CUTS)
def test_words_of_raw_text_have_all_characters_but_blanks(text, cuts):
    words = split_words(text, cuts)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(words))


@pytest.mark.parametrize(
    ("corpus", "raw"),
    [("bc5cdr", "entity_linking_bc5cdr"), ("ncbi_disease", "entity_linking_ncbi_disease")],
)
def test_real_abstracts_are_cut_into_the_words_of_their_corpus(corpus, raw, datasets):
    """Cut the raw abstracts of the development part by what the training part shows: no word differs."""

    def sentences(file):
        blocks = file.read_text(encoding="utf-8").split("\n\n")
        return [[line.split("\t")[0] for line in block.splitlines() if line] for block in blocks]

    cuts = learn_cuts(sentences(datasets(corpus) / "train.tsv"))
    expected = sorted(word for words in sentences(datasets(corpus) / "dev.tsv") for word in words)
    lines = (datasets(raw) / "dev.pubtator.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.split("|", 2)[2] for line in lines if line.split("|", 2)[1:2] in (["t"], ["a"])]
    assert sorted(word for text in texts for word in cut(text, cuts)) == expected
