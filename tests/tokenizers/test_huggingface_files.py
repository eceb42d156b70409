"""Tokenizers of Hugging Face folders: the ids and offsets are those of transformers, however the folder is saved."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megabert.errors import CheckpointError
from megabert.tokenizers.characters import add_following_marks
from megabert.tokenizers.huggingface_files import FILES, parse_tokenizer
from megabert.tokenizers.load import files_with_added_tokens, load_tokenizer
from megabert.tokenizers.rules import TokenizerRules
from megabert.tokenizers.wordpiece import SPECIAL_TOKENS
from tests.conftest import WORDS

transformers = pytest.importorskip("transformers")

VOCABULARY = [*WORDS, "É", "é", "東", "##京", "京", "東京", "e1", "##e1", "ab", "The", "##É", "[unused1]"]
MARKERS = ["[E1]", "[/E1]", "[E2]", "[/E2]"]


def token(content, **flags):
    return transformers.AddedToken(content, **flags)


# Named sets of added tokens: (special ones, others)
ADDED = {
    "none": ([], []),
    "markers": (MARKERS, []),
    "words": ([], ["radium", "DNA", "Éclair", "the"]),
    "flags": (
        [token("<s>", lstrip=True, normalized=False), token("[unused1]", normalized=False)],
        [
            token("foo Bar", lstrip=True, single_word=True),
            token("x-Ray", rstrip=True),
            token("GENE", normalized=False, single_word=True),
            token("東京都", normalized=False),
            token("é", lstrip=True, rstrip=True),
        ],
    ),
}
SETTINGS = list(product([True, False], [None, True, False], [True, False], ADDED))
# The pieces that tokenizers treat in a way of their own, between random characters
PIECES = [
    *MARKERS, *SPECIAL_TOKENS, "[e1]", "<s>", "radium", "Radium", "RADIUMS", "dna", "DNA", "Éclair", "eclair", "éclair",
    "the", "The", "theme", "foo bar", "Foo Bar", "foo barn", "x-ray", "X-Ray  ", "GENE", "gene", "GENES", "東京都",
    "東京", "é", "e\u0301", "É", " ", "  ", "\n", "\t", "\u00a0", "\u200b", "\u2028", "\x00", "\ufffd", "ab", "1", "🙂",
    "İ", "ß", "ǅ", "ﬁ", "한국", "‡", "##京", "[unused1]",
]  # fmt: skip
STRINGS = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12).map("".join)


def make(folder, lower, accents, chinese, added):
    """Make transformers' tokenizer of some settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    made = transformers.BertTokenizer(
        str(folder / "vocab.txt"), do_lower_case=lower, strip_accents=accents, tokenize_chinese_chars=chinese
    )
    special, others = ADDED[added]
    made.add_tokens(special, special_tokens=True)
    made.add_tokens(others)
    return made


def write_plain(folder, made, kind):
    """Write a tokenizer as vocab.txt, as older versions of transformers did: with a decoder, or added_tokens.json."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": made.do_lower_case,
        "strip_accents": made.strip_accents,
        "tokenize_chinese_chars": made.tokenize_chinese_chars,
    }
    added = made.added_tokens_decoder
    if kind == "decoder":
        config["added_tokens_decoder"] = {str(index): item.__getstate__() for index, item in added.items()}
    else:
        new = {item.content: index for index, item in added.items() if index >= len(VOCABULARY)}
        (folder / "added_tokens.json").write_text(json.dumps(new))
        special = [item.content for item in added.values() if item.special and item.content not in SPECIAL_TOKENS]
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def read(folder):
    """Read the folder's tokenizer as megabert does."""
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    stored = parse_tokenizer(files, str(folder))
    tokenizer = load_tokenizer(stored.files, lower_case=stored.lower_case, rules=stored.rules, source="x")
    assert len(tokenizer) == stored.num_tokens
    return tokenizer


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of transformers' tokenizer and ours, by settings and by how the folder is saved."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for number, values in enumerate(SETTINGS):
        theirs = make(root / str(number) / "made", *values)
        theirs.save_pretrained(root / str(number) / "saved")
        kinds = {"saved": root / str(number) / "saved"}
        for kind in ("decoder", "added_tokens"):
            kinds[kind] = root / str(number) / kind
            write_plain(kinds[kind], theirs, kind)
        for kind, folder in kinds.items():
            oracle = transformers.AutoTokenizer.from_pretrained(folder, tokenizer_type="bert")
            made[(*values, kind)] = oracle, read(folder)
    return made


