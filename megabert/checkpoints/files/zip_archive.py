"""List the members of a zip archive and read them in place: nothing is ever extracted.

The central directory and the local header of a member must agree, members may not overlap, and their decompressed size
is bounded.
Source: PKWARE's APPNOTE.TXT; caffe2/serialize/inline_container.cc in https://github.com/pytorch/pytorch
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from ...errors import CheckpointError
from .lazy_tensor import Region, decompressed

_CHUNK = 2**24  # bytes read at a time while a checksum is computed
# Weights hardly compress and pickles compress tenfold; deflate itself reaches a ratio of 1,032.
LARGEST_RATIO = 100
_LARGEST_DIRECTORY = 2**26

# The records of APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_SATURATED_16, _SATURATED_32 = 2**16 - 1, 2**32 - 1  # "see the 64-bit record"
_ENCRYPTED = 0b10_0000_0100_0001  # bits 0, 6 and 13 of the flags


@dataclass(eq=False)
class Member:
    """One file in a zip archive. Its checksum is verified when it is read for the first time."""

    region: Region
    size: int
    checksum: int
    is_deflated: bool
    is_checked: bool = False

    def read(self, offset: int, length: int) -> bytearray:
        """Read a part; reads the whole member if it was not verified yet or is compressed."""
        if self.is_checked and not self.is_deflated:
            return self.region.read(offset, length)
        if not 0 <= offset <= offset + length <= self.size:
            self._fail(f"bytes {offset} to {offset + length} are requested of {self.size}")
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

    def check(self) -> None:
        """Verify the checksum in one pass without keeping the data. Raises CheckpointError if it differs."""
        if not self.is_checked:
            self.read(0, 0)

    def open(self) -> Region:
        """Return the content of the member as a region: in place, or in memory if compressed."""
        if not self.is_deflated:
            return self.region
        return decompressed(self.read(0, self.size), self.region.label)

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
                    self._fail("it is longer than the archive declares")
                yield piece

    def _fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self.region.label}: {problem}. The file is damaged; fetch it again.")


def read_zip(region: Region) -> dict[str, Member]:
    """List the members of a zip archive: stored or deflated, without duplicates or overlaps."""
    count, start, length = _find_directory(region)
    if length > _LARGEST_DIRECTORY:
        raise region.error(f"its list of members has {length} bytes; at most {_LARGEST_DIRECTORY} are read.")
    directory = bytes(region.part(start, length, "list of members").read(0, length))
    members: dict[str, Member] = {}
    position, spans = 0, [(start, region.size)]
    for _ in range(count):
        try:
            name, member, position, span = _read_entry(region, directory, position)
        except (struct.error, ValueError) as error:
            raise region.error(f"member at byte {start + position} of the list: {error}") from None
        if name in members:
            raise region.error(f"it has two members {name!r}, so that its content is ambiguous.")
        members[name] = member
        spans.append(span)
    spans.sort()
    if position != length or any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        raise region.error("its members overlap, or their number differs from the declared one.")
    return members


def _find_directory(region: Region) -> tuple[int, int, int]:
    """Return the number of members, and the first byte and the length of the central directory."""
    tail_start = max(0, region.size - _END.size - _SATURATED_16)
    tail = bytes(region.read(tail_start, region.size - tail_start))
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size or len(tail) - at - _END.size != _END.unpack_from(tail, at)[-1]:
        raise region.error("this zip archive has no end record; it is cut off. Fetch it again.")
    _, disk, first_disk, here, count, length, start, _ = _END.unpack_from(tail, at)
    end = tail_start + at
    short, full = (disk, first_disk, here, count, length, start), (_SATURATED_16,) * 4 + (_SATURATED_32,) * 2
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
    """Read one entry of the central directory and the local header of the member, which must agree.

    Returns the name, the member, the position of the next entry, and the first and last byte of the member.
    """
    magic, made_by, _, flags, method, _, _, checksum, packed, size, *rest = _ENTRY.unpack_from(directory, position)
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
        raise ValueError(f"{name[:80]!r} is encrypted, a link, or packed with method {method}; 0 and 8 are read.")
    if method == 0 and packed != size:
        raise ValueError(f"{name[:80]!r} has {packed} bytes for {size} bytes of content.")
    if size > packed * LARGEST_RATIO:
        raise ValueError(
            f"{name[:80]!r} would grow from {packed} to {size} bytes, which is a decompression bomb unless "
            "the content is all zeros. If you trust the file, pack it again without compression."
        )
    local = _LOCAL.unpack(region.part(start, _LOCAL.size, repr(name[:80])).read(0, _LOCAL.size))
    data = start + _LOCAL.size + local[-2] + local[-1]
    if (
        (local[0], local[2] & _ENCRYPTED, local[3]) != (b"PK\3\4", 0, method)
        or local[-2] != num_name
        or (region.read(start + _LOCAL.size, num_name) != raw_name)
    ):
        raise ValueError(f"{name[:80]!r} has another local header than directory entry.")
    contents = region.part(data, packed, f"member {name[:80]!r}")
    return name, Member(contents, size, checksum, method == 8), end, (start, data + packed)


def _widen(numbers: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Replace each saturated 32-bit number by the next 64-bit number of the extra field 1."""
    fields, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        fields = extra[position + 4 : position + 4 + length] if kind == 1 else fields
        position += 4 + length
    wide = iter(struct.unpack(f"<{len(fields) // 8}Q", fields[: len(fields) // 8 * 8]))
    size, packed, start = (next(wide, -1) if number == _SATURATED_32 else number for number in numbers)
    if -1 in (size, packed, start):
        raise ValueError("its 64-bit sizes are missing.")
    return size, packed, start
