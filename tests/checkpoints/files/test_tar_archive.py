"""Tar archives, written by Python's tarfile, are listed and read in place; invalid ones are refused."""

import gzip
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.checkpoints.files.lazy_tensor import open_regular
from megabert.checkpoints.files.tar_archive import is_tar, read_tar
from megabert.errors import CheckpointError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(path, files, form=tarfile.GNU_FORMAT, mode="w"):
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def read(path):
    return {name: bytes(member.read(0, member.size)) for name, member in read_tar(open_regular(path)).items()}


NAMES = st.text("abc./_-é", min_size=1, max_size=160).filter(
    lambda name: name.strip("./") and not name.startswith("/") and not name.endswith("/") and ".." not in name
    and "/./" not in name and "//" not in name and not name.endswith("/.")
)  # fmt: skip


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=4), st.sampled_from(list(FORMATS)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_tarfile_writes_is_read(tmp_path_factory, files, form, is_packed):
    plain = {name.removeprefix("./"): data for name, data in files.items()}
    if len(plain) < len(files) or any(name in other.split("/")[:-1] for name in plain for other in plain):
        return
    path = tmp_path_factory.mktemp("tar") / "archive"
    try:
        pack(path, files, FORMATS[form], "w:gz" if is_packed else "w")
    except ValueError:  # a name too long for ustar
        return
    if files:
        assert is_tar(open_regular(path))
    assert read(path) == plain


def test_folders_are_skipped_and_leading_dots_removed(tmp_path):
    (tmp_path / "source" / "mp_rank_00").mkdir(parents=True)
    (tmp_path / "source" / "mp_rank_00" / "x").write_bytes(b"1")
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.add(tmp_path / "source", ".")
    assert read(tmp_path / "archive") == {"mp_rank_00/x": b"1"}


def entry(kind=tarfile.REGTYPE, name="x", size=3, **more):
    """Make a member's header and content as bytes."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in more.items():
        setattr(info, key, value)
    body = b"abc".ljust(512, b"\0") if size else b""
    return info.tobuf(tarfile.GNU_FORMAT) + body


END = bytes(1024)


def patched(header, start, value):
    """Change bytes of a header and update its checksum."""
    data = bytearray(header)
    data[start : start + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def pax(records):
    body = b"".join(records)
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = b"x", len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


HOSTILE = {
    **{
        f"kind {kind!r}": entry(kind, linkname="/etc/passwd", size=0) + END
        for kind in (b"1", b"2", b"3", b"4", b"6", b"7", b"S", b"M", b"V", b"D", b"A", b"Z")
    },
    **{
        f"name {name!r}": entry(name=name) + END
        for name in ("/etc/passwd", "../x", "a/../../x", "..", "a/..", "./../x", "a\\..\\x", ".", "x/", "//x", "/")
    },
    **{f"twice as {second!r}": entry(name="x") + entry(name=second) + END for second in ("x", "./x", "a/../x", ".//x")},
    **{
        f"a number {field!r}": patched(entry(), 124, field.ljust(12, b"\0")) + END
        for field in (b"-1", b"9", b"1 2", b"0x10", b"", b"77777777777", b"+3", b"\xff" * 12)
    },
    "a binary size": patched(entry(), 124, b"\x80" + b"\xff" * 11) + END,
    "a wrong checksum": entry()[:100] + b"7" + entry()[101:] + END,
    "no checksum": entry()[:148] + bytes(8) + entry()[156:] + END,
    "no magic": patched(entry(), 257, b"rats!") + END,
    "no end": entry(),
    "half an end": entry() + bytes(511),
    "cut in the content": entry(size=3)[:514],
    "cut in the header": entry()[:300],
    "noise behind": entry() + b"\1" * 512 + END,
    "longer than the archive": patched(entry(), 124, b"00000010000\0") + END,
    "a name that is not UTF-8": patched(entry(), 0, b"\xff\xfe") + END,
    "an endless long name": patched(entry(b"L", "././@LongLink"), 124, b"00001000000\0") + bytes(2**18) + END,
    "a long name that leads out": entry(b"L", "././@LongLink", size=3).replace(b"abc", b"../") + entry() + END,
    "a pax path that leads out": pax([b"18 path=../../x.pt\n"]) + entry() + END,
    "a pax path that is absolute": pax([b"21 path=/etc/passwd1\n"]) + entry() + END,
    "an invalid pax size": pax([b"14 size=-1000\n"]) + entry() + END,
    "a pax size beyond the archive": pax([b"19 size=99999999999\n"]) + entry() + END,
    "a pax record without length": pax([b"path=x\n"]) + entry() + END,
    "a pax record too long": pax([b"99 path=x\n"]) + entry() + END,
    "a pax record too short": pax([b"3 path=x\n"]) + entry() + END,
    "a pax record without equals": pax([b"9 pathxx\n"]) + entry() + END,
    "a sparse file": pax([b"22 GNU.sparse.major=1\n"]) + entry() + END,
    "packed and cut": gzip.compress(entry() + END)[:-9],
    "packed and damaged": gzip.compress(entry() + END)[:-6] + b"\0\0\0\0\0\0",
    "packed with a tail": gzip.compress(entry() + END) + b"tail",
    "a bomb": gzip.compress(bytes(3_000_000)),
    "packed nothing": gzip.compress(b""),
    "nothing": b"",
    "only noise": b"\1" * 2048,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_an_invalid_archive_is_refused(tmp_path, case):
    (tmp_path / "archive").write_bytes(HOSTILE[case])
    with pytest.raises(CheckpointError):
        print(read(tmp_path / "archive"))
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_there_are_enough_invalid_archives():
    assert len(HOSTILE) >= 60


def test_too_many_members_are_refused(tmp_path):
    (tmp_path / "archive").write_bytes(b"".join(entry(name=str(number), size=0) for number in range(10_002)) + END)
    with pytest.raises(CheckpointError, match="more than 10000 members"):
        read(tmp_path / "archive")


def test_folders_and_long_headers_count_as_members(tmp_path):
    (tmp_path / "archive").write_bytes(b"".join(entry(b"5", f"{number}/", 0) for number in range(10_002)) + END)
    with pytest.raises(CheckpointError, match="more than 10000 members"):
        read(tmp_path / "archive")


def test_messages_name_the_position(tmp_path):
    (tmp_path / "archive").write_bytes(entry() + entry(b"2", "link", linkname="x", size=0) + END)
    with pytest.raises(CheckpointError, match=r"archive: member 'link' at byte 1024 is of kind b'2'"):
        read(tmp_path / "archive")
