"""NeMo archives of every generation, packed as NeMo does, are read; written archives have NeMo's structure."""

import io
import json
import tarfile

import pytest
import torch
import yaml

from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError
from tests.checkpoints.networks import MEGATRON, VOCABULARY, write
from tests.checkpoints.test_convert import assert_same, to

CONFIG = {
    "target": "os.system",
    "encoder_seq_length": 12,
    "max_position_embeddings": 12,
    "num_layers": 4,
    "hidden_size": 16,
    "ffn_hidden_size": 24,
    "num_attention_heads": 4,
    "layernorm_epsilon": 1e-5,
    "bias_gelu_fusion": False,
    "tensor_model_parallel_size": 1,
}


def weights_of(tmp_path, layout=None, name="megatron"):
    """Return the ranks' state dictionaries with Megatron-LM's names, and megabert's tensors."""
    ours = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", name, layout or ModelParallelLayout(), num_tokens=50)
    files = sorted(folder.glob("release/*/model_optim_rng.pt"))
    return [flat(torch.load(file, weights_only=False)["model"]) for file in files], ours


def flat(tree, prefix=""):
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def pack(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            data = data if isinstance(data, bytes) else data.encode()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def prefixed(state, prefix):
    return saved({f"{prefix}{name}": item for name, item in state.items()})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["model.", "model.module."])
def test_a_pre_trained_model_of_1_6_is_read(tmp_path, mode, prefix):
    (state,), ours = weights_of(tmp_path)
    members = {
        "./model_config.yaml": yaml.dump(CONFIG | {"tokenizer": {"vocab_file": "nemo:0123_vocab.txt"}}),
        "./model_weights.ckpt": prefixed(state, prefix),
        "./0123_vocab.txt": VOCABULARY,
    }
    path = pack(tmp_path / "whatever.bin", members, mode)
    assert_same(path, ours, num_tokens=50)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tokenizer_files == {"vocab.txt": VOCABULARY.encode()}
    assert checkpoint.facts["container"] == ".nemo"
    assert checkpoint.facts["qkv_layout"] == "heads_3_dim"


def test_tensor_parallel_shards_are_joined(tmp_path):
    states, ours = weights_of(tmp_path, ModelParallelLayout(2, 1))
    members = {"model_config.yaml": yaml.dump(CONFIG | {"tensor_model_parallel_size": 2})}
    members |= {f"mp_rank_0{rank}/model_weights.ckpt": prefixed(state, "model.") for rank, state in enumerate(states)}
    assert_same(pack(tmp_path / "x.nemo", members), ours, num_tokens=50)
    del members["mp_rank_01/model_weights.ckpt"]
    with pytest.raises(CheckpointError, match="lacks the weights of tensor-parallel rank 1, stage 0"):
        open_checkpoint(pack(tmp_path / "y.nemo", members))


def test_an_unpacked_archive_is_read(tmp_path):
    (state,), ours = weights_of(tmp_path)
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "model_config.yaml").write_text(yaml.dump(CONFIG))
    (tmp_path / "unpacked" / "model_weights.ckpt").write_bytes(prefixed(state, "model."))
    assert_same(tmp_path / "unpacked", ours, num_tokens=50)


@pytest.mark.parametrize(
    "whole",
    [
        {"name": "megatron_bert", "trainer": {"devices": 8}, "exp_manager": {"name": "x"}, "model": CONFIG},
        {"cfg": CONFIG},
        {"cfg": {"trainer": {"precision": "bf16"}, "model": CONFIG}},
    ],
)
def test_the_model_s_part_of_a_whole_configuration_counts(tmp_path, whole):
    (state,), ours = weights_of(tmp_path)
    members = {"model_config.yaml": yaml.dump(whole), "model_weights.ckpt": prefixed(state, "model.")}
    assert_same(pack(tmp_path / "x.nemo", members), ours, num_tokens=50)