@settings(max_examples=40, deadline=None)
@given(STRINGS)
@example("[E1] Radium [/E1] was found by [E2]Curie[/E2]")
@example("".join(PIECES))
@example(" ".join(PIECES))
def test_ids_and_offsets_are_those_of_transformers(pairs, text):
    for name, (theirs, ours) in pairs.items():
        expected = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        (encoded,) = ours.encode([text])
        assert encoded.token_ids.tolist() == expected["input_ids"], name
        # Ours end behind the combining marks that follow.
        offsets = add_following_marks(text, np.array(expected["offset_mapping"], dtype=np.int64).reshape(-1, 2))
        assert encoded.offsets.tolist() == offsets.tolist(), name
        assert ours.encode_ids([text])[0].tolist() == expected["input_ids"], name


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8))
def test_ids_of_sentences_given_as_words_are_those_of_transformers(pairs, words):
    for name, (theirs, ours) in pairs.items():
        expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
        ((ids, word_ids),) = ours.encode_words([words])
        assert ids.tolist() == expected["input_ids"], name
        assert word_ids.tolist() == expected.word_ids(), name


@settings(max_examples=20, deadline=None)
@given(STRINGS)
def test_a_run_s_documents_make_the_same_tokenizer_again(pairs, text):
    for name, (_, ours) in pairs.items():
        document = json.loads(json.dumps(ours.to_document()))
        files = {file: content.encode() for file, content in ours.files().items()}
        rules = TokenizerRules.from_document(document, "run")
        again = load_tokenizer(files, lower_case=document["lower_case"], rules=rules, source="run")
        assert again.tokens == ours.tokens, name
        assert again.encode_ids([text])[0].tolist() == ours.encode_ids([text])[0].tolist(), name


def test_markers_are_tokens_and_not_punctuation(tmp_path):
    make(tmp_path / "made", True, None, True, "markers").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    ours = read(tmp_path / "saved")
    (encoded,) = ours.encode(["[E1] Curie[/E1]"])
    assert [ours.tokens[index] for index in encoded.token_ids] == ["[E1]", "curie", "[/E1]"]
    assert encoded.offsets[0].tolist() == [0, 4]
    assert encoded.offsets[-1].tolist() == [10, 15]
    assert ours.tokens[len(VOCABULARY) :] == MARKERS


def test_a_generic_class_follows_tokenizer_json(tmp_path):
    made = make(tmp_path / "made", False, True, False, "flags")
    made.save_pretrained(tmp_path / "saved")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(config))
    assert not read(tmp_path / "saved").lower_case
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    text = " ".join(PIECES)
    assert read(tmp_path / "saved").encode_ids([text])[0].tolist() == theirs(text)["input_ids"][1:-1]


