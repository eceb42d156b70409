"""Read the `zarr` checkpoints of megatron.core's first versions: one zarr array (format 2) in a folder for each tensor.

A folder goes in; out come tensors by the names of their folders, not read yet. Arrays are read as megatron.core wrote
them, without a compressor. Source: https://zarr-specs.readthedocs.io, version 2.
"""

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .chunked_tensor import Chunked
from .lazy_tensor import open_regular

_DTYPES = {
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<f8": torch.float64,
    "bfloat16": torch.bfloat16,  # as tensorstore writes it; zarr has no name for it
    "<i8": torch.int64,
    "<i4": torch.int32,
    "|u1": torch.uint8,
}
_LARGEST_NOTE = 2**16
_MOST_BLOCKS = 2**16


@dataclass(frozen=True)
class ZarrBlock:
    """One file of an array. It holds a whole block even where the array ends within it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    stored: tuple[int, ...]

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        """Read the file and keep what belongs to the array."""
        region = open_regular(self.file)
        expected = torch.Size(self.stored).numel() * dtype.itemsize
        if region.size != expected:
            raise CheckpointError(f"{self.file} has {region.size} bytes; {expected} are expected.")
        tensor = torch.frombuffer(region.read(0, expected), dtype=dtype).reshape(self.stored)
        return tensor[tuple(slice(0, size) for size in self.sizes)]


def open_zarr(folder: Path) -> dict[str, Chunked]:
    """Open every array below a folder. Raises CheckpointError if one is compressed or damaged."""
    return {note.parent.name: _open_array(note) for note in sorted(folder.glob("*/.zarray"))}


def _open_array(note: Path) -> Chunked:
    array = _read_note(note)
    match array:
        case {"zarr_format": 2, "shape": list() as shape, "chunks": list() as stored, "dtype": str() as code}:
            pass
        case _:
            raise CheckpointError(f"{note} does not describe an array of zarr format 2.")
    if array.get("compressor") is not None or array.get("filters"):
        raise CheckpointError(f"{note}: compressed arrays are not read. Write it again without a compressor.")
    sizes = (*shape, *stored)
    if code not in _DTYPES or array.get("order", "C") != "C" or len(shape) != len(stored):
        raise CheckpointError(f"{note}: dtype {code[:20]!r} in order {array.get('order')!r} is not read.")
    if any(type(dim) is not int or not 0 < dim < 2**40 for dim in sizes):
        raise CheckpointError(f"{note}: its shape {sizes} is none.")
    counts = [-(-dim // size) for dim, size in zip(shape, stored, strict=True)]
    if torch.Size(counts).numel() > _MOST_BLOCKS:
        raise CheckpointError(
            f"{note}: an array in {torch.Size(counts).numel()} files; at most {_MOST_BLOCKS} are read."
        )
    separator = "/" if array.get("dimension_separator") == "/" else "."
    blocks = []
    for place in product(*(range(count) for count in counts)):
        offsets = tuple(index * size for index, size in zip(place, stored, strict=True))
        inside = tuple(min(size, dim - start) for size, dim, start in zip(stored, shape, offsets, strict=True))
        name = separator.join(map(str, place)) or "0"
        blocks.append(ZarrBlock(offsets, inside, note.parent / name, tuple(stored)))
    return Chunked(note.parent.name, str(note.parent), tuple(shape), _DTYPES[code], blocks)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        if note.stat().st_size > _LARGEST_NOTE:
            raise CheckpointError(f"{note} has {note.stat().st_size} bytes; at most {_LARGEST_NOTE} are read.")
        array = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{note} cannot be read as JSON: {error}") from None
    if not isinstance(array, dict):
        raise CheckpointError(f"{note} holds no JSON object.")
    return array
