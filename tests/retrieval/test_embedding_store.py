"""Embedding stores: what is written is read, interrupted ones resume, damage is named; exact search against numpy."""

import json

import numpy as np
import pytest
import torch

from megabert.errors import ConfigError, InputError
from megabert.retrieval.approximate_search import ApproximateSearch, build_graph
from megabert.retrieval.embedding_store import EmbeddingStore, StoreOptions, reduced, write_store
from megabert.retrieval.exact_search import DeviceSearch, grouped_topk, search

VECTORS = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
TEXTS = [(f"d{number}", str(number)) for number in range(len(VECTORS))]


def embed(texts):
    return VECTORS[[int(text) for text in texts]]


def store(folder, kind="float32", texts=TEXTS, **options):
    return write_store(
        folder, texts, embed, about={"run": "abc"}, options=StoreOptions(kind, shard_size=256, **options)
    )


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 0), ("float16", 2e-3), ("int8", 2e-2)])
def test_search_finds_the_rows_of_the_largest_products(tmp_path, kind, tolerance):
    made = store(tmp_path / "emb", kind)
    assert (len(made), made.dimensions, made.digest, made.ids()[300]) == (700, 8, "abc", "d300")
    queries = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    stored = np.concatenate([block.vectors() for block in made.blocks(100)])
    np.testing.assert_allclose(stored, VECTORS, atol=tolerance * np.abs(VECTORS).max())
    products = queries @ stored.T
    scores, rows = search(made, queries, 9)
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1, kind="stable")[:, :9])
    device_scores, device_rows = DeviceSearch(made.blocks(100), torch.device("cpu")).search(queries, 9)
    np.testing.assert_array_equal(rows, device_rows)
    np.testing.assert_allclose(scores, device_scores, rtol=1e-5)


def test_equal_scores_come_in_the_order_of_rows(tmp_path):
    made = write_store(
        tmp_path / "emb", TEXTS, lambda texts: np.ones((len(texts), 2), np.float32), about={"run": ""},
        options=StoreOptions("float32", shard_size=90),
    )  # fmt: skip
    assert search(made, np.ones((1, 2), np.float32), 5)[1].tolist() == [[0, 1, 2, 3, 4]]


def test_the_largest_maxima_of_groups_hold_the_largest_scores():
    scores = torch.randn(3, 64 * 50 + 7, generator=torch.Generator().manual_seed(0))
    values, columns = grouped_topk(scores, 6)
    assert torch.equal(values, scores.topk(6, dim=1).values)
    assert torch.equal(scores.gather(1, columns), values)


def test_approximate_search_finds_the_rows_of_a_graph(tmp_path):
    pytest.importorskip("usearch")
    made = store(tmp_path / "emb")
    report = build_graph(tmp_path, made)
    queries = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    exact, found = search(made, queries, 9), ApproximateSearch(tmp_path, made).search(queries, 9)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(exact[1], found[1], strict=True)]) > 8
    np.testing.assert_allclose(found[0], np.take_along_axis(queries @ VECTORS.T, found[1], 1), rtol=1e-5)
    assert 0.9 < report["recall@10"] <= 1
    assert len(ApproximateSearch(tmp_path, made).search(queries, 1000)[1][0]) == 700
    with pytest.raises(InputError, match="of 700 rows, the index of 300"):
        ApproximateSearch(tmp_path, store(tmp_path / "part", texts=TEXTS[:300]))
    (tmp_path / "graph.usearch").write_bytes(b"no graph at all")
    with pytest.raises(InputError, match="is damaged"):
        ApproximateSearch(tmp_path, made)


def test_an_interrupted_embedding_resumes_with_the_same_bytes(tmp_path):
    whole = store(tmp_path / "whole")

    def failing(texts):
        if "300" in texts:
            raise KeyboardInterrupt
        return embed(texts)

    arguments = {"about": {"run": "abc"}, "options": StoreOptions("float32", shard_size=256)}
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "emb", TEXTS, failing, **arguments)
    with pytest.raises(InputError, match="not complete"):
        EmbeddingStore(tmp_path / "emb")
    with pytest.raises(InputError, match="Add --resume"):
        write_store(tmp_path / "emb", TEXTS, embed, **arguments)
    with pytest.raises(InputError, match="begun with run 'abc', not 'other'"):
        write_store(tmp_path / "emb", TEXTS, embed, **arguments | {"about": {"run": "other"}}, resume=True)
    calls = []
    write_store(
        tmp_path / "emb", TEXTS, lambda texts: calls.append(len(texts)) or embed(texts), **arguments, resume=True
    )
    assert calls == [256, 188]
    for file in whole.folder.iterdir():
        assert file.read_bytes() == (tmp_path / "emb" / file.name).read_bytes()


def test_an_embedding_killed_in_its_first_shard_resumes(tmp_path):
    whole = store(tmp_path / "whole", "int8")
    folder = tmp_path / "emb"
    folder.mkdir()
    (folder / ".manifest.json.tmp-0").write_text("{")

    def kill(texts):
        raise KeyboardInterrupt

    arguments = {"about": {"run": "abc"}, "options": StoreOptions("int8", shard_size=256)}
    with pytest.raises(KeyboardInterrupt):
        write_store(folder, TEXTS, kill, **arguments)
    (folder / "shard-00000.ids").write_text("")
    write_store(folder, TEXTS, embed, **arguments)  # nothing is there that other settings could spoil
    for name in ("shard-00001.npy", "shard-00002.ids", "shard-00002.scales.npy"):
        for content in (b"", (folder / name).read_bytes()[:-3]):
            (folder / name).write_bytes(content)
            with pytest.raises(InputError, match="with --resume"):
                EmbeddingStore(folder).ids()
            write_store(folder, TEXTS, embed, **arguments, resume=True)  # as the message says
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in whole.folder.iterdir())
    for file in whole.folder.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_a_shard_cut_short_is_named(tmp_path):
    made = store(tmp_path / "emb")
    path = tmp_path / "emb" / "shard-00001.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"shard-00001.npy is cut short"):
        EmbeddingStore(made.folder)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001.npy is missing"):
        EmbeddingStore(made.folder)
    (made.folder / "manifest.json").write_text(json.dumps({"shards": 3}))
    with pytest.raises(InputError, match="no manifest"):
        EmbeddingStore(made.folder)


def test_nothing_stays_where_nothing_is_embedded(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(ConfigError, match="8 dimensions; 9 of them cannot be kept"):
            store(tmp_path / name, dimensions=9)
        with pytest.raises(InputError, match="no text to embed"):
            store(tmp_path / name, texts=[])
    with pytest.raises(ConfigError, match="give 1 or more"):
        store(tmp_path / "new", dimensions=0)
    assert [file.name for file in tmp_path.rglob("*")] == ["there"]

    def texts():
        yield from TEXTS[:300]
        raise InputError("bad line")

    with pytest.raises(InputError, match="bad line"):
        store(tmp_path / "part", texts=texts())
    assert len(json.loads((tmp_path / "part" / "manifest.json").read_text())["shards"]) == 1


def test_reduced_vectors_keep_their_norm():
    cut = reduced(VECTORS, 3)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), np.linalg.norm(VECTORS, axis=1), rtol=1e-5)
    np.testing.assert_allclose(cut / cut[:, :1], VECTORS[:, :3] / VECTORS[:, :1], rtol=1e-4)
    with pytest.raises(ConfigError, match="8 dimensions"):
        reduced(VECTORS, 9)
