"""Weight files of any make: what torch and safetensors wrote reads the same; what is damaged or hostile is refused."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megabert.checkpoint.containers import LazyTensor, Storage, open_file
from megabert.checkpoint.symbolic_pickle import Global, Record
from megabert.errors import CheckpointError

FORMATS = ("torch-zip", "torch-legacy")


def save(content, path, *, kind="torch-zip", protocol=2):
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "torch-zip")
    return path


def leaves(value, path=()):
    """Give (path, leaf) for each leaf of nested dicts, lists, tuples and Namespaces."""
    if isinstance(value, (Record, argparse.Namespace, types.SimpleNamespace)):
        value = value.state if isinstance(value, Record) else vars(value)
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        yield path, value
        return
    for key, item in value:
        yield from leaves(item, (*path, key))


def assert_same(ours, theirs):
    ours, theirs = dict(leaves(ours)), dict(leaves(theirs))
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        if isinstance(expected, torch.Tensor):
            tensor = ours[path].read()
            assert (tensor.dtype, tensor.shape, tensor.stride()) == (
                expected.dtype,
                expected.shape,
                expected.stride(),
            )
            assert torch.equal(tensor, expected.detach()), path
            assert ours[path].nbytes == expected.nbytes
        else:
            assert ours[path] == expected, path


def read_all(path):
    opened = open_file(path)
    for _, leaf in leaves(opened.content):
        if isinstance(leaf, LazyTensor):
            leaf.read()
    return opened


# --- Files of torch ---

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
# Newer dtypes lie in storages without a type, which torch itself cannot load from legacy files.
UNTYPED = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def example():
    base = torch.arange(24.0).view(4, 6)
    with_attributes = torch.ones(2)
    with_attributes.partition_dim = 0
    parameter = torch.nn.Parameter(torch.full((3,), 0.5))
    parameter.shared = True
    return {
        "args": argparse.Namespace(
            lr=1e-4, dtype=torch.half, inner=types.SimpleNamespace(path="é", sizes=[1, (2,)])
        ),
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict(),
        "ordered": collections.OrderedDict(parameter=parameter, buffer=torch.nn.Parameter(torch.zeros(1))),
        "dtypes": [torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES],
        "views": [base, base[1:3], base.t(), base[:, ::2], base[2, 3], base.expand(2, 4, 6), base[:0]],
        "empty": [torch.empty(0), torch.empty(0, 3), torch.tensor(7)],
        "attributes": with_attributes,
        "size": torch.Size([2, 3]),
        "bytes": [b"\x00\xff", b"", bytearray(b"x"), {1, 2}, frozenset([3])],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_torch_saved_reads_as_torch_loads_it(tmp_path, kind, protocol):
    path = save(example(), tmp_path / "x", kind=kind, protocol=protocol)
    opened = open_file(path)
    assert opened.kind == kind and opened.unknown_globals == frozenset()
    assert_same(opened.content, torch.load(path, weights_only=False))


shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_view_of_any_dtype_reads_as_torch_loads_it(tmp_path, data):
    shape, kind = data.draw(shapes), data.draw(st.sampled_from(FORMATS))
    dtype = data.draw(st.sampled_from(DTYPES + UNTYPED if kind == "torch-zip" else DTYPES))
    tensor = torch.randint(0, 2, shape).to(dtype).permute(data.draw(st.permutations(range(len(shape)))))
    if shape and tensor.shape[0]:
        tensor = tensor[data.draw(st.integers(0, tensor.shape[0] - 1)) :: data.draw(st.integers(1, 3))]
    path = save([tensor, tensor], tmp_path / "x", kind=kind)
    assert_same(open_file(path).content, torch.load(path))


def test_tensors_of_one_storage_share_it_in_the_file_and_not_in_memory(tmp_path):
    base = torch.arange(6.0)
    first, second = open_file(save([base[:4], base[2:]], tmp_path / "x")).content
    assert first.storage is second.storage and second.start == 8
    first.read().zero_()
    assert second.read().tolist() == [2.0, 3.0, 4.0, 5.0]


def test_a_tensor_reads_its_own_storage_only(tmp_path):
    path = save([torch.full((500,), 1.0), torch.full((500,), 2.0)], tmp_path / "x")
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<f", 2.0) * 500, struct.pack("<f", 3.0) * 500))
    good, bad = open_file(path).content
    assert good.read().tolist() == [1.0] * 500
    with pytest.raises(CheckpointError, match="data/1'.*checksum does not match"):
        bad.read()


def test_storage_views_of_old_legacy_files_are_read(tmp_path):
    # As PyTorch before 0.4 wrote them: a persistent id with (key, offset, size) of the view.
    class Reference:
        pass

    class Old(pickle.Pickler):
        def persistent_id(self, value):
            view = ("8", 2, 3)
            return (
                ("storage", torch.FloatStorage, "7", "cpu", 6, view) if isinstance(value, Reference) else None
            )

    class Tensor:
        def __init__(self, offset):
            self.arguments = (Reference(), offset, (2,), (1,))

        def __reduce__(self):
            return torch._utils._rebuild_tensor, self.arguments

    def write(tensor):
        stream = io.BytesIO()
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(value, stream, protocol=2)
        Old(stream, 2).dump(tensor)
        pickle.dump(["7"], stream, protocol=2)
        path = tmp_path / "x"
        path.write_bytes(stream.getvalue() + struct.pack("<q6f", 6, *range(6)))
        return open_file(path).content

    assert write(Tensor(1)).read().tolist() == [3.0, 4.0]
    with pytest.raises(CheckpointError, match="outside its part"):
        write(Tensor(2))


def test_a_whole_module_opens_as_records(tmp_path):
    module = torch.nn.Linear(2, 3)
    content = open_file(save(module, tmp_path / "x", kind="torch-legacy")).content
    assert isinstance(content, Record) and content.name == "Linear"
    assert_same(content.state["_parameters"]["weight"], module.weight)


def test_files_close_with_their_last_tensor(tmp_path):
    tensor = open_file(save(torch.ones(2), tmp_path / "x")).content
    descriptor = tensor.storage.source.region.file.descriptor
    os.fstat(descriptor)
    del tensor
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_file_that_changes_or_shrinks_after_opening_is_noticed(tmp_path):
    for change in (
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: os.truncate(path, 100),
    ):
        path = save(torch.ones(200), tmp_path / "x", kind="torch-legacy")
        tensor = open_file(path).content
        os.utime(path, ns=(0, 0))
        change(path)
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            tensor.read()


def test_a_link_given_by_the_user_is_followed(tmp_path):
    save([1], tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    assert open_file(tmp_path / "link").content == [1]
