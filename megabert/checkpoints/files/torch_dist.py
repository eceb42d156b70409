"""Read megatron.core's distributed checkpoints: `torch_dist` folders, and `zarr` ones of its first versions.

Returns the content of common.pt and the model's tensors by megatron.core's names, not read yet. `.metadata` is a
pickle of PyTorch's distributed checkpoints, read as data; it locates each block of each tensor (file, offset, length).
megatron.core stacks equal layers in one tensor, whose first dim counts them; they are unstacked here.
Sources: torch/distributed/checkpoint/{metadata,filesystem}.py in https://github.com/pytorch/pytorch;
megatron/core/dist_checkpointing/strategies/{torch,zarr}.py in https://github.com/NVIDIA/Megatron-LM.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...json_documents import read_json_object
from .chunked_tensor import Chunked, layer_of
from .lazy_tensor import LARGEST_REPEATED, MOST_DIMS, LazyTensor, Readable, Region, open_regular
from .pickle_reader import Record
from .torch_pickle import Storages, load_pickle
from .weight_files import open_file, open_region
from .zarr_arrays import open_zarr
from .zip_archive import LARGEST_RATIO

_LARGEST_METADATA = 2**26


@dataclass(frozen=True)
class Distributed:
    """An open distributed checkpoint: the values common to all ranks, and the model's tensors."""

    backend: str
    common: Mapping[str, Any]
    tensors: Mapping[str, Readable]
    unknown_globals: frozenset[str]


@dataclass(frozen=True)
class TorchBlock:
    """A block of a tensor: its first index in each dim, its dims, and its bytes in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    region: Region

    def check_size(self, dtype: torch.dtype, source: str) -> None:
        """Raise CheckpointError if the block is larger than its bytes can be."""
        if math.prod(self.sizes) * dtype.itemsize > self.region.size * LARGEST_RATIO + LARGEST_REPEATED:
            raise CheckpointError(f"{source}: {self.region.label} has {self.region.size} bytes for shape {self.sizes}.")

    def read(self, dtype: torch.dtype, source: str) -> Tensor:
        """Read the block, a tensor in a file of torch.save."""
        content = open_region(self.region).content
        if not isinstance(content, LazyTensor) or content.dtype != dtype:
            raise CheckpointError(f"{source}: {self.region.label} holds no tensor of {dtype}.")
        if tuple(dim for dim in content.shape if dim != 1) != tuple(dim for dim in self.sizes if dim != 1):
            raise CheckpointError(
                f"{source}: {self.region.label} has shape {content.shape}; its metadata has {self.sizes}."
            )
        return content.read().reshape(self.sizes)


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder has a .metadata file, or a metadata.json that names a backend."""
    return (folder / ".metadata").is_file() or _backend(folder) is not None


def _backend(folder: Path) -> str | None:
    file = folder / "metadata.json"
    if not file.is_file():
        return None
    backend = read_json_object(file).get("sharded_backend")
    return backend if isinstance(backend, str) else None


def open_torch_dist(folder: Path) -> Distributed:
    """Open a distributed checkpoint, none of its tensors yet. Raises CheckpointError if it is incomplete."""
    common, unknown = _open_common(folder)
    backend = _backend(folder) or "torch_dist"
    stored: Mapping[str, Readable]
    if backend == "torch_dist":
        stored = _open_tensors(folder, _open_metadata(folder))
    elif backend == "zarr":
        stored = {name: item for name, item in open_zarr(folder).items() if not _NOT_THE_MODEL.search(name)}
    else:
        raise CheckpointError(f"{folder}: backend {backend[:40]!r} is not read; torch_dist and zarr are.")
    tensors = dict(_unstack(stored))
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors of a model.")
    return Distributed(backend, common, tensors, unknown)


def _open_common(folder: Path) -> tuple[dict[str, Any], frozenset[str]]:
    if not (folder / "common.pt").is_file():
        return {}, frozenset()
    opened = open_file(folder / "common.pt")
    if not isinstance(opened.content, dict):
        raise CheckpointError(f"{folder / 'common.pt'} holds no dictionary.")
    return opened.content, opened.unknown_globals


def _open_metadata(folder: Path) -> Mapping[str, Any]:
    region = open_regular(folder / ".metadata")
    if region.size > _LARGEST_METADATA:
        raise region.error(f"{region.size} bytes; at most {_LARGEST_METADATA} are read.")
    data = bytes(region.read(0, region.size))
    value = load_pickle(data, region.label, 0, Storages()).value
    match value:
        case Record(state={"state_dict_metadata": dict(), "storage_data": dict()} as state):
            return cast(Mapping[str, Any], state)
    raise region.error("it is not the metadata of a distributed checkpoint of PyTorch.")


