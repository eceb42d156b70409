"""The tokenizer of a Hugging Face folder and its rows: opened, trained, converted, as transformers has them."""

import json

import pytest
import torch

from megabert import cli
from megabert.build import load_encoder
from megabert.checkpoints.convert import WRITERS, Target, convert
from megabert.checkpoints.model_source import find_source, open_named_source, open_source
from megabert.checkpoints.open import open_checkpoint
from megabert.config.schema import LanguageModelSettings, ModelSettings, TokenizerSettings
from megabert.errors import CheckpointError
from tests.conftest import WORDS

transformers = pytest.importorskip("transformers")

WORD = "encoder.embeddings.word.weight"
MARKERS = ["[E1]", "[/E1]", "[E2]", "[/E2]"]
VOCABULARY = [*WORDS, *(f"w{number}" for number in range(100 - len(WORDS) % 100))]
TEXT = "[E1] Radium [/E1] was found by [E2]Marie Curie[/E2], [e1]"


def make(folder, *, rows=None, accents=None, chinese=True, architecture="MegatronBert", markers=MARKERS):
    """Write a folder as transformers 5 does, with markers and a row for each; returns model and tokenizer."""
    folder.mkdir(parents=True)
    file = folder / "words"
    file.write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    tokenizer = transformers.BertTokenizer(str(file), strip_accents=accents, tokenize_chinese_chars=chinese)
    file.unlink()
    tokenizer.add_tokens(markers, special_tokens=True)
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=rows or len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=40,
    )  # fmt: skip
    model = getattr(transformers, f"{architecture}ForPreTraining")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def rows_of(model):
    return model.bert.embeddings.word_embeddings.weight.detach()


def opened(folder, vocab_file=None):
    settings = LanguageModelSettings(pretrained_model_name=str(folder))
    model = ModelSettings(language_model=settings, tokenizer=TokenizerSettings(vocab_file=vocab_file))
    return open_source(find_source(model, home=folder), home=folder)


def write_vocabulary(file, words=VOCABULARY):
    file.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return str(file)


def test_trained_rows_of_markers_are_kept_and_their_ids_are_transformers_s(tmp_path):
    model, theirs = make(tmp_path / "hub", architecture="Bert")
    assert not (tmp_path / "hub" / "vocab.txt").exists()
    encoder, tokenizer = load_encoder(str(tmp_path / "hub"), home=tmp_path)
    assert encoder.config.vocabulary_size == len(tokenizer) == len(VOCABULARY) + 4
    assert torch.equal(encoder.embeddings.word.weight, rows_of(model))
    ids = theirs(TEXT)["input_ids"]
    assert [tokenizer.cls_id, *tokenizer.encode_ids([TEXT])[0], tokenizer.sep_id] == ids
    with torch.inference_mode():
        expected = model.eval().bert(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(encoder(torch.tensor([ids])), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", WRITERS)
def test_conversion_keeps_the_rows_of_added_tokens(tmp_path, name):
    model, theirs = make(tmp_path / "hub", accents=False, chinese=False)
    source = open_named_source(str(tmp_path / "hub"), home=tmp_path)
    target = Target(name)
    dest = tmp_path / "converted"
    notes = convert(source.checkpoint, dest, target, num_tokens=source.num_tokens, progress=None)
    again = open_named_source(str(dest), home=tmp_path)
    assert again.num_tokens == len(theirs)
    assert again.tokenizer.tokens == source.tokenizer.tokens
    word = again.checkpoint.tensors[WORD].read()
    assert torch.equal(word[: len(theirs)], rows_of(model))
    ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    if name in ("megabert", "huggingface"):
        assert notes == []
        assert again.tokenizer.encode_ids([TEXT])[0].tolist() == ids
        assert again.tokenizer.rules == source.tokenizer.rules
    else:
        assert again.tokenizer.encode_ids([TEXT])[0].tolist() != ids
        assert "'[E1]', '[/E1]', '[E2]', '[/E2]' in a text like other words. Their rows are kept" in notes[0]
        assert "lower-cases but keeps accents" in notes[1]
        assert "leaves Chinese characters together" in notes[2]


@pytest.mark.parametrize("accents", [None, True, False])
def test_transformers_reads_what_is_converted_to_the_same_ids(tmp_path, accents):
    _, theirs = make(tmp_path / "hub", accents=accents, chinese=False)
    ours = tmp_path / "ours"
    words = ["--to", "megabert"], ["--to", "huggingface"]
    assert cli.main(["convert", str(tmp_path / "hub"), str(ours), *words[0]]) == 0
    assert cli.main(["convert", str(ours), str(tmp_path / "back"), *words[1]]) == 0
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in (TEXT, "Éclair 東京 [MASK] [E2]", "e\u0301 [UNK]"):
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    model = transformers.AutoModel.from_pretrained(tmp_path / "back")
    assert len(model.embeddings.word_embeddings.weight) == len(theirs)


def test_a_gpt_2_folder_with_tokenizer_json_alone_is_opened_and_converted(tmp_path):
    letters = [*"abcdefghijklmnopqrstuvwxyz.", "Ġ", "th", "Ġth", "the", "<|endoftext|>"]
    merges = [("t", "h"), ("Ġ", "th"), ("th", "e")]
    theirs = transformers.GPT2Tokenizer(vocab={letter: index for index, letter in enumerate(letters)}, merges=merges)
    theirs.add_tokens(["<gene>"], special_tokens=True)
    config = transformers.GPT2Config(vocab_size=len(theirs), n_embd=16, n_layer=1, n_head=4, n_positions=20)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "hub")
    assert not (tmp_path / "hub" / "vocab.json").exists()
    text = "the path <gene>of thin.<|endoftext|>"
    _, tokenizer = load_encoder(str(tmp_path / "hub"), home=tmp_path)
    assert tokenizer.encode_ids([text])[0].tolist() == theirs(text)["input_ids"]
    assert tokenizer.end_id == letters.index("<|endoftext|>")
    for name in ("huggingface", "megatron", "nemo", "megabert"):
        assert cli.main(["convert", str(tmp_path / "hub"), str(tmp_path / name), "--to", name]) == 0
        again = open_named_source(str(tmp_path / name), home=tmp_path)
        assert again.tokenizer.tokens == [*letters, "<gene>"]
        assert torch.equal(again.checkpoint.tensors[WORD].read()[: len(theirs)], model.transformer.wte.weight)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "huggingface")
    assert again(text)["input_ids"] == theirs(text)["input_ids"]