def test_a_folder_that_was_packed_as_such_is_read(tmp_path):
    (state,), ours = weights_of(tmp_path)
    members = {
        "my model/model_config.yaml": yaml.dump(CONFIG),
        "my model/model_weights.ckpt": prefixed(state, "model."),
    }
    assert_same(pack(tmp_path / "again.nemo", members), ours, num_tokens=50)
    members["README"] = "x"
    with pytest.raises(CheckpointError, match=r"without model_config\.yaml"):
        open_checkpoint(pack(tmp_path / "other.nemo", members))


def test_a_converted_old_file_keeps_its_layout_with_a_note(tmp_path):
    # NeMo's converter renames; with megatron_legacy the attention reads rows as [3, heads, dim].
    (state,), ours = weights_of(tmp_path)
    for name, item in state.items():
        if "query_key_value" in name:
            state[name] = item.unflatten(0, (4, 3, 4)).transpose(0, 1).flatten(0, 2)
    members = {
        "model_config.yaml": yaml.dump(CONFIG | {"megatron_legacy": True}),
        "model_weights.ckpt": prefixed(state, "model."),
    }
    assert_same(pack(tmp_path / "x.nemo", members), ours, num_tokens=50)


@pytest.mark.parametrize("version", ["0", '{"version": 0}', "null"])
def test_a_fine_tuned_model_of_1_0_gives_its_encoder(tmp_path, version):
    (state,), ours = weights_of(tmp_path)
    encoder = {
        name: item for name, item in state.items() if name.startswith("language_model.") and "pooler" not in name
    }
    for name, item in encoder.items():
        if "query_key_value" in name:
            encoder[name] = item.unflatten(0, (4, 3, 4)).transpose(0, 1).flatten(0, 2)
    content = {f"bert_model.{name}": item for name, item in encoder.items()}
    content |= {"classifier.mlp.layer0.weight": torch.ones(2, 16), "classifier.mlp.layer0.bias": torch.zeros(2)}
    sizes = {"hidden-size": 16, "num-attention-heads": 4, "num-layers": 4, "max-seq-length": 12}
    members = {
        "model_config.yaml": yaml.dump({"language_model": {"pretrained_model_name": "megatron-bert-uncased"}}),
        "model_weights.ckpt": saved(content),
        "megatron-bert-uncased_encoder_config.json": json.dumps(sizes),
        "megatron_checkpoint_version.json": version,
        "tokenizer.vocab_file": VOCABULARY,
    }
    path = pack(tmp_path / "x.nemo", members)
    encoder_only = {name: item for name, item in ours.items() if name.startswith("encoder.")}
    assert_same(path, encoder_only, num_tokens=50)
    notes = open_checkpoint(path).notes
    assert any("classifier.mlp.layer0.bias" in note for note in notes)
    assert any(note.startswith("gelu: erf") for note in notes)


def test_a_model_on_megatron_core_is_read(tmp_path):
    (state,), ours = weights_of(tmp_path, name="megatron-core")
    members = {
        "model_config.yaml": yaml.dump(CONFIG | {"mcore_bert": True}),
        "model_weights.ckpt": prefixed(state, "model."),
    }
    assert_same(pack(tmp_path / "x.nemo", members), ours, num_tokens=50)


def test_nemo_s_default_is_the_fused_gelu(tmp_path):
    (state,), _ = weights_of(tmp_path)
    config = {key: value for key, value in CONFIG.items() if key != "bias_gelu_fusion"}
    path = pack(
        tmp_path / "x.nemo",
        {"model_config.yaml": yaml.dump(config), "model_weights.ckpt": prefixed(state, "model.")},
    )
    assert open_checkpoint(path).config.gelu == "tanh"