# Names of other parts than the model: optimizers, random states, objects of the training loop.
_NOT_THE_MODEL = re.compile(r"^(optimizer|chained_\d+|rng_state|rerun_state|opt_param_scheduler)\b|_extra_state")


def _open_tensors(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Readable]:
    locations = _locations(folder, metadata["storage_data"])
    files: dict[str, Region] = {}
    tensors: dict[str, Readable] = {}
    for name, entry in metadata["state_dict_metadata"].items():
        if not isinstance(name, str) or _NOT_THE_MODEL.search(name):
            continue
        match entry:
            case Record(name="BytesStorageMetadata"):
                continue
            case Record(state={"properties": properties, "size": tuple() as size, "chunks": list() as chunks}):
                pass
            case _:
                raise CheckpointError(f"{folder}/.metadata: {name[:80]} has metadata of an unknown type.")
        shape, dtype = _dims(size, name, folder), _dtype(properties, name, folder)
        blocks = [_open_block(folder, name, shape, chunk, locations, files) for chunk in chunks]
        tensors[name] = Chunked(name, str(folder), shape, dtype, blocks)
    return tensors


def _dims(value: Any, name: str, folder: Path) -> tuple[int, ...]:
    is_valid = isinstance(value, tuple) and len(value) <= MOST_DIMS
    if not is_valid or any(type(dim) is not int or not 0 <= dim < 2**40 for dim in value):
        raise CheckpointError(f"{folder}/.metadata: {name[:80]} has an invalid shape or offset.")
    return tuple(value)


def _dtype(properties: object, name: str, folder: Path) -> torch.dtype:
    state = properties.state if isinstance(properties, Record) else None
    # The state of TensorProperties is a tuple that begins with the dtype.
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{folder}/.metadata: {name[:80]} has no dtype.")
    return dtype


# The offsets of a block are text here: hashes of numbers can be made to collide.
_Locations = Mapping[tuple[str, str], tuple[str, int, int]]


def _locations(folder: Path, storage_data: Mapping[object, object]) -> _Locations:
    """Map each block to its bytes: (tensor, offsets) to (file, first byte, length)."""
    locations: dict[tuple[str, str], tuple[str, int, int]] = {}
    for index, info in storage_data.items():
        match index, info:
            case (
                Record(state={"fqn": str() as name, "offset": tuple() as offset}),
                Record(state={"relative_path": str() as file, "offset": int() as start, "length": int() as length}),
            ):
                key = (name, str(_dims(offset, name, folder)))
                if key in locations:
                    raise CheckpointError(f"{folder}/.metadata: {name[:80]} has two blocks at {offset}.")
                locations[key] = (file, start, length)
    return locations


def _location(folder: Path, name: str, offsets: tuple[int, ...], locations: _Locations) -> tuple[str, int, int]:
    """Return the file of a block, its first byte and its length."""
    if (name, str(offsets)) not in locations:
        raise CheckpointError(f"{folder}/.metadata does not locate the block of {name[:80]} at {offsets}.")
    file, start, length = locations[name, str(offsets)]
    # A name in the metadata may only select a file of this folder.
    if Path(file).name != file or file in ("", ".", ".."):
        raise CheckpointError(f"{folder}/.metadata names {file[:80]!r}, which is not a file beside it.")
    return file, start, length


def _open_block(
    folder: Path, name: str, shape: tuple[int, ...], chunk: object, locations: _Locations, files: dict[str, Region]
) -> TorchBlock:
    state = chunk.state if isinstance(chunk, Record) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}/.metadata: {name[:80]} has an invalid block.")
    offsets = _dims(state.get("offsets"), name, folder)
    sizes = _dims(state.get("sizes"), name, folder)
    is_inside = len(offsets) == len(sizes) == len(shape) and all(
        start + size <= dim for start, size, dim in zip(offsets, sizes, shape, strict=True)
    )
    if not is_inside:
        raise CheckpointError(f"{folder}/.metadata: a block of {name[:80]} at {offsets} is outside of {shape}.")
    file, start, length = _location(folder, name, offsets, locations)
    if file not in files:
        files[file] = open_regular(folder / file)
    return TorchBlock(offsets, sizes, files[file].part(start, length, f"{name[:80]} at {list(offsets)}"))


_STACKED = re.compile(r"(.*\.layers)\.(?!\d+\.)(.*)")


def _unstack(tensors: Mapping[str, Readable]) -> Iterator[tuple[str, Readable]]:
    for name, tensor in tensors.items():
        plain = re.sub(r"^((module|model)\.)+", "", name)
        stacked = _STACKED.fullmatch(plain)
        if stacked is None:
            yield plain, tensor
        elif isinstance(tensor, Chunked) and tensor.shape:
            for layer in range(tensor.shape[0]):
                yield f"{stacked[1]}.{layer}.{stacked[2]}", layer_of(tensor, layer)
