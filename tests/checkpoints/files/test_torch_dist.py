"""Distributed checkpoints, written by PyTorch's own writer, are read block by block."""

import io
import itertools
import json
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megabert.checkpoints.files.torch_dist import is_torch_dist, open_torch_dist
from megabert.checkpoints.open import open_checkpoint
from megabert.errors import CheckpointError
from tests.checkpoints.networks import write
from tests.checkpoints.test_convert import assert_same, to


def write_blocks(folder, tensors, cuts):
    """Write tensors in blocks: `cuts` gives for each name its blocks, lists of (offsets, sizes).

    PyTorch writes what a rank has; here metadata, made of its classes, describe several blocks of one rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described, locations, data = {}, {}, io.BytesIO()
    for name, tensor in tensors.items():
        blocks = cuts.get(name, [((0,) * tensor.ndim, tuple(tensor.shape))])
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in blocks]
        properties = TensorProperties(dtype=tensor.dtype)
        described[name] = TensorStorageMetadata(properties, tensor.size(), chunks)
        for number, (offsets, sizes) in enumerate(blocks):
            part = tensor[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))]
            start = data.tell()
            torch.save(part.clone(), data)
            info = dcp.filesystem._StorageInfo("__0_0.distcp", start, data.tell() - start)
            locations[MetadataIndex(name, torch.Size(offsets), number)] = info
    (folder / "__0_0.distcp").write_bytes(data.getvalue())
    described["encoder.layers._extra_state/shard_0_2"] = BytesStorageMetadata()
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(Metadata(described, storage_data=locations), file)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "common_backend": "torch"}))


def core_tensors(tmp_path, name="megatron-bert"):
    """Return the tensors of a network by megatron.core's names, by megabert's, and the arguments of the run."""
    ours = write(tmp_path / "ours", name)
    file = to(tmp_path / "ours", tmp_path / "core", "megatron-core") / "release" / "mp_rank_00" / "model_optim_rng.pt"
    content = torch.load(file, weights_only=False)
    shutil.rmtree(tmp_path / "core")
    return content["model"], ours, content["args"]


def stack(model, trunk="encoder"):
    """Stack the layers as megatron.core does; its local names become Transformer Engine's."""
    fused = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    num_layers = 1 + max(int(name.split(".")[2]) for name in model if ".layers." in name)
    stacked = {name: item for name, item in model.items() if ".layers." not in name}
    for name in [name for name in model if name.startswith(f"{trunk}.layers.0.")]:
        rest = name.removeprefix(f"{trunk}.layers.0.")
        layers = [model[f"{trunk}.layers.{number}.{rest}"] for number in range(num_layers)]
        for local, other in fused.items():
            rest = rest.replace(local, other)
        stacked[f"{trunk}.layers.{rest}"] = torch.stack(layers)
    return stacked


def halves(shape, dim):
    """Split a stacked tensor as 2 pipeline stages x 2 tensor-parallel ranks do."""
    blocks = []
    for stage in range(2):
        for rank in range(2):
            offsets, sizes = [0] * len(shape), list(shape)
            offsets[0], sizes[0] = stage * shape[0] // 2, shape[0] // 2
            offsets[dim], sizes[dim] = rank * shape[dim] // 2, shape[dim] // 2
            blocks.append((tuple(offsets), tuple(sizes)))
    return blocks


CUT = {"linear_qkv.weight": 1, "linear_qkv.bias": 1, "linear_proj.weight": 2, "linear_fc1.weight": 1,
       "linear_fc1.bias": 1, "linear_fc2.weight": 2}  # fmt: skip


@pytest.mark.parametrize("name", ["megatron-bert", "gpt"])
def test_stacked_layers_in_blocks_are_read(tmp_path, name):
    model, ours, arguments = core_tensors(tmp_path, name)
    stacked = stack(model, "decoder" if name == "gpt" else "encoder")
    cuts = {
        key: halves(tuple(item.shape), dim)
        for key, item in stacked.items()
        for end, dim in CUT.items()
        if key.endswith(end)
    }
    assert len(cuts) == 6
    folder = tmp_path / "dist" / "iter_0000012"
    write_blocks(folder, stacked | {"optimizer.state.exp_avg.x": torch.zeros(3)}, cuts)
    torch.save({"args": arguments, "checkpoint_version": 3.0, "iteration": 12}, folder / "common.pt")
    (tmp_path / "dist" / "latest_checkpointed_iteration.txt").write_text("12")
    assert_same(tmp_path / "dist", ours, num_tokens=50)
    assert open_checkpoint(tmp_path / "dist").facts["iteration"] == 12
    assert open_checkpoint(tmp_path / "dist").facts["container"] == "torch_dist"


def test_what_pytorch_itself_writes_is_read(tmp_path):
    model, ours, arguments = core_tensors(tmp_path)
    folder = tmp_path / "dist"
    state = {
        **model,
        "rng_state/shard_0.0_1.1": io.BytesIO(b"state"),
        "encoder.layers.0.mlp._extra_state": io.BytesIO(),
    }
    dcp.save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"args": arguments}, folder / "common.pt")
    assert is_torch_dist(folder)
    assert_same(folder, ours, num_tokens=50)


def test_a_plain_tensor_of_bfloat16_keeps_its_bits(tmp_path):
    tensor = torch.randn(7, 5).bfloat16()
    dcp.save({"model.embedding.x": tensor}, storage_writer=FileSystemWriter(tmp_path / "dist"), no_dist=True)
    assert torch.equal(open_torch_dist(tmp_path / "dist").tensors["embedding.x"].read(), tensor)


