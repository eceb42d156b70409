"""Precision auto on a CPU with native bfloat16: chosen by the answers to the run's own validation texts."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import megabert
from megabert import measured_precision
from megabert.build import load_embedder, load_run
from megabert.cli import main
from megabert.model import precision

RUNS = Path(__file__).parent / "runs_v1"
WORDS = ["Peter", "lives", "in", "Paris", "and", "Anna", "left", "for", "Rome", "(1999)."]
TEXTS = [" ".join(WORDS[number % 7 : number % 7 + 1 + number % 5]) for number in range(30)]


@pytest.fixture
def run(tmp_path):
    """Copy a small entity run, with validation texts."""
    shutil.copytree(RUNS / "token_classification" / "run", tmp_path / "run")
    write_validation(tmp_path / "run", [{"text": text, "gold": {"entities": []}} for text in TEXTS])
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _bfloat16(monkeypatch):
    monkeypatch.setattr(measured_precision, "has_native_bfloat16", lambda: True)


def write_validation(folder, rows):
    """Write the rows of a run's validation."""
    (folder / "validation").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "validation" / "predictions.jsonl").write_text(lines, encoding="utf-8")


def choice_of(predictor):
    """Return the precision of a predictor, and the note that gives the reason."""
    (note,) = [note for note in predictor.notes if note.startswith("precision ")]
    return predictor.session.precision, note


def test_equal_answers_take_bfloat16(run):
    precision, note = choice_of(megabert.load(run, accelerator="cpu"))
    predictor = megabert.load(run, accelerator="cpu", precision="32")
    total = sum(len(item.spans) for item in predictor.predict(text=TEXTS))
    assert total >= measured_precision.MIN_ANSWERS
    assert note == (
        f"precision bf16: {total} of {total} answers to the run's first 30 validation texts are those of float32; "
        "precision=32 takes float32."
    )
    assert precision == "bf16"


def test_the_network_is_bfloat16_and_its_head_is_not(run):
    model = megabert.load(next((run / "checkpoints").iterdir()), accelerator="cpu").session.model
    assert {item.dtype for item in model.encoder.parameters()} == {torch.bfloat16}
    assert {item.dtype for item in model.head.parameters()} == {torch.float32}


def test_other_answers_keep_float32(run, monkeypatch):
    def cast_badly(model, name):
        precision.cast_model(model, name)
        with torch.no_grad():
            model.head.load_state_dict({key: -value for key, value in model.head.state_dict().items()})

    monkeypatch.setattr(measured_precision, "cast_model", cast_badly)
    found, note = choice_of(megabert.load(run, accelerator="cpu"))
    assert found == "32"
    assert note.startswith("precision 32: in bfloat16 only ")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (None, "the run has no validation/predictions.jsonl on which bfloat16 can be compared"),
        ([{"text": TEXTS[4], "gold": {"entities": []}}], "too few answers to decide, "),
        ([{"text": text, "gold": {}} for text in TEXTS], "too few answers to decide, 0 of 0 "),
        ([{"words": "of another task"}], "bfloat16 cannot be compared on validation/predictions.jsonl ("),
    ],
)
def test_without_texts_to_compare_it_is_float32_and_says_so(run, rows, reason):
    if rows is None:
        shutil.rmtree(run / "validation")
    else:
        write_validation(run, rows)
    found, note = choice_of(megabert.load(run, accelerator="cpu"))
    assert found == "32"
    assert note.startswith(f"precision 32: {reason}")
    assert note.endswith("; precision=bf16 takes bfloat16.")


@pytest.mark.parametrize("options", [{"precision": "32"}, {"for_many": False}, {"precision": "bf16"}])
def test_a_given_precision_is_taken_without_a_comparison(run, options):
    predictor = load_run(run, accelerator="cpu", **options)
    assert predictor.session.precision == options.get("precision", "32")
    assert not predictor.notes


def test_a_processor_without_bfloat16_says_nothing(run, monkeypatch):
    monkeypatch.setattr(measured_precision, "has_native_bfloat16", lambda: False)
    predictor = megabert.load(run, accelerator="cpu")
    assert (predictor.session.precision, predictor.notes) == ("32", ())


def test_commands_print_the_reason_once_and_annotate_records_the_precision(run, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    options = ["--accelerator", "cpu", "--format", "jsonl", "--lines", "-o", str(tmp_path / "out")]
    assert main(["annotate", str(texts), "--entities", str(run), *options]) == 0
    assert capsys.readouterr().err.count("note: precision bf16: ") == 1
    assert json.loads((tmp_path / "out" / "job.json").read_text())["cpu_precisions"] == ["bf16"]
    assert main(["annotate", str(texts), "--entities", str(run), *options, "--resume", "--precision", "32"]) != 0
    assert "precision" in capsys.readouterr().err
    assert main(["predict", str(run), TEXTS[4], "accelerator=cpu"]) == 0
    assert "precision" not in capsys.readouterr().err


def test_answers_in_bfloat16_do_not_depend_on_the_batch(run):
    predictor = megabert.load(run, accelerator="cpu")
    alone = [predictor.predict(text=text) for text in TEXTS]
    spans = [
        [[(span.start, span.type) for span in item.spans] for item in each]
        for each in (alone, predictor.predict(text=TEXTS))
    ]
    assert spans[0] == spans[1]


@pytest.mark.parametrize(
    ("allowed", "expected"), [(None, True), ("AVX512_CORE", False), ("AVX2", False), ("AVX512_CORE_AMX", True)]
)
def test_bfloat16_is_native_where_the_processor_and_onednn_have_it(monkeypatch, allowed, expected):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert precision.has_native_bfloat16() is expected


@pytest.fixture
def embedder(monkeypatch):
    """Load an encoder without a run, of which few texts are compared."""
    monkeypatch.setattr(measured_precision, "MAX_EMBEDDED", 2)
    return lambda **options: load_embedder("megabert-mini-uncased", home=None, accelerator="cpu", **options)


def test_equal_embeddings_take_bfloat16(embedder):
    chosen, expected = embedder(), embedder(for_many=False)
    found, note = choice_of(chosen)
    assert (found, expected.session.precision, expected.notes) == ("bf16", "32", ())
    assert re.fullmatch(r"precision bf16: embeddings of 2 texts have a cosine of (0.999\d|1.0000) or more .*", note)
    texts = ["penicillin was found in London", "a river"]
    cosines = np.einsum("nd,nd->n", *(item.embed(texts) for item in (chosen, expected)))
    assert measured_precision.MIN_COSINE < cosines.min() < cosines.max() < 1.0001


def test_other_embeddings_keep_float32(embedder, monkeypatch, run):
    (run / "validation" / "predictions.jsonl").write_text("{")

    def cast_badly(model, name):
        precision.cast_model(model, name)
        with torch.no_grad():
            model.encoder.layers[-1].mlp.down.weight.neg_()

    assert measured_precision.choose(*[embedder(for_many=False)] * 2, run).reason.startswith("bfloat16 cannot be")
    monkeypatch.setattr(measured_precision, "cast_model", cast_badly)
    found, note = choice_of(embedder())
    assert found == "32"
    assert note.startswith("precision 32: in bfloat16 embeddings of 2 texts have a cosine of ")
