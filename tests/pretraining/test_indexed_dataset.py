import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.errors import InputError
from megabert.pretraining.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, token_dtype

DOCUMENTS = [[[5, 6, 7], [8]], [[9, 65000]], [[1], [2], [3, 4]]]


def add_document(writer, sequences):
    writer.add(np.concatenate(sequences), np.array([len(item) for item in sequences]), np.array([len(sequences)]))


def write(prefix, documents, dtype=np.uint16):
    with IndexedDatasetBuilder(prefix, dtype) as writer:
        for document in documents:
            add_document(writer, [np.array(sequence) for sequence in document])


def read_byte_by_byte(prefix):
    """Read a pair of files by the format's description alone, without numpy: Megatron-LM's own reader sees this."""
    index = prefix.with_name(f"{prefix.name}.idx").read_bytes()
    data = prefix.with_name(f"{prefix.name}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack("<Q", index[9:17]) == (1,)
    (code,) = struct.unpack("<B", index[17:18])
    letter = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}[code]
    (num_sequences,) = struct.unpack("<Q", index[18:26])
    (num_bounds,) = struct.unpack("<Q", index[26:34])
    end = 34 + 4 * num_sequences
    lengths = struct.unpack(f"<{num_sequences}i", index[34:end])
    offsets = struct.unpack(f"<{num_sequences}q", index[end : end + 8 * num_sequences])
    bounds = struct.unpack(f"<{num_bounds}q", index[end + 8 * num_sequences :])
    size = struct.calcsize(letter)
    sequences = [
        list(struct.unpack(f"<{length}{letter}", data[offset : offset + length * size]))
        for length, offset in zip(lengths, offsets, strict=True)
    ]
    assert sum(lengths) * size == len(data)
    return [sequences[start:end] for start, end in itertools.pairwise(bounds)]


def test_files_of_known_documents_byte_by_byte(tmp_path):
    write(tmp_path / "x", DOCUMENTS)
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<10H", 5, 6, 7, 8, 9, 65000, 1, 2, 3, 4)
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 6, 4) + struct.pack("<6i", 3, 1, 2, 1, 1, 2)
    expected += struct.pack("<6q", 0, 6, 8, 12, 14, 16) + struct.pack("<4q", 0, 2, 3, 6)
    assert (tmp_path / "x.idx").read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]


SEQUENCES = st.lists(st.integers(0, 65499), min_size=1, max_size=9)
CORPUS = st.lists(st.lists(SEQUENCES, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(CORPUS, st.sampled_from([np.uint16, np.int32, np.int64]))
def test_written_files_are_read_by_an_independent_reader_and_by_ours(tmp_path_factory, documents, dtype):
    prefix = tmp_path_factory.mktemp("corpus") / "x"
    write(prefix, documents, dtype)
    assert read_byte_by_byte(prefix) == documents
    tokens = IndexedDataset(prefix)
    actual = [[sequence.tolist() for sequence in tokens.document(n)] for n in range(tokens.num_documents)]
    assert actual == documents
    assert tokens.num_tokens == sum(len(sequence) for document in documents for sequence in document)


@pytest.mark.parametrize(("size", "dtype"), [(30522, np.uint16), (65499, np.uint16), (65500, np.int32)])
def test_token_types_are_megatron_s(size, dtype):
    assert token_dtype(size) == np.dtype(dtype)


def test_parts_of_sequences(tmp_path):
    write(tmp_path / "x", DOCUMENTS)
    assert IndexedDataset(tmp_path / "x").read(0, 1, 3).tolist() == [6, 7]


def test_an_error_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), IndexedDatasetBuilder(tmp_path / "x", np.uint16) as writer:
        add_document(writer, [np.array([1, 2])])
        raise RuntimeError
    with pytest.raises(InputError, match="nothing to write"), IndexedDatasetBuilder(tmp_path / "x", np.uint16):
        pass
    assert not list(tmp_path.iterdir())


def damage(content, how):
    return {
        "empty": b"",
        "cut": content[:-1],
        "cut header": content[:20],
        "longer": content + b"\0" * 50,
        "old": b"TNTIDX\x00\x00" + content[8:],
        "magic": b"X" + content[1:],
        "version": content[:9] + b"\2" + content[10:],
        "type": content[:17] + b"\x07" + content[18:],
        "no sequences": content[:18] + bytes(8) + content[26:],
        "huge": content[:18] + b"\xff" * 8 + content[26:],
        "negative length": content[:34] + b"\xff\xff\xff\xff" + content[38:],
        "far away": content[:58] + b"\xff" * 7 + b"\x0f" + content[66:],
        "an offset that overflows": content[:58] + struct.pack("<q", 2**63 - 2) + content[66:],
        "an odd offset": content[:58] + b"\1" + content[59:],
        "bounds that overflow": content[:-16] + struct.pack("<q", -(2**63)) + content[-8:],
        "bounds": content[:-8] + struct.pack("<q", 7),
        "falling bounds": content[:-16] + struct.pack("<q", 9) + content[-8:],
    }[how]


@pytest.mark.parametrize("how", [
    "empty", "cut", "cut header", "longer", "old", "magic", "version", "type", "no sequences", "huge",
    "negative length", "far away", "bounds", "falling bounds",
    "an offset that overflows", "an odd offset", "bounds that overflow",
])  # fmt: skip
def test_damaged_indexes_are_refused(how, tmp_path):
    write(tmp_path / "x", DOCUMENTS)
    index = tmp_path / "x.idx"
    index.write_bytes(damage(index.read_bytes(), how))
    with pytest.raises(InputError, match=r"x\.idx"):
        IndexedDataset(tmp_path / "x")


@pytest.mark.parametrize(("dtype", "token"), [(np.int32, -7), (np.int16, -1), (np.int32, 2**30), (np.uint16, 100)])
def test_every_token_is_checked(dtype, token, tmp_path):
    write(tmp_path / "x", [[[5, 6, 7], [8]], [[9, 99]], [[1], [2], [3, 4]]], dtype)
    assert IndexedDataset(tmp_path / "x").check_tokens(100) == 99
    tokens = np.fromfile(tmp_path / "x.bin", dtype=dtype)
    tokens[-1] = token
    tokens.tofile(tmp_path / "x.bin")
    message = rf"x\.bin: token 9, at byte {9 * tokens.itemsize}, is {token}; ids from 0 to 99, those of"
    with pytest.raises(InputError, match=message):
        IndexedDataset(tmp_path / "x").check_tokens(100)


def test_truncated_tokens_and_missing_files_are_refused(tmp_path):
    write(tmp_path / "x", DOCUMENTS)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-2])
    with pytest.raises(InputError, match="do not fit each other"):
        IndexedDataset(tmp_path / "x")
    (tmp_path / "x.bin").unlink()
    with pytest.raises(InputError, match=r"x\.bin cannot be read"):
        IndexedDataset(tmp_path / "x")
