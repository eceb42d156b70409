"""Open a weight file of any make: a path goes in, dicts and lists with tensors not yet read come out.

What a file is, its content tells and not its name: a zip or a legacy file of `torch.save`, or safetensors.
Pickles are read as data (`symbolic_pickle`), archives are never extracted, and no size that a file declares
is believed before it is compared with the bytes that are there.
Sources: torch/serialization.py and caffe2/serialize/inline_container.cc in https://github.com/pytorch/pytorch;
PKWARE's APPNOTE.TXT; section Format of https://github.com/huggingface/safetensors.
"""

import json
import math
import os
import re
import stat
import struct
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import torch

from ..errors import CheckpointError
from . import symbolic_pickle
from .symbolic_pickle import ByteSource, Call, Global, Limits, Name, Pickle, Record

_CHUNK = 2**24  # bytes read at a time while a checksum is computed
_MOST_DIMS = 64
# Weights hardly shrink and the text of a pickle shrinks tenfold; deflate itself reaches 1,032.
_LARGEST_RATIO = 100
# A tensor may repeat its elements (stride 0). One that pretends to more than its storage stays this small.
_LARGEST_REPEATED = 2**26
_LARGEST_PICKLE = 2**28
_LARGEST_DIRECTORY = 2**26
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
    Raises CheckpointError for anything else, and says what the file is if that can be told.
    """
    region = _open_regular(Path(path))
    head = bytes(region.read(0, min(region.size, 512)))
    if head.startswith(b"PK"):
        return _open_torch_zip(region, limits)
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]:
        return _open_torch_legacy(region, limits)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 2**32:
        return _open_safetensors(region)
    raise CheckpointError(f"{path}: {_describe(head)}")


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
    if "\ufffd" not in text[:-1] and all(
        character.isprintable() or character.isspace() for character in text[:-1]
    ):
        return f"this is a text file, not a checkpoint. It begins {text[:40]!r}."
    return (
        f"not a checkpoint that can be read: it begins with {head[:8].hex(' ')}. A file of torch.save or of "
        "safetensors is expected."
    )


# --- Bytes ---


class _File:
    """An open file that closes when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.stamp = self.current_stamp()

    def current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Region:
    """A part of a file, read with bounded reads. A memory map would follow a change by others, or crash."""

    file: _File
    start: int
    size: int
    label: str

    def error(self, what: str) -> CheckpointError:
        """Say what is wrong with this part of the file."""
        return CheckpointError(f"{self.label}: {what}")

    def part(self, offset: int, length: int, label: str) -> "Region":
        """Return a part of this part. Raises CheckpointError if it is not all there."""
        if not (0 <= offset <= self.size and 0 <= length <= self.size - offset):
            raise self.error(
                f"{label} lies at byte {offset} with {length} bytes, outside of the {self.size} "
                "bytes that are there. The file is cut off or damaged; fetch it again."
            )
        return Region(self.file, self.start + offset, length, f"{self.label}: {label}")

    def read(self, offset: int, length: int) -> bytearray:
        """Read exactly `length` bytes. Raises CheckpointError if they are not there or changed."""
        part = self.part(offset, length, "data")
        if self.file.current_stamp() != self.file.stamp:
            raise CheckpointError(f"{self.file.path} was changed while it was being read. Open it again.")
        result = bytearray(length)
        rest, position = memoryview(result), part.start
        while rest:
            num_read = os.preadv(self.file.descriptor, [rest], position)
            if num_read == 0:
                raise CheckpointError(f"{self.file.path} became shorter while it was being read.")
            rest, position = rest[num_read:], position + num_read
        return result


