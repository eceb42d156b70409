import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.tokenizers.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith et al. (2004) saw Fig. 2. It was new.", ["Dr. Smith et al. (2004) saw Fig. 2.", "It was new."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("About 3.5 mg of p53. lower case goes on.", ["About 3.5 mg of p53. lower case goes on."]),
        ("By J. S. Bach. Then I. Then you.", ["By J. S. Bach.", "Then I.", "Then you."]),
        ("Over\ntwo lines.\n\n  And more. ", ["Over\ntwo lines.", "And more."]),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_sentences_of_prose(text, expected):
    assert [text[start:end] for start, end in split_sentences(text)] == expected


@pytest.mark.parametrize("pattern", [".", ". ", "al. A ", "'.", ".'", ". '", "?! ", "(", ". (", "A. ", " ", "\n"])
def test_the_time_is_linear_for_any_text(pattern):
    text = pattern * 300_000  # hours where it is quadratic
    assert all(start < end for start, end in split_sentences(text + "A. B"))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aB.!? \n\"'3", max_size=60))
def test_nothing_but_blanks_is_between_sentences(text):
    spans = split_sentences(text)
    kept = [position for start, end in spans for position in range(start, end)]
    assert len(kept) == len(set(kept))
    assert all(text[position].isspace() for position in set(range(len(text))) - set(kept))
