"""A tensor of torch.save must be within its storage, and is refused otherwise before memory is allocated."""

import io
import pickle
import struct

import pytest
import torch

from megabert.checkpoints.files.lazy_tensor import Storage
from megabert.checkpoints.files.weight_files import LazyTensor, open_file
from megabert.errors import CheckpointError
from tests.checkpoints.weight_files import write_zip


def save_tensor(path, *arguments, num_items=4, name="_rebuild_tensor_v2"):
    """Write a zip file with one float storage of four items and one tensor made with any arguments."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Reference):
                return ("storage", torch.FloatStorage, "0", "cpu", num_items)
            return None

        def reducer_override(self, value):
            if isinstance(value, LazyTensor):
                return getattr(torch._utils, name), (Reference(), *arguments)
            return NotImplemented

    stream = io.BytesIO()
    Pickler(stream, 2).dump(LazyTensor(torch.float32, (), (), Storage("", torch.float32, 1)))
    return write_zip(path, {"a/data.pkl": stream.getvalue(), "a/data/0": struct.pack("<4f", *range(4))})


NO_HOOKS = (False, {})


def test_a_tensor_within_its_storage_is_read(tmp_path):
    tensor = open_file(save_tensor(tmp_path / "x", 1, (2,), (2,), *NO_HOOKS)).content
    assert tensor.read().tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, (5,), (1,), *NO_HOOKS), "outside its storage"),
        ((1, (2, 2), (2, 1), *NO_HOOKS), "outside its storage"),
        ((4, (1,), (1,), *NO_HOOKS), "outside its storage"),
        ((0, (2,), (2**61,), *NO_HOOKS), "outside its storage"),
        ((0, (2**61, 2**61), (1, 1), *NO_HOOKS), "outside its storage"),
        ((-1, (1,), (1,), *NO_HOOKS), "not a number"),
        ((0, (-1,), (1,), *NO_HOOKS), "not a number"),
        ((0, (1,), (-1,), *NO_HOOKS), "not a number"),
        ((0, (2**63,), (0,), *NO_HOOKS), "not a number"),
        ((0, ("a",), (1,), *NO_HOOKS), "not a number"),
        ((0, (True,), (1,), *NO_HOOKS), "not a number"),
        ((0, ([[]],), (1,), *NO_HOOKS), "not a number"),
        ((0, (1,), (1, 1), *NO_HOOKS), "1 dims with a stride of 2"),
        ((0, (1,) * 65, (1,) * 65, *NO_HOOKS), "65 dims"),
        ((0, (2**40,), (0,), *NO_HOOKS), "is larger than its storage"),
        ((0, (0, 2**61, 2**61), (1, 1, 1), *NO_HOOKS), "is larger than its storage"),
        ((0, (1,), (1,), *NO_HOOKS, {"conj": True}), "conjugate"),
        (("0", (1,), (1,), *NO_HOOKS), "are not a storage"),
        ((), "too few arguments"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused_before_allocation(tmp_path, arguments, reason):
    with pytest.raises(CheckpointError, match=f"opcode at byte .*_rebuild_tensor_v2: .*{reason}"):
        open_file(save_tensor(tmp_path / "x", *arguments))


def test_a_storage_of_another_size_than_its_member_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'0' has 16 bytes; 20 bytes are expected"):
        open_file(save_tensor(tmp_path / "x", 0, (1,), (1,), *NO_HOOKS, num_items=5))
    with pytest.raises(CheckpointError, match="impossible size"):
        open_file(save_tensor(tmp_path / "x", 0, (1,), (1,), *NO_HOOKS, num_items=2**61))
