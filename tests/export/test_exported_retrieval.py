"""Exported models of embeddings and rankings take the place of runs in retrieval and linking, where torch is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megabert.cli import main
from megabert.retrieval.embedding_store import EmbeddingStore
from tests.checkpoints.huggingface.test_sentence_modules import sentence_model
from tests.export.test_huggingface_export import foreign

pytest.importorskip("onnxruntime")
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from megabert.cli import main
for words in {commands}:
    assert main(words) == 0, words
"""


@pytest.fixture
def models(tmp_path, vocab_file, quick_exporter):
    """The folders of an embedding, `sentences`, and a cross-encoder, `pairs`, with their exports beside them."""
    sentence_model(tmp_path / "sentences", vocab_file, "cls", "Normalize")
    marked = {"sentence_transformers": {"version": "5.1.0"}}
    foreign(tmp_path / "pairs", vocab_file, "bert", "ForSequenceClassification", num_labels=1, **marked)
    for name in ("sentences", "pairs"):
        assert main(["export", str(tmp_path / name), "-o", str(tmp_path / f"{name}-onnx"), "--to", "onnx"]) == 0
    (tmp_path / "passages.tsv").write_text("P1\tmarie found radium\nP2\tthe city of paris\n")
    (tmp_path / "queries.tsv").write_text("Q1\twho found radium\n")
    (tmp_path / "first.trec").write_text("Q1 Q0 P1 1 2.0 x\nQ1 Q0 P2 2 1.0 x\n")
    (tmp_path / "names.tsv").write_text("id\tname\nX:1\tradium\nX:2\tparis\n")
    return tmp_path


def commands(folder, models):
    """The commands of retrieval and linking with both models' folders by name."""
    sentences, pairs = (str(folder / name) for name in models)
    out, rerank = folder / f"out-{models[0]}", [str(folder / "first.trec"), "--queries", str(folder / "queries.tsv")]
    dictionary = str(out / "names.dict")
    linking = ["link", "radium", "--dict", dictionary, "--run", sentences, "-o", str(out / "links.jsonl")]
    return [
        ["embed", sentences, str(folder / "passages.tsv"), "-o", str(out / "vectors"), "--type", "float32"],
        ["index", "build", str(folder / "passages.tsv"), "-o", str(out / "index"), "--run", sentences],
        ["search", str(out / "index"), str(folder / "queries.tsv"), "-o", str(out / "found.trec")],
        ["rerank", pairs, *rerank, "--collection", str(folder / "passages.tsv"), "-o", str(out / "again.trec")],
        ["dictionary", "build", str(folder / "names.tsv"), "-o", dictionary],
        ["dictionary", "embed", dictionary, sentences],
        linking,
    ]


def test_retrieval_and_linking_take_exported_models_without_torch(models, capsys):
    exported = ("sentences-onnx", "pairs-onnx")
    code = WITHOUT_TORCH.format(commands=commands(models, exported))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=models, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in commands(models, ("sentences", "pairs")):
        assert main([*words, *([] if "dictionary" in words and "build" in words else ["--precision", "32"])]) == 0
    ours, theirs = (models / f"out-{name}" for name in ("sentences", "sentences-onnx"))
    vectors = [np.concatenate([b.values for b in EmbeddingStore(o / "vectors").blocks(9)]) for o in (ours, theirs)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    for name in ("found.trec", "again.trec"):
        rows = [[line.split() for line in (out / name).read_text().splitlines()] for out in (ours, theirs)]
        assert [row[:4] for row in rows[0]] == [row[:4] for row in rows[1]]
        assert [float(r[4]) for r in rows[0]] == pytest.approx([float(r[4]) for r in rows[1]], abs=1e-4)
    links = [json.loads((out / "links.jsonl").read_text()) for out in (ours, theirs)]
    assert links[0]["identifier"] == links[1]["identifier"] == "X:1"

    words = ["convert", str(models / "pairs-onnx"), str(models / "again"), "--to", "huggingface"]
    assert main(words) == 66
    assert "is an exported model" in capsys.readouterr().err
