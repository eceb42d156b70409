"""Embeddings of names: a small run, its vectors beside the dictionary, linking with them, in processes; refusals."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.errors import InputError
from megabert.linking.dense import embed_names
from tests.linking.conftest import DISEASES, build

TINY = "{hidden_size: 32, num_layers: 1, num_attention_heads: 2, max_position_embeddings: 64}"
OTHER_RUN = next((Path(__file__).parent.parent / "runs_v1/text_classification/run/checkpoints").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocab_file):
    """Train a small network on the names of the diseases until it knows them; returns its run and dictionary."""
    folder = tmp_path_factory.mktemp("dense")
    opened = build(folder)
    words = [
        "train", "entity_linking", f"model.train_ds.file={folder / 'diseases.txt'}",
        f"model.validation_ds.file={folder / 'diseases.txt'}", "model.train_ds.batch_size=8", "trainer.max_epochs=30",
        "model.language_model.pretrained_model_name=null", f"model.language_model.config={TINY}",
        f"model.tokenizer.vocab_file={vocab_file}", "model.optim.lr=3e-3", "trainer.accelerator=cpu",
        f"exp_manager.explicit_log_dir={folder / 'RUN'}", "trainer.val_check_interval=0",
    ]  # fmt: skip
    assert main(words) == 0
    embed_names(opened, folder / "RUN", accelerator="cpu")
    return folder / "RUN", opened


def test_a_trained_run_puts_synonyms_near_each_other(trained):
    run, opened = trained
    predictor = megabert.load(run, accelerator="cpu")
    examples = predictor.task.read(opened.folder.parent / "diseases.txt")
    assert predictor.evaluate(examples).scores["acc@1"] > 80


def test_names_are_found_by_their_embeddings(trained):
    run, opened = trained
    linker = megabert.load_linker(opened.folder, run, accelerator="cpu")
    results = linker.dense.search(opened.names(0, len(opened)))
    for number, result in enumerate(results):
        similarities = result.similarities(np.arange(len(opened)))
        assert similarities[number] == pytest.approx(1, abs=2e-3)
        assert np.all(np.diff(similarities[result.names]) <= 2e-3)
        assert np.linalg.norm(result.vector) == pytest.approx(1, abs=1e-5)
    assert linker.link(["breast cancers"])[0].identifier == "mesh:D001943"


def test_an_int8_store_finds_the_same(trained, tmp_path):
    run, opened = trained
    other = build(tmp_path)
    embed_names(other, run, dtype="int8", accelerator="cpu")
    names = opened.names(0, len(opened))
    pairs = zip(
        *(megabert.load_linker(item.folder, run, accelerator="cpu").dense.search(names) for item in (opened, other)),
        strict=True,
    )
    for whole, quantized in pairs:
        everything = np.arange(len(opened))
        assert np.abs(whole.similarities(everything) - quantized.similarities(everything)).max() < 0.02


def test_annotation_with_embeddings_is_the_same_with_workers(trained, tmp_path):
    run, opened = trained
    lines = "".join(
        f"{n}|t|{name}.\n{n}|a|\n{n}\t0\t{len(name)}\t{name}\tDisease\t\n\n"
        for n, name in enumerate(["mammary cancer", "wheezing asthma", "ovary tumors", "breast and ovarian cancer"])
    )
    (tmp_path / "corpus.pubtator").write_text(lines)
    command = ["annotate", str(tmp_path / "corpus.pubtator"), "--link", f"Disease={opened.folder},{run}"]
    for name, options in (("a.jsonl", []), ("b.jsonl", ["--workers", "1"])):
        assert main([*command, "-o", str(tmp_path / name), "--accelerator", "cpu", *options]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert b"mesh:D001943|mesh:D010051" in (tmp_path / "a.jsonl").read_bytes()


def test_the_vectors_of_another_run_or_dictionary_are_refused(trained, tmp_path):
    run, opened = trained
    with pytest.raises(InputError, match=r"has no vectors of .*it has those of the runs .*dictionary embed"):
        megabert.load_linker(opened.folder, OTHER_RUN, accelerator="cpu")
    other = build(tmp_path, DISEASES + "D000001||Calcimycin\n")
    vectors = next(opened.folder.glob("vectors-*"))
    shutil.copytree(vectors, other.folder / vectors.name)
    with pytest.raises(InputError, match="has the vectors of another dictionary"):
        megabert.load_linker(other.folder, run, accelerator="cpu")


def test_any_run_embeds_names(tmp_path):
    opened = build(tmp_path)
    assert main(["dictionary", "embed", str(opened.folder), str(OTHER_RUN), "--accelerator", "cpu"]) == 0
    linker = megabert.load_linker(opened.folder, OTHER_RUN, accelerator="cpu")
    assert linker.link(["Asthma"], k=3)[0].identifier == "mesh:D001249"
