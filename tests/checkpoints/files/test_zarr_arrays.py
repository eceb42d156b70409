import json
from itertools import product

import pytest
import torch

from megabert.checkpoints.files.zarr_arrays import open_zarr
from megabert.errors import CheckpointError

CODES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}


def write_array(folder, tensor, blocks, **changes):
    """Write an array by the specification of zarr 2: edge blocks are padded."""
    folder.mkdir(parents=True)
    note = {"zarr_format": 2, "shape": list(tensor.shape), "chunks": list(blocks), "dtype": CODES[tensor.dtype],
            "compressor": None, "filters": None, "fill_value": None, "order": "C"}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(note | changes))
    counts = [-(-dim // size) for dim, size in zip(tensor.shape, blocks, strict=True)]
    for block_index in product(*map(range, counts)):
        block = torch.zeros(blocks, dtype=tensor.dtype)
        part = tensor[tuple(slice(i * size, (i + 1) * size) for i, size in zip(block_index, blocks, strict=True))]
        block[tuple(slice(0, dim) for dim in part.shape)] = part
        (folder / ".".join(map(str, block_index))).write_bytes(block.view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("blocks", [(4, 6), (2, 3), (3, 4), (1, 6)])
def test_arrays_are_read_whatever_their_blocks(tmp_path, dtype, blocks):
    tensor = torch.randn(4, 6).to(dtype)
    write_array(tmp_path / "encoder.x", tensor, blocks)
    (actual,) = open_zarr(tmp_path).values()
    assert actual.dtype == dtype
    assert torch.equal(actual.read(), tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": {"id": "zstd"}}, "compressed arrays are not read"),
        ({"filters": [{"id": "delta"}]}, "compressed arrays are not read"),
        ({"dtype": ">f4"}, "dtype '>f4'"),
        ({"order": "F"}, "in order 'F'"),
        ({"zarr_format": 3}, "zarr format 2"),
        ({"shape": [4, -6]}, "is invalid"),
        ({"shape": [2**30, 2**30]}, "at most 65536"),
        ({"shape": [4]}, "is not read"),
        ({"chunks": [0, 3]}, "is invalid"),
    ],
)
def test_other_arrays_are_refused(tmp_path, changes, message):
    write_array(tmp_path / "x", torch.ones(4, 6), (2, 3), **changes)
    with pytest.raises(CheckpointError, match=message):
        open_zarr(tmp_path)


def test_a_huge_array_is_refused_before_memory_is_allocated(tmp_path):
    write_array(tmp_path / "x", torch.ones(4, 6), (2, 3), shape=[2**30, 2**9], chunks=[2**29, 2**9])
    with pytest.raises(CheckpointError, match=r"0\.0 has 24 bytes; 1099511627776 are expected"):
        open_zarr(tmp_path)["x"].read()
    with pytest.raises(CheckpointError, match="an array of 65 dims"):
        write_array(tmp_path / "y", torch.ones(4, 6), (2, 3), shape=[1] * 65, chunks=[1] * 65)
        open_zarr(tmp_path)


def test_a_missing_or_truncated_block_is_named(tmp_path):
    write_array(tmp_path / "x", torch.ones(4, 6), (2, 3))
    (tmp_path / "x" / "1.0").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match=r"1\.0 has 4 bytes; 24 are expected"):
        open_zarr(tmp_path)["x"].read()
    (tmp_path / "x" / "1.0").unlink()
    with pytest.raises(CheckpointError, match=r"1\.0 cannot be opened"):
        open_zarr(tmp_path)["x"].read()
