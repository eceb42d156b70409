"""Damaged tensors (missing, of another shape or dtype, NaN) are refused by name, in every format."""

import json

import pytest
import safetensors.torch
import torch

from megabert.checkpoints.native.manifest_folder import Contents, open_manifest_folder, write_manifest_folder
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError
from tests.checkpoints.networks import ARCHITECTURES, write
from tests.checkpoints.test_convert import to


class Megatron:
    """A folder of one rank's file, as a flat dictionary."""

    def __init__(self, folder):
        self.file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
        self.content = torch.load(self.file, weights_only=False)
        self.tensors = dict(self._flat(self.content["model"], ""))

    def _flat(self, tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from self._flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    def save(self):
        torch.save(self.content | {"model": self.tensors}, self.file)


class HuggingFace:
    def __init__(self, folder):
        self.file = folder / "model.safetensors"
        self.tensors = safetensors.torch.load_file(self.file)

    def save(self):
        safetensors.torch.save_file({name: item.contiguous() for name, item in self.tensors.items()}, self.file)


class Ours:
    """A folder with a correct manifest: damage that SHA-256 cannot detect must be reported by name."""

    def __init__(self, folder):
        self.folder = folder
        opened = open_manifest_folder(folder, groups=("model",))
        self.documents = opened.documents
        self.tensors = {name: item.read() for name, item in opened.tensors["model"].items()}

    def save(self):
        write_manifest_folder(self.folder, Contents({"model": self.tensors}, self.documents), {})


# format: architecture, adapter, and the names of an embedding, an MLP matrix, a square one, a norm, a bias
FORMATS = {
    "megatron": (
        "megatron-bert",
        Megatron,
        ("language_model.embedding.position_embeddings.weight",
         "language_model.encoder.layers.1.mlp.dense_h_to_4h.weight",
         "language_model.encoder.layers.1.self_attention.query_key_value.weight",
         "language_model.encoder.layers.2.input_layernorm.weight", "lm_head.dense.bias"),
    ),
    "megatron-core": (
        "megatron-bert",
        Megatron,
        ("embedding.position_embeddings.weight", "encoder.layers.1.mlp.linear_fc1.weight",
         "encoder.layers.1.self_attention.linear_qkv.weight", "encoder.layers.2.input_layernorm.weight",
         "lm_head.dense.bias"),
    ),
    "huggingface": (
        "megatron-bert",
        HuggingFace,
        ("bert.embeddings.position_embeddings.weight", "bert.encoder.layer.1.intermediate.dense.weight",
         "bert.encoder.layer.1.attention.self.key.weight", "bert.encoder.layer.2.attention.ln.weight",
         "cls.predictions.transform.dense.bias"),
    ),
    "huggingface bert": (
        "bert",
        HuggingFace,
        ("bert.embeddings.position_embeddings.weight", "bert.encoder.layer.1.intermediate.dense.weight",
         "bert.encoder.layer.1.attention.self.key.weight", "bert.encoder.layer.2.output.LayerNorm.weight",
         "cls.predictions.transform.dense.bias"),
    ),
    "huggingface gpt2": (
        "gpt",
        HuggingFace,
        ("transformer.wpe.weight", "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight",
         "transformer.h.2.ln_1.weight", "transformer.h.3.attn.c_proj.bias"),
    ),
    "megabert": (
        "megatron-bert",
        Ours,
        ("encoder.embeddings.position.weight", "encoder.layers.1.mlp.up.weight",
         "encoder.layers.1.attention.qkv.weight", "encoder.layers.2.attention_norm.weight",
         "language_model.dense.bias"),
    ),
}  # fmt: skip
EMBEDDING, MATRIX, QKV, NORM, BIAS = range(5)


def missing(tensors, name):
    del tensors[name]


def extra(tensors, name):
    tensors[f"{name.rpartition('.')[0]}.gate"] = torch.ones(3)


def transposed(tensors, name):
    tensors[name] = tensors[name].T.contiguous()


def cut(tensors, name):
    tensors[name] = tensors[name][:-1].contiguous()


def longer(tensors, name):
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def flat(tensors, name):
    tensors[name] = tensors[name].flatten()


def scalar(tensors, name):
    tensors[name] = torch.tensor(1.0)


def empty(tensors, name):
    tensors[name] = torch.zeros(0)


def whole_numbers(tensors, name):
    tensors[name] = tensors[name].long()


def not_a_number(tensors, name):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = float("nan")


def infinite(tensors, name):
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = float("inf")


DAMAGE = [
    *((missing, part) for part in (EMBEDDING, MATRIX, QKV, NORM, BIAS)),
    *((extra, part) for part in (MATRIX, BIAS)),
    *((transposed, part) for part in (EMBEDDING, MATRIX, QKV)),
    *((cut, part) for part in (MATRIX, QKV, NORM, BIAS)),
    *((longer, part) for part in (MATRIX, NORM)),
    *((flat, part) for part in (EMBEDDING, MATRIX)),
    *((scalar, part) for part in (NORM, QKV)),
    *((empty, part) for part in (NORM, QKV)),
    (whole_numbers, MATRIX),
    *((not_a_number, part) for part in (EMBEDDING, MATRIX, NORM, BIAS)),
    *((infinite, part) for part in (QKV, BIAS)),
]


def prepared(tmp_path, form):
    architecture, kind, names = FORMATS[form]
    write(tmp_path / "ours", architecture)
    return kind(to(tmp_path / "ours", tmp_path / "theirs", form.split()[0])), names


def read_all(folder):
    for item in open_checkpoint(folder).tensors.values():
        item.read()


@pytest.mark.parametrize(("damage", "part"), DAMAGE, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_tensor_is_refused_by_name(tmp_path, form, damage, part):
    opened, names = prepared(tmp_path, form)
    if damage is transposed and opened.tensors[names[part]].shape[0] == opened.tensors[names[part]].shape[-1]:
        pytest.skip("square: no shape shows that it was transposed")
    damage(opened.tensors, names[part])
    opened.save()
    with pytest.raises(CheckpointError) as caught:
        read_all(tmp_path / "theirs")
    message = str(caught.value)
    ours = (
        "position",
        "layers.1.",
        "layers.2.",
        "layers.3.",
        "language_model.dense",
        "vocabulary_size",
        "max_positions",
    )
    stem = names[part].rpartition(".")[0]
    assert stem.removeprefix("bert.").removeprefix("transformer.") in message or any(name in message for name in ours)


@pytest.mark.parametrize("form", FORMATS)
def test_swapped_tensors_are_refused_by_name(tmp_path, form):
    opened, names = prepared(tmp_path, form)
    first, second = names[MATRIX], names[EMBEDDING]
    opened.tensors[first], opened.tensors[second] = opened.tensors[second], opened.tensors[first]
    opened.save()
    with pytest.raises(CheckpointError, match=r"position|hidden_size|mlp|do not divide"):
        read_all(tmp_path / "theirs")


@pytest.mark.parametrize("form", ["megatron", "huggingface", "megabert"])
def test_a_missing_layer_is_reported(tmp_path, form):
    opened, names = prepared(tmp_path, form)
    layer = names[MATRIX].split("1.")[0] + "1."
    for name in [name for name in opened.tensors if name.startswith(layer)]:
        del opened.tensors[name]
    opened.save()
    with pytest.raises(CheckpointError, match="layers"):
        read_all(tmp_path / "theirs")


def test_there_are_enough_cases():
    assert len(DAMAGE) * len(FORMATS) > 60


CONFIGS = {
    "another type": {"model_type": "t5"},
    "no type": {"model_type": None},
    "a type that is a list": {"model_type": ["megatron-bert"]},
    "text for a number": {"hidden_size": "16"},
    "a float for a number": {"num_hidden_layers": 4.0},
    "truth for a number": {"num_attention_heads": True},
    "nothing for a number": {"intermediate_size": None},
    "less than nothing": {"hidden_size": -16},
    "zero heads": {"num_attention_heads": 0},
    "too many heads": {"num_attention_heads": 10**30},
    "heads that do not divide": {"num_attention_heads": 3},
    "other layers": {"num_hidden_layers": 10**9},
    "another width": {"intermediate_size": 25},
    "other words": {"vocab_size": 51},
    "other positions": {"max_position_embeddings": 10**12},
    "other segments": {"type_vocab_size": 3},
    "a list for segments": {"type_vocab_size": [2]},
    "text for epsilon": {"layer_norm_eps": "1e-5"},
    "another activation": {"hidden_act": "swish"},
    "an activation that is a list": {"hidden_act": ["gelu"]},
    "an object for an activation": {"hidden_act": {"_target_": "os.system"}},
    "another activation of the head": {"head_hidden_act": "os.system"},
    "relative positions": {"position_embedding_type": "relative_key"},
    "a decoder": {"is_decoder": True},
    "cross attention": {"add_cross_attention": True},
    "an output of its own": {"tie_word_embeddings": False},
    "negative segments": {"num_tokentypes": -1},
    "text for segments": {"num_tokentypes": "0"},
    "a huge number": {"hidden_size": 10**400},
    "segments that are not there": {"num_tokentypes": 1},
}
INVALID_JSON = {
    "nothing": "",
    "no object": "[1, 2]",
    "half": '{"model_type": "megatron-bert"',
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "text": "hello",
    "NUL": "\0" * 100,
    "a number": "1e999",
}


@pytest.mark.parametrize("case", [*CONFIGS, *INVALID_JSON])
def test_an_invalid_config_json_is_refused(tmp_path, case):
    write(tmp_path / "ours", "megatron-bert")
    file = to(tmp_path / "ours", tmp_path / "theirs", "huggingface") / "config.json"
    if case in CONFIGS:
        file.write_text(json.dumps(json.loads(file.read_text()) | CONFIGS[case]))
    else:
        file.write_text(INVALID_JSON[case])
    with pytest.raises(CheckpointError):
        read_all(tmp_path / "theirs")


def test_the_network_s_names_are_those_of_the_modules():
    from megabert.checkpoints.tensor_names import encoder_shapes, head_shapes
    from tests.checkpoints.networks import network

    for name, (config, heads) in ARCHITECTURES.items():
        expected = {key: tuple(item.shape) for key, item in network(name).named_parameters()}
        actual = encoder_shapes(config)
        if heads["language_model"]:
            actual |= head_shapes(config).get("language-model head", {})
        if heads.get("sentence_order"):
            actual |= head_shapes(config)["pooler"] | head_shapes(config)["sentence-order head"]
        assert actual == expected