def _open_regular(path: Path) -> Region:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(
                f"{path} is a folder. Give the weight file in it, such as {path}/model.safetensors."
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is a device or a pipe, not a file.")
        file = _File(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be opened: {reason}.") from None
    return Region(file, 0, file.stamp[0], str(path))


# --- Tensors ---


@dataclass(eq=False)
class Storage:
    """The memory that tensors share: items of one dtype. Where its bytes lie is known only later."""

    key: str
    dtype: torch.dtype
    num_items: int
    source: ByteSource | None = None

    @property
    def nbytes(self) -> int:
        """Size of its whole items."""
        return self.num_items * self.dtype.itemsize


@dataclass(frozen=True)
class StoragePart:
    """A run of items of a storage, as the pickle refers to it."""

    storage: Storage
    start: int
    num_items: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose numbers are still in the file.

    `start` is its first byte in the storage; strides count items.
    Raises ValueError if any of its items lies outside the storage.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: Storage
    start: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.stride) or len(self.shape) > _MOST_DIMS:
            raise ValueError(f"a shape of {len(self.shape)} dims with a stride of {len(self.stride)}.")
        if any(type(n) is not int or not 0 <= n < 2**62 for n in (*self.shape, *self.stride, self.start)):
            raise ValueError("a shape, a stride or an offset is not a number from 0 to 2**62.")
        if self.end > self.storage.nbytes:
            raise ValueError(
                f"a tensor of shape {self.shape} with stride {self.stride} from byte {self.start} on reaches "
                f"outside its storage {self.storage.key!r} of {self.storage.nbytes} bytes."
            )
        largest = max(self.storage.nbytes, _LARGEST_REPEATED)
        if self.nbytes > largest or math.prod(max(dim, 1) for dim in self.shape) >= 2**62:
            raise ValueError(f"a tensor of shape {self.shape} pretends to more than its storage holds.")

    @property
    def nbytes(self) -> int:
        """Size of its numbers once they are read; items that a stride repeats count each time."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte of the storage behind its last item; 0 if it has no items, since it may begin anywhere."""
        if 0 in self.shape:
            return 0
        last = sum((dim - 1) * step for dim, step in zip(self.shape, self.stride, strict=True))
        return self.start + (last + 1) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Read the numbers into memory of their own. Raises CheckpointError if they are damaged."""
        assert self.storage.source is not None, "a storage is bound to its bytes before open_file returns"
        if 0 in self.shape:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        data = self.storage.source.read(self.start, self.end - self.start)
        return torch.frombuffer(data, dtype=self.dtype).as_strided(self.shape, self.stride)


# --- Tensors in a pickle ---


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}
# The first twelve, and those whose storages are untyped
_DTYPES = {
    *_STORAGE_TYPES.values(),
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
}
_VALUES: dict[Name, object] = {
    **{
        (module, name): _StorageType(dtype)
        for name, dtype in _STORAGE_TYPES.items()
        for module in _STORAGE_MODULES
    },
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
    ("torch", "half"): torch.float16,
    # Classes that only say of which kind a tensor is
    ("torch", "Tensor"): Global("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"): Global("torch.nn.parameter", "Parameter"),
}


def _rebuild_tensor(arguments: tuple[object, ...]) -> object:
    """Make a tensor from (storage, offset, shape, stride[, requires_grad, hooks[, metadata]])."""
    match arguments:
        case (part, offset, shape, stride, *rest) if not any(rest[2:]):
            return _tensor(part, None, offset, shape, stride)
    raise ValueError("too few arguments, or a conjugate or negative bit, which is not read.")


def _rebuild_tensor_v3(arguments: tuple[object, ...]) -> object:
    """Make a tensor of a dtype that its storage does not tell, which is the argument after the hooks."""
    match arguments:
        case (part, offset, shape, stride, _, _, torch.dtype() as dtype, *metadata) if not any(metadata):
            return _tensor(part, dtype, offset, shape, stride)
    raise ValueError("too few arguments, or a conjugate or negative bit, which is not read.")


def _tensor(
    part: object, dtype: torch.dtype | None, offset: object, shape: object, stride: object
) -> LazyTensor:
    part = StoragePart(part, 0, part.num_items) if isinstance(part, Storage) else part
    match part, offset, shape, stride:
        case StoragePart(storage, start, num_items), int(), tuple() | list(), tuple() | list():
            dtype = dtype or storage.dtype
            first = start * storage.dtype.itemsize + offset * dtype.itemsize
            tensor = LazyTensor(dtype, tuple(shape), tuple(stride), storage, first)
            if offset < 0 or tensor.end > (start + num_items) * storage.dtype.itemsize:
                raise ValueError(f"a tensor of shape {tensor.shape} reaches outside its part of a storage.")
            return tensor
    raise ValueError("its arguments are not a storage, an offset, a shape and a stride.")


def _rebuild_with_type(arguments: tuple[object, ...]) -> object:
    """Make a tensor from (function, class, arguments, attributes). Its attributes are not kept."""
    match arguments:
        case (Global(module, name), _, tuple() as inner, _) if (module, name) in _TENSOR_CALLS:
            return _TENSOR_CALLS[module, name](inner)
    return Record("torch._tensor", "_rebuild_from_type_v2", arguments)


def _rebuild_parameter(arguments: tuple[object, ...]) -> object:
    """Return the tensor from (tensor, requires_grad, hooks[, attributes])."""
    if not arguments:
        raise ValueError("its tensor is missing.")
    return arguments[0]


def _size(arguments: tuple[object, ...]) -> object:
    match arguments:
        case (tuple() | list() as dims,):
            return tuple(dims)
    raise ValueError("its argument is not a sequence.")


_TENSOR_CALLS: dict[Name, Call] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
}
_CALLS: dict[Name, Call] = {
    **_TENSOR_CALLS,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_type,
    ("torch.tensor", "_rebuild_from_type_v2"): _rebuild_with_type,  # PyTorch before 1.9
    ("torch", "Size"): _size,
}


class _Storages:
    """The storages that a pickle refers to, by key; their bytes are found when the pickle has been read."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def refer(self, identity: object) -> object:
        """Turn a persistent id of torch into a storage, a part of one, or the name of a module's class."""
        match identity:
            case ("storage", _StorageType(dtype), str() as key, str(), int() as num_items):
                return self._storage(key, dtype, num_items)
            case ("storage", _StorageType(dtype), str() as key, str(), int() as num_items, None):
                return self._storage(key, dtype, num_items)
            case (
                "storage",
                _StorageType(dtype),
                str() as key,
                str(),
                int() as num_items,
                (_, int() as start, int() as num),
            ):
                storage = self._storage(key, dtype, num_items)
                if not 0 <= start <= start + num <= num_items:
                    raise ValueError(f"a view of items {start} to {start + num} in a storage of {num_items}.")
                return StoragePart(storage, start, num)
            case ("module", Global() as module, _, _):
                return module
        raise ValueError("it refers to an object outside the pickle in a way that torch.save does not.")

    def _storage(self, key: str, dtype: torch.dtype, num_items: int) -> Storage:
        storage = self.by_key.setdefault(key, Storage(key, dtype, num_items))
        if (storage.dtype, storage.num_items) != (dtype, num_items) or not 0 <= num_items < 2**60:
            raise ValueError(
                f"storage {key[:40]!r} is referred to with two dtypes or sizes, or an absurd one."
            )
        return storage


# --- Zip archives ---

# The records of APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_FULL_16, _FULL_32 = 2**16 - 1, 2**32 - 1  # "the number stands in the 64-bit record"
_ENCRYPTED = 0b10_0000_0100_0001  # bits 0, 6 and 13 of the flags


@dataclass(eq=False)
class Member:
    """One file in a zip archive. Its checksum is compared when it is read for the first time."""

    region: Region
    size: int
    checksum: int
    is_deflated: bool
    is_checked: bool = False

    def read(self, offset: int, length: int) -> bytearray:
        """Read a part, and all of the member if it was not checked yet or is compressed."""
        if self.is_checked and not self.is_deflated:
            return self.region.read(offset, length)
        if not 0 <= offset <= offset + length <= self.size:
            self._fail(f"bytes {offset} to {offset + length} are wanted of {self.size}")
        result, position, checksum = bytearray(length), 0, 0
        for chunk in self._inflated() if self.is_deflated else self._chunks():
            checksum = zlib.crc32(chunk, checksum)
            begin, end = max(offset, position), min(offset + length, position + len(chunk))
            if begin < end:
                result[begin - offset : end - offset] = memoryview(chunk)[begin - position : end - position]
            position += len(chunk)
        if position != self.size or checksum != self.checksum:
            self._fail("its checksum does not match")
        self.is_checked = True
        return result

    def _chunks(self) -> Iterator[bytearray]:
        for position in range(0, self.region.size, _CHUNK):
            yield self.region.read(position, min(_CHUNK, self.region.size - position))

    def _inflated(self) -> Iterator[bytes]:
        inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), self.size
        for chunk in self._chunks():
            pending: bytes | bytearray = chunk
            more = True
            while more and not inflater.eof:
                most = min(_CHUNK, left + 1)
                try:
                    piece = inflater.decompress(pending, most)
                except zlib.error as error:
                    self._fail(f"it cannot be decompressed ({error})")
                pending, left = inflater.unconsumed_tail, left - len(piece)
                more = bool(pending) or len(piece) == most
                if left < 0:
                    self._fail("it is longer than the archive says")
                yield piece

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.region.label}: {what}. The file is damaged; fetch it again.")


