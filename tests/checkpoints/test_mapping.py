import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megabert.checkpoints.files.lazy_tensor import in_memory
from megabert.checkpoints.huggingface.huggingface_names import ARCHITECTURES
from megabert.checkpoints.mapping import QKV_LAYOUTS, SEPARATE_QKV, Rule, read_tensors, write_tensors
from megabert.checkpoints.megatron import megatron_names
from megabert.errors import CheckpointError


def stored(**tensors):
    return {name.replace("__", "."): in_memory(torch.as_tensor(value)) for name, value in tensors.items()}


def test_stars_are_copied_and_dropped_tensors_are_listed():
    rules = [Rule("a.*.x", "b.*.y"), Rule("copy.*", None)]
    read, dropped = read_tensors([stored(a__3__x=[1.0], copy__x=[2.0], copy__y=[3.0])], rules, 1, "file")
    assert {name: tensor.read().tolist() for name, tensor in read.items()} == {"b.3.y": [1.0]}
    assert dropped == ["copy.x", "copy.y"]


def test_unknown_tensors_are_listed():
    with pytest.raises(CheckpointError, match=r"file: unknown tensors: z\."):
        read_tensors([stored(a=[1.0], z=[2.0])], [Rule("a", "b")], 1, "file")


def test_a_tensor_whose_partner_is_missing_is_named():
    rules = [Rule(("q", "k", "v"), "qkv", SEPARATE_QKV)]
    with pytest.raises(CheckpointError, match="qkv needs k, which is not"):
        read_tensors([stored(q=[1.0], v=[1.0])], rules, 1, "file")


def test_shards_are_joined_along_their_cut_and_replicas_compared():
    rules = [Rule("rows", "rows", cut=0), Rule("columns", "columns", cut=1), Rule("norm", "norm")]
    shards = [
        stored(rows=[[1.0], [2.0]], columns=[[1.0], [2.0]], norm=[5.0]),
        stored(rows=[[3.0], [4.0]], columns=[[3.0], [4.0]], norm=[5.0]),
    ]
    read, _ = read_tensors(shards, rules, 1, "file")
    assert read["rows"].shape == (4, 1)
    assert read["columns"].shape == (2, 2)
    assert read["rows"].read().tolist() == [[1], [2], [3], [4]]
    assert read["columns"].read().tolist() == [[1, 3], [2, 4]]
    assert read["norm"].read().tolist() == [5]
    shards[1] |= stored(norm=[6.0])
    with pytest.raises(CheckpointError, match="norm should be equal in all shards"):
        read_tensors(shards, rules, 1, "file")[0]["norm"].read()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinite_weights_are_refused_by_tensor_name(bad):
    read, _ = read_tensors([stored(theirs=[1.0, bad])], [Rule("theirs", "ours")], 1, "file")
    with pytest.raises(CheckpointError, match="file: theirs holds 1 values that are NaN or infinite"):
        read["ours"].read()


def test_a_copy_must_equal_its_original():
    rules = [Rule("word", "word", cut=0), Rule("head", None, cut=0, copy_of="word")]
    shards = [stored(word=[1.0], head=[1.0]), stored(word=[2.0], head=[2.0])]
    assert read_tensors(shards, rules, 1, "file")[0]["word"].read().tolist() == [1, 2]
    shards[1] |= stored(head=[3.0])
    with pytest.raises(CheckpointError, match="head is not the copy of word"):
        read_tensors(shards, rules, 1, "file")[0]["word"].read()
    with pytest.raises(CheckpointError, match="head is not of the shape of word"):
        read_tensors([stored(word=[1.0], head=[1.0, 2.0])], rules, 1, "file")


def test_shards_of_different_shapes_or_dtypes_are_refused():
    with pytest.raises(CheckpointError, match="a differs between shards"):
        read_tensors([stored(a=[1.0]), stored(a=[1.0, 2.0])], [Rule("a", "a", cut=0)], 1, "file")
    with pytest.raises(CheckpointError, match=r"torch\.float16"):
        read_tensors(
            [stored(a=[1.0]), stored(a=torch.ones(1, dtype=torch.float16))], [Rule("a", "a", cut=0)], 1, "file"
        )


