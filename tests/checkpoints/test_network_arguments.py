"""Arguments that change the computation but no tensor are followed, refused by name, or ignored on request."""

import json
import pickle

import pytest
import safetensors.torch
import torch
import yaml

from megabert import cli
from megabert.build import load_run
from megabert.checkpoints.native.manifest_folder import Contents
from megabert.checkpoints.native.run_checkpoints import write as write_run
from megabert.checkpoints.network_arguments import check_arguments
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError
from tests.checkpoints.files.test_torch_dist import stack, write_blocks
from tests.checkpoints.nemo.test_open_nemo import CONFIG, pack, prefixed, weights_of
from tests.checkpoints.networks import ARCHITECTURES, VOCABULARY, write
from tests.checkpoints.test_convert import assert_same, to
from tests.checkpoints.test_damage import Megatron
from tests.checkpoints.test_genuine import build, logits

SOURCES = ("megatron", "megatron-core", "nemo", "huggingface")


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a network in a format with other arguments, and returns its path."""
    tensors = write(tmp_path / "ours", "megatron-bert")

    def make(name, **arguments):
        if name == "nemo":
            (state,), _ = weights_of(tmp_path / "weights")
            members = {
                "model_config.yaml": yaml.dump(CONFIG | arguments),
                "model_weights.ckpt": prefixed(state, "model."),
            }
            return pack(tmp_path / "x.nemo", members)
        folder = to(tmp_path / "ours", tmp_path / name, name, num_tokens=50)
        if name == "huggingface":
            file = folder / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | arguments))
        else:
            opened = Megatron(folder)
            vars(opened.content["args"]).update(arguments)
            opened.save()
        return folder

    make.tensors = tensors
    return make


REFUSED = {
    "use_rotary_position_embeddings": True,
    "window_size": [4, 0],
    "softmax_type": "off-by-one",
    "normalize_attention_scores": False,
    "softmax_scale": 0.5,
    "qk_layernorm": True,
    "attention_output_gate": True,
    "multi_latent_attention": True,
    "headscale": True,
    "quick_geglu": True,
    "activation_func_clamp_value": 7.0,
    "num_unique_layers": 1,
    "add_position_embedding": False,
    "attention_logit_cap": 50.0,  # of no version: unknown
    "attention_variant": "sparse",
    "auto_map": {"AutoModel": "mine.Model"},
}


def test_each_argument_that_changes_the_network_is_refused():
    for argument, value in REFUSED.items():
        with pytest.raises(CheckpointError, match=f"file: {argument} is .* --ignore-argument {argument}"):
            check_arguments({argument: value}, "file")


@pytest.mark.parametrize("name", SOURCES)
def test_arguments_that_change_the_network_are_all_named(written, name):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(written(name, **REFUSED))
    assert all(f"--ignore-argument {argument}" in str(error.value) for argument in REFUSED)


@pytest.mark.parametrize("name", SOURCES)
def test_an_argument_is_ignored_on_request(written, name, capsys):
    path = written(name, attention_logit_cap=50.0, my_dropout_gate=True)
    with pytest.raises(CheckpointError, match=r"attention_logit_cap is 50\.0, my_dropout_gate is True"):
        open_checkpoint(path, ignored=["attention_logit_kap"])
    notes = open_checkpoint(path, ignored=["attention_logit_cap", "my_dropout_gate"]).notes
    assert "WARNING: ignored as requested: attention_logit_cap is 50.0" in notes
    words = ["--ignore-argument", "attention_logit_cap", "--ignore-argument", "my_dropout_gate"]
    assert cli.main(["inspect", str(path), "--quick", *words]) == 0
    assert "ignored as requested: my_dropout_gate is True" in capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
def test_arguments_of_training_are_no_matter(written, name):
    arguments = {
        "overlap_grad_reduce": True, "moe_router_topk": 2, "rotary_percent": 1.0, "sequence_parallel": True, "lr": 1e-4,
        "tp_comm_overlap": True, "ckpt_format": "torch_dist", "wandb_project": "x", "use_flash_attn": True,
        "distributed_timeout_minutes": 10, "profile_ranks": [0], "is_decoder": False, "retro_encoder_layers": 2,
        "window_size": None, "untie_embeddings_and_output_weights": False, "some_new_flag": False,
    }  # fmt: skip
    open_checkpoint(written(name, **arguments))


def test_one_and_true_are_not_confused():
    check_arguments({"num_layers": 4, "num_unique_layers": 4, "num_moe_experts": 1, "bias": True}, "x")
    for name, value in (("bias", 1), ("num_moe_experts", True), ("some_flag", True), ("some_flag", 1)):
        with pytest.raises(CheckpointError, match=name):
            check_arguments({name: value}, "x")


# --- Weights of layer norms that are stored minus one ---


def centered(tree, names=("layernorm", "_norm", "norm.")):
    """Subtract one from the weights of layer norms in nested dictionaries."""
    if isinstance(tree, torch.Tensor):
        return tree
    return {
        key: item - 1
        if isinstance(item, torch.Tensor) and key.endswith("weight") and any(name in key for name in names)
        else centered(item, ("",) if key in ("layernorm", "norm") else names)
        if isinstance(item, dict)
        else item
        for key, item in tree.items()
    }


@pytest.mark.parametrize("flag", ["apply_layernorm_1p", "layernorm_zero_centered_gamma"])
@pytest.mark.parametrize("name", ["v2.6_tp2_pp2", "v1.0_gpt_tp1", "core_v0.9.0_mcore_tp2"])
def test_zero_centered_norms_give_the_original_logits(genuine_checkpoints, tmp_path, name, flag):
    source = genuine_checkpoints / name
    for file in source.rglob("model_optim_rng.pt"):
        content = torch.load(file, weights_only=False)
        content["model"] = centered(content["model"])
        setattr(content["args"], flag, True)
        copy = tmp_path / file.relative_to(source)
        copy.parent.mkdir(parents=True)
        torch.save(content, copy)
    opened = open_checkpoint(tmp_path)
    assert any("weights are stored minus one" in note for note in opened.notes)
    oracle = safetensors.torch.load_file(source / "oracle.safetensors")
    is_real = oracle["attention_mask"].bool()
    actual, _ = logits(build(opened), oracle)
    torch.testing.assert_close(actual[is_real], oracle["lm_logits"][is_real], atol=2e-6, rtol=0)


def test_a_head_that_was_not_centered_stays_as_it_is(tmp_path, genuine_checkpoints):
    # Between January and September 2023 the language-model head had a plain layer norm.
    file = next((genuine_checkpoints / "v2.6_tp2").rglob("mp_rank_00/*.pt"))
    for rank in ("mp_rank_00", "mp_rank_01"):
        content = torch.load(file.parents[1] / rank / file.name, weights_only=False)
        content["model"]["language_model"] = centered(content["model"]["language_model"])
        content["args"].apply_layernorm_1p = True
        (tmp_path / rank).mkdir()
        torch.save(content, tmp_path / rank / file.name)
    expected = {key: item.read() for key, item in open_checkpoint(genuine_checkpoints / "v2.6_tp2").tensors.items()}
    for key, item in open_checkpoint(tmp_path).tensors.items():
        torch.testing.assert_close(item.read(), expected[key])


def test_zero_centered_norms_of_nemo_and_their_conversion(tmp_path):
    (state,), _ = weights_of(tmp_path)
    state |= {key: 1 + item / 10 for key, item in state.items() if "norm" in key and "weight" in key}
    expected = {key: item for key, item in state.items() if "norm" in key and "weight" in key}
    stored = {key: item - 1 if key in expected else item for key, item in state.items()}
    config = CONFIG | {"normalization": "layernorm1p"}
    members = {"model_config.yaml": yaml.dump(config), "model_weights.ckpt": prefixed(stored, "model.")}
    path = pack(tmp_path / "x.nemo", members)
    read = open_checkpoint(path)
    for target, name in (("encoder.final_norm", "language_model.encoder.final_layernorm"),
                         ("language_model.norm", "lm_head.layernorm")):  # fmt: skip
        torch.testing.assert_close(read.tensors[f"{target}.weight"].read(), expected[f"{name}.weight"])
    back = open_checkpoint(to(path, tmp_path / "back", "huggingface", num_tokens=50))
    assert torch.equal(
        back.tensors["encoder.final_norm.weight"].read(), read.tensors["encoder.final_norm.weight"].read()
    )
    as_stored = open_checkpoint(path, ignored=["apply_layernorm_1p", "layernorm_zero_centered_gamma"])
    assert torch.equal(
        as_stored.tensors["encoder.final_norm.weight"].read(), stored["language_model.encoder.final_layernorm.weight"]
    )


def test_half_precision_keeps_the_digits_of_centered_norms(written):
    folder = written("megatron")
    opened = Megatron(folder)
    name = "language_model.encoder.final_layernorm.weight"
    opened.tensors = {
        key: (torch.full_like(item, 0.0001234) if "norm" in key and "weight" in key else item).half()
        for key, item in opened.tensors.items()
    }
    opened.content["args"].apply_layernorm_1p = True
    small = opened.tensors[name].clone()
    opened.save()
    actual = open_checkpoint(folder).tensors["encoder.final_norm.weight"].read()
    assert torch.equal(actual, small.float() + 1)


# --- What the code of the time ignored ---


def test_megatron_core_takes_its_residual_from_before_the_norm(written, tmp_path):
    flag = "apply_residual_connection_post_layernorm"
    opened = open_checkpoint(written("megatron-core", **{flag: True}))
    assert opened.config.norm_place == "pre"
    assert f"residual: from before the layer norm (megatron.core ignores {flag})" in opened.notes
    write(tmp_path / "gpt", "gpt")
    folder = to(tmp_path / "gpt", tmp_path / "core gpt", "megatron-core", num_tokens=50)
    changed = Megatron(folder)
    setattr(changed.content["args"], flag, True)
    changed.save()
    with pytest.raises(CheckpointError, match=r"followed up to core_v0\.3 and ignored from core_v0\.5"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, ignored=[flag]).config.norm_place == "pre"


def test_megatron_core_ignores_openai_gelu(written):
    assert open_checkpoint(written("megatron-core", openai_gelu=True)).config.gelu == "erf"


def test_nemo_s_layers_take_their_residual_from_before_the_norm(written):
    config = open_checkpoint(written("nemo", apply_residual_connection_post_layernorm=True, openai_gelu=True)).config
    assert (config.norm_place, config.head_gelu) == ("pre", "erf")


# --- A user's configuration, under the same rules ---


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; known are gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"hidden_act": "swiglu"}, "hidden_act is 'swiglu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"swiglu": True}, "swiglu is True"),
        ({"attention_logit_cap": 30}, "attention_logit_cap is 30"),
        ({"num_attention_heads": "four"}, "has num_heads 4, but mine"),
        ({"bias_gelu_fusion": True}, "bias_gelu_fusion=False, but mine"),
    ],
)
def test_a_user_s_configuration_obeys_the_rules_of_a_config_json(written, config, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(written("megatron"), config=config, config_source="mine")


def test_a_user_s_activation_counts_where_the_file_has_none(written):
    folder = written("megatron")
    changed = Megatron(folder)
    changed.content["args"].bias_gelu_fusion = True
    changed.save()
    opened = open_checkpoint(folder, config={"hidden_act": "gelu"}, config_source="mine")
    assert (opened.config.gelu, opened.config.head_gelu) == ("tanh", "erf")
    del changed.content["args"]
    changed.save()
    for given, expected in (
        ({"hidden_act": "gelu_new"}, ("tanh", "tanh")),
        ({"hidden_act": "gelu"}, ("erf", "erf")),
        ({"bias_gelu_fusion": True}, ("tanh", "erf")),
        ({"hidden-act": "gelu_new", "head_gelu": "erf"}, ("tanh", "erf")),
    ):
        config = open_checkpoint(folder, config=given | {"num_attention_heads": 4}, config_source="mine").config
        assert (config.gelu, config.head_gelu) == expected


def test_an_activation_must_agree_with_a_config_json(written):
    with pytest.raises(CheckpointError, match="gelu erf, but mine has tanh"):
        open_checkpoint(written("huggingface"), config={"hidden_act": "gelu_new"}, config_source="mine")


# --- Values of another type ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3.0", None),
        ("2", None),
        (3, None),
        (torch.tensor(3.0), "checkpoint_version"),
        ("three", "'three'; expected a number"),
        (float("nan"), "nan"),
        ([3.0], "checkpoint_version"),
        ({}, "checkpoint_version"),
        (-1, "-1"),
        (True, "True"),
    ],
)
def test_a_version_of_another_type_is_read_or_named(written, value, message):
    folder = written("megatron")
    changed = Megatron(folder)
    changed.content["checkpoint_version"] = value
    changed.save()
    if message is None:
        assert_same(folder, written.tensors, num_tokens=50)
    else:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_attention_heads", "4", None),
        ("layernorm_epsilon", "1e-5", None),
        ("layernorm_epsilon", None, None),
        ("tensor_model_parallel_size", "1", None),
        ("num_layers", 10**9, "1000000000 layers, 4 found"),
        ("num_layers", [4], "num_layers is"),
        ("num_layers", 10**400, "num_layers"),
        ("num_attention_heads", 0, "num_attention_heads"),
        ("num_attention_heads", 10**9, "do not divide a hidden size of 16"),
        ("num_attention_heads", "four", "num_attention_heads is 'four'"),
        ("layernorm_epsilon", "small", "layernorm_epsilon is 'small'"),
        ("openai_gelu", "yes", "openai_gelu is 'yes'; expected true or false"),
        ("bias_gelu_fusion", [1], "bias_gelu_fusion"),
        ("tensor_model_parallel_size", {}, "tensor_model_parallel_size"),
        ("apply_layernorm_1p", "maybe", "apply_layernorm_1p"),
    ],
)
def test_an_argument_of_another_type_is_read_or_named(written, argument, value, message):
    folder = written("megatron", **{argument: value})
    if message is None:
        assert_same(folder, written.tensors, num_tokens=50)
    else:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)


def test_a_size_of_another_value_or_type_is_refused_before_anything_is_built(written):
    file = written("huggingface") / "config.json"
    config = json.loads(file.read_text())
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "max_position_embeddings"):
        for value in (10**9, 10**30, "12", [12], True, None, 1.5, {}):
            file.write_text(json.dumps(config | {key: value}))
            with pytest.raises(CheckpointError):
                open_checkpoint(file.parent)


def test_a_stacked_tensor_of_a_billion_layers_is_refused_at_once(tmp_path, written):
    model = stack(Megatron(written("megatron-core")).tensors)
    write_blocks(tmp_path / "dist", model, {})
    metadata = pickle.loads((tmp_path / "dist" / ".metadata").read_bytes())
    for entry in metadata.state_dict_metadata.values():
        if hasattr(entry, "size") and entry.size[0] == 4:
            entry.size = torch.Size([10**9, *entry.size[1:]])
    (tmp_path / "dist" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="are in no block"):
        open_checkpoint(tmp_path / "dist", config={"num_attention_heads": 4}, config_source="mine")


def test_a_run_of_a_billion_layers_is_refused_before_it_is_built(tmp_path):
    tensors = write(tmp_path / "ours", "headless")
    config = ARCHITECTURES["headless"][0].to_dict() | {"num_layers": 10**9}
    documents = {"run": {"task": "question_answering"}, "settings": {}, "encoder": config}
    documents |= {"tokenizer": {"lower_case": True}}
    contents = Contents({"model": tensors}, documents, {"vocab.txt": VOCABULARY})
    write_run(tmp_path / "run", 1, contents, figure=None, is_end=True)
    for opening in (open_checkpoint, load_run):
        with pytest.raises(CheckpointError, match="has num_layers 1000000000, its tensors 4"):
            opening(tmp_path / "run")


def test_documents_of_a_run_of_another_type_are_refused(tmp_path):
    tensors = write(tmp_path / "ours", "headless")
    config = ARCHITECTURES["headless"][0].to_dict()
    good = {"run": {"task": "question_answering"}, "settings": {}, "encoder": config, "tokenizer": {"lower_case": True}}
    for number, name in enumerate([*good, "origin"]):
        for value in ([1], 5, "text", None):
            contents = Contents({"model": tensors}, good | {name: value}, {"vocab.txt": VOCABULARY})
            folder = write_run(tmp_path / f"{number}", 1, contents, figure=None, is_end=True)
            for opening in (open_checkpoint, load_run):
                with pytest.raises(CheckpointError, match=f"{name}.json holds no JSON object"):
                    opening(folder)


# --- Formats and prefixes ---


def test_adapters_and_deepspeed_folders_are_named(tmp_path, written):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        with pytest.raises(CheckpointError, match="is an adapter"):
            open_checkpoint(path)
    folder = written("huggingface")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter"):
        open_checkpoint(folder)
    step = tmp_path / "deepspeed" / "global_step5"
    step.mkdir(parents=True)
    (tmp_path / "deepspeed" / "latest").write_text("global_step5")
    torch.save({"module": {}, "ds_version": "0.14"}, step / "mp_rank_00_model_states.pt")
    torch.save({"module": {"x": torch.ones(1)}, "ds_version": "0.14"}, tmp_path / "renamed.pt")
    for path in (tmp_path / "deepspeed", step, step / "mp_rank_00_model_states.pt", tmp_path / "renamed.pt"):
        with pytest.raises(CheckpointError, match=r"DeepSpeed.*zero_to_fp32"):
            open_checkpoint(path)


def test_a_model_with_an_adapter_inside_says_so(written):
    folder = written("huggingface")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"] = torch.ones(2, 16)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="of an adapter"):
        open_checkpoint(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
@pytest.mark.parametrize("name", SOURCES)
def test_the_prefixes_of_wrappers_are_removed(tmp_path, written, name, prefix):
    path = written(name)
    if name == "huggingface":
        tensors = safetensors.torch.load_file(path / "model.safetensors")
        renamed = {f"{prefix}{key}".replace("layer.1.", "layer._orig_mod.1."): item for key, item in tensors.items()}
        safetensors.torch.save_file(renamed, path / "model.safetensors")
    elif name == "nemo":
        (state,), _ = weights_of(tmp_path / "again")
        members = {"model_config.yaml": yaml.dump(CONFIG), "model_weights.ckpt": prefixed(state, f"model.{prefix}")}
        path = pack(tmp_path / "y.nemo", members)
    else:
        opened = Megatron(path)
        opened.tensors = {f"{prefix}{key}": item for key, item in opened.tensors.items()}
        opened.save()
    assert_same(path, written.tensors, num_tokens=50)


def test_two_tensors_of_one_name_are_refused(written):
    folder = written("huggingface")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["module.bert.encoder.ln.weight"] = tensors["bert.encoder.ln.weight"] + 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.ln\.weight twice"):
        open_checkpoint(folder)


# --- NeMo 2 ---

FIELDS = {
    "_target_": "nemo.collections.llm.bert.model.bert.MegatronBertConfig",
    "num_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "ffn_hidden_size": 24, "seq_length": 12,
    "layernorm_epsilon": 1e-05, "bias_activation_fusion": False, "bert_type": "megatron", "num_query_groups": None,
    "activation_func": {"_target_": "torch._C._nn.gelu", "_call_": False}, "tensor_model_parallel_size": 2,
    "params_dtype": {"_target_": "torch.float32", "_call_": False}, "normalization": "LayerNorm",
    "init_method": None, "transformer_layer_spec": {"_target_": "nemo.collections.llm.bert.model.default_layer_spec"},
}  # fmt: skip


def write_nemo2(tmp_path, written, **fields):
    opened = Megatron(written("megatron-core"))
    folder = tmp_path / "nemo2"
    write_blocks(folder / "weights", {f"module.{key}": item for key, item in opened.tensors.items()}, {})
    (folder / "context").mkdir()
    document = {
        "_target_": "nemo.collections.llm.bert.model.bert.BertModel",
        "config": FIELDS | fields,
        "tokenizer": None,
    }
    (folder / "context" / "model.yaml").write_text(yaml.safe_dump(document))
    (folder / "context" / "io.json").write_text("{}")
    return folder


def test_a_folder_of_nemo_2_is_read_with_its_configuration(tmp_path, written):
    folder = write_nemo2(tmp_path, written, bias_activation_fusion=True)
    for path in (folder, folder / "weights"):
        assert_same(path, written.tensors, num_tokens=50)
        opened = open_checkpoint(path)
        assert opened.format == "NeMo 2, names of megatron.core BERT"
        assert (opened.config.num_heads, opened.config.gelu) == (4, "tanh")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bert_type", "huggingface", "bert_type is 'huggingface'; only 'megatron'"),
        ("activation_func", {"_target_": "torch.nn.functional.silu"}, "activation_func is 'silu'; only 'gelu'"),
        ("gated_linear_unit", True, "gated_linear_unit is True"),
        ("window_size", [4, 0], "window_size"),
        ("transformer_layer_spec", {"_target_": "mine.layer_spec"}, "transformer_layer_spec is 'layer_spec'"),
        ("position_embedding_type", "rope", "position_embedding_type is 'rope'"),
    ],
)
def test_another_network_of_nemo_2_is_refused(tmp_path, written, field, value, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(write_nemo2(tmp_path, written, **{field: value}))


def test_incomplete_folders_of_nemo_2_are_named(tmp_path, written):
    folder = write_nemo2(tmp_path, written)
    (folder / "context" / "model.yaml").write_text("tokenizer: null\n")
    with pytest.raises(CheckpointError, match="no mapping named config"):
        open_checkpoint(folder)
    (folder / "context" / "model.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"NeMo 2, but its configuration .*model\.yaml is missing"):
        open_checkpoint(folder)
    (folder / "weights").rename(folder / "other")
    with pytest.raises(CheckpointError, match="holds no distributed checkpoint"):
        open_checkpoint(folder)