def _read_zip(region: Region) -> dict[str, Member]:
    """List the members of a zip archive: stored or deflated, none twice, none over another."""
    count, start, length = _find_directory(region)
    if length > _LARGEST_DIRECTORY:
        raise region.error(f"its list of members has {length} bytes, which is absurd.")
    directory = bytes(region.part(start, length, "list of members").read(0, length))
    members: dict[str, Member] = {}
    position, spans = 0, [(start, region.size)]
    for _ in range(count):
        try:
            name, member, position, span = _read_entry(region, directory, position)
        except (struct.error, ValueError) as error:
            raise region.error(f"member at byte {start + position} of the list: {error}") from None
        if name in members:
            raise region.error(f"it has two members {name!r}; which one counts is a guess.")
        members[name] = member
        spans.append(span)
    spans.sort()
    if position != length or any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        raise region.error("its members overlap, or are not as many as it says.")
    return members


def _find_directory(region: Region) -> tuple[int, int, int]:
    """Return the number of members, and where the list of them begins and how long it is."""
    tail_start = max(0, region.size - _END.size - _FULL_16)
    tail = bytes(region.read(tail_start, region.size - tail_start))
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size or len(tail) - at - _END.size != _END.unpack_from(tail, at)[-1]:
        raise region.error("this zip archive has no end; it is cut off. Fetch it again.")
    _, disk, first_disk, here, count, length, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    short, full = (disk, first_disk, here, count, length, start), (_FULL_16,) * 4 + (_FULL_32,) * 2
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size :].startswith(b"PK\6\7"):
        end, wide = _read_end64(region, _LOCATOR.unpack_from(tail, at - _LOCATOR.size), end)
        if any(a not in (b, most) for a, b, most in zip(short, wide, full, strict=True)):
            raise region.error("the two ends of this zip archive contradict each other.")
        disk, first_disk, here, count, length, start = wide
    if disk or first_disk or here != count or start + length != end:
        raise region.error("this zip archive is one of several parts, or damaged at its end.")
    return count, start, length


