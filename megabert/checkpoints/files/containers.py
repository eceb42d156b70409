"""Open a weight file of any make: a path goes in, dicts and lists with tensors not yet read come out.

What a file is, its content tells and not its name: a zip or a legacy file of `torch.save`, or safetensors, alone or
packed in a zip archive.
Pickles are read as data (`symbolic_pickle`), archives are never extracted, and no size that a file declares
is believed before it is compared with the bytes that are there.
Sources: torch/serialization.py and caffe2/serialize/inline_container.cc in https://github.com/pytorch/pytorch;
PKWARE's APPNOTE.TXT; section Format of https://github.com/huggingface/safetensors.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import torch

from ...errors import CheckpointError
from ..files import pickle_reader as symbolic_pickle
from .lazy_tensor import MOST_DIMS, LazyTensor, Region, Storage, open_regular
from .pickle_reader import Limits
from .torch_pickle import Storages, load_pickle
from .zip_archive import Member, read_zip

__all__ = ["LazyTensor", "Opened", "looks_like_weights", "open_file", "open_files", "open_region"]

_MOST_SHOWN = 16  # names in a message
_LARGEST_PICKLE = 2**28
_LARGEST_HEADER = 2**24  # 130,000 tensors


@dataclass(frozen=True)
class Opened:
    """An open weight file. It closes with the last of its tensors."""

    kind: str
    content: object
    unknown_globals: frozenset[str]
    metadata: dict[str, str]


def open_file(path: str | os.PathLike[str], *, limits: Limits = symbolic_pickle.DEFAULT_LIMITS) -> Opened:
    """Open a file of PyTorch ("torch-zip", "torch-legacy") or "safetensors" by its content.

    `content` is what was saved, with a `LazyTensor` for each tensor and a `Record` for each object of a class
    that is neither torch's nor a plain container; for safetensors it is a dict from name to `LazyTensor`.
    A zip archive that holds such a file as its one `.pt` member, as NVIDIA publishes Megatron-LM's checkpoints,
    opens as that file would: read where it lies, or decompressed into memory; `open_files` opens several.
    Raises CheckpointError for anything else, and says what the file is if that can be told.
    """
    found = open_files(path, limits=limits)
    if len(found) > 1:
        names = _some(found)
        raise CheckpointError(f"{path}: a zip archive with {len(found)} weight files ({names}), not one.")
    return next(iter(found.values()))


def open_files(path: str | os.PathLike[str], *, limits: Limits = symbolic_pickle.DEFAULT_LIMITS) -> dict[str, Opened]:
    """Open a file as `open_file` does, or each `.pt` member of a zip archive that packs several, by its name.

    A file that is not packed has the name "".
    """
    region = open_regular(Path(path))
    if not _is_zip(region):
        return {"": open_region(region, limits)}
    members = read_zip(region)
    if any(_DATA_PKL.fullmatch(name) for name in members):
        return {"": _open_torch_zip(region, members, limits)}
    packed = {name: member for name, member in members.items() if name.endswith(".pt")}
    if not packed:
        raise _no_weights(region, members)
    return {name: open_region(_open_packed(member), limits) for name, member in packed.items()}


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins as those do that `open_file` reads."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith((b"PK", b"\x80")) or head[8:9] == b"{"


def open_region(region: Region, limits: Limits = symbolic_pickle.DEFAULT_LIMITS) -> Opened:
    """Open a part of a file, such as a member of an archive, as `open_file` opens a whole one."""
    head = bytes(region.read(0, min(region.size, 512)))
    if _is_zip(region):
        return _open_torch_zip(region, read_zip(region), limits)
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]:
        return _open_torch_legacy(region, limits)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 2**32:
        return _open_safetensors(region)
    raise region.error(_describe(head))


def _is_zip(region: Region) -> bool:
    return region.read(0, min(region.size, 2)) == b"PK"


def _open_packed(member: Member) -> Region:
    """Return a weight file that an archive holds, checked against its checksum."""
    packed = member.open()
    # A zip of torch has a checksum for each of its own members, compared when that is read; other formats have none.
    if not _is_zip(packed):
        member.check()
    return packed


def _no_weights(region: Region, members: dict[str, Member]) -> CheckpointError:
    return region.error(
        f"a zip archive, but not one of torch.save. It has {len(members)} members ({_some(members)}). "
        "If one of them is a weight file, take it out and give that."
    )


def _some(names: Iterable[str]) -> str:
    """List names for a message: all that a checkpoint may have, but not all that a hostile file may have."""
    shown = [repr(name[:80]) for name in islice(names, _MOST_SHOWN + 1)]
    return ", ".join([*shown[:_MOST_SHOWN], *(["..."] if len(shown) > _MOST_SHOWN else [])])


# What a file is that we cannot open: offset, first bytes, what to say
_FOREIGN = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights. Run `git lfs pull` where it came from.",
    ),
    (0, b"\x1f\x8b", "compressed with gzip. Unpack it first."),
    (0, b"BZh", "compressed with bzip2. Unpack it first."),
    (0, b"\xfd7zXZ", "compressed with xz. Unpack it first."),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd. Unpack it first."),
    (0, b"\x93NUMPY", "a numpy array, not a checkpoint."),
    (0, b"\x89HDF", "an HDF5 file (Keras), which is not read here."),
    (0, b"GGUF", "a GGUF file, which is not read here."),
    (0, b"\x80", "a pickle without torch's magic number, so not a file of torch.save."),
)
_TAR_OF_TORCH = (b"sys_info", b"pickle", b"tensors", b"storages")


def _describe(head: bytes) -> str:
    for offset, magic, what in _FOREIGN:
        if head[offset:].startswith(magic):
            return f"this is {what}"
    if not head:
        return "the file is empty. Was a download or a copy cut off? Fetch it again."
    if head[257:262] == b"ustar":
        if head[:100].rstrip(b"\0").removeprefix(b"./") in _TAR_OF_TORCH:
            return (
                "this is a tar file of PyTorch before 0.1.10 (2017), which is not read. If you trust it, "
                "load it with torch.load(weights_only=False) and save it again."
            )
        return "this is a tar archive. Take the weight file out of it and give that."
    text = head.decode("utf-8", "replace")
    if text.lstrip("\ufeff \t\r\n")[:14].lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        return (
            "this is a web page, not the weights: the address asked for a login or answered with an error. "
            "Open it in a browser to see why, then download the file again."
        )
    if "\ufffd" not in text[:-1] and all(character.isprintable() or character.isspace() for character in text[:-1]):
        return f"this is a text file, not a checkpoint. It begins {text[:40]!r}."
    return (
        f"not a checkpoint that can be read: it begins with {head[:8].hex(' ')}. A file of torch.save or of "
        "safetensors is expected."
    )


# --- The three formats ---

_DATA_PKL = re.compile(r"[^/\\]+/data\.pkl")
# The members that torch.save writes beside `data/<key>`; the last three are folders, which other tools add.
_TORCH_NOTES = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
_TORCH_MEMBERS = {"data.pkl", *_TORCH_NOTES, "", "data/", ".data/"}
_LARGEST_NOTE = 64


def _open_torch_zip(region: Region, archive: dict[str, Member], limits: Limits) -> Opened:
    members = _torch_members(region, archive)
    metadata = {name: _read_note(members[name]) for name in _TORCH_NOTES if name in members}
    if metadata.get("byteorder", "little") != "little":
        raise region.error(
            f"its numbers are {metadata['byteorder'][:20]!r} endian; little endian is read. "
            "Load it on the machine that wrote it, and save it as safetensors."
        )
    pickle, storages = members["data.pkl"], Storages()
    if pickle.size > _LARGEST_PICKLE:
        raise region.error(f"data.pkl has {pickle.size} bytes; at most {_LARGEST_PICKLE} are read.")
    result = load_pickle(bytes(pickle.read(0, pickle.size)), f"{region.label}: data.pkl", 0, storages, limits)
    for key, storage in storages.by_key.items():
        member = members.get(f"data/{key}")
        # A storage whose bytes are no multiple of its item size says how many whole items it has.
        if member is None or member.size // storage.dtype.itemsize != storage.num_items:
            found = "is missing" if member is None else f"has {member.size} bytes"
            raise region.error(f"storage {key[:40]!r} {found}; {storage.nbytes} bytes are expected.")
        storage.source = member
    return Opened("torch-zip", result.value, result.unknown_globals, metadata)


def _torch_members(region: Region, members: dict[str, Member]) -> dict[str, Member]:
    """Name the members of a zip file of torch.save without the folder that they all lie in."""
    folders = [name.removesuffix("/data.pkl") for name in members if _DATA_PKL.fullmatch(name)]
    if len(folders) != 1 or folders[0] in (".", ".."):
        raise _no_weights(region, members)
    if region.is_decompressed and any(member.is_deflated for member in members.values()):
        # Two bombs, one in the other, would grow by the product of their ratios.
        raise region.error("it is compressed, and so is the archive around it. Unpack the archive and give this file.")
    for name in members:
        folder, _, rest = name.partition("/")
        if rest == "constants.pkl" or rest.startswith("code/"):
            raise region.error("a TorchScript program, not a checkpoint: it contains code.")
        if folder != folders[0] or not (rest in _TORCH_MEMBERS or re.fullmatch(r"data/\w+", rest, re.ASCII)):
            raise region.error(f"member {name[:80]!r} is none that torch.save writes.")
    return {name.partition("/")[2]: member for name, member in members.items()}


def _read_note(member: Member) -> str:
    if member.size > _LARGEST_NOTE:
        raise CheckpointError(f"{member.region.label}: {member.size} bytes; at most {_LARGEST_NOTE} are expected.")
    return member.read(0, member.size).decode("utf-8", "replace").strip()


# 0x1950a86a20f9469cfc6c as the opcode LONG1 writes it; protocol and frame stand before it
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def _open_torch_legacy(region: Region, limits: Limits) -> Opened:
    """Read five pickles (magic, protocol, system, what was saved, keys of storages) and the storages."""
    storages = Storages()
    pickles, offset = [], 0
    for _ in range(5):
        pickles.append(load_pickle(region, region.label, offset, storages, limits))
        offset = pickles[-1].end
    _, protocol, system, content, keys = (pickle.value for pickle in pickles)
    match protocol, system:
        case 1001, {"little_endian": True}:
            pass
        case _:
            raise region.error(
                "protocol 1001 with little endian numbers is read, and this file is of another. "
                "Load it with PyTorch on the machine that wrote it, and save it as safetensors."
            )
    _bind_legacy_storages(region, offset, storages.by_key, keys)
    return Opened("torch-legacy", content, pickles[3].unknown_globals, {"protocol_version": "1001"})


def _bind_legacy_storages(region: Region, offset: int, by_key: dict[str, Storage], keys: object) -> None:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(by_key):
        raise region.error("its list of storages is not the one that its tensors refer to.")
    for key in keys:
        storage = by_key[key]
        count = int.from_bytes(region.part(offset, 8, f"size of storage {key[:40]!r}").read(0, 8), "little")
        if count != storage.num_items:
            raise region.error(f"storage {key[:40]!r} has {count} items; {storage.num_items} are expected.")
        storage.source = region.part(offset + 8, storage.nbytes, f"storage {key[:40]!r}")
        offset += 8 + storage.nbytes
    if offset != region.size:
        raise region.error(f"{region.size - offset} bytes are left behind the last storage.")


SAFETENSORS_DTYPES = {
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


def _open_safetensors(region: Region) -> Opened:
    # Not through the library: it maps the file into memory, or wants all of it there at once.
    length = int.from_bytes(region.read(0, 8), "little")
    if length > _LARGEST_HEADER:
        raise region.error(f"a header of {length} bytes; at most {_LARGEST_HEADER} are read.")
    header = _read_json(bytes(region.part(8, length, "header").read(0, length)), region.label)
    numbers = region.part(8 + length, region.size - 8 - length, "tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise region.error("__metadata__ is not a JSON object of strings.")
    content: dict[str, LazyTensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        try:
            content[name], span = _read_safetensor(numbers, name, entry)
        except ValueError as error:
            raise region.error(f"tensor {name[:80]!r}: {error}") from None
        spans.append(span)
    edges = [(0, 0), *sorted(spans), (numbers.size, numbers.size)]
    if any(end != begin for (_, end), (begin, _) in pairwise(edges)):
        raise region.error(
            "its tensors overlap, leave gaps, or do not fill the file exactly. "
            "It is cut off or damaged; fetch it again."
        )
    return Opened("safetensors", content, frozenset(), metadata)


def _read_json(raw: bytes, label: str) -> dict[str, object]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{label}: its header is not a JSON object.")
    return header


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands in it twice.")
    return result


def _read_safetensor(numbers: Region, name: str, entry: object) -> tuple[LazyTensor, tuple[int, int]]:
    match entry:
        case {
            "dtype": str() as code,
            "shape": list() as shape,
            "data_offsets": [int() as begin, int() as end],
            **more,
        }:
            if more or code not in SAFETENSORS_DTYPES:
                raise ValueError(f"dtype {code[:20]!r} is not read; {', '.join(SAFETENSORS_DTYPES)} are.")
        case _:
            raise ValueError("dtype, shape and data_offsets are expected, and no more.")
    dtype = SAFETENSORS_DTYPES[code]
    if len(shape) > MOST_DIMS or any(type(dim) is not int or dim < 0 for dim in shape):
        raise ValueError("its shape is not a list of sizes.")
    stride = tuple(math.prod(max(dim, 1) for dim in shape[axis + 1 :]) for axis in range(len(shape)))
    num_items = math.prod(shape)
    if not 0 <= begin <= end or end - begin != num_items * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} for shape {shape} of {code}.")
    storage = Storage(name, dtype, num_items, numbers.part(begin, end - begin, f"tensor {name[:80]!r}"))
    return LazyTensor(dtype, tuple(shape), stride, storage), (begin, end)
