"""Zip archives of torch.save or with weight files are read; inconsistent, damaged ones and bombs are refused."""

import os
import struct
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from megabert.checkpoints.files.weight_files import open_file, open_files
from megabert.errors import CheckpointError
from tests.checkpoints.weight_files import FORMATS, assert_same, read_all, save, write_zip

PLAIN = {"a/data.pkl": b"\x80\x02]K\x01a.", "a/version": b"3\n", "a/byteorder": b"little"}


def test_compressed_members_and_folders_of_other_zip_tools_are_read(tmp_path):
    path = save({"a": torch.randint(9, [5000]), "b": torch.ones(3)}, tmp_path / "x")
    with zipfile.ZipFile(path) as archive:
        members = {"x/": b"", "x/data/": b""} | {name: archive.read(name) for name in archive.namelist()}
    packed = write_zip(tmp_path / "packed", members, method=zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < path.stat().st_size
    assert_same(open_file(packed).content, torch.load(path))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "not one of torch.save"),
        ({"release/mp_rank_00/model.bin": b"x"}, "not one of torch.save.*model.bin"),
        ({f"{n}.txt": b"" for n in range(20)}, r"20 members.*'15.txt', \.\.\.\)"),
        ({"data.pkl": b"N."}, "not one of torch.save"),
        ({"../data.pkl": b"N."}, "not one of torch.save"),
        ({"/data.pkl": b"N."}, "not one of torch.save"),
        ({"..\\a/data.pkl": b"N."}, "not one of torch.save"),
        ({**PLAIN, "a/../../x": b""}, "not one that torch.save writes"),
        ({**PLAIN, "a/data/../../x": b""}, "not one that torch.save writes"),
        ({**PLAIN, "a/data/0/1": b""}, "not one that torch.save writes"),
        ({**PLAIN, "/etc/passwd": b""}, "not one that torch.save writes"),
        ({**PLAIN, "b/version": b""}, "not one that torch.save writes"),
        ({**PLAIN, "a/code/x.py": b""}, "TorchScript"),
        ({**PLAIN, "a/constants.pkl": b""}, "TorchScript"),
        ({**PLAIN, "a/byteorder": b"big"}, "'big' endian"),
        ({**PLAIN, "a/version": b"3" * 100}, "100 bytes; at most 64"),
    ],
)
def test_only_the_members_of_torch_are_accepted(tmp_path, members, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_file(write_zip(tmp_path / "x", members))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"external_attr": 0o120777 << 16, "create_system": 3}, "a link"),
        ({"external_attr": 0o060666 << 16, "create_system": 3}, "a link"),
        ({"compress_type": zipfile.ZIP_BZIP2}, "method 12"),
        ({"compress_type": zipfile.ZIP_LZMA}, "method 14"),
    ],
)
def test_links_and_rare_compressions_are_refused(tmp_path, changes, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_file(write_zip(tmp_path / "x", PLAIN, **changes))


# Offsets of numbers in the first entry of the central directory, and in the end record
FLAGS, CHECKSUM, PACKED, SIZE, START, COUNT, LENGTH = 8, 16, 20, 24, 42, 10, 12


def overwrite(data, record, offset, layout, value):
    """Overwrite one number of a record of a zip archive."""
    struct.pack_into(layout, data, data.index(record) + offset, value)


@pytest.mark.parametrize(
    ("record", "offset", "layout", "value", "reason"),
    [
        (b"PK\1\2", FLAGS, "<H", 1, "encrypted"),
        (b"PK\3\4", FLAGS - 2, "<H", 1, "another local header"),
        (b"PK\1\2", CHECKSUM, "<I", 1, "checksum does not match"),
        (b"PK\1\2", SIZE, "<I", 10, "7 bytes for 10"),
        (b"PK\1\2", PACKED, "<I", 5, "5 bytes for 7"),
        (b"PK\1\2", SIZE, "<I", 2**32 - 1, "64-bit sizes are missing"),
        (b"PK\1\2", START, "<I", 2**32 - 2, "exceeds"),
        (b"PK\1\2", START, "<I", 10, "another local header"),
        (b"PK\5\6", COUNT, "<H", 2, "several parts"),
        (b"PK\5\6", LENGTH, "<I", 2**31, "several parts"),
        (b"PK\5\6", 20, "<H", 5, "has no end record"),
        (b"PK\1\2", 34, "<H", 1, "damaged"),
        (b"PK\1\2", 28, "<H", 2**16 - 1, "damaged"),
    ],
)
def test_an_inconsistent_zip_archive_is_refused(tmp_path, record, offset, layout, value, reason):
    path = write_zip(tmp_path / "x", PLAIN)
    data = bytearray(path.read_bytes())
    overwrite(data, record, offset, layout, value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        open_file(path)


@pytest.mark.parametrize(
    ("record", "offset", "layout", "value", "reason"),
    [
        (b"PK\6\6", 0, "<I", 0, "64-bit end"),
        (b"PK\6\6", 4, "<Q", 2**63, "64-bit end"),
        (b"PK\6\6", 24, "<Q", 2**63, "contradict"),
        (b"PK\6\6", 40, "<Q", 2**63, "contradict"),
        (b"PK\6\6", 48, "<Q", 0, "contradict"),
        (b"PK\6\7", 8, "<Q", 2**63, "exceeds"),
        (b"PK\6\7", 16, "<I", 9, "64-bit end"),
        (b"PK\5\6", COUNT, "<H", 9, "contradict"),
    ],
)
def test_an_inconsistent_64_bit_end_record_is_refused(tmp_path, record, offset, layout, value, reason):
    path = save([1], tmp_path / "x")
    data = bytearray(path.read_bytes())
    overwrite(data, record, offset, layout, value)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        open_file(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    path = write_zip(tmp_path / "x", {**PLAIN, "a/versioo": b"3"})
    path.write_bytes(path.read_bytes().replace(b"a/versioo", b"a/version"))
    with pytest.raises(CheckpointError, match="two members 'a/version'"):
        open_file(path)


def test_a_member_inside_another_is_refused(tmp_path):
    inner = write_zip(tmp_path / "inner", {"a/data/1": b"1"}).read_bytes()
    path = write_zip(tmp_path / "x", {**PLAIN, "a/data/0": inner, "a/data/1": b"1"})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + START, data.index(inner))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="members overlap"):
        open_file(path)


def test_a_zip_bomb_is_refused_before_it_grows(tmp_path):
    path = write_zip(tmp_path / "x", {**PLAIN, "a/data/0": bytes(10**6)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"would grow from .* to 1000000 bytes, which is a decompression bomb"):
        open_file(path)


def test_a_member_longer_than_declared_is_not_inflated(tmp_path):
    path = write_zip(tmp_path / "x", {"a/data.pkl": bytes(10**5)}, method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    overwrite(data, b"PK\1\2", SIZE, "<I", 2000)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="longer than the archive declares"):
        open_file(path)


# --- Archives that hold a weight file ---

INNER = "megatron/release/mp_rank_00/model_optim_rng.pt"
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def pack(path, weights, *, method="stored", name=INNER):
    """Write an archive like NGC's: one weight file, and the tracker of its iteration."""
    note = name.split("/", maxsplit=1)[0] + "/latest_checkpointed_iteration.txt"
    return write_zip(path, {note: b"release", name: weights}, method=METHODS[method])


def weights_of(folder, *, kind):
    torch.manual_seed(0)
    content = {"model": {"a": torch.randn(300, 4), "b": torch.randn(7).half()}, "iteration": 5}
    path = save(content, folder / f"weights.{kind}", kind=kind)
    return path.read_bytes(), torch.load(path)


@pytest.mark.parametrize("name", [INNER, "release/mp_rank_00/model_optim_rng.pt", "mp_rank_00/model_optim_rng.pt"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", FORMATS)
def test_an_archive_of_one_weight_file_opens_as_that_file(tmp_path, kind, method, name):
    weights, content = weights_of(tmp_path, kind=kind)
    path = pack(tmp_path / "x", weights, method=method, name=name)
    before = set(tmp_path.iterdir())
    opened = open_file(path)
    assert (opened.kind, opened.unknown_globals) == (kind, frozenset())
    assert_same(opened.content, content)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_of_safetensors_opens_as_that_file(tmp_path, method):
    save_file({"a": torch.randn(50)}, tmp_path / "safe")
    path = pack(tmp_path / "x", (tmp_path / "safe").read_bytes(), method=method)
    assert_same(open_file(path).content, load_file(tmp_path / "safe"))


@pytest.mark.parametrize("kind", FORMATS)
def test_tensors_in_a_stored_weight_file_stay_on_disk_until_they_are_read(tmp_path, kind):
    path = save({"small": torch.ones(2), "large": torch.zeros(4_000_000)}, tmp_path / "weights", kind=kind)
    path = pack(tmp_path / "x", path.read_bytes())
    open_file(path)  # caches are filled by the first file
    tracemalloc.start()
    content = open_file(path).content
    assert content["small"].read().tolist() == [1.0, 1.0]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        content["large"].read()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_weight_file_in_an_archive_is_refused(tmp_path, kind, method):
    weights, content = weights_of(tmp_path, kind=kind)
    path = pack(tmp_path / "x", weights, method=method)
    data = bytearray(path.read_bytes())
    if method == "stored":
        data[data.index(content["model"]["a"].numpy().tobytes()) + 9] ^= 1
    else:
        struct.pack_into("<I", data, data.rindex(b"PK\1\2") + CHECKSUM, 1)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model_optim_rng.pt'.*checksum does not match"):
        read_all(path)


def test_an_archive_of_several_weight_files_is_read_by_its_members(tmp_path):
    files = {rank: save({"rank": rank}, tmp_path / f"{rank}").read_bytes() for rank in range(2)}
    members = {f"release/mp_rank_{rank:02}/model_optim_rng.pt": data for rank, data in files.items()}
    path = write_zip(tmp_path / "x", members)
    assert [opened.content for opened in open_files(path).values()] == [{"rank": 0}, {"rank": 1}]
    with pytest.raises(CheckpointError, match=r"2 weight files .*mp_rank_00.*mp_rank_01.*not one"):
        open_file(path)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (b"", "model_optim_rng.pt': the file is empty"),
        (b"hello", "model_optim_rng.pt': this is a text file"),
        (b"\x80\x04N.", "without torch's magic number"),
    ],
)
def test_other_files_in_an_archive_are_reported(tmp_path, weights, reason):
    with pytest.raises(CheckpointError, match=reason):
        open_file(pack(tmp_path / "x", weights))


@pytest.mark.parametrize("method", METHODS)
def test_an_archive_in_an_archive_is_refused(tmp_path, method):
    inner = pack(tmp_path / "inner", weights_of(tmp_path, kind="torch-zip")[0])
    with pytest.raises(CheckpointError, match=r"model_optim_rng.pt': a zip archive, but not one of torch.save"):
        open_file(pack(tmp_path / "x", inner.read_bytes(), method=method))


@pytest.mark.parametrize(
    ("zeros", "inner", "outer", "reason"),
    [
        (10**6, "stored", "deflated", "would grow from .* to 100.* bytes, which is a decompression bomb"),
        (10**6, "deflated", "stored", "would grow from .* to 1000000 bytes, which is a decompression bomb"),
        (10**6, "deflated", "deflated", "would grow from .* to 1000000 bytes, which is a decompression bomb"),
        (10**3, "deflated", "deflated", "it is compressed, and so is the archive around it"),
    ],
)
def test_a_bomb_in_an_archive_is_refused(tmp_path, zeros, inner, outer, reason):
    bomb = write_zip(tmp_path / "bomb", {**PLAIN, "a/data/0": bytes(zeros)}, method=METHODS[inner])
    with pytest.raises(CheckpointError, match=reason):
        open_file(pack(tmp_path / "x", bomb.read_bytes(), method=outer))


def test_a_weight_file_longer_than_declared_is_not_inflated(tmp_path):
    path = pack(tmp_path / "x", b"a" * 10**5, method="deflated")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + SIZE, 2000)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="longer than the archive declares"):
        open_file(path)
