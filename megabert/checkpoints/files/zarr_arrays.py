"""Read the `zarr` checkpoints of megatron.core's first versions: each tensor is a folder with a zarr array (format 2).

Tensors are named by their folders and not read yet. Only uncompressed arrays, as megatron.core wrote them, are read.
Source: https://zarr-specs.readthedocs.io, version 2.
"""

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...json_documents import read_json_object
from .chunked_tensor import Chunked
from .lazy_tensor import MOST_DIMS, open_regular

_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<f8": torch.float64,
    "bfloat16": torch.bfloat16,  # tensorstore's name; zarr has none
    "<i8": torch.int64,
    "<i4": torch.int32,
    "|u1": torch.uint8,
}
_LARGEST_METADATA = 2**16
_MOST_BLOCKS = 2**16


@dataclass(frozen=True)
class ZarrBlock:
    """One file of an array. It holds a complete chunk of shape `stored`, even where the array ends inside it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    stored: tuple[int, ...]

    def check_size(self, dtype: torch.dtype, source: str) -> None:
        """Raise CheckpointError if the file is not there or has another size."""
        expected = math.prod(self.stored) * dtype.itemsize
        if (size := open_regular(self.file).size) != expected:
            raise CheckpointError(f"{self.file} has {size} bytes; {expected} are expected.")

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        """Read the file and drop the padding beyond the array."""
        self.check_size(dtype, source)
        region = open_regular(self.file)
        tensor = torch.frombuffer(region.read(0, region.size), dtype=dtype).reshape(self.stored)
        return tensor[tuple(slice(0, size) for size in self.sizes)]


def open_zarr(folder: Path) -> dict[str, Chunked]:
    """Open every array below a folder. Raises CheckpointError if one is compressed or damaged."""
    return {metadata.parent.name: _open_array(metadata) for metadata in sorted(folder.glob("*/.zarray"))}


def _open_array(metadata: Path) -> Chunked:
    if (size := metadata.stat().st_size) > _LARGEST_METADATA:
        raise CheckpointError(f"{metadata} has {size} bytes; at most {_LARGEST_METADATA} are read.")
    array = read_json_object(metadata)
    match array:
        case {"zarr_format": 2, "shape": list() as shape, "chunks": list() as stored, "dtype": str() as code}:
            pass
        case _:
            raise CheckpointError(f"{metadata} does not describe an array of zarr format 2.")
    if array.get("compressor") is not None or array.get("filters"):
        raise CheckpointError(f"{metadata}: compressed arrays are not read. Write it again without a compressor.")
    dims = (*shape, *stored)
    if len(dims) > 2 * MOST_DIMS:
        raise CheckpointError(f"{metadata}: an array of {len(shape)} dims.")
    if code not in _DTYPES or array.get("order", "C") != "C" or len(shape) != len(stored):
        raise CheckpointError(f"{metadata}: dtype {code[:20]!r} in order {array.get('order')!r} is not read.")
    if any(type(dim) is not int or not 0 < dim < 2**40 for dim in dims):
        raise CheckpointError(f"{metadata}: its shape {dims} is invalid.")
    counts = [-(-dim // size) for dim, size in zip(shape, stored, strict=True)]
    if math.prod(counts) > _MOST_BLOCKS:
        raise CheckpointError(f"{metadata}: an array in {math.prod(counts)} files; at most {_MOST_BLOCKS} are read.")
    separator = "/" if array.get("dimension_separator") == "/" else "."
    blocks = []
    for index in product(*(range(count) for count in counts)):
        offsets = tuple(number * size for number, size in zip(index, stored, strict=True))
        sizes = tuple(min(size, dim - start) for size, dim, start in zip(stored, shape, offsets, strict=True))
        name = separator.join(map(str, index)) or "0"
        blocks.append(ZarrBlock(offsets, sizes, metadata.parent / name, tuple(stored)))
    return Chunked(metadata.parent.name, str(metadata.parent), tuple(shape), _DTYPES[code], blocks)
