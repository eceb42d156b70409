"""The command export: proof, refusal, folders, and the graph that it writes."""

import json

import numpy as np
import pytest
import torch

import megabert
import megabert.errors
from megabert.cli import main

from ..test_first_round_runs import input_of
from .conftest import RUNS
from .test_exported_models import logits_of, random_features, run

onnx = pytest.importorskip("onnx")
RUN = RUNS / "token_classification" / "run"
FILE = input_of("token_classification")


def test_dims_are_symbols_and_the_graph_has_no_fixed_shape(exported):
    graph = onnx.load(exported("token_classification") / "model.onnx").graph
    for value in (*graph.input, *graph.output):
        assert [dim.dim_param for dim in value.type.tensor_type.shape.dim][:2] == ["batch", "length"]
    onnx.checker.check_graph(graph, _context())


def _context():
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {"": 21, "com.microsoft": 1}
    return context


def test_the_manifest_names_versions_inputs_and_the_run(exported):
    folder = exported("token_classification")
    manifest, proof = (json.loads((folder / name).read_text()) for name in ("manifest.json", "proof.json"))
    assert manifest["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert manifest["run"] == run("token_classification").digest and manifest["opset"] == 21
    assert set(proof["shapes"]) == {"batch 1", "length 1", "one of full length", "mixed lengths"}
    assert proof["max_difference"] <= 1e-4
    assert json.loads((folder / "megabert.json").read_text())["labels"] == run("token_classification").labels


def test_8_bits_that_lose_too_much_are_refused_unless_forced(quick_exporter, tmp_path, monkeypatch, capsys):
    from megabert.export import proof

    monkeypatch.setattr(proof, "MAX_LOSS", -1.0)  # a fall by any amount is too much then
    words = ["export", str(RUN), "-o", str(tmp_path / "out"), "--to", "onnx", "--int8", "--file", str(FILE)]
    assert main(words) == 65
    assert "8 bits are too few" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--force", "--calibration", str(FILE)]) == 0
    stored = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert stored["score"] == "f1" and stored["agreement"] > 90 and stored["milliseconds_after"] > 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["precision"] == "int8 static"
    features = random_features([40, 3, 1])
    session = megabert.load(tmp_path / "out").session
    for one, other in zip(
        logits_of(session, features), logits_of(run("token_classification").session, features), strict=True
    ):
        assert np.abs(one - other).max() < 1
    assert main(words) == 64  # the folder exists
    assert "exists" in capsys.readouterr().err


def test_different_logits_are_refused():
    from megabert.errors import InputError
    from megabert.export.proof import ExportProof, check_float

    check_float(ExportProof(1e-5, {"batch 1": 1e-5}))
    for wrong in (1.1e-4, float("inf"), float("nan")):
        with pytest.raises(InputError, match="refused"):
            check_float(ExportProof(wrong, {"batch 1": wrong}))


def test_large_weights_are_in_a_file_of_their_own(exported, tmp_path):
    from megabert.export.onnx_export import _write_network
    from megabert.onnx_session import open_network

    proto = onnx.load(exported("token_classification") / "model.onnx")
    assert set(_write_network(tmp_path, proto, largest=0)) == {"model.onnx", "model.onnx.data"}
    inputs = {name: np.ones((2, 3), dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    first, second = (
        open_network(folder / "model.onnx").run(["logits"], inputs)[0]
        for folder in (tmp_path, exported("token_classification"))
    )
    np.testing.assert_array_equal(first, second)


def test_a_torch_program_has_the_logits_of_the_run(tmp_path, capsys):
    assert main(["export", str(RUN), "-o", str(tmp_path / "out"), "--to", "torch-export"]) == 0
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    session = run("token_classification").session
    for features in (random_features([9, 9]), random_features([1])):
        ids = torch.tensor(np.stack([item.token_ids for item in features]))
        actual = program(ids, torch.ones_like(ids), torch.zeros_like(ids)).detach().numpy()
        np.testing.assert_allclose(actual, np.stack(logits_of(session, features)), atol=1e-5)
    with pytest.raises(megabert.errors.CheckpointError, match="run elsewhere"):
        megabert.load(tmp_path / "out")


def layer(linears, hidden, weight, bias, lowest=None):
    """Compute a linear layer in 8 bits; the tokens of `hidden` are a row."""
    from megabert.export.int8_linear import Graph

    graph, num_tokens = Graph(), len(hidden)
    output = linears.matmul(graph, "layer", linears.prepare(graph, "layer", "hidden", lowest), weight, bias)
    value = onnx.helper.make_tensor_value_info
    inputs = [value("hidden", 1, [num_tokens, weight.shape[0]]), value("input_ids", 7, [1, num_tokens])]
    proto = onnx.helper.make_graph(
        graph.nodes, "layer", inputs, [value(output, 1, [num_tokens, weight.shape[1]])], graph.initializers
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=10).SerializeToString()
    given = {"hidden": hidden, "input_ids": np.zeros((1, num_tokens), np.int64)}
    return pytest.importorskip("onnxruntime").InferenceSession(model).run(None, given)[0]


def test_a_static_range_uses_all_bytes_and_keeps_zero_exact():
    from megabert.export.int8_linear import Int8Linears

    hidden = np.array([[-0.17, 0, 5.1], [0.02, 3, -0.01], [0, 0, 0]], np.float32)
    weight, bias = np.array([[63], [-63], [21]], np.float32), np.array([0.25], np.float32)
    actual = layer(Int8Linears({"layer": (-0.17, 5.1)}), hidden, weight, bias)
    step = 5.27 / 255
    rounded = np.round(hidden / step) * step  # all in the range: -0.17 is 8 steps below zero
    np.testing.assert_allclose(actual, rounded @ weight + bias, atol=1e-4)
    assert actual[2, 0] == 0.25


@pytest.mark.parametrize("lowest", [None, -0.1701])
def test_each_token_has_a_scale_of_its_own_that_covers_its_values(lowest):
    from megabert.export.int8_linear import Int8Linears

    hidden = np.array([[-0.17, 0, 5.1], [0.02, 0.1, -0.17], [0, 0, 0], [-0.17, -0.1, -0.01], [90, 3, 1]], np.float32)
    weight, bias = np.array([[63], [-63], [21]], np.float32), np.array([0.25], np.float32)
    actual = layer(Int8Linears(), hidden, weight, bias, lowest)
    steps = np.maximum(np.abs(hidden).max(1, keepdims=True), -lowest if lowest else 1e-12) / 127
    np.testing.assert_allclose(actual, np.round(hidden / steps) * steps @ weight + bias, atol=1e-3)
    assert actual[2, 0] == 0.25
    (alone,) = layer(Int8Linears(), hidden[1:2], weight, bias, lowest)
    np.testing.assert_array_equal(actual[1], alone)


def test_gelu_is_never_below_its_bound():
    from megabert.export.onnx_graph import GELU_LOWEST

    values = torch.linspace(-2, 0, 200_001, dtype=torch.float64)
    for approximate in ("none", "tanh"):
        lowest = torch.nn.functional.gelu(values, approximate=approximate).min().item()
        assert GELU_LOWEST < lowest < GELU_LOWEST + 2e-4


def test_equal_nodes_of_a_graph_are_computed_once():
    from megabert.export.int8_linear import Graph

    graph = Graph()
    one = graph.add("Concat", "a", "b", axis=0)
    assert graph.add("Concat", "a", "b", axis=0) == one and len(graph.nodes) == 1
    others = [graph.add("Concat", "a", "b", axis=1), graph.add("Concat", "b", "a", axis=0), graph.add("Neg", "a")]
    assert len({one, *others, graph.add("Neg", "a", domain="other")}) == len(graph.nodes) == 5


def test_an_output_below_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(RUN), "-o", str(tmp_path / "file" / "model"), "--to", "onnx"]) == 73
    assert capsys.readouterr().err == f"megabert: a file is where a folder must be: {tmp_path / 'file'}\n"


@pytest.mark.parametrize("words", [["--to", "onnx", "--calibration", "a"], ["--to", "torch-export", "--int8"]])
def test_options_that_have_no_effect_are_refused(words, tmp_path, capsys):
    assert main(["export", str(RUN), "-o", str(tmp_path / "out"), *words]) == 64


def test_quantized_weights_are_within_half_a_step():
    from megabert.export.int8_linear import WEIGHT_LIMIT, quantize

    weight = np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)
    weight[:, 3] = 0
    values, scales = quantize(weight, axis=0, limit=WEIGHT_LIMIT)
    assert np.abs(values).max() == WEIGHT_LIMIT and scales.shape == (1, 20)
    assert (np.abs(values * scales - weight) <= scales / 2 + 1e-7).all()
    # 255 * 63 * 2 products: without VNNI they are added in 16 bits
    assert 255 * WEIGHT_LIMIT * 2 < 2**15