def test_more_rows_than_tokens_open_where_the_folder_names_its_tokens(tmp_path):
    model, _ = make(tmp_path / "hub", rows=1104 + 37)
    found = opened(tmp_path / "hub")
    encoder, tokenizer = load_encoder(str(tmp_path / "hub"), home=tmp_path)
    assert found.num_tokens == len(tokenizer) == len(VOCABULARY) + 4
    assert torch.equal(encoder.embeddings.word.weight, rows_of(model)[: len(tokenizer)])
    other = write_vocabulary(tmp_path / "other.txt", VOCABULARY[:-50])
    with pytest.raises(CheckpointError, match=r"must be|no padding leads"):
        opened(tmp_path / "hub", other)


def test_tokens_without_a_row_are_named_with_the_remedy(tmp_path):
    make(tmp_path / "hub", rows=len(VOCABULARY))
    with pytest.raises(CheckpointError, match=r"name 204 tokens, but .* has 200 word vectors.*resize_token_embeddings"):
        load_encoder(str(tmp_path / "hub"), home=tmp_path)


def test_a_given_vocabulary_keeps_the_folder_s_added_tokens(tmp_path):
    _, theirs = make(tmp_path / "hub")
    found = opened(tmp_path / "hub", write_vocabulary(tmp_path / "words.txt"))
    assert found.tokenizer.encode_ids([TEXT])[0].tolist() == theirs(TEXT, add_special_tokens=False)["input_ids"]
    everything = opened(tmp_path / "hub", write_vocabulary(tmp_path / "all.txt", [*VOCABULARY, *MARKERS]))
    assert everything.tokenizer.tokens == found.tokenizer.tokens


def test_listed_tokens_are_kept_where_the_vocabulary_is_given(tmp_path):
    _, theirs = make(tmp_path / "hub")
    (tmp_path / "hub" / "tokenizer.json").unlink()
    (tmp_path / "hub" / "added_tokens.json").write_text(json.dumps(theirs.get_added_vocab()))
    found = opened(tmp_path / "hub", write_vocabulary(tmp_path / "words.txt"))
    assert found.tokenizer.tokens == [*VOCABULARY, *MARKERS]
    assert found.tokenizer.encode_ids(["[E1] a"])[0][0] == len(VOCABULARY)


def test_an_unsupported_tokenizer_matters_only_without_another_vocabulary(tmp_path):
    make(tmp_path / "hub", markers=[])
    file = tmp_path / "hub" / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["model"]["type"] = "Unigram"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the model is 'Unigram'.*vocab_file=FILE"):
        opened(tmp_path / "hub")
    assert opened(tmp_path / "hub", write_vocabulary(tmp_path / "words.txt")).num_tokens == len(VOCABULARY)


def test_a_file_too_large_is_refused(tmp_path, monkeypatch):
    make(tmp_path / "hub")
    monkeypatch.setattr("megabert.checkpoints.tokenizer_files._LARGEST_FILE", 100)
    assert "at most 100 are read" in open_checkpoint(tmp_path / "hub").tokenizer_problem


def test_inspection_reports_tokens_and_added_tokens(tmp_path, capsys):
    make(tmp_path / "hub")
    assert cli.main(["inspect", str(tmp_path / "hub"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vocabulary"]["tokens"] == report["vocabulary"]["rows"] == len(VOCABULARY) + 4
    assert report["vocabulary"]["source"].endswith("tokenizer.json")
    assert "added tokens: 4 ('[E1]', '[/E1]', '[E2]', '[/E2]')" in report["assumptions"]


def test_a_run_keeps_the_added_tokens_of_its_language_model(tmp_path, capsys, monkeypatch):
    import megabert

    _, theirs = make(tmp_path / "hub")
    monkeypatch.setenv("MEGABERT_HOME", str(tmp_path / "home"))
    data = tmp_path / "data.tsv"
    data.write_text("[E1] radium [/E1] was found\tyes\nthe river is in france\tno\n" * 2)
    words = [
        f"model.train_ds.file={data}", f"model.validation_ds.file={data}", "trainer.max_epochs=1",
        f"model.language_model.pretrained_model_name={tmp_path / 'hub'}", "model.dataset.max_seq_length=20",
        f"exp_manager.explicit_log_dir={tmp_path / 'run'}", "trainer.accelerator=cpu",
    ]  # fmt: skip
    assert cli.main(["train", "text_classification", *words]) == 0, capsys.readouterr().err
    tokenizer = megabert.load(tmp_path / "run", accelerator="cpu").tokenizer
    assert tokenizer.encode_ids([TEXT])[0].tolist() == theirs(TEXT, add_special_tokens=False)["input_ids"]
    (document,) = (tmp_path / "run" / "checkpoints").glob("*/tokenizer.json")
    assert [entry["content"] for entry in json.loads(document.read_text())["added_tokens"]][-4:] == MARKERS
    assert (document.parent / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1] == VOCABULARY
