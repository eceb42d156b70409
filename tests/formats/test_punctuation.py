import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.formats.punctuation import find_words, restore


def words_of(text, marks=".,?"):
    return [(text[word.start : word.end], word.mark, word.case) for word in find_words(text, marks)]


def test_marks_and_cases_of_a_text():
    assert words_of('Well, "IL-2" is from NATO... Is it? (Yes!)') == [
        ("Well", ",", "U"), ("IL-2", "O", "A"), ("is", "O", "O"), ("from", "O", "O"), ("NATO", ".", "A"),
        ("Is", "O", "U"), ("it", "?", "O"), ("Yes", "O", "U")]  # fmt: skip


def test_dashes_separate_words_and_a_mark_may_be_between_blanks():
    assert words_of("peace--war , now") == [("peace", "O", "O"), ("war", ",", "O"), ("now", "O", "O")]


def bare(text):
    words = find_words(text, ".,?")
    return " ".join(text[word.start : word.end].lower() for word in words), words


@pytest.mark.parametrize("text", ["Hello, World. Is it NATO? Yes, it is.", "U.S. troops don't stop.", "A I, B?"])
def test_removed_marks_and_capitals_are_restored(text):
    lowered, words = bare(text)
    again = find_words(lowered, ".,?")
    assert len(again) == len(words)
    assert restore(lowered, again, [word.mark for word in words], [word.case for word in words]) == text


def test_marks_and_capitals_of_the_text_are_kept():
    text = 'NATO said: "hello!" and left.'
    words = find_words(text, ".,?")
    marks, cases = [","] * len(words), ["U"] * len(words)
    assert restore(text, words, marks, cases) == 'NATO, Said: "Hello!" And, Left.'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it was 100%", "it was 100%."),
        ("in C++ and f(x) too", "in C++. and f(x). too."),
        ("about 5 µg/ml (rising) now", "about 5. µg/ml. (rising). now."),
        ('he said "well" and left', 'he said "well." and left.'),
        ("it rose 100%; then", "it rose 100%; then."),
        ("peace--war", "peace.--war."),
    ],
)
def test_marks_follow_symbols_and_brackets(text, expected):
    words = find_words(text, ".,?")
    chosen = [text[word.start : word.end] in expected_words(expected) for word in words]
    assert restore(text, words, ["." if has_mark else "O" for has_mark in chosen], ["O"] * len(words)) == expected


def expected_words(expected):
    return [expected[word.start : word.end] for word in find_words(expected, ".") if word.mark == "."]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_character_of_a_text_is_lost(text):
    words = find_words(text, ".,?")
    assert restore(text, words, ["O"] * len(words), ["O"] * len(words)) == text
    letters = {letter for letter in text if letter.isalnum()}
    covered = {letter for word in words for letter in text[word.start : word.end]}
    assert letters <= covered
