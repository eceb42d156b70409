"""List the members of a tar archive and read them in place: nothing is ever extracted.

Each member is a `Region` of the archive; an archive compressed with gzip is decompressed into memory. Only regular
files are listed; folders are skipped, links and devices are refused.
Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar's manual, "Basic Tar
Format".
"""

import itertools
import posixpath
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import CheckpointError
from .lazy_tensor import Region, decompressed

_BLOCK = 512
_CHUNK = 2**24
_MOST_MEMBERS = 10_000
_LARGEST_EXTENSION = 2**16  # a long name, or the records of a pax header
_LONGEST_NAME = 1024
# Weights hardly compress; the cap in bytes is there because the archive has to fit in memory.
_LARGEST_RATIO = 100
_LARGEST_UNPACKED = 2**36
_ALWAYS_UNPACKED = 2**20  # an archive of some small files is mostly padding

_PAX_LENGTH = re.compile(rb"(\d{1,6}) ")
_REGULAR, _FOLDER = b"0\0", b"5"
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


def is_tar(region: Region) -> bool:
    """Whether a file is a tar archive, compressed with gzip or not."""
    if is_gzip(region):
        head = bytes(_gunzip_start(region))
    else:
        head = bytes(region.read(0, min(region.size, _BLOCK)))
    return len(head) == _BLOCK and head[257:262] == b"ustar"


def is_gzip(region: Region) -> bool:
    """Whether a file is compressed with gzip."""
    return bytes(region.read(0, min(region.size, 2))) == b"\x1f\x8b"


def read_tar(region: Region) -> dict[str, Region]:
    """List the regular files of an archive by name, without a leading `./`. Raises CheckpointError if it is damaged."""
    if is_gzip(region):
        region = _gunzip(region)
    members: dict[str, Region] = {}
    for entry in _entries(region):
        name = _plain_name(region, entry)
        if entry.kind == _FOLDER:
            continue
        if name in members:
            raise region.error(f"it has two members {name!r}, so that its content is ambiguous.")
        members[name] = region.part(entry.start, entry.size, f"member {name!r}")
    return members


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: bytes
    start: int
    size: int


def _entries(region: Region) -> Iterator[_Entry]:
    """Iterate over the headers; a name too long for a header is in a member of its own before it."""
    position, long_name = 0, None
    size_before = None
    for number in itertools.count():
        if number > _MOST_MEMBERS:
            raise region.error(f"it has more than {_MOST_MEMBERS} members.")
        if position + _BLOCK > region.size:
            raise region.error(f"it ends at byte {region.size} without the end of an archive. Fetch it again.")
        header = bytes(region.read(position, _BLOCK))
        if not any(header):
            return
        start = position + _BLOCK
        name, kind, size = _read_header(region, header, position)
        if kind in (_GNU_NAME, _PAX):
            extension = _read_extension(region, start, size)
            if kind == _GNU_NAME:
                long_name = _text(region, extension.rstrip(b"\0"), position)
            else:
                records = _pax_records(region, extension, position)
                long_name = records.get("path", long_name)
                if "size" in records:
                    size_before = _decimal(region, records["size"], position)
        elif kind == _PAX_GLOBAL:
            _read_extension(region, start, size)
        elif kind in (b"0", b"\0", _FOLDER):
            size = size if size_before is None else size_before
            yield _Entry(long_name or name, kind if kind == _FOLDER else b"0", start, 0 if kind == _FOLDER else size)
            long_name, size_before = None, None
        else:
            shown = long_name or name
            raise region.error(
                f"member {shown[:80]!r} at byte {position} is of kind {kind!r}: a link, a device or of an unknown kind."
            )
        position = start + -(-size // _BLOCK) * _BLOCK


def _read_header(region: Region, header: bytes, position: int) -> tuple[str, bytes, int]:
    """Read name, kind and size of a header, verified by its checksum."""
    if header[257:262] != b"ustar":
        raise region.error(f"there is no member at byte {position}, where one is expected. The file is damaged.")
    checksum = _octal(region, header[148:156], position)
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise region.error(f"the header at byte {position} does not match its checksum. The file is damaged.")
    name = header[:100].rstrip(b"\0")
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].rstrip(b"\0")):
        name = prefix + b"/" + name
    size = _octal(region, header[124:136], position)
    if size > region.size:
        raise region.error(f"the member at byte {position} has {size} bytes; the archive has {region.size}.")
    return _text(region, name, position), header[156:157], size