def _read_end64(region: Region, locator: tuple[int, ...], end: int) -> tuple[int, tuple[int, ...]]:
    _, _, start, num_disks = locator
    record = region.part(start, _END64.size, "64-bit end of the archive").read(0, _END64.size)
    magic, size, _, _, *fields = _END64.unpack(record)
    if magic != b"PK\6\6" or num_disks > 1 or start + 12 + size != end - _LOCATOR.size:
        raise region.error("the 64-bit end of this zip archive is damaged. Fetch it again.")
    return start, tuple(fields)


def _read_entry(region: Region, directory: bytes, position: int) -> tuple[str, Member, int, tuple[int, int]]:
    """Read one entry of the list, and the header of the member itself, which must agree.

    Returns the name, the member, the position of the next entry, and the first and last byte of the member.
    """
    magic, made_by, _, flags, method, _, _, checksum, packed, size, *rest = _ENTRY.unpack_from(
        directory, position
    )
    num_name, num_extra, num_comment, disk, _, attributes, start = rest
    name_end = position + _ENTRY.size + num_name
    raw_name, extra = directory[position + _ENTRY.size : name_end], directory[name_end : name_end + num_extra]
    end = name_end + num_extra + num_comment
    if magic != b"PK\1\2" or disk or end > len(directory):
        raise ValueError("it is damaged.")
    size, packed, start = _widen((size, packed, start), extra)
    name = raw_name.decode("utf-8")
    kind = stat.S_IFMT(attributes >> 16) if made_by >> 8 == 3 else 0  # 3: the attributes are Unix's
    if flags & _ENCRYPTED or method not in (0, 8) or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(
            f"{name[:80]!r} is encrypted, a link, or packed with method {method}; 0 and 8 are read."
        )
    if method == 0 and packed != size:
        raise ValueError(f"{name[:80]!r} has {packed} bytes for {size} bytes of content.")
    if size > packed * _LARGEST_RATIO:
        raise ValueError(
            f"{name[:80]!r} would grow from {packed} to {size} bytes, which is a bomb unless "
            "the content is all zeros. If you trust the file, pack it again without compression."
        )
    local = _LOCAL.unpack(region.part(start, _LOCAL.size, repr(name[:80])).read(0, _LOCAL.size))
    data = start + _LOCAL.size + local[-2] + local[-1]
    if (
        (local[0], local[2] & _ENCRYPTED, local[3]) != (b"PK\3\4", 0, method)
        or local[-2] != num_name
        or (region.read(start + _LOCAL.size, num_name) != raw_name)
    ):
        raise ValueError(f"{name[:80]!r} is another member where its data lie.")
    contents = region.part(data, packed, f"member {name[:80]!r}")
    return name, Member(contents, size, checksum, method == 8), end, (start, data + packed)


