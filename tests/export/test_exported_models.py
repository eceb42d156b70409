"""Exported models answer as their runs do: in another process without torch, for any text, in any batch."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.data.packing import Features
from megabert.errors import CheckpointError, ConfigError
from megabert.inference import EvaluationStopped
from megabert.onnx_session import Lanes, OnnxSession

from ..test_first_round_runs import FIELDS, assert_same, input_of
from ..test_without_torch import NoTorch
from .conftest import RUNS

# A run of each kind of head: sequences, tokens, spans, several heads; both language models. An export takes a second.
# Tasks without a run here are exported where they are trained, in tests/tasks/test_contract.py.
NAMES = ["glue", "intent_slot", "question_answering", "token_classification"]
LANGUAGE_MODELS = ["masked_language_model", "causal_language_model"]
TEXTS = [
    "", " ", "a", "\u202eabc \U0001f600 e\u0301e\u0301", "Σίσυφος שלום 中文 ", "x" * 300, "marie curie " * 200,
    "\x00\ufffd\n\t,.",
]  # fmt: skip


def run(name):
    return megabert.load(RUNS / name / "run", accelerator="cpu")


def rows_of(predictor, file):
    examples = predictor.task.read(file)
    return list(predictor.task.to_rows(examples, predictor.predict_examples(examples)))


def random_features(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [Features(random.integers(0, 90, length), np.zeros(length, dtype=np.int64)) for length in lengths]


def logits_of(session, features):
    return session.run(features, batch_size=32, max_length=512, pad_id=0).logits


def test_every_task_predicts_the_same_in_another_process_without_torch(exported):
    folders = [[name, str(exported(name)), str(input_of(name))] for name in NAMES]
    folders += [[name, str(exported(name)), FIELDS.get(name, {"text": "marie"})] for name in LANGUAGE_MODELS]
    folders += [[f"{name}, int8", str(exported(name, "int8 dynamic")), str(input_of(name))] for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.test_exported_models", json.dumps(folders)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for name in NAMES:
        expected = json.loads(json.dumps(rows_of(run(name), input_of(name))))
        assert_same(answers[name], expected, tolerance=1e-4)
        here = replace(megabert.load(exported(name, "int8 dynamic")), batch_size=3)
        assert_same(answers[f"{name}, int8"], json.loads(json.dumps(rows_of(here, input_of(name)))))
    for name in LANGUAGE_MODELS:
        predictor = run(name)
        expected = predictor.task.to_json(predictor.predict(**FIELDS.get(name, {"text": "marie"})))
        assert_same(answers[name], json.loads(json.dumps(expected)), tolerance=1e-4)


PRECISIONS = ["32", "int8 dynamic", "int8 static"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_text_has_the_same_entities(exported, precision):
    before, after = run("token_classification"), megabert.load(exported("token_classification", precision))
    texts = [text for text in TEXTS if text.strip()]
    logits = []
    for predictor in (before, after):
        examples = [predictor.task.example(text=text) for text in texts]
        features = predictor.task.features(examples, predictor.tokenizer, with_targets=False)
        logits.append(np.concatenate(logits_of(predictor.session, features)))
    assert np.abs(logits[0] - logits[1]).max() < (1e-4 if precision == "32" else 0.5)
    if precision == "32":
        assert [item.tags for item in after.predict(text=texts)] == [item.tags for item in before.predict(text=texts)]


NETWORKS = [*(("token_classification", precision) for precision in PRECISIONS), ("causal_language_model", "32")]


@pytest.mark.parametrize(("name", "precision"), NETWORKS)
def test_padding_and_other_sequences_never_change_a_logit(exported, name, precision):
    session = megabert.load(exported(name, precision)).session
    features = random_features([1, 2, 3, 17, 31, 40, 40, 9])
    together = logits_of(session, features)
    for feature, expected in zip(features, together, strict=True):
        (alone,) = logits_of(session, [feature])
        # In 8 bits, the last digit of a float may decide to which of two integers it is rounded.
        np.testing.assert_allclose(alone, expected, atol=1e-5 if precision == "32" else 0.05)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_8_bits_have_a_quarter_of_the_size_and_keep_the_labels(exported, precision):
    plain, small = exported("token_classification"), exported("token_classification", precision)
    before, after = (
        np.concatenate(logits_of(megabert.load(folder).session, random_features([40] * 20))).argmax(1)
        for folder in (plain, small)
    )
    assert (before == after).mean() > 0.95
    assert json.loads((small / "manifest.json").read_text())["precision"] == precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_does_not_change_answers(exported, precision):
    from megabert.exported_folder import load_exported

    features = random_features([5, 40, 33] * 9)  # three batches
    by_one, by_two = (
        np.concatenate(
            logits_of(load_exported(exported("token_classification", precision), threads=threads).session, features)
        )
        for threads in (1, 2)
    )
    np.testing.assert_array_equal(by_one, by_two)
    expected = np.concatenate(logits_of(run("token_classification").session, features))
    np.testing.assert_allclose(by_two, expected, atol=1e-5 if precision == "32" else 0.5)


def test_threads_compute_batches_side_by_side_and_progress_is_in_order():
    done = []

    class Network:
        def __init__(self, count):
            self.all = threading.Barrier(count, timeout=20)

        def run(self, names, inputs):
            self.all.wait()  # until so many batches are computed
            return [inputs["input_ids"][:, :, None].astype(np.float32)]

    with ThreadPoolExecutor(2) as threads:
        session = OnnxSession(None, False, 512, lanes=Lanes(Network(2), threads, 2))
        features = random_features([256, 132, 80, 80, 80, 240])
        output = session.run(
            features, batch_size=32, max_length=512, pad_id=0, progress=lambda *counts: done.append(counts)
        )
        with pytest.raises(EvaluationStopped):
            replace(session, lanes=Lanes(Network(1), threads, 2)).run(
                features, batch_size=32, max_length=512, pad_id=0, should_stop=lambda: True
            )
    for own, feature in zip(output.logits, features, strict=True):
        np.testing.assert_array_equal(own[:, 0], feature.token_ids)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    one = OnnxSession(Network(1), False, 512, lanes=Lanes(None, threads, 2))
    assert len(logits_of(one, features[3:5])) == 2  # a single batch is not for the threads


def test_batches_that_nobody_waits_for_are_not_computed():
    done, go_on = [], threading.Event()

    class Network:
        def run(self, names, inputs):
            done.append(names)
            assert len(done) < 3 or go_on.wait(20)
            return [inputs["input_ids"][:, :, None].astype(np.float32)]

    with ThreadPoolExecutor(2) as threads:
        session = OnnxSession(None, False, 512, lanes=Lanes(Network(), threads, 2))
        options = {"batch_size": 32, "max_length": 512, "pad_id": 0}
        with pytest.raises(EvaluationStopped) as stopped:
            session.run(random_features([256] * 9), should_stop=lambda: True, **options)
        go_on.set()
    assert stopped.tb  # it keeps the frames
    assert len(done) <= 4


def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(exported, monkeypatch):
    from megabert.exported_folder import load_exported

    session = load_exported(exported("token_classification"), threads=2).session
    features = random_features([40] * 27)
    expected = logits_of(session, features)
    session.lanes.threads.shutdown()
    session = replace(session, network=None)  # that has threads, too
    monkeypatch.setattr(os, "getpid", lambda: 0)
    np.testing.assert_array_equal(logits_of(session, features), expected)


def test_vectors_are_those_of_the_run(exported):
    texts = ["marie", "the river " * 100]
    vectors = megabert.load(exported("glue")).embed(texts)
    np.testing.assert_allclose(vectors, run("glue").embed(texts), atol=1e-5)


def test_a_feature_of_several_sequences_has_their_logits(exported):
    session = megabert.load(exported("glue")).session
    one, two = random_features([7, 12])

    joined = Features(np.concatenate([one.token_ids, two.token_ids]), np.zeros(19, dtype=np.int64), parts=(7, 12))
    logits = logits_of(session, [joined, one])
    np.testing.assert_allclose(logits[0], np.stack(logits_of(session, [one, two])), atol=1e-6)
    assert logits[1].shape == logits[0][0].shape


def test_memory_does_not_grow_with_predictions(exported):
    session = megabert.load(exported("token_classification")).session
    random = np.random.default_rng(0)
    batches = [random_features(random.integers(1, 40, 4).tolist(), seed) for seed in range(50)]

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def predict(times):
        for number in range(times):
            logits_of(session, batches[number % len(batches)])

    predict(500)
    before = resident()
    predict(2500)  # of four sequences each
    assert resident() - before < 8e6


def test_several_threads_load_and_predict_at_once(exported):
    folder, features = exported("token_classification"), random_features([20, 30])
    expected = logits_of(megabert.load(folder).session, features)
    with ThreadPoolExecutor(6) as threads:
        for logits in threads.map(lambda _: logits_of(megabert.load(folder).session, features), range(12)):
            np.testing.assert_array_equal(np.concatenate(logits), np.concatenate(expected))


@pytest.mark.parametrize("name", ["model.onnx", "megabert.json", "vocab.txt", "manifest.json", "proof.json"])
def test_a_changed_bit_is_refused(exported, tmp_path, name):
    shutil.copytree(exported("token_classification"), tmp_path / "copy")
    file = tmp_path / "copy" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        megabert.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["model.onnx", "megabert.json"])
def test_a_file_of_another_export_is_refused(exported, tmp_path, name, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(exported("token_classification"), folder)
    shutil.copy(exported("glue") / name, folder / name)
    assert main(["predict", str(folder), "marie"]) == 66
    assert name in capsys.readouterr().err
    (folder / name).unlink()
    assert main(["predict", str(folder), "marie"]) == 66


def test_options_of_a_run_and_losses_are_refused(exported):
    with pytest.raises(ConfigError, match="as it was exported"):
        megabert.load(exported("glue"), precision="bf16")
    with pytest.raises(ConfigError, match=r"accelerator is 'tpu'; choose one of auto, gpu, cpu"):
        megabert.load(exported("glue"), accelerator="tpu")
    predictor = megabert.load(exported("masked_language_model"))
    with pytest.raises(ConfigError, match="no loss"):
        predictor.evaluate(predictor.task.read(input_of("masked_language_model")))


def test_documents_are_annotated_by_an_exported_model(exported, tmp_path, capsys):
    source = tmp_path / "in.pubtator"
    source.write_text("1|t|Marie Curie was born in Warsaw.\n1|a|She found radium in Paris.\n", encoding="utf-8")
    found = []
    for number, folder in enumerate((RUNS / "token_classification" / "run", exported("token_classification"))):
        output = tmp_path / f"{number}.pubtator"
        assert main(["annotate", str(source), "--entities", str(folder), "-o", str(output)]) == 0
        found.append(output.read_text(encoding="utf-8"))
    capsys.readouterr()
    assert found[0] == found[1]


def predict_without_torch(folders):
    """Load each folder and predict; prints the rows of each as JSON. The server's loader takes such folders, too."""
    from megabert.cli.serving import _load, _share

    arguments = argparse.Namespace(accelerator="cpu", precision="auto")
    served = _load("served", Path(folders[0][1]), arguments)
    _share(served, [served])
    answers = {}
    for name, folder, given in folders:
        predictor = megabert.load(folder)
        if isinstance(given, dict):
            answers[name] = predictor.task.to_json(predictor.predict(**given))
        else:
            answers[name] = rows_of(replace(predictor, batch_size=3), Path(given))
    assert "torch" not in sys.modules and "onnx" not in sys.modules
    print(json.dumps(answers))


if __name__ == "__main__":
    sys.meta_path.insert(0, NoTorch())
    predict_without_torch(json.loads(sys.argv[1]))
