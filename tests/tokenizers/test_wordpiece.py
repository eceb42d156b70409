import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.errors import CheckpointError
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
