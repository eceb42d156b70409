import bz2
import contextlib
import gzip
import lzma
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.formats.data_files import FREE_SIZE, data_suffix, expand_names, expansion_limit, open_data
from megabert.formats.text_lines import read_lines
from megabert.tasks import registry

PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TABLE = "good one\ta\nbad\tb\n"
SENTENCES = "Marie B-PER\nis O\n\nParis B-LOC\n"
JSON = '{"tokens": ["a"], "tags": ["O"], "intent": "x"}\n'


def task(name, *words):
    kind = registry.find(name)
    return kind(compose(kind.settings_type, words, owner=name)[0])


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("text_classification", "x.tsv", TABLE),
        ("text_classification", "x.jsonl", '{"text": "a", "label": 1}\n'),
        ("token_classification", "x.conll", SENTENCES),
        ("token_classification", "x.jsonl", JSON),
        ("intent_slot", "x.jsonl", JSON),
        ("punctuation_capitalization", "x.txt", "Good, is it?\n"),
        ("question_answering", "x.json",
         '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1", "question": "b"}]}]}]}'),
        ("masked_language_model", "x.txt", "One.\n\nTwo.\n"),
    ],
)  # fmt: skip
def test_every_task_reads_compressed_files(name, file, content, suffix, tmp_path):
    plain, packed = tmp_path / file, tmp_path / f"{file}{suffix}"
    plain.write_text(content)
    packed.write_bytes(PACKERS[suffix](content.encode()))
    reader = task(name)
    expected, found = reader.read(plain), reader.read(packed)
    assert [vars(item) | {"location": ""} for item in found] == [vars(item) | {"location": ""} for item in expected]


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200_000), st.sampled_from(list(PACKERS)))
def test_bytes_are_those_that_were_compressed(tmp_path_factory, data, suffix):
    file = tmp_path_factory.mktemp("packed") / f"x{suffix}"
    file.write_bytes(PACKERS[suffix](data) + PACKERS[suffix](b"end"))  # two streams, one behind the other
    with open_data(file) as opened:
        assert opened.read() == data + b"end"


def test_zstandard_is_read_or_its_reader_named(tmp_path):
    file = tmp_path / "x.tsv.zst"
    file.write_bytes(bytes.fromhex("28b52ffd2007390000676f6f6409610a"))
    try:
        from backports import zstd  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"Install its reader .*megabert\[zstd\].* zstd -d .*x.tsv.zst"):
            read_lines(file)
    else:
        assert read_lines(file) == ["good\ta"]


def test_the_content_decides_what_is_compressed(tmp_path):
    (tmp_path / "a.tsv").write_bytes(gzip.compress(TABLE.encode()))
    assert len(read_lines(tmp_path / "a.tsv")) == 2
    (tmp_path / "b.txt").write_text("BZh is a word.\n")
    assert read_lines(tmp_path / "b.txt") == ["BZh is a word."]
    (tmp_path / "c.tsv.gz").write_text(TABLE)
    with pytest.raises(InputError, match=r"c.tsv.gz is damaged or truncated: no .gz file begins so"):
        read_lines(tmp_path / "c.tsv.gz")


@pytest.mark.parametrize("suffix", PACKERS)
def test_damage_and_bombs_are_errors(suffix, tmp_path, monkeypatch):
    packed = PACKERS[suffix](bytes(range(256)) * 4000)
    file = tmp_path / f"x.txt{suffix}"
    for damaged in (packed[:-9], packed[:40] + bytes([packed[40] ^ 255]) + packed[41:], packed[: len(packed) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"x.txt{suffix} is damaged or truncated"):
            read_lines(file)
    monkeypatch.setattr("megabert.formats.data_files.FREE_SIZE", 1000)
    file.write_bytes(PACKERS[suffix](b"good " * 200_000))
    with pytest.raises(InputError, match=r"has more than .* bytes, the most of what is compressed"):
        read_lines(file)
    with expansion_limit(10**6):
        assert len(read_lines(file)) == 1
    words = (f"model.test_ds.file={file}", "model.test_ds.max_expansion=1000000")
    reader = task("text_classification", *words)
    assert len(reader.read_data(reader.settings.model.test_ds)) == 1


def suppressed(function, *arguments):
    with contextlib.suppress(BrokenPipeError):
        function(*arguments)


def test_a_pipe_is_read_and_an_endless_one_is_not(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(TABLE))
    writer.start()
    assert read_lines(pipe) == TABLE.splitlines()
    writer.join()
    monkeypatch.setattr("megabert.formats.data_files.FREE_SIZE", 10**6)
    writer = threading.Thread(target=lambda: suppressed(pipe.write_bytes, b"good " * 400_000))
    writer.start()
    with pytest.raises(InputError, match="pipe has more than 1,000,000 bytes"):
        read_lines(pipe)
    writer.join()
    with pytest.raises(InputError, match="/dev/zero is a device"):
        read_lines(type(tmp_path)("/dev/zero"))


def test_names_lists_and_patterns(tmp_path):
    for name in ("b.tsv", "a.tsv", "c[1].tsv", "c1.tsv", "d.txt"):
        (tmp_path / name).write_text(TABLE)
    files = [f"{tmp_path}/{name}" for name in ("a.tsv", "b.tsv", "c[1].tsv")]
    assert expand_names(None) == []
    assert expand_names(files[0]) == files[:1]
    assert expand_names(f"{tmp_path}/[ab].tsv") == files[:2]
    assert expand_names([files[1], f"{tmp_path}/a*"]) == [files[1], files[0]]
    assert expand_names(files[2]) == [files[2]]  # the name of a file is no pattern
    assert expand_names(f"{tmp_path}/*.csv") == [f"{tmp_path}/*.csv"]
    assert data_suffix(tmp_path / "A.JSONL.GZ") == ".jsonl"
    assert FREE_SIZE > 0


@pytest.mark.parametrize(
    ("name", "content"),
    [("text_classification", TABLE), ("token_classification", SENTENCES), ("punctuation_capitalization", "Yes.\nNo.\n"),
     ("zero_shot", "premise\thypothesis\tlabel\na\tb\tx\nc\td\ty\n"), ("masked_language_model", "a\n\nb\n")],
)  # fmt: skip
def test_a_set_of_data_may_be_several_files(name, content, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(content)
    reader = task(name)
    make = type(reader.settings.model.train_ds)
    one = reader.read_data(make(file=f"{tmp_path}/0.txt"))
    many = reader.read_data(make(file=f"{tmp_path}/*.txt"))
    assert len(many) == 3 * len(one) == 6
    both = make(file=[f"{tmp_path}/2.txt", f"{tmp_path}/0.txt"])
    assert len(reader.files(both)) == 2
    if name != "masked_language_model":
        assert [item.location.split(":")[0] for item in reader.read_data(both)] == [
            f"{tmp_path}/2.txt", f"{tmp_path}/2.txt", f"{tmp_path}/0.txt", f"{tmp_path}/0.txt"]  # fmt: skip
        assert len(reader.read_data(make(file=f"{tmp_path}/*.txt", num_samples=5))) == 5


@pytest.mark.parametrize("word", ["model.test_ds.file=[a.tsv,b.tsv]", "model.test_ds=[a.tsv,b.tsv]",
                                  "model.test_ds.file=data/*.tsv", "model.test_ds.file_path=[a.tsv]"])  # fmt: skip
def test_lists_and_patterns_are_settings(word):
    reader = task("text_classification", word)
    assert reader.files(reader.settings.model.test_ds) in (["a.tsv", "b.tsv"], ["data/*.tsv"], ["a.tsv"])
