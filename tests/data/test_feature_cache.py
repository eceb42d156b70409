import os

import numpy as np
import pytest

from megabert.data import feature_cache as store
from megabert.data.packing import Features, pack
from megabert.data.sampler import BatchSampler


def features():
    return [
        Features(
            np.arange(1, length + 1),
            np.arange(length) % 2,
            {"span": np.array([0, length - 1]), "value": 0.25 * length},
            {"label": np.arange(length) - 100},
            weight=length / 2,
            notes="not kept",
        )
        for length in (3, 1, 7)
    ]


def same(left, right):
    assert left.token_ids.tolist() == right.token_ids.tolist()
    assert left.segment_ids.tolist() == right.segment_ids.tolist()
    assert left.targets["span"].tolist() == right.targets["span"].tolist()
    assert left.targets["value"] == right.targets["value"]
    assert left.token_targets["label"].tolist() == right.token_targets["label"].tolist()
    assert left.weight == right.weight


def test_texts_come_back_as_they_were(tmp_path):
    store.keep(tmp_path, "name", features(), {"num_examples": 2})
    found = store.find(tmp_path, "name")
    assert (len(found), found.meta) == (3, {"num_examples": 2})
    assert found.lengths().tolist() == [3, 1, 7]
    for left, right in zip(found, features(), strict=True):
        same(left, right)
    same(found[-1], features()[-1])
    assert [len(item) for item in found[1:]] == [1, 7]
    with pytest.raises(IndexError):
        found[3]


def test_steps_of_a_store_are_those_of_the_texts(tmp_path):
    store.keep(tmp_path, "name", features(), {"num_examples": 2})
    for step in range(2):
        of = [
            BatchSampler(items, 2, 9, 0, seed=1).step(step)[0] for items in (features(), store.find(tmp_path, "name"))
        ]
        for left, right in zip(of[0].tensors(), of[1].tensors(), strict=True):
            assert left.tolist() == right.tolist()
            assert left.dtype == right.dtype
    assert pack(list(store.find(tmp_path, "name")), 9, 0).weight == 5.5


def test_what_is_broken_or_absent_is_made_again(tmp_path):
    assert store.find(tmp_path, "name") is None
    store.keep(tmp_path, "name", features(), {"num_examples": 2})
    (tmp_path / "name" / "0.npy").write_bytes(b"")
    assert store.find(tmp_path, "name") is None
    (tmp_path / "name" / "meta.json").write_text("{")
    assert store.find(tmp_path, "name") is None
    store.keep(tmp_path, "name", features(), {"num_examples": 2})
    assert len(store.find(tmp_path, "name")) == 3


def test_nothing_half_written_stays_and_a_full_disk_is_no_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    store.keep(tmp_path, "name", features(), {"num_examples": 2})
    assert not list(tmp_path.iterdir())


def test_names_depend_on_every_part():
    assert store.digest(b"a", b"b") == store.digest(b"a", b"b")
    assert len({store.digest(b"a", b"b"), store.digest(b"ab"), store.digest(b"", b"ab"), store.digest(b"a", b"c")}) == 4


def test_the_oldest_stores_go_first(tmp_path):
    for number in range(store.MOST_STORES + 2):
        store.keep(tmp_path, f"name{number}", features()[:1], {})
        os.utime(tmp_path / f"name{number}", (number, number))
    store.keep(tmp_path, "last", features()[:1], {})
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == store.MOST_STORES
    assert {"last", f"name{store.MOST_STORES + 1}"} <= names
    assert not {"name0", "name1"} & names