def test_a_tensor_missing_from_one_shard_is_an_error():
    with pytest.raises(CheckpointError, match="not in every shard"):
        read_tensors([stored(a=[1.0]), stored(b=[1.0])], [Rule("a", "a"), Rule("b", "b")], 1, "file")


# Two heads of two dims: entry "qHD" is query, head H, dim D.
OURS = ["q00", "q01", "k00", "k01", "v00", "v01", "q10", "q11", "k10", "k11", "v10", "v11"]
THEIRS = {
    "3_heads_dim": ["q00", "q01", "q10", "q11", "k00", "k01", "k10", "k11", "v00", "v01", "v10", "v11"],
    "heads_dim_3": ["q00", "k00", "v00", "q01", "k01", "v01", "q10", "k10", "v10", "q11", "k11", "v11"],
    "heads_3_dim": OURS,
}


@pytest.mark.parametrize("layout", THEIRS)
def test_query_key_value_rows_are_reordered(layout):
    number = {name: float(index) for index, name in enumerate(OURS)}
    theirs = torch.tensor([number[name] for name in THEIRS[layout]])
    ours = QKV_LAYOUTS[layout].read([theirs], 2)
    assert ours.tolist() == [number[name] for name in OURS]
    (back,) = QKV_LAYOUTS[layout].write(ours, 2)
    assert torch.equal(back, theirs)


def test_shards_of_version_0_hold_their_own_query_key_value_blocks():
    # Plain concatenation of the rows would be wrong here: each shard is [3, its heads, dim].
    number = {name: float(index) for index, name in enumerate(OURS)}
    shards = [stored(x=[number[f"{part}{head}{dim}"] for part in "qkv" for dim in "01"]) for head in "01"]
    read, _ = read_tensors(shards, [Rule("x", "y", QKV_LAYOUTS["3_heads_dim"], cut=0)], 2, "file")
    assert read["y"].read().tolist() == [number[name] for name in OURS]


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.sampled_from([*THEIRS, "separate"]))
def test_every_layout_is_inverted_bit_for_bit(num_heads, head_dim, is_bias, layout):
    op = SEPARATE_QKV if layout == "separate" else QKV_LAYOUTS[layout]
    shape = (3 * num_heads * head_dim,) if is_bias else (3 * num_heads * head_dim, 2)
    tensor = torch.randn(shape)
    assert torch.equal(op.read(op.write(tensor, head_dim), head_dim), tensor)


TABLES = {
    **{era.name: era.rules("heads_3_dim") for era in megatron_names.ERAS},
    **{f"Hugging Face {name}": row.rules for name, row in ARCHITECTURES.items()},
}


@pytest.mark.parametrize("name", TABLES)
def test_what_a_table_writes_it_reads_back(name):
    rules = TABLES[name]
    ours = {}
    for rule in rules:
        if rule.target is not None and not rule.read_only:
            sizes = (12, 4) if rule.target.endswith("weight") and "norm" not in rule.target else (12,)
            ours[
                rule.target.replace("*", "0")
                if "norm.*" not in rule.target
                else rule.target.replace("*", "0", 1).replace("*", "weight")
            ] = in_memory(torch.randn(sizes))
    theirs = {}
    for written in write_tensors(ours, rules, 2):
        for their, tensor in zip(written.names, written.read(), strict=True):
            assert tensor.shape == written.shape
            theirs[their] = in_memory(tensor)
    back, _ = read_tensors([theirs], rules, 2, "file")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key].read(), ours[key].read()) for key in ours)


def test_the_wrong_number_of_rows_is_reported_with_its_shape():
    with pytest.raises(CheckpointError, match=r"x of shape \(\(7,\),\) does not fit"):
        read_tensors([stored(x=[0.0] * 7)], [Rule("x", "y", QKV_LAYOUTS["3_heads_dim"])], 2, "file")