@pytest.mark.parametrize(
    "layout", [ModelParallelLayout(1, 1), ModelParallelLayout(2, 1), ModelParallelLayout(2, 2)], ids=str
)
def test_what_is_written_has_nemo_s_members_and_names(tmp_path, layout):
    write(tmp_path / "ours", "megatron-bert", vocabulary=VOCABULARY)
    path = to(tmp_path / "ours", tmp_path / "x.nemo", "nemo", layout, num_tokens=50)
    with tarfile.open(path) as archive:
        members = {name: archive.extractfile(name).read() for name in archive.getnames()}
    config = yaml.safe_load(members["./model_config.yaml"])
    assert config["target"].endswith("MegatronBertModel")
    assert config["num_layers"] == MEGATRON.num_layers
    assert config["tokenizer"]["type"] == "BertWordPieceLowerCase"
    assert members[f"./{config['tokenizer']['vocab_file'].removeprefix('nemo:')}"] == VOCABULARY.encode()
    weights = sorted(name for name in members if name.endswith("model_weights.ckpt"))
    folders = {(1, 1): "./", (2, 1): "./mp_rank_01/", (2, 2): "./tp_rank_01_pp_rank_001/"}
    assert len(weights) == layout.tensor_parallel * layout.pipeline_parallel
    last = f"{folders[layout.tensor_parallel, layout.pipeline_parallel]}model_weights.ckpt"
    state = torch.load(io.BytesIO(members[last]), weights_only=True)
    assert "model.language_model.encoder.layers.0.self_attention.query_key_value.weight" in state
    assert "model.lm_head.layernorm.weight" in state
    assert ("model.word_embeddings.weight" in state) == (layout.pipeline_parallel > 1)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b]\n"
CONFIGS = {
    "an alias bomb": BOMB,
    "a merge bomb": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
    "an object": "!!python/object/apply:os.system ['touch evil']\n",
    "a module": "x: !!python/module:os\n",
    "a name": "x: !!python/name:os.system\n",
    "nesting": "[" * 100_000,
    "nested mappings": "{a: " * 5_000,
    "a list": "- 1\n- 2\n",
    "a number": "3\n",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2\n",
    "a tab": "a:\n\t- 1\n",
    "control characters": "a: \x01\n",
    "not UTF-8": b"a: \xff\xfe\n",
    "an unhashable key": "? [a, b]\n: 1\n",
    "too large": "#" * (2**20 + 1),
    "another block": yaml.dump(CONFIG | {"transformer_block_type": "normformer"}),
    "another norm": yaml.dump(CONFIG | {"normalization": "rmsnorm"}),
    "another activation": yaml.dump(CONFIG | {"activation": "swiglu"}),
    "no bias": yaml.dump(CONFIG | {"bias": False}),
    "rotary positions": yaml.dump(CONFIG | {"position_embedding_type": "rope"}),
    "heads that do not divide": yaml.dump(CONFIG | {"num_attention_heads": 5}),
    "no heads": yaml.dump({key: value for key, value in CONFIG.items() if key != "num_attention_heads"}),
    "heads that are text": yaml.dump(CONFIG | {"num_attention_heads": "${oc.env:HOME}"}),
    "layers that are text": yaml.dump(CONFIG | {"num_layers": "four"}),
    "other layers": yaml.dump(CONFIG | {"num_layers": 24}),
    "endless ranks": yaml.dump(CONFIG | {"tensor_model_parallel_size": 10**400}),
    "more ranks": yaml.dump(CONFIG | {"tensor_model_parallel_size": 8}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_invalid_configuration_is_refused_and_runs_nothing(tmp_path, case, monkeypatch):
    (state,), _ = weights_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    members = {"model_config.yaml": CONFIGS[case], "model_weights.ckpt": prefixed(state, "model.")}
    path = pack(tmp_path / "x.nemo", members)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["ours", "theirs", "x.nemo"]


def test_other_archives_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"without model_config\.yaml"):
        open_checkpoint(pack(tmp_path / "a", {"x": b"1"}))
    with pytest.raises(CheckpointError, match=r"holds no model_weights\.ckpt"):
        open_checkpoint(pack(tmp_path / "b", {"model_config.yaml": "a: 1"}))
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        open_checkpoint(pack(tmp_path / "c", {"model_config.yaml": "a: 1", "model_weights/.metadata": b""}))
    with pytest.raises(CheckpointError, match="holds no layers of a Megatron network"):
        open_checkpoint(
            pack(tmp_path / "d", {"model_config.yaml": "a: 1", "model_weights.ckpt": saved({"x": torch.ones(1)})})
        )
