"""The safetensors format, read into lazy tensors and written piece by piece.

Does not use the library, which maps the file into memory or needs all tensors in memory at once.
Source: section Format of https://github.com/huggingface/safetensors.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .lazy_tensor import MOST_DIMS, LazyTensor, Region, Storage

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LARGEST_HEADER = 2**24  # 130,000 tensors


def open_safetensors(region: Region) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Return the tensors by name, not read yet, and the metadata.

    Raises CheckpointError unless the tensors fill the file exactly, without gaps or overlaps.
    """
    length = int.from_bytes(region.read(0, 8), "little")
    if length > _LARGEST_HEADER:
        raise region.error(f"a header of {length} bytes; at most {_LARGEST_HEADER} are read.")
    header = _read_header(region.part(8, length, "header"), region)
    data = region.part(8 + length, region.size - 8 - length, "tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise region.error("__metadata__ is not a JSON object of strings.")
    tensors: dict[str, LazyTensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            tensors[name], span = _read_entry(data, name, entry)
        except ValueError as error:
            raise region.error(f"tensor {name[:80]!r}: {error}") from None
        spans.append(span)
    edges = [(0, 0), *sorted(spans), (data.size, data.size)]
    if any(end != begin for (_, end), (begin, _) in pairwise(edges)):
        raise region.error(
            "its tensors overlap, leave gaps, or do not fill the file exactly. "
            "It is cut off or damaged; fetch it again."
        )
    return tensors, metadata


def _read_header(header: Region, file: Region) -> dict[str, object]:
    try:
        raw = bytes(header.read(0, header.size))
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise file.error(f"its header is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise file.error("its header is not a JSON object.")
    return document


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it has a duplicate name.")
    return result


def _read_entry(data: Region, name: str, entry: object) -> tuple[LazyTensor, tuple[int, int]]:
    """Return a tensor and its first and last byte."""
    match entry:
        case {"dtype": str() as code, "shape": list() as shape, "data_offsets": [int() as begin, int() as end], **more}:
            if more or code not in _DTYPES:
                raise ValueError(f"dtype {code[:20]!r} is not read; {', '.join(_DTYPES)} are.")
        case _:
            raise ValueError("dtype, shape and data_offsets are expected, and no more.")
    dtype = _DTYPES[code]
    if len(shape) > MOST_DIMS or any(type(dim) is not int or dim < 0 for dim in shape):
        raise ValueError("its shape is not a list of sizes.")
    stride = tuple(math.prod(max(dim, 1) for dim in shape[axis + 1 :]) for axis in range(len(shape)))
    num_items = math.prod(shape)
    if not 0 <= begin <= end or end - begin != num_items * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} for shape {shape} of {code}.")
    storage = Storage(name, dtype, num_items, data.part(begin, end - begin, f"tensor {name[:80]!r}"))
    return LazyTensor(dtype, tuple(shape), stride, storage), (begin, end)


def safetensors_pieces(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[bytes | memoryview]:
    """Yield the content of a file; `tensors` come in the order of `entries` (name to dtype and shape)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    yield len(text).to_bytes(8, "little") + text
    for (name, (dtype, shape)), tensor in zip(entries.items(), tensors, strict=True):
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), name
        # As bytes, since numpy has no bfloat16.
        yield tensor.contiguous().flatten().view(torch.uint8).numpy().data