def _octal(region: Region, field: bytes, position: int) -> int:
    if field[:1] == b"\x80":  # GNU's binary numbers, for 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise region.error(f"the header at byte {position} has an invalid number: {field!r}.")
    return int(digits, 8)


def _decimal(region: Region, text: str, position: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise region.error(f"the pax header at byte {position} has an invalid size: {text[:40]!r}.")
    return int(text)


def _read_extension(region: Region, start: int, size: int) -> bytes:
    if size > _LARGEST_EXTENSION:
        raise region.error(
            f"the header at byte {start - _BLOCK} has an extension of {size} bytes; at most {_LARGEST_EXTENSION} "
            "are read."
        )
    return bytes(region.read(start, size))


def _pax_records(region: Region, extension: bytes, position: int) -> dict[str, str]:
    """Parse records: the length in digits, a space, key=value, and a line feed."""
    records: dict[str, str] = {}
    at = 0
    while at < len(extension):
        prefix = _PAX_LENGTH.match(extension, at)
        length = int(prefix[1]) if prefix else 0
        record = extension[at : at + length]
        if not (prefix and prefix.end() - at < length == len(record) and record.endswith(b"\n") and b"=" in record):
            raise region.error(f"the pax header at byte {position} is damaged.")
        key, _, value = record[prefix.end() - at : -1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise region.error(f"the member after byte {position} is sparse, which is not read.")
        if key in (b"path", b"size"):
            records[key.decode()] = _text(region, value, position)
        at += length
    return records


def _text(region: Region, raw: bytes, position: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise region.error(f"the member at byte {position} has a name that is not UTF-8.") from None


def _plain_name(region: Region, entry: _Entry) -> str:
    """Normalize a name and refuse one that leads out of the archive, although nothing is extracted."""
    name = posixpath.normpath(entry.name)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or len(name) > _LONGEST_NAME:
        raise region.error(f"member {entry.name[:80]!r} leads out of the archive.")
    if entry.kind != _FOLDER and (name == "." or entry.name.endswith("/")):
        raise region.error(f"member {entry.name[:80]!r} is a file with the name of a folder.")
    return name


def _gunzip_start(region: Region) -> bytes:
    try:
        inflater = zlib.decompressobj(wbits=31)
        return inflater.decompress(bytes(region.read(0, min(region.size, 2**16))), _BLOCK)
    except zlib.error:
        return b""


def _gunzip(region: Region) -> Region:
    """Decompress a file into memory, verified by its checksum."""
    most = min(max(region.size * _LARGEST_RATIO, _ALWAYS_UNPACKED), _LARGEST_UNPACKED)
    inflater, result = zlib.decompressobj(wbits=31), bytearray()
    try:
        for start in range(0, region.size, _CHUNK):
            pending = bytes(region.read(start, min(_CHUNK, region.size - start)))
            while pending and not inflater.eof:
                result += inflater.decompress(pending, _CHUNK)
                pending = inflater.unconsumed_tail
                if len(result) > most:
                    raise region.error(
                        f"it grows to more than {_LARGEST_RATIO} times its size, which is a decompression bomb. If you "
                        "trust it, unpack it and give the tar archive."
                    )
    except zlib.error as error:
        raise region.error(f"it cannot be decompressed ({error}). Fetch it again.") from None
    if not inflater.eof:
        raise region.error("it is cut off. Fetch it again.")
    if inflater.unused_data.strip(b"\0"):
        raise CheckpointError(f"{region.label}: {len(inflater.unused_data)} bytes follow the gzip data.")
    return decompressed(result, region.label)
