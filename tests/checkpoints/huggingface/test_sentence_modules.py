"""Models of sentence-transformers: embeddings are those of their modules, computed here by transformers' network."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import megabert
from megabert.build import load_embedder
from megabert.cli import main
from megabert.errors import CheckpointError
from tests.export.test_huggingface_export import foreign, read_json

transformers = pytest.importorskip("transformers")

TEXTS = ["marie curie found radium", "a", "who was born in warsaw? " * 9]
OLD = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}


def sentence_model(folder, vocab_file, pooling, *others, is_old=True, prompts=None, **pooling_settings):
    """Write a folder as sentence-transformers before version 6 does, or since; returns the network."""
    model = foreign(folder, vocab_file, "bert", "Model")
    names = ["Transformer", "Pooling", *others]
    paths = ["", *(f"{number}_{name}" for number, name in enumerate(names[1:], 1))]
    start = "sentence_transformers.models." if is_old else "sentence_transformers.base.modules.any."
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": start + name}
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    switches = {key: name == pooling for name, key in OLD.items()} | {"pooling_mode_max_tokens": pooling == "max"}
    settings = {"word_embedding_dimension": 16, **switches} if is_old else {"pooling_mode": pooling}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings | pooling_settings))
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": False}))
    return model


def expected(model, folder, texts, pooling, *, normalize):
    """Compute embeddings by transformers' tokenizer and network, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        given = tokenizer(text, truncation=True, max_length=20, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**given).last_hidden_state[0]
        vectors.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling].numpy())
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else 1
    return np.array(vectors) / lengths


@pytest.mark.parametrize("is_old", [True, False])
@pytest.mark.parametrize("pooling", OLD)
def test_pooling_normalization_and_length_are_those_of_the_modules(tmp_path, vocab_file, pooling, is_old):
    others = ["Dropout", "Normalize"] if is_old else []  # dropout is for training alone
    model = sentence_model(tmp_path / "hub", vocab_file, pooling, *others, is_old=is_old)
    ours = load_embedder(str(tmp_path / "hub"), home=tmp_path, accelerator="cpu", precision="32")
    vectors = expected(model, tmp_path / "hub", TEXTS, pooling, normalize=is_old)
    for role in ("query", "passage"):
        np.testing.assert_allclose(ours.embed(TEXTS, role=role), vectors, atol=1e-5)
    assert main(["export", str(tmp_path / "hub"), "-o", str(tmp_path / "again"), "--to", "huggingface"]) == 0
    again = megabert.load(tmp_path / "again", accelerator="cpu", precision="32")
    np.testing.assert_array_equal(again.embed(TEXTS), ours.embed(TEXTS))
    if is_old:
        given, written = (read_json(tmp_path / folder / "1_Pooling" / "config.json") for folder in ("hub", "again"))
        assert written.items() <= given.items()
        names = [item["type"] for item in json.loads((tmp_path / "again" / "modules.json").read_text())]
        assert names == [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]


def dense(folder, number, *, has_bias=True, file="model.safetensors", **changes):
    """Write the module Dense; returns what it computes."""
    torch.manual_seed(2)
    layer = torch.nn.Linear(16, 6, bias=has_bias)
    stated = {
        "in_features": 16,
        "out_features": 6,
        "bias": has_bias,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / f"{number}_Dense").mkdir()
    (folder / f"{number}_Dense" / "config.json").write_text(json.dumps(stated | changes))
    state = {f"linear.{name}": item for name, item in layer.state_dict().items()}
    save = save_file if file.endswith("safetensors") else torch.save
    save(state, folder / f"{number}_Dense" / file)
    return lambda vectors: torch.tanh(layer(torch.from_numpy(vectors).float())).detach().numpy()


@pytest.mark.parametrize(("has_bias", "file"), [(True, "model.safetensors"), (False, "pytorch_model.bin")])
@pytest.mark.parametrize("others", [["Dense"], ["Dense", "Normalize"]])
def test_a_linear_layer_follows_the_pooling(tmp_path, vocab_file, others, has_bias, file):
    model = sentence_model(tmp_path / "hub", vocab_file, "cls", *others)
    project = dense(tmp_path / "hub", 2, has_bias=has_bias, file=file)
    vectors = project(expected(model, tmp_path / "hub", TEXTS, "cls", normalize=False))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) if len(others) == 2 else 1
    ours = megabert.load(tmp_path / "hub", accelerator="cpu", precision="32")
    assert np.allclose(ours.embed(TEXTS), vectors, atol=1e-5)
    assert main(["export", str(tmp_path / "hub"), "-o", str(tmp_path / "hf"), "--to", "huggingface"]) != 0
    if len(others) == 1 and has_bias:
        assert main(["export", str(tmp_path / "hub"), "-o", str(tmp_path / "onnx"), "--to", "onnx"]) == 0
        assert np.allclose(megabert.load(tmp_path / "onnx", accelerator="cpu").embed(TEXTS), vectors, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softplus"}, "the activation Softplus"),
        ({"use_residual": True}, "a residual connection"),
        ({"module_input_name": "token_embeddings"}, "something else than sentence_embedding"),
        ({"module_input_name": "a", "module_output_name": "a"}, "something else than sentence_embedding"),
    ],
)
def test_another_linear_layer_is_refused(tmp_path, vocab_file, changes, message):
    sentence_model(tmp_path / "hub", vocab_file, "mean", "Dense")
    dense(tmp_path / "hub", 2, **changes)
    with pytest.raises(CheckpointError, match=message):
        megabert.load(tmp_path / "hub", accelerator="cpu")