@st.composite
def cut_tensors(initialize_weights):
    shape = tuple(initialize_weights(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    edges = [sorted({0, dim, *initialize_weights(st.lists(st.integers(0, dim), max_size=2))}) for dim in shape]
    blocks = [((), ())]
    for points in edges:
        spans = [(start, end - start) for start, end in itertools.pairwise(points)]
        blocks = [((*offsets, start), (*sizes, size)) for offsets, sizes in blocks for start, size in spans]
    return shape, initialize_weights(st.permutations(blocks))


@given(cut_tensors())
@settings(max_examples=30, deadline=None)
def test_any_partition_into_blocks_is_joined(tmp_path_factory, cut):
    shape, blocks = cut
    folder = tmp_path_factory.mktemp("dist")
    tensors = {"a.x": torch.randn(shape), "encoder.layers.y": torch.randn(shape)}
    write_blocks(folder, tensors, dict.fromkeys(tensors, blocks))
    actual = open_torch_dist(folder).tensors
    assert torch.equal(actual["a.x"].read(), tensors["a.x"])
    for number in range(shape[0]):
        assert torch.equal(actual[f"encoder.layers.{number}.y"].read(), tensors["encoder.layers.y"][number])


def damaged(tmp_path, change):
    """Write a tensor in two blocks, let `change` edit the metadata, and read."""
    folder = tmp_path / "dist"
    write_blocks(folder, {"x": torch.arange(8.0)}, {"x": [((0,), (4,)), ((4,), (4,))]})
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    change(metadata, folder)
    if (folder / ".metadata").exists():
        with (folder / ".metadata").open("wb") as file:
            pickle.dump(metadata, file)
    return open_torch_dist(folder).tensors["x"].read()


def location(metadata, number):
    return list(metadata.storage_data.values())[number]


def swap_sizes(metadata, _):
    metadata.state_dict_metadata["x"].chunks[0].sizes = torch.Size([5])


def overlap(metadata, _):
    chunk = metadata.state_dict_metadata["x"].chunks[1]
    index = list(metadata.storage_data)[1]
    info = metadata.storage_data.pop(index)
    metadata.storage_data[MetadataIndex("x", torch.Size([3]), 1)] = info
    chunk.offsets = torch.Size([3])


CASES = {
    "a gap": (lambda m, _: m.state_dict_metadata["x"].chunks.pop(), "4 numbers of x are in no block"),
    "an overlap": (overlap, "two blocks of x overlap"),
    "outside": (lambda m, _: setattr(m.state_dict_metadata["x"], "size", torch.Size([7])), r"is outside of \(7,\)"),
    "another shape": (swap_sizes, r"has shape \(4,\); its metadata has \(5,\)"),
    "another dtype": (
        lambda m, _: setattr(m.state_dict_metadata["x"].properties, "dtype", torch.float16),
        "holds no tensor of torch.float16",
    ),
    "no location": (lambda m, _: m.storage_data.popitem(), "does not locate the block of x"),
    "beyond the file": (lambda m, _: setattr(location(m, 0), "length", 10**9), "exceeds the"),
    "a negative offset": (lambda m, _: setattr(location(m, 0), "offset", -4), "exceeds the"),
    "another folder": (lambda m, _: setattr(location(m, 0), "relative_path", "../x.distcp"), "not a file beside it"),
    "an absolute path": (lambda m, _: setattr(location(m, 0), "relative_path", "/etc/passwd"), "not a file beside it"),
    "a missing file": (lambda m, _: setattr(location(m, 0), "relative_path", "__9_9.distcp"), "cannot be opened"),
    "a cut file": (lambda _, f: os.truncate(f / "__0_0.distcp", 1500), "exceeds the"),
    "no tensors": (lambda m, _: m.state_dict_metadata.clear(), "holds no tensors of a model"),
    "no metadata": (lambda _, f: (f / ".metadata").unlink(), "cannot be opened"),
    "another backend": (
        lambda _, f: (f / "metadata.json").write_text('{"sharded_backend": "fsdp_dtensor"}'),
        "'fsdp_dtensor' is not read",
    ),
    "a huge shape with a block": (
        lambda m, _: (
            setattr(m.state_dict_metadata["x"], "size", torch.Size([2**39])),
            setattr(m.state_dict_metadata["x"].chunks[1], "sizes", torch.Size([2**39 - 4])),
        ),
        r"has \d+ bytes for shape \(549755813884,\)",
    ),
    "a huge shape without a block": (
        lambda m, _: setattr(m.state_dict_metadata["x"], "size", torch.Size([2**39])),
        "549755813880 numbers of x are in no block",
    ),
    "too many dims": (
        lambda m, _: setattr(m.state_dict_metadata["x"], "size", torch.Size([1] * 65)),
        "has an invalid shape or offset",
    ),
    "a huge shape": (
        lambda m, _: setattr(m.state_dict_metadata["x"], "size", torch.Size([2**50])),
        "has an invalid shape or offset",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_reported(tmp_path, case):
    change, message = CASES[case]
    with pytest.raises(CheckpointError, match=message):
        damaged(tmp_path, change)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def test_a_hostile_metadata_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dist").mkdir()
    for content in (Evil(), {"state_dict_metadata": Evil()}, [Evil()]):
        (tmp_path / "dist" / ".metadata").write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="not the metadata of a distributed checkpoint"):
            open_torch_dist(tmp_path / "dist")
    assert not (tmp_path / "evil-was-here").exists()


def test_missing_arguments_are_requested(tmp_path):
    model, _, _ = core_tensors(tmp_path)
    dcp.save(model, storage_writer=FileSystemWriter(tmp_path / "dist"), no_dist=True)
    with pytest.raises(CheckpointError, match="does not hold its number of attention heads"):
        open_checkpoint(tmp_path / "dist")
