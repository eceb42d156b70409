import os

import numpy as np
import pytest

from megabert.data import feature_cache
from megabert.data.feature_cache import feature_blocks
from megabert.data.fingerprint import fingerprint
from megabert.data.packing import Features, pack
from megabert.data.sampler import BatchSampler
from megabert.errors import CheckpointWarning


def features():
    return [
        Features(
            np.arange(1, length + 1),
            np.arange(length) % 2,
            {"span": np.array([0, length - 1]), "value": 0.25 * length},
            {"label": np.arange(length) - 100},
            weight=length / 2,
            notes="not stored",
        )
        for length in (3, 1, 7)
    ]


def assert_equal(left, right):
    assert left.token_ids.tolist() == right.token_ids.tolist()
    assert left.segment_ids.tolist() == right.segment_ids.tolist()
    assert left.targets["span"].tolist() == right.targets["span"].tolist()
    assert left.targets["value"] == right.targets["value"]
    assert left.token_targets["label"].tolist() == right.token_targets["label"].tolist()
    assert left.weight == right.weight


def test_cached_features_equal_the_originals(tmp_path):
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    cached = feature_cache.load(tmp_path, "name")
    assert (len(cached), cached.meta) == (3, {"num_examples": 2})
    assert cached.lengths().tolist() == [3, 1, 7]
    assert cached.kept_fingerprint == fingerprint(cached) == fingerprint(list(cached)) == fingerprint(features())
    assert fingerprint(cached, "teacher") == fingerprint(features(), "teacher")
    for left, right in zip(cached, features(), strict=True):
        assert_equal(left, right)
    assert_equal(cached[-1], features()[-1])
    assert [len(item) for item in cached[1:]] == [1, 7]
    with pytest.raises(IndexError):
        cached[3]


def test_steps_of_cached_features_equal_those_of_the_originals(tmp_path):
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    for step in range(2):
        batches = [
            BatchSampler(items, 2, 9, 0, seed=1).step(step)[0]
            for items in (features(), feature_cache.load(tmp_path, "name"))
        ]
        for left, right in zip(batches[0].tensors(), batches[1].tensors(), strict=True):
            assert left.tolist() == right.tolist()
            assert left.dtype == right.dtype
    assert pack(list(feature_cache.load(tmp_path, "name")), 9, 0).weight == 5.5


def test_missing_and_damaged_entries_are_not_loaded(tmp_path):
    assert feature_cache.load(tmp_path, "name") is None
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    (tmp_path / "name" / "0.npy").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match=r"tokenizing again.*0\.npy does not match its SHA-256"):
        assert feature_cache.load(tmp_path, "name") is None
    (tmp_path / "name" / "meta.json").write_text("{")
    with pytest.warns(CheckpointWarning, match=r"meta\.json cannot be read as JSON"):
        assert feature_cache.load(tmp_path, "name") is None
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    assert len(feature_cache.load(tmp_path, "name")) == 3


def test_any_changed_bit_of_an_entry_is_detected(tmp_path):
    feature_cache.save(tmp_path, "name", feature_blocks(features()[:1]), lambda: {"num_examples": 2})
    for file in (tmp_path / "name").iterdir():
        original = file.read_bytes()
        for offset in range(0, len(original), 3):
            damaged = bytearray(original)
            damaged[offset] ^= 1 << offset % 8
            file.write_bytes(damaged)
            with pytest.warns(CheckpointWarning, match="tokenizing again"):
                assert feature_cache.load(tmp_path, "name") is None
        file.write_bytes(original)
    assert feature_cache.load(tmp_path, "name") is not None


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"meta": 1}', "[" * 10_000, '{"arrays": ["ends"], "meta": {}}', "1" * 9999]
)
def test_another_document_than_ours_is_not_loaded(tmp_path, text):
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    (tmp_path / "name" / "meta.json").write_text(text)
    with pytest.warns(CheckpointWarning, match="tokenizing again"):
        assert feature_cache.load(tmp_path, "name") is None


def test_a_full_disk_is_no_error_and_leaves_no_partial_entry(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(feature_cache.GrowingArray, "append", full)
    feature_cache.save(tmp_path, "name", feature_blocks(features()), lambda: {"num_examples": 2})
    assert not list(tmp_path.iterdir())


def test_the_digest_depends_on_every_part():
    parts = [(b"a", b"b"), (b"ab",), (b"", b"ab"), (b"a", b"c")]
    assert feature_cache.digest(b"a", b"b") == feature_cache.digest(b"a", b"b")
    assert len({feature_cache.digest(*items) for items in parts}) == 4


def test_the_least_recently_used_entries_are_deleted(tmp_path):
    for number in range(feature_cache.MAX_ENTRIES + 2):
        feature_cache.save(tmp_path, f"name{number}", feature_blocks(features()[:1]), dict)
        os.utime(tmp_path / f"name{number}", (number, number))
    feature_cache.save(tmp_path, "last", feature_blocks(features()[:1]), dict)
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == feature_cache.MAX_ENTRIES
    assert {"last", f"name{feature_cache.MAX_ENTRIES + 1}"} <= names
    assert not {"name0", "name1"} & names


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    (tmp_path / "other.tmp-dead").mkdir()
    feature_cache.save(tmp_path, "a", feature_blocks([Features(np.arange(3), np.zeros(3, dtype=np.int64))]), dict)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
