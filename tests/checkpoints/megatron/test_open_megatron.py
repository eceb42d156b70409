"""Folders and files in all layouts that Megatron-LM's users have."""

import shutil
import zipfile

import pytest
import torch

from megabert.checkpoints.megatron.write_megatron import ModelParallelLayout
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError, ConfigError
from tests.checkpoints.networks import write
from tests.checkpoints.test_convert import assert_same, to
from tests.checkpoints.test_damage import Megatron


def ranks(folder):
    return sorted(folder.glob("release/*/model_optim_rng.pt"))


@pytest.mark.parametrize("name", ["megatron", "megatron-core"])
def test_interleaved_pipeline_stages_are_put_in_order(tmp_path, name):
    # Four layers on 2 stages x 2 chunks: chunk v of stage p is layer 2 v + p.
    tensors = write(tmp_path / "ours", "megatron-bert")
    four = to(tmp_path / "ours", tmp_path / "four", name, ModelParallelLayout(2, 4), num_tokens=50)
    folder = tmp_path / "interleaved" / "iter_0000003"
    for rank in range(2):
        parts = [
            torch.load(four / "release" / f"mp_rank_0{rank}_00{stage}" / "model_optim_rng.pt", weights_only=False)
            for stage in range(4)
        ]
        for stage in range(2):
            rank_folder = folder / f"mp_rank_0{rank}_00{stage}"
            rank_folder.mkdir(parents=True)
            arguments = parts[0]["args"]
            arguments.pipeline_model_parallel_size, arguments.virtual_pipeline_model_parallel_size = 2, 2
            content = {"args": arguments, "checkpoint_version": 3.0, "iteration": 3}
            content |= {f"model{chunk}": parts[2 * chunk + stage]["model"] for chunk in range(2)}
            torch.save(content, rank_folder / "model_optim_rng.pt")
    assert_same(folder.parent, tensors, num_tokens=50)
    facts = open_checkpoint(folder).facts
    assert (facts["pipeline_parallel"], facts["interleaved"], facts["iteration"]) == (2, 2, 3)


def swap(first, second):
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize("name", ["megatron", "megatron-core"])
def test_stages_in_another_order_are_refused(tmp_path, name):
    write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", name, ModelParallelLayout(1, 2), num_tokens=50) / "release"
    swap(folder / "mp_rank_00_000", folder / "mp_rank_00_001")
    with pytest.raises(CheckpointError, match=r"part 1 of 2 holds .*final_layernorm.* another order"):
        open_checkpoint(folder)


def test_shards_in_another_order_are_refused_where_their_arguments_have_ranks(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = (
        to(tmp_path / "ours", tmp_path / "theirs", "megatron", ModelParallelLayout(2, 1), num_tokens=50) / "release"
    )
    for number, rank in enumerate((4, 5)):  # of the second replica
        file = folder / f"mp_rank_0{number}" / "model_optim_rng.pt"
        content = torch.load(file, weights_only=False)
        content["args"].rank = rank
        torch.save(content, file)
    assert_same(folder, tensors, num_tokens=50)
    swap(folder / "mp_rank_00", folder / "mp_rank_01")
    with pytest.raises(CheckpointError, match=r"mp_rank_00.*was written by rank 5"):
        open_checkpoint(folder)


def test_gpt_2_of_2019_has_flat_names_and_no_arguments(tmp_path):
    tensors = write(tmp_path / "ours", "gpt")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    flat = {}
    for name, item in opened.tensors.items():
        name = name.removeprefix("language_model.").removeprefix("embedding.").replace("encoder.", "transformer.")
        if "query_key_value" in name:
            item = item.unflatten(0, (4, 3, 4)).transpose(0, 1).flatten(0, 2)
        flat[name.replace("self_attention", "attention")] = item
    torch.save({"iteration": 5, "model": flat}, tmp_path / "checkpoint")
    config = {"num_attention_heads": 4, "gelu": "tanh", "head_gelu": "tanh"}
    read = open_checkpoint(tmp_path / "checkpoint", config=config, config_source="mine")
    assert read.config.is_causal
    for name, expected in tensors.items():
        rows = 50 if "word" in name else len(expected)
        assert torch.equal(read.tensors[name].read()[:rows], expected), name


def test_the_prefixes_of_distributed_wrappers_are_removed(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    opened.tensors = {f"module.module.{name}": item for name, item in opened.tensors.items()}
    opened.tensors["module.module.language_model.encoder.layers.0.mlp.dense_h_to_4h._extra_state"] = None
    opened.save()
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)


@pytest.mark.parametrize("part", ["language_model", ""])
def test_a_lone_encoder_is_read(tmp_path, part):
    tensors = write(tmp_path / "ours", "headless")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    opened.tensors = {name.removeprefix("language_model."): item for name, item in opened.tensors.items()}
    if part:
        opened.tensors = {f"{part}.{name}": item for name, item in opened.tensors.items()}
    opened.save()
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)


