"""Mentions read in their sentences: pairs are written, a reader is trained on them, and orders candidates anew."""

import json

import pytest

from megabert.cli import main
from megabert.errors import InputError
from megabert.formats.documents.convert_documents import read_documents
from megabert.linking.linker import LinkQuery
from megabert.linking.open_linker import load_linker
from tests.linking.conftest import build
from tests.linking.test_dense import OTHER_RUN, TINY

NAMES = "MESH:D1||Renal failure|failure\nMESH:D2||Heart failure|failure\n"
SENTENCES = ["It is failure.", "The heart failure."]


def documents(count, *, with_identifiers=True):
    texts = []
    for number in range(count):
        text, identifier = SENTENCES[number % 2], "mesh:D2"
        row = f"{text.index('failure')}\t{len(text) - 1}\tfailure\tDisease\t{identifier * with_identifiers}"
        texts.append(f"{number}|t|{text}\n{number}|a|\n{number}\t{row}\n\n")
    return "".join(texts)


def test_a_reader_that_is_trained_on_pairs_orders_candidates(tmp_path, monkeypatch, vocab_file):
    monkeypatch.chdir(tmp_path)
    opened = build(tmp_path, NAMES)
    (tmp_path / "gold.pubtator").write_text(documents(240))
    (tmp_path / "few.pubtator").write_text(documents(4, with_identifiers=False))
    assert main(["dictionary", "pairs", "diseases.dict", "--mentions", "gold.pubtator", "-o", "pairs.jsonl"]) == 0
    first = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[1])
    assert first["query"] == "failure : The heart failure."
    assert first["positive"] == "failure : Heart failure (mesh D)"
    assert "failure : Renal failure (mesh D)" in first["negatives"]
    train = ["train", "text_ranking", "model.train_ds.file=pairs.jsonl", "model.validation_ds.file=pairs.jsonl"]
    settings = [
        "model.language_model.pretrained_model_name=null", f"model.language_model.config={TINY}",
        f"model.tokenizer.vocab_file={vocab_file}", "model.optim.lr=5e-3", "trainer.max_epochs=2",
        "trainer.accelerator=cpu", "trainer.val_check_interval=0", "exp_manager.explicit_log_dir=READER",
        "model.dataset.max_seq_length=48", "model.train_ds.num_negatives=2", "model.validation_ds.num_samples=4",
    ]  # fmt: skip
    assert main([*train, *settings]) == 0
    linker = load_linker(opened.folder, reader="READER", accelerator="cpu")
    queries = [LinkQuery("failure", context=text) for text in SENTENCES]
    assert [link.identifier for link in linker.link(queries)] == ["mesh:D2"] * 2
    assert [link.identifier for link in load_linker(opened.folder).link(queries)] == ["mesh:D1"] * 2
    assert linker.digest != load_linker(opened.folder).digest
    link = ["--link", "Disease=diseases.dict,,READER", "--accelerator", "cpu"]
    assert main(["annotate", "few.pubtator", *link, "-o", "linked.pubtator"]) == 0
    found = [item.entities[0].identifier for item in read_documents([tmp_path / "linked.pubtator"])]
    assert found == ["mesh:D2"] * 4


def test_a_run_of_another_task_is_no_reader(diseases):
    with pytest.raises(InputError, match="is a run of text_classification; candidates are read by one of text_ranking"):
        load_linker(diseases.folder, reader=OTHER_RUN.parent.parent, accelerator="cpu")