def _widen(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Replace each full 32-bit number by the next 64-bit number of the extra field 1."""
    fields, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        fields = extra[position + 4 : position + 4 + length] if kind == 1 else fields
        position += 4 + length
    wide = iter(struct.unpack(f"<{len(fields) // 8}Q", fields[: len(fields) // 8 * 8]))
    size, packed, start = (next(wide, -1) if number == _FULL_32 else number for number in numbers)
    if -1 in (size, packed, start):
        raise ValueError("its 64-bit sizes are missing.")
    return size, packed, start


# --- The three formats ---

# The members that torch.save writes beside `data/<key>`; the last three are folders, which other tools add.
_TORCH_NOTES = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
_TORCH_MEMBERS = {"data.pkl", *_TORCH_NOTES, "", "data/", ".data/"}
_LARGEST_NOTE = 64


def _open_torch_zip(region: Region, limits: Limits) -> Opened:
    members = _read_torch_members(region)
    metadata = {name: _read_note(members[name]) for name in _TORCH_NOTES if name in members}
    if metadata.get("byteorder", "little") != "little":
        raise region.error(
            f"its numbers are {metadata['byteorder'][:20]!r} endian; little endian is read. "
            "Load it on the machine that wrote it, and save it as safetensors."
        )
    pickle, storages = members["data.pkl"], _Storages()
    if pickle.size > _LARGEST_PICKLE:
        raise region.error(f"data.pkl has {pickle.size} bytes; at most {_LARGEST_PICKLE} are read.")
    result = _load_pickle(
        bytes(pickle.read(0, pickle.size)), f"{region.label}: data.pkl", 0, storages, limits
    )
    for key, storage in storages.by_key.items():
        member = members.get(f"data/{key}")
        # A storage whose bytes are no multiple of its item size says how many whole items it has.
        if member is None or member.size // storage.dtype.itemsize != storage.num_items:
            found = "is missing" if member is None else f"has {member.size} bytes"
            raise region.error(f"storage {key[:40]!r} {found}; {storage.nbytes} bytes are expected.")
        storage.source = member
    return Opened("torch-zip", result.value, result.unknown_globals, metadata)


def _read_torch_members(region: Region) -> dict[str, Member]:
    """List the members of a zip file of torch.save without the folder that they all lie in."""
    members = _read_zip(region)
    folders = [name.removesuffix("/data.pkl") for name in members if re.fullmatch(r"[^/\\]+/data\.pkl", name)]
    if len(folders) != 1 or folders[0] in (".", ".."):
        some = ", ".join(repr(name[:80]) for name in list(members)[:3])
        raise region.error(
            f"a zip archive, but not one of torch.save. It has {len(members)} members ({some}). "
            "If one of them is a weight file, take it out and give that."
        )
    for name in members:
        folder, _, rest = name.partition("/")
        if rest == "constants.pkl" or rest.startswith("code/"):
            raise region.error("a TorchScript program, not a checkpoint: it contains code.")
        if folder != folders[0] or not (rest in _TORCH_MEMBERS or re.fullmatch(r"data/\w+", rest, re.ASCII)):
            raise region.error(f"member {name[:80]!r} is none that torch.save writes.")
    return {name.partition("/")[2]: member for name, member in members.items()}


def _read_note(member: Member) -> str:
    if member.size > _LARGEST_NOTE:
        raise CheckpointError(
            f"{member.region.label}: {member.size} bytes; at most {_LARGEST_NOTE} are expected."
        )
    return member.read(0, member.size).decode("utf-8", "replace").strip()


def _load_pickle(
    data: bytes | Region, source: str, offset: int, storages: _Storages, limits: Limits
) -> Pickle:
    return symbolic_pickle.load(
        data,
        source=source,
        offset=offset,
        calls=_CALLS,
        values=_VALUES,
        persistent_id=storages.refer,
        limits=limits,
    )


# 0x1950a86a20f9469cfc6c as the opcode LONG1 writes it; protocol and frame stand before it
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def _open_torch_legacy(region: Region, limits: Limits) -> Opened:
    """Read five pickles (magic, protocol, system, what was saved, keys of storages) and the storages."""
    storages = _Storages()
    pickles, offset = [], 0
    for _ in range(5):
        pickles.append(_load_pickle(region, region.label, offset, storages, limits))
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
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(by_key)
    ):
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


_SAFETENSORS_DTYPES = {
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
            if more or code not in _SAFETENSORS_DTYPES:
                raise ValueError(f"dtype {code[:20]!r} is not read; {', '.join(_SAFETENSORS_DTYPES)} are.")
        case _:
            raise ValueError("dtype, shape and data_offsets are expected, and no more.")
    dtype = _SAFETENSORS_DTYPES[code]
    if len(shape) > _MOST_DIMS or any(type(dim) is not int or dim < 0 for dim in shape):
        raise ValueError("its shape is not a list of sizes.")
    stride = tuple(math.prod(max(dim, 1) for dim in shape[axis + 1 :]) for axis in range(len(shape)))
    num_items = math.prod(shape)
    if not 0 <= begin <= end or end - begin != num_items * dtype.itemsize:
        raise ValueError(f"bytes {begin} to {end} for shape {shape} of {code}.")
    storage = Storage(name, dtype, num_items, numbers.part(begin, end - begin, f"tensor {name[:80]!r}"))
    return LazyTensor(dtype, tuple(shape), stride, storage), (begin, end)
