import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.errors import CheckpointError, InputError
from megabert.tokenizers import wordpiece
from megabert.tokenizers.wordpiece import SPECIAL_TOKENS, Tokenizer
from tests.conftest import WORDS


def test_words_are_split_into_pieces_with_offsets():
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "new", "##ton", "was", "born", "."])
    (encoded,) = tokenizer.encode(["Newton  was born."])
    assert [tokenizer.tokens[index] for index in encoded.token_ids] == ["new", "##ton", "was", "born", "."]
    assert encoded.offsets.tolist() == [[0, 3], [3, 6], [8, 11], [12, 16], [16, 17]]


def test_offsets_count_characters_of_the_original_string():
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "naive", "β", "cell", "##s"])
    text = "Naïve β\u00a0cells"
    (encoded,) = tokenizer.encode([text])
    assert [text[start:end] for start, end in encoded.offsets] == ["Naïve", "β", "cell", "s"]


def test_a_token_ends_behind_the_marks_that_follow():
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "cafe", "##s", "a", "b"])
    tokens = ["cafe\u0301", "cafe\u0301", "s", "a\u200b", "b\ufe0f\u20e3"]
    text = "{} {}{} {} {}".format(*tokens)
    (encoded,) = tokenizer.encode([text])
    assert [text[start:end] for start, end in encoded.offsets] == [
        "cafe\u0301",
        "cafe\u0301",
        "s",
        "a\u200b",
        "b\ufe0f\u20e3",
    ]
    kept = Tokenizer([*SPECIAL_TOKENS, "E", "##\u0301"])  # not lower-cased: the mark is a token
    assert kept.encode(["E\u0301"])[0].offsets.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("method", ["encode", "encode_ids", "encode_words"])
def test_a_string_instead_of_a_list_is_refused(method):
    with pytest.raises(TypeError, match="'Aspirin' is given where a list of"):
        getattr(Tokenizer(WORDS), method)("Aspirin")
    with pytest.raises(TypeError, match="where a list of lists of words"):
        Tokenizer(WORDS).encode_words(["Aspirin"])


def test_ids_are_those_with_offsets_whatever_was_seen_before(monkeypatch):
    monkeypatch.setattr(wordpiece, "MAX_WORD_KEPT", 3)
    monkeypatch.setattr(wordpiece, "MAX_WORDS_KEPT", 5)
    tokenizer = Tokenizer([*SPECIAL_TOKENS, *"abcd", *(f"##{letter}" for letter in "abcd"), "ab"])
    for texts in (["ab a", "abcd  ab"], ["", "abcd\tc [SEP]a", "c-c"], ["a b c d ab ba [MASK] abcd"]):
        expected = [encoded.token_ids.tolist() for encoded in tokenizer.encode(texts)]
        assert [ids.tolist() for ids in tokenizer.encode_ids(texts)] == expected
        assert all(len(word) <= 3 for known in tokenizer._word_ids for word in known)


@pytest.mark.parametrize("method", ["encode", "encode_ids", "encode_words"])
def test_half_of_a_character_is_refused(method):
    inputs = [["a \ud83d b"]] if method == "encode_words" else ["ok", "a \ud83d b"]
    with pytest.raises(InputError, match=r"lone surrogate at character 2 of 'a \\\\ud83d b'"):
        getattr(Tokenizer(WORDS), method)(inputs)


def test_case_is_inferred_from_the_vocabulary():
    assert Tokenizer([*SPECIAL_TOKENS, "a", "Γ"]).lower_case  # Greek capitals stand in uncased vocabularies
    assert not Tokenizer([*SPECIAL_TOKENS, "a", "The"]).lower_case
    assert Tokenizer([*SPECIAL_TOKENS, "a", "The"], lower_case=True).lower_case


def test_a_file_without_special_tokens_is_no_vocabulary(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("hello\nworld\n")
    with pytest.raises(CheckpointError, match=r"\[PAD\].*2 lines"):
        Tokenizer.from_file(file)


def test_a_token_on_two_lines_is_named(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIAL_TOKENS, "a", "b", "a"]))
    with pytest.raises(CheckpointError, match=r"'a' is on lines \[6, 8\]"):
        Tokenizer.from_file(file)


def test_windows_line_ends_and_odd_separators_are_kept_apart(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_bytes("\r\n".join([*SPECIAL_TOKENS, "a", "\u2028", "b"]).encode() + b"\r\n")
    assert Tokenizer.from_file(file).tokens[5:] == ["a", "\u2028", "b"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_every_token_has_characters_in_order(text):
    (encoded,) = Tokenizer(WORDS).encode([text])
    assert len(encoded.token_ids) == len(encoded.offsets)
    last = 0
    for start, end in encoded.offsets.tolist():
        assert last <= start < end <= len(text)
        last = start


def test_ids_equal_those_of_transformers(minilm):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    ours = Tokenizer.from_file(minilm / "vocab.txt")
    for text in ["The p53 gene (TP53), isn't it?", "Åse's naïve café — 3.5µm; 東京", "IL-2 / TNF-α\t42%"]:
        assert ours.encode([text])[0].token_ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