@pytest.mark.parametrize(
    ("weight", "message"),
    [(torch.zeros(6, 15), "15"), (torch.full((6, 16), torch.nan), "NaN"), (torch.zeros(6), "matrix")],
)
def test_weights_of_another_linear_layer_are_refused(tmp_path, vocab_file, weight, message):
    sentence_model(tmp_path / "hub", vocab_file, "mean", "Dense")
    dense(tmp_path / "hub", 2)
    save_file({"linear.weight": weight, "linear.bias": torch.zeros(6)}, tmp_path / "hub/2_Dense/model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        megabert.load(tmp_path / "hub", accelerator="cpu")


@pytest.mark.parametrize(("stated", "is_noted"), [("euclidean", True), ("cosine", True), (None, True), ("dot", False)])
def test_another_similarity_than_the_inner_product_is_noted(tmp_path, vocab_file, stated, is_noted):
    sentence_model(tmp_path, vocab_file, "mean")
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"similarity_fn_name": stated}))
    notes = megabert.load(tmp_path, accelerator="cpu").notes
    assert any("similarity is the inner product" in note for note in notes) == is_noted


def test_a_classifier_of_setfit_is_named(tmp_path, vocab_file):
    sentence_model(tmp_path / "hub", vocab_file, "mean")
    (tmp_path / "hub" / "model_head.pkl").write_bytes(b"x")
    assert any("SetFit" in note for note in megabert.load(tmp_path / "hub", accelerator="cpu").notes)


def test_each_role_has_its_prompt(tmp_path, vocab_file):
    prompts = {"query": "who was ", "document": "the city of "}
    model = sentence_model(tmp_path, vocab_file, "mean", "Normalize", prompts=prompts)
    ours = megabert.load(tmp_path, accelerator="cpu", precision="32")
    for role, prompt in zip(("query", "passage"), prompts.values(), strict=True):
        vectors = expected(model, tmp_path, [prompt + text for text in TEXTS], "mean", normalize=True)
        np.testing.assert_allclose(ours.embed(TEXTS, role=role), vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "others", "settings", "message"),
    [
        ("mean", ["LayerNorm", "Normalize"], {}, "lists Transformer, Pooling, LayerNorm, Normalize"),
        ("mean", ["Normalize", "Dense"], {}, "lists Transformer, Pooling, Normalize, Dense"),
        ("max", [], {}, "pooling_mode_max_tokens"),
        ("mean", [], {"include_prompt": False}, "include_prompt is false"),
    ],
)
def test_what_is_not_computed_is_refused_and_the_encoder_loads(
    tmp_path, vocab_file, capsys, pooling, others, settings, message
):
    prompts = {"query": "who "}
    sentence_model(tmp_path / "hub", vocab_file, pooling, *others, prompts=prompts, **settings)
    (tmp_path / "texts.tsv").write_text("1\tmarie\n")
    assert main(["embed", str(tmp_path / "hub"), str(tmp_path / "texts.tsv"), "-o", str(tmp_path / "out")]) == 66
    assert message in capsys.readouterr().err
    assert megabert.load_encoder(tmp_path / "hub")[0].config.hidden_size == 16


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, "is not computed"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../1_Pooling"}], "no folder"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling", "path": ".."}], "no folder"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling"}], "no folder"),
        ("modules.json", {}, "lists no modules"),
        ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "no table of names and texts"),
    ],
)
def test_malformed_modules_are_refused(tmp_path, vocab_file, capsys, file, content, message):
    sentence_model(tmp_path / "hub", vocab_file, "mean")
    (tmp_path / "hub" / file).write_text(json.dumps(content))
    assert main(["predict", str(tmp_path / "hub"), "text=a"]) == 66
    assert message in capsys.readouterr().err


def test_a_changed_module_is_not_taken_for_the_run(tmp_path, vocab_file, capsys):
    sentence_model(tmp_path / "hub", vocab_file, "cls", "Normalize")
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "again"), "--to", "huggingface"]) == 0
    digest = megabert.load(tmp_path / "again", accelerator="cpu").digest
    (tmp_path / "again" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    assert main(["predict", str(tmp_path / "again"), "text=a"]) == 66
    assert "remove megabert.json" in capsys.readouterr().err
    (tmp_path / "again" / "megabert.json").unlink()
    assert megabert.load(tmp_path / "again", accelerator="cpu").digest != digest


@pytest.mark.parametrize(
    "marked",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_a_cross_encoder_scores_pairs_as_transformers_does(tmp_path, vocab_file, marked):
    model = foreign(tmp_path / "hub", vocab_file, "bert", "ForSequenceClassification", num_labels=1, **marked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hub")
    ours = megabert.load(tmp_path / "hub", accelerator="cpu", precision="32")
    assert ours.task.name() == "text_ranking"
    assert main(["export", str(tmp_path / "hub"), "-o", str(tmp_path / "again"), "--to", "huggingface"]) == 0
    again = megabert.load(tmp_path / "again", accelerator="cpu", precision="32")
    for passage in ("marie found radium", "the river"):
        with torch.inference_mode():
            logit = model(**tokenizer("who found radium", passage, return_tensors="pt")).logits[0, 0].item()
        (score,) = ours.predict(query="who found radium", passage=passage).scores.values()
        assert score == pytest.approx(logit, abs=1e-5)
        assert list(again.predict(query="who found radium", passage=passage).scores.values()) == [score]


def test_a_real_model_gives_the_vectors_of_its_modules(minilm, tmp_path):
    ours = load_embedder(str(minilm), home=tmp_path, accelerator="cpu", precision="32")
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    vectors = expected(model, minilm, TEXTS[:2], "mean", normalize=True)
    np.testing.assert_allclose(ours.embed(TEXTS[:2]), vectors, atol=1e-5)
    assert ours.task.row_length == 256
