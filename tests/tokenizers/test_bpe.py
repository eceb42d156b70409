import json

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from megabert.errors import CheckpointError, ConfigError
from megabert.tokenizers.bpe import BytePairTokenizer
from megabert.tokenizers.load import load_tokenizer, read_tokenizer

STRINGS = ["Radium was found by Marie Curie.", "  naïve\n\nΔG‡ → 日本 🙂", ""]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small vocab.json and merges.txt in GPT-2's format."""
    folder = tmp_path_factory.mktemp("bpe")
    made = RustTokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(STRINGS * 5, trainer)
    made.model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer(files):
    return read_tokenizer(files / "vocab.json", None, lower_case=None)


def test_ids_are_those_of_transformers_gpt2(files, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer(str(files / "vocab.json"), str(files / "merges.txt"))
    for text in STRINGS:
        assert tokenizer.encode_ids([text])[0].tolist() == theirs(text)["input_ids"]


def test_decoding_restores_every_string(tokenizer):
    for text, ids in zip(STRINGS, tokenizer.encode_ids(STRINGS), strict=True):
        assert tokenizer.decode(ids.tolist()) == text


def test_files_make_the_same_tokenizer_again(files, tokenizer):
    contents = {name: content.encode() for name, content in tokenizer.files().items()}
    assert contents["merges.txt"] == (files / "merges.txt").read_bytes()
    again = load_tokenizer(contents, lower_case=None, source="x")
    assert isinstance(again, BytePairTokenizer)
    assert again.tokens == tokenizer.tokens
    assert again.end_id == tokenizer.end_id == tokenizer.tokens.index("<|endoftext|>")


def test_no_vocabulary_among_the_files_is_none():
    assert load_tokenizer({"vocab.json": b"{}"}, lower_case=None, source="x") is None


def test_special_tokens_of_bert_raise_a_config_error(tokenizer):
    for name in ("cls_id", "sep_id", "mask_id"):
        with pytest.raises(ConfigError, match="a vocabulary of GPT-2, which has no"):
            getattr(tokenizer, name)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ("[1]", "", "cannot be read as JSON|holds no JSON object|GPT-2's format"),
        ("{", "", "cannot be read as JSON|holds no JSON object|GPT-2's format"),
        ('{"a": 0, "b": 1}', "a b\n", "merges"),
        ('{"a": 0, "b": 1, "ab": 2}', "a b c\n", "merges"),
        ('{"a": 0, "b": 2}', "", "does not number its 2 tokens"),
    ],
)
def test_malformed_files_are_refused(vocabulary, merges, message):
    with pytest.raises(CheckpointError, match=message):
        BytePairTokenizer(vocabulary.encode(), merges.encode())


def test_missing_merges_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot be read"):
        read_tokenizer(tmp_path / "vocab.json", None, lower_case=None)
