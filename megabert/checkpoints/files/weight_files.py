"""Open a weight file of any supported format: the saved objects come back with lazy tensors.

The format is detected from the content, not the name: a zip or legacy file of `torch.save`, or safetensors, alone or
packed in a zip archive. Pickles are read as data (`pickle_reader`), archives are never extracted, and every size that a
file declares is compared with the bytes that are there before it is used.
Sources: torch/serialization.py and caffe2/serialize/inline_container.cc in https://github.com/pytorch/pytorch;
PKWARE's APPNOTE.TXT.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...errors import CheckpointError
from .lazy_tensor import LazyTensor, Region, Storage, open_regular
from .safetensors_file import open_safetensors
from .torch_pickle import Storages, load_pickle
from .zip_archive import Member, read_zip

__all__ = ["LazyTensor", "WeightFile", "looks_like_weights", "open_file", "open_files", "open_region"]

_MOST_SHOWN = 16  # names in a message
_LARGEST_PICKLE = 2**28


@dataclass(frozen=True)
class WeightFile:
    """An open weight file. It is closed when its last tensor is garbage-collected."""

    kind: str
    content: object
    unknown_globals: frozenset[str]
    metadata: dict[str, str]


def open_file(path: str | os.PathLike[str]) -> WeightFile:
    """Open a file of PyTorch ("torch-zip", "torch-legacy") or "safetensors" by its content.

    `content` is the saved object, with a `LazyTensor` for each tensor and a `Record` for each object of a class
    that is neither torch's nor a plain container; for safetensors it is a dict from name to `LazyTensor`.
    A zip archive with such a file as its only `.pt` member, as NVIDIA publishes Megatron-LM's checkpoints, opens as
    that file would: read in place, or decompressed into memory; `open_files` opens several.
    Raises CheckpointError for anything else; the message names the file's format where it is recognized.
    """
    files = open_files(path)
    if len(files) > 1:
        names = _some(files)
        raise CheckpointError(f"{path}: a zip archive with {len(files)} weight files ({names}), not one.")
    return next(iter(files.values()))


def open_files(path: str | os.PathLike[str]) -> dict[str, WeightFile]:
    """Open a file as `open_file` does, or every `.pt` member of a zip archive, by member name.

    A file that is not packed in an archive has the name "".
    """
    region = open_regular(Path(path))
    if not _is_zip(region):
        return {"": open_region(region)}
    members = read_zip(region)
    if any(_DATA_PKL.fullmatch(name) for name in members):
        return {"": _open_torch_zip(region, members)}
    packed = {name: member for name, member in members.items() if name.endswith(".pt")}
    if not packed:
        raise _no_weights_error(region, members)
    return {name: open_region(_open_packed(member)) for name, member in packed.items()}


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins like one of the formats that `open_file` reads."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith((b"PK", b"\x80")) or head[8:9] == b"{"


def open_region(region: Region) -> WeightFile:
    """Open a part of a file, such as a member of an archive, as `open_file` opens a file."""
    head = bytes(region.read(0, min(region.size, 512)))
    if _is_zip(region):
        return _open_torch_zip(region, read_zip(region))
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]:
        return _open_torch_legacy(region)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 2**32:
        tensors, metadata = open_safetensors(region)
        return WeightFile("safetensors", tensors, frozenset(), metadata)
    raise region.error(_describe(head))


def _is_zip(region: Region) -> bool:
    return region.read(0, min(region.size, 2)) == b"PK"


def _open_packed(member: Member) -> Region:
    """Return a weight file in an archive, verified by its checksum."""
    packed = member.open()
    # A zip of torch has a checksum for each of its members, verified on reading; the other formats have none.
    if not _is_zip(packed):
        member.check()
    return packed


def _no_weights_error(region: Region, members: dict[str, Member]) -> CheckpointError:
    return region.error(
        f"a zip archive, but not one of torch.save. It has {len(members)} members ({_some(members)}). "
        "If one of them is a weight file, take it out and give that."
    )


def _some(names: Iterable[str]) -> str:
    """List names for a message, at most _MOST_SHOWN: a hostile file may have millions."""
    shown = [repr(name[:80]) for name in islice(names, _MOST_SHOWN + 1)]
    return ", ".join([*shown[:_MOST_SHOWN], *(["..."] if len(shown) > _MOST_SHOWN else [])])


# Formats that are not read, by their first bytes
_UNSUPPORTED = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights. Run `git lfs pull` where it came from.",
    b"\x1f\x8b": "compressed with gzip. Unpack it first.",
    b"BZh": "compressed with bzip2. Unpack it first.",
    b"\xfd7zXZ": "compressed with xz. Unpack it first.",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it first.",
    b"\x93NUMPY": "a numpy array, not a checkpoint.",
    b"\x89HDF": "an HDF5 file (Keras), which is not read here.",
    b"GGUF": "a GGUF file, which is not read here.",
    b"\x80": "a pickle without torch's magic number, so not a file of torch.save.",
}
_TAR_OF_TORCH = (b"sys_info", b"pickle", b"tensors", b"storages")


def _describe(head: bytes) -> str:
    for magic, description in _UNSUPPORTED.items():
        if head.startswith(magic):
            return f"this is {description}"
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
            "this is a web page, not the weights: the address requires a login or responded with an error. "
            "Open it in a browser to see why, then download the file again."
        )
    if "\ufffd" not in text[:-1] and all(character.isprintable() or character.isspace() for character in text[:-1]):
        return f"this is a text file, not a checkpoint. It begins {text[:40]!r}."
    return (
        f"not a checkpoint that can be read: it begins with {head[:8].hex(' ')}. A file of torch.save or of "
        "safetensors is expected."
    )


# --- torch.save ---

_DATA_PKL = re.compile(r"[^/\\]+/data\.pkl")
# The members that torch.save writes besides `data/<key>`; the last three are folders, which other tools add.
_TORCH_TEXT_MEMBERS = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
_TORCH_MEMBERS = {"data.pkl", *_TORCH_TEXT_MEMBERS, "", "data/", ".data/"}
_LARGEST_TEXT_MEMBER = 64


def _open_torch_zip(region: Region, archive: dict[str, Member]) -> WeightFile:
    members = _torch_members(region, archive)
    metadata = {name: _read_text_member(members[name]) for name in _TORCH_TEXT_MEMBERS if name in members}
    if metadata.get("byteorder", "little") != "little":
        raise region.error(
            f"its numbers are {metadata['byteorder'][:20]!r} endian; little endian is read. "
            "Load it on the machine that wrote it, and save it as safetensors."
        )
    pickle, storages = members["data.pkl"], Storages()
    if pickle.size > _LARGEST_PICKLE:
        raise region.error(f"data.pkl has {pickle.size} bytes; at most {_LARGEST_PICKLE} are read.")
    result = load_pickle(bytes(pickle.read(0, pickle.size)), f"{region.label}: data.pkl", 0, storages)
    for key, storage in storages.by_key.items():
        member = members.get(f"data/{key}")
        # Where a storage's size is not a multiple of its item size, the pickle counts whole items.
        if member is None or member.size // storage.dtype.itemsize != storage.num_items:
            actual = "is missing" if member is None else f"has {member.size} bytes"
            raise region.error(f"storage {key[:40]!r} {actual}; {storage.nbytes} bytes are expected.")
        storage.source = member
    return WeightFile("torch-zip", result.value, result.unknown_globals, metadata)


def _torch_members(region: Region, members: dict[str, Member]) -> dict[str, Member]:
    """Map the members of a torch.save zip, without the name of their common folder."""
    folders = [name.removesuffix("/data.pkl") for name in members if _DATA_PKL.fullmatch(name)]
    if len(folders) != 1 or folders[0] in (".", ".."):
        raise _no_weights_error(region, members)
    if region.is_decompressed and any(member.is_deflated for member in members.values()):
        # The ratios of nested zip bombs multiply.
        raise region.error("it is compressed, and so is the archive around it. Unpack the archive and give this file.")
    for name in members:
        folder, _, rest = name.partition("/")
        if rest == "constants.pkl" or rest.startswith("code/"):
            raise region.error("a TorchScript program, not a checkpoint: it contains code.")
        if folder != folders[0] or not (rest in _TORCH_MEMBERS or re.fullmatch(r"data/\w+", rest, re.ASCII)):
            raise region.error(f"member {name[:80]!r} is not one that torch.save writes.")
    return {name.partition("/")[2]: member for name, member in members.items()}


def _read_text_member(member: Member) -> str:
    if member.size > _LARGEST_TEXT_MEMBER:
        raise member.region.error(f"{member.size} bytes; at most {_LARGEST_TEXT_MEMBER} are expected.")
    return member.read(0, member.size).decode("utf-8", "replace").strip()


# 0x1950a86a20f9469cfc6c as the opcode LONG1 writes it; protocol and frame opcodes precede it
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def _open_torch_legacy(region: Region) -> WeightFile:
    """Read five pickles (magic number, protocol, system, content, keys of storages), then bind the storages."""
    storages = Storages()
    pickles, offset = [], 0
    for _ in range(5):
        pickles.append(load_pickle(region, region.label, offset, storages))
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
    return WeightFile("torch-legacy", content, pickles[3].unknown_globals, {"protocol_version": "1001"})


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
        raise region.error(f"{region.size - offset} bytes follow the last storage.")
