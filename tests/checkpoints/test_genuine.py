"""Genuine Megatron-LM checkpoints give the logits that Megatron-LM's own code gave."""

import pytest
import safetensors.torch
import torch

from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError
from megabert.model.attention import PackedSequences
from megabert.model.pretraining_heads import PretrainingModel
from megabert.weights import load_weights

NAMES = [
    "v1.0_tp1",
    "v1.0_tp2",
    "v1.0_tp1_openaigelu_qkscale_postln",
    "v1.0_tp1_nobinary",
    "v1.0_gpt_tp1",
    "c7d4ad51e6e_nover_nphn3",
    "v2.0_tp2",
    "v2.6_tp2",
    "v2.6_tp2_pp2",
    "core_v0.9.0_mcore_tp2",
]


def build(checkpoint):
    """Make the network of a checkpoint, with the heads that it has."""
    model = PretrainingModel(
        checkpoint.config,
        language_model=True,
        sentence_order="sentence_order.out.weight" in checkpoint.tensors,
    )
    load_weights(model, checkpoint.tensors, checkpoint.source)
    return model.eval()


def logits(model, oracle):
    ids = oracle["input_ids"]
    with torch.inference_mode():
        return model(
            ids,
            segment_ids_BL=oracle["tokentype_ids"].long(),
            documents=PackedSequences.of_rows(oracle["attention_mask"].long()),
        )


def test_every_genuine_checkpoint_is_tested(genuine_checkpoints):
    assert sorted(path.name for path in genuine_checkpoints.iterdir() if path.is_dir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_megatron_s(genuine_checkpoints, name):
    oracle = safetensors.torch.load_file(genuine_checkpoints / name / "oracle.safetensors")
    model = build(open_checkpoint(genuine_checkpoints / name))
    lm_logits, order_logits = logits(model, oracle)
    is_real = oracle["attention_mask"].bool()
    # Logits of padding differ between versions of Megatron-LM and have no meaning.
    torch.testing.assert_close(lm_logits[is_real], oracle["lm_logits"][is_real], atol=1e-6, rtol=0)
    assert ("binary_logits" in oracle) == (order_logits is not None)
    if order_logits is not None:
        torch.testing.assert_close(order_logits, oracle["binary_logits"], atol=1e-6, rtol=0)


def test_another_qkv_layout_gives_other_logits(genuine_checkpoints):
    name = "c7d4ad51e6e_nover_nphn3"
    oracle = safetensors.torch.load_file(genuine_checkpoints / name / "oracle.safetensors")
    wrong = build(open_checkpoint(genuine_checkpoints / name, qkv_layout="heads_3_dim"))
    is_real = oracle["attention_mask"].bool()
    assert (logits(wrong, oracle)[0] - oracle["lm_logits"])[is_real].abs().max() > 1e-3


@pytest.mark.parametrize("part", ["", "iter_0000007", "iter_0000007/mp_rank_00/model_optim_rng.pt"])
def test_a_checkpoint_is_found_from_any_of_its_folders(genuine_checkpoints, part):
    assert open_checkpoint(genuine_checkpoints / "v1.0_tp1" / part).shape["num_layers"] == 2


def test_assumptions_are_reported(genuine_checkpoints):
    notes = open_checkpoint(genuine_checkpoints / "v2.0_tp2").notes
    assert "gelu: tanh (bias_gelu_fusion)" in notes
    assert "query-key-value rows: heads_3_dim (checkpoint_version 3.0)" in notes
    assert "layer norm epsilon: 1e-05" in notes
    assert "residual: from before the layer norm" in notes


def test_a_missing_shard_is_named(genuine_checkpoints, tmp_path):
    import shutil

    copy = tmp_path / "checkpoint"
    shutil.copytree(genuine_checkpoints / "v2.6_tp2_pp2", copy)
    shutil.rmtree(copy / "iter_0000007" / "mp_rank_00_001")
    with pytest.raises(CheckpointError, match="lacks mp_rank_00_001"):
        open_checkpoint(copy)
    shutil.rmtree(copy / "iter_0000007" / "mp_rank_01_000")
    shutil.rmtree(copy / "iter_0000007" / "mp_rank_01_001")
    with pytest.raises(CheckpointError, match="specify 2 tensor-parallel parts, 1 found"):
        open_checkpoint(copy)


def test_a_configuration_of_another_size_is_refused(genuine_checkpoints):
    with pytest.raises(CheckpointError, match=r"num_layers 2, but mine\.json has 24"):
        open_checkpoint(genuine_checkpoints / "v1.0_tp1", config={"num-layers": 24}, config_source="mine.json")


def test_a_tracker_that_points_nowhere_is_named(genuine_checkpoints, tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("8\n")
    with pytest.raises(CheckpointError, match="no folder iter_0000008"):
        open_checkpoint(tmp_path)