@pytest.mark.parametrize("head", ["classification_head", "multichoice_head"])
def test_a_fine_tuned_model_gives_its_encoder_and_names_its_head(tmp_path, head):
    tensors = write(tmp_path / "ours", "headless")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    opened.tensors |= {f"{head}.weight": torch.ones(3, 16), f"{head}.bias": torch.ones(3)}
    opened.save()
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)
    assert any(f"{head}.weight" in note for note in open_checkpoint(tmp_path / "theirs").notes)


def test_the_query_encoder_of_a_retriever_is_read(tmp_path):
    tensors = write(tmp_path / "ours", "headless")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    towers = {f"query_model.{name}": item for name, item in opened.tensors.items()}
    towers |= {f"context_model.{name}": item + 1 for name, item in opened.tensors.items()}
    opened.tensors = towers | {"query_model.ict_head.weight": torch.ones(8, 16)}
    opened.save()
    assert_same(tmp_path / "theirs", tensors, num_tokens=50)
    assert any("query_model was taken" in note for note in open_checkpoint(tmp_path / "theirs").notes)


def test_an_archive_of_all_ranks_is_read_as_it_is(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron", ModelParallelLayout(2, 2), num_tokens=50)
    with zipfile.ZipFile(tmp_path / "download", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latest_checkpointed_iteration.txt", "release")
        for file in ranks(folder):
            # torch.save's zip must not be compressed twice
            archive.write(file, str(file.relative_to(folder)), zipfile.ZIP_STORED)
    assert_same(tmp_path / "download", tensors, num_tokens=50)


def test_any_file_name_is_accepted(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    file = ranks(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))[0]
    (tmp_path / "a").mkdir()
    shutil.copy(file, tmp_path / "a" / "weights.of.mine")
    (tmp_path / "a" / "README.md").write_text("notes")
    assert_same(tmp_path / "a", tensors, num_tokens=50)
    assert_same(tmp_path / "a" / "weights.of.mine", tensors, num_tokens=50)
    shutil.copy(file, tmp_path / "a" / "more")
    with pytest.raises(CheckpointError, match=r"holds 2 weight files \(more, weights\.of\.mine\)"):
        open_checkpoint(tmp_path / "a")


def test_hugging_face_s_weights_without_a_configuration_need_the_number_of_heads(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "huggingface", num_tokens=50)
    shutil.copy(folder / "model.safetensors", tmp_path / "anything")
    with pytest.raises(ConfigError, match="number of attention heads"):
        open_checkpoint(tmp_path / "anything")
    read = open_checkpoint(tmp_path / "anything", config={"num_attention_heads": 4}, config_source="mine")
    assert read.tensors.keys() == tensors.keys()
    assert torch.equal(
        read.tensors["encoder.layers.1.attention.qkv.weight"].read(), tensors["encoder.layers.1.attention.qkv.weight"]
    )


def test_separate_optimizer_files_are_skipped(tmp_path):
    tensors = write(tmp_path / "ours", "megatron-bert")
    folder = to(tmp_path / "ours", tmp_path / "theirs", "megatron", ModelParallelLayout(2, 1), num_tokens=50)
    for rank in range(2):
        (folder / "release" / f"mp_rank_0{rank}" / "distrib_optim.pt").write_bytes(b"PK optimizer")
        (folder / "release" / f"mp_rank_0{rank}_000").mkdir()
        (folder / "release" / f"mp_rank_0{rank}_000" / "optim.pt").write_bytes(b"PK optimizer")
    assert_same(folder, tensors, num_tokens=50)


def test_of_several_iterations_without_a_tracker_the_last_is_read(tmp_path):
    write(tmp_path / "ours", "megatron-bert")
    release = to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50) / "release"
    for number in (2, 11):
        content = torch.load(release / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)
        rank_folder = tmp_path / "run" / f"iter_{number:07d}" / "mp_rank_00"
        rank_folder.mkdir(parents=True)
        torch.save(content | {"iteration": number}, rank_folder / "model_optim_rng.pt")
    assert open_checkpoint(tmp_path / "run").facts["iteration"] == 11


@pytest.mark.parametrize(
    ("argument", "value"),
    [("swiglu", True), ("normalization", "RMSNorm"), ("position_embedding_type", "rope"), ("add_bias_linear", False),
     ("num_experts", 8), ("untie_embeddings_and_output_weights", True), ("num_layers", 24)],
)  # fmt: skip
def test_another_network_is_refused(tmp_path, argument, value):
    write(tmp_path / "ours", "megatron-bert")
    opened = Megatron(to(tmp_path / "ours", tmp_path / "theirs", "megatron", num_tokens=50))
    setattr(opened.content["args"], argument, value)
    opened.save()
    with pytest.raises(CheckpointError, match=argument.replace("num_layers", "24 layers, 4 found")):
        open_checkpoint(tmp_path / "theirs")


def test_unknown_names_and_those_of_early_2019_are_distinguished(tmp_path):
    torch.save({"model": {"bert.embeddings.LayerNorm.weight": torch.ones(3)}}, tmp_path / "old")
    with pytest.raises(CheckpointError, match="before 29 October 2019"):
        open_checkpoint(tmp_path / "old")
    torch.save({"model": {"conv1.weight": torch.ones(3)}}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="to no known version of Megatron-LM"):
        open_checkpoint(tmp_path / "other")