def test_special_tokens_that_are_to_be_split_are_text(tmp_path):
    make(tmp_path / "made", True, None, True, "markers").save_pretrained(tmp_path)
    change(tmp_path, "tokenizer_config.json", lambda document: document | {"split_special_tokens": True})
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    text = "a [SEP] b [E1] c"
    assert read(tmp_path).encode_ids([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert read(tmp_path).sep_id not in read(tmp_path).encode_ids([text])[0]


def test_an_equal_line_of_vocab_txt_is_a_gap_in_tokenizer_json(tmp_path):
    words = [*VOCABULARY, "twice", "x1", "twice", "x2"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(tmp_path / "saved")
    text = "twice x1 twice x2 the"
    ours = read(tmp_path / "saved")
    assert len(ours) == len(words)
    assert ours.encode_ids([text])[0].tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(CheckpointError, match=r"'twice' is on lines .*Rename all but the last to \[unusedN\]"):
        read(tmp_path)


def test_tokenizer_json_counts_more_than_vocab_txt(tmp_path):
    make(tmp_path / "made", True, None, True, "none").save_pretrained(tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    plain = "".join(f"{word}\n" for word in VOCABULARY)
    stored = parse_tokenizer(files | {"vocab.txt": plain.replace("\n", "\r\n").encode()}, "x")
    assert stored.files["vocab.txt"] == plain.replace("\n", "\r\n").encode()
    assert stored.notes == ()
    stored = parse_tokenizer(files | {"vocab.txt": plain.replace("radium", "rhenium").encode()}, "x")
    assert stored.files["vocab.txt"] == plain.encode()
    assert "WARNING: vocab.txt and tokenizer.json have different tokens; tokenizer.json counts" in stored.notes[0]


def test_gpt_2_s_tokenizer_json_is_read(tmp_path):
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    made = RustTokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["Radium was found by Marie Curie. The radium, the city"] * 5, trainer)
    made.model.save(str(tmp_path))
    theirs = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs.add_tokens([token("<gene>", special=True, lstrip=True), "Curie"])
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "merges.txt").exists()
    ours = read(tmp_path / "saved")
    for text in ("Radium <gene>was found by Curie.<|endoftext|> naïve 🙂", " ".join(PIECES), ""):
        expected = theirs(text, return_offsets_mapping=True)
        assert ours.encode_ids([text])[0].tolist() == expected["input_ids"]
    assert ours.end_id == 0
    document = change(tmp_path / "saved", "tokenizer.json", lambda document: document)
    document["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(CheckpointError, match=r"pre_tokenizer\.add_prefix_space is 'True', not False"):
        parse_tokenizer({"tokenizer.json": json.dumps(document).encode()}, "x")


def test_programs_that_read_a_vocabulary_only_get_the_added_tokens_in_it(tmp_path):
    make(tmp_path / "made", True, None, True, "flags").save_pretrained(tmp_path)
    ours = read(tmp_path)
    files = {name: content.encode() for name, content in ours.files().items()}
    assert files_with_added_tokens(files, ours.rules)["vocab.txt"].decode().splitlines() == ours.tokens


# --- Malformed and unsupported files ---


def change(folder, name, edit):
    document = edit(json.loads((folder / name).read_text(encoding="utf-8")))
    (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return document


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a saved tokenizer with markers, as JSON documents."""
    folder = tmp_path_factory.mktemp("saved")
    make(folder / "made", True, None, True, "markers").save_pretrained(folder)
    names = ("tokenizer.json", "tokenizer_config.json")
    return {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in names}


def with_value(document, path, value):
    """Copy a document with another value at a path of keys; ... removes it."""
    document = json.loads(json.dumps(document))
    *keys, last = path.split("/")
    part = document
    for key in keys:
        part = part[int(key) if isinstance(part, list) else key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return document


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("tokenizer.json", "model/type", "Unigram", r"tokenizer\.json: the model is 'Unigram'; WordPiece and BPE can"),
        ("tokenizer.json", "model/type", ["WordPiece"], "the model is"),
        ("tokenizer.json", "model", ..., "has no model"),
        ("tokenizer.json", "model/unk_token", "<unk>", "model.unk_token is '<unk>', not '\\[UNK\\]'"),
        ("tokenizer.json", "model/vocab", [["a", 0]], "no JSON object of tokens"),
        ("tokenizer.json", "model/vocab", {"a": 0, "b": 10**15}, "does not number its 2 tokens"),
        ("tokenizer.json", "model/vocab", {"a": True}, "no JSON object of tokens"),
        ("tokenizer.json", "model/vocab", {"a": 0, "b": 0}, "does not number its 2 tokens"),
        ("tokenizer.json", "model/vocab", {"a": -1, "b": 0}, "does not number its 2 tokens"),
        ("tokenizer.json", "model/vocab", {"a\nb": 0}, "line end"),
        ("tokenizer.json", "model/vocab", {"\ud800": 0}, "no Unicode string"),
        ("tokenizer.json", "model/vocab", {}, "it has no \\[PAD\\]"),
        ("tokenizer.json", "normalizer", {"type": "Lowercase"}, "normalizer.type is 'Lowercase', not 'BertNormalizer'"),
        ("tokenizer.json", "normalizer", None, "normalizer.type is 'None'"),
        ("tokenizer.json", "normalizer", [1], "normalizer is no JSON object"),
        ("tokenizer.json", "normalizer/clean_text", False, "clean_text is 'False', not True"),
        ("tokenizer.json", "pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer.type is 'Whitespace'"),
        ("tokenizer.json", "added_tokens", {"a": 1}, "added_tokens is not a list"),
        ("tokenizer.json", "added_tokens", [7], "an added token is '7'"),
        ("tokenizer.json", "added_tokens/5/id", "100", "has no id"),
        ("tokenizer.json", "added_tokens/5/id", True, "has no id"),
        ("tokenizer.json", "added_tokens/5/id", 10**18, "must be"),
        ("tokenizer.json", "added_tokens/5/id", 3, "both have the id 3"),
        ("tokenizer.json", "added_tokens/5/content", "", "has no content"),
        ("tokenizer.json", "added_tokens/5/content", "\ud800", "has no content"),
        ("tokenizer.json", "added_tokens/5/lstrip", "yes", "lstrip of the added token '\\[E1\\]' is neither"),
        ("tokenizer_config.json", "tokenizer_class", "BertJapaneseTokenizer", "tokenizer_class is 'BertJapanese"),
        ("tokenizer_config.json", "do_lower_case", "no", "do_lower_case is 'no', which is neither"),
        ("tokenizer_config.json", "strip_accents", 1, "strip_accents is '1', which is neither"),
        ("tokenizer_config.json", "cls_token", "<s>", "cls_token is '<s>'; only '\\[CLS\\]' can be read"),
        ("tokenizer_config.json", "extra_special_tokens", "x", "neither a list nor an object"),
        ("tokenizer_config.json", "extra_special_tokens", [3], "is '3', which is no token"),
        ("tokenizer_config.json", "extra_special_tokens", [{"content": "a", "lstrip": 1}], "lstrip"),
        ("tokenizer_config.json", "added_tokens_decoder", [1], "no JSON object"),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}, "has no id"),
        ("tokenizer_config.json", "added_tokens_decoder", {"9" * 5000: {"content": "a"}}, "has no id"),
        ("tokenizer_config.json", "added_tokens_decoder", {"999": {"content": "[E1]"}}, "has the ids"),
    ],
)
def test_what_cannot_be_read_is_named(saved, name, path, value, message):
    documents = saved | {name: with_value(saved[name], path, value)}
    files = {file: json.dumps(document).encode() for file, document in documents.items()}
    with pytest.raises(CheckpointError, match=message):
        stored = parse_tokenizer(files, "x")
        load_tokenizer(stored.files, lower_case=None, rules=stored.rules, source="x")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"null"])
def test_a_file_that_is_no_json_object_is_named(saved, name, data):
    files = {file: json.dumps(document).encode() for file, document in saved.items()}
    with pytest.raises(CheckpointError, match=rf"x/{name} (cannot be read as JSON|holds no JSON object)"):
        parse_tokenizer(files | {name: data}, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data(), JSON)
def test_no_value_of_a_file_ends_in_another_error(saved, data, value):
    name = data.draw(st.sampled_from(sorted(saved)))
    paths = {"tokenizer.json": ["added_tokens", "model", "normalizer", "pre_tokenizer", "model/vocab", "model/type",
             "added_tokens/3/id", "added_tokens/6/content", "added_tokens/6/special", "normalizer/lowercase"],
             "tokenizer_config.json": [*saved["tokenizer_config.json"], "added_tokens_decoder", "bos_token", "x_token",
             "additional_special_tokens", "extra_special_tokens", "split_special_tokens"]}  # fmt: skip
    documents = saved | {name: with_value(saved[name], data.draw(st.sampled_from(paths[name])), value)}
    files = {file: json.dumps(document).encode() for file, document in documents.items()}
    try:
        stored = parse_tokenizer(files, "x")
        tokenizer = load_tokenizer(stored.files, lower_case=stored.lower_case, rules=stored.rules, source="x")
    except CheckpointError:
        return
    tokenizer.encode(["[E1] the radium [SEP]"])
