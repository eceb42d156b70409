"""Folders written by transformers give transformers' logits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megabert.checkpoints.files.lazy_tensor import in_memory
from megabert.checkpoints.open import WORD, Checkpoint, open_checkpoint
from megabert.checkpoints.vocabulary_rows import fit_vocabulary
from megabert.errors import CheckpointError
from megabert.model.attention import PackedSequences
from tests.checkpoints.test_genuine import build
from tests.conftest import WORDS

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "hidden_act": "gelu",
}
CLASSES = {
    "megatron-bert": (transformers.MegatronBertConfig, transformers.MegatronBertForPreTraining),
    "bert": (transformers.BertConfig, transformers.BertForPreTraining),
}


def make(architecture, folder, **changes):
    """Write a folder with weights far from their initial values; returns transformers' model."""
    config_class, model_class = CLASSES[architecture]
    torch.manual_seed(0)
    model = model_class(config_class(**(SIZES | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return model


def inputs():
    torch.manual_seed(1)
    ids = torch.randint(5, len(WORDS), (2, 12))
    segments = (torch.arange(12) > 5).long().expand(2, 12)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    return ids, segments, mask


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("gelu", ["gelu", "gelu_new"])
def test_logits_are_transformers_s(tmp_path, architecture, gelu):
    theirs = make(architecture, tmp_path, hidden_act=gelu)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer_files == {"vocab.txt": (tmp_path / "vocab.txt").read_bytes()}
    ours = build(checkpoint)
    ids, segments, mask = inputs()
    with torch.inference_mode():
        expected = theirs(ids, token_type_ids=segments, attention_mask=mask)
        lm_logits, order_logits = ours(ids, segment_ids_BL=segments, documents=PackedSequences.of_rows(mask))
    is_real = mask.bool()
    torch.testing.assert_close(lm_logits[is_real], expected.prediction_logits[is_real], atol=1e-5, rtol=0)
    torch.testing.assert_close(order_logits, expected.seq_relationship_logits, atol=1e-5, rtol=0)


def test_a_real_bert_gives_the_vectors_that_transformers_gives(minilm):
    from megabert.build import load_encoder

    theirs = transformers.AutoModel.from_pretrained(minilm).eval()
    encoder, tokenizer = load_encoder(str(minilm), home=minilm)
    text = "BRCA1 is a tumour suppressor gene; it was cloned in 1994."
    ids = [tokenizer.cls_id, *tokenizer.encode([text])[0].token_ids.tolist(), tokenizer.sep_id]
    token_ids = torch.tensor([ids])
    with torch.inference_mode():
        expected = theirs(token_ids).last_hidden_state
        torch.testing.assert_close(encoder(token_ids), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bin", "sharded safetensors", "sharded bin"])
def test_every_layout_of_weight_files_is_read(tmp_path, kind):
    theirs = make("bert", tmp_path)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    elif kind == "sharded safetensors":
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        names = sorted(state)
        halves = {"a.bin": names[::2], "b.bin": names[1::2]}
        for file, part in halves.items():
            torch.save({name: state[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in halves.items() for name in part}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    read = open_checkpoint(tmp_path)
    word = read.tensors["encoder.embeddings.word.weight"].read()
    assert torch.equal(word, state["bert.embeddings.word_embeddings.weight"])


def test_a_fine_tuned_head_is_read_beside_the_encoder(tmp_path):
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(**SIZES))
    theirs.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert sorted(opened.head) == ["head.out.bias", "head.out.weight"]
    assert not any("qa_outputs" in note for note in opened.notes)
    assert torch.equal(opened.head["head.out.weight"].read(), theirs.qa_outputs.weight)


def rewrite(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_hidden_layers": 3}, "has num_layers 3, its tensors 2"),
        ({"hidden_size": 64}, "has hidden_size 64, its tensors 32"),
        ({"intermediate_size": 49}, "has ffn_size 49, its tensors 48"),
        ({"vocab_size": 7}, "has vocabulary_size 7"),
        ({"max_position_embeddings": 512}, "has max_positions 512, its tensors 20"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not divisible by num_heads 5"),
        ({"layer_norm_eps": -1.0}, r"norm_epsilon is -1\.0; expected a small number"),
        ({"layer_norm_eps": float("nan")}, "norm_epsilon is nan; expected a small number"),
        ({"num_attention_heads": ...}, "lacks num_attention_heads"),
        ({"is_decoder": True}, "is_decoder is True; only False .* or remove it from config"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    make("bert", tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": "4"}, r"config\.json: encoder field num_heads is '4'"),
        ({"layers_to_keep": [0]}, "layers_to_keep is"),
        ({"custom": 1, "auto_map": {"AutoModel": "own.Model"}}, "custom is 1, auto_map is"),
        ({"adapters": {"adapters": {"ner": "pfeiffer"}}}, "adapters is"),
        ({"model_type": ..., "num_hidden_layers": 3}, "has num_layers 3"),
    ],
)
def test_a_refused_key_is_named_with_its_file(tmp_path, changes, message):
    make("bert", tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_keys_that_transformers_does_not_read_are_noted(tmp_path):
    make("bert", tmp_path)
    harmless = {"adapters": {"adapters": {}, "config_map": {}}, "sbert_ce_default_activation_function": "torch.nn.Tanh"}
    rewrite(
        tmp_path, output_past=True, language="english", name="Bert", ner_labels=["a"], model_max_length=512, **harmless
    )
    notes = open_checkpoint(tmp_path).notes
    assert any("output_past, language, name, ner_labels, model_max_length" in note for note in notes)


@pytest.mark.parametrize("architecture", CLASSES)
def test_a_missing_model_type_is_detected(tmp_path, architecture):
    make(architecture, tmp_path)
    rewrite(tmp_path, model_type=...)
    opened = open_checkpoint(tmp_path)
    assert opened.format == f"Hugging Face, {architecture}"
    assert any(f"model_type is not stated: {architecture}" in note for note in opened.notes)


def wrapped(folder, prefix, key=None):
    """Write the weights as the state of a module that holds the network, in a file of torch.save."""
    state = {prefix + name: item for name, item in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(state if key is None else {key: state, "epoch": 3}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("prefix", "key"), [("model.", "state_dict"), ("module.bert.", None), ("0.auto_model.", "model_state_dict")]
)
def test_a_module_around_the_network_is_no_matter(tmp_path, prefix, key):
    make("bert", tmp_path)
    expected = {name: item.read() for name, item in open_checkpoint(tmp_path).tensors.items()}
    wrapped(tmp_path, prefix, key)
    opened = open_checkpoint(tmp_path).tensors
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name].read(), item) for name, item in expected.items())


def test_a_lone_file_of_a_wrapped_network_opens(tmp_path):
    make("bert", tmp_path)
    wrapped(tmp_path, "model.", "state_dict")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "last.ckpt")
    opened = open_checkpoint(tmp_path / "last.ckpt", config={"num_attention_heads": 4})
    assert opened.config.num_layers == 2


def test_of_two_networks_in_a_file_none_is_taken(tmp_path):
    make("bert", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    both = {f"{part}.{name}": item.clone() for name, item in state.items() for part in "qp"}
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unknown tensors"):
        open_checkpoint(tmp_path)


def test_an_output_of_its_own_has_a_remedy(tmp_path):
    make("bert", tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="Save the encoder alone"):
        open_checkpoint(tmp_path).tensors[WORD].read()


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path):
    make("bert", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    make("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("rows", "fits"), [(512, True), (500, True), (504, True), (1024, True), (501, False), (499, False)]
)
def test_padded_vocabularies_fit_and_others_do_not(rows, fits):
    checkpoint = Checkpoint("f", "source", {"vocabulary_size": rows}, {WORD: in_memory(torch.zeros(rows, 2))}, [])
    if fits:
        assert len(fit_vocabulary(checkpoint, 500, "vocab.txt")[WORD].read()) == 500
    else:
        with pytest.raises(CheckpointError, match=r"vocab\.txt has 500 tokens"):
            fit_vocabulary(checkpoint, 500, "vocab.txt")
