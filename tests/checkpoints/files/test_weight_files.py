"""Files of torch and safetensors read as in these libraries; damage is refused; hostile files run nothing."""

import argparse
import collections
import contextlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megabert.checkpoints.files.pickle_reader import Record
from megabert.checkpoints.files.weight_files import LazyTensor, open_file
from megabert.errors import CheckpointError
from tests.checkpoints.weight_files import FORMATS, assert_same, leaves, read_all, save, write_zip

# --- Files of torch ---

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
# Newer dtypes have untyped storages, which torch itself cannot load from legacy files.
UNTYPED = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def example():
    base = torch.arange(24.0).view(4, 6)
    with_attributes = torch.ones(2)
    with_attributes.partition_dim = 0
    parameter = torch.nn.Parameter(torch.full((3,), 0.5))
    parameter.shared = True
    return {
        "args": argparse.Namespace(lr=1e-4, dtype=torch.half, inner=types.SimpleNamespace(path="é", sizes=[1, (2,)])),
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict(),
        "ordered": collections.OrderedDict(parameter=parameter, buffer=torch.nn.Parameter(torch.zeros(1))),
        "dtypes": [torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES],
        "views": [base, base[1:3], base.t(), base[:, ::2], base[2, 3], base.expand(2, 4, 6), base[:0]],
        "empty": [torch.empty(0), torch.empty(0, 3), torch.tensor(7)],
        "attributes": with_attributes,
        "size": torch.Size([2, 3]),
        "bytes": [b"\x00\xff", b"", bytearray(b"x"), {1, 2}, frozenset([3])],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_torch_saved_reads_as_torch_loads_it(tmp_path, kind, protocol):
    path = save(example(), tmp_path / "x", kind=kind, protocol=protocol)
    opened = open_file(path)
    assert opened.kind == kind and opened.unknown_globals == frozenset()
    assert_same(opened.content, torch.load(path, weights_only=False))


shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_view_of_any_dtype_reads_as_torch_loads_it(tmp_path, data):
    shape, kind = data.draw(shapes), data.draw(st.sampled_from(FORMATS))
    dtype = data.draw(st.sampled_from(DTYPES + UNTYPED if kind == "torch-zip" else DTYPES))
    tensor = torch.randint(0, 2, shape).to(dtype).permute(data.draw(st.permutations(range(len(shape)))))
    if shape and tensor.shape[0]:
        tensor = tensor[data.draw(st.integers(0, tensor.shape[0] - 1)) :: data.draw(st.integers(1, 3))]
    path = save([tensor, tensor], tmp_path / "x", kind=kind)
    assert_same(open_file(path).content, torch.load(path))


def test_tensors_of_one_storage_share_it_in_the_file_and_not_in_memory(tmp_path):
    base = torch.arange(6.0)
    first, second = open_file(save([base[:4], base[2:]], tmp_path / "x")).content
    assert first.storage is second.storage and second.start == 8
    first.read().zero_()
    assert second.read().tolist() == [2.0, 3.0, 4.0, 5.0]


def test_a_tensor_reads_its_own_storage_only(tmp_path):
    path = save([torch.full((500,), 1.0), torch.full((500,), 2.0)], tmp_path / "x")
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<f", 2.0) * 500, struct.pack("<f", 3.0) * 500))
    good, bad = open_file(path).content
    assert good.read().tolist() == [1.0] * 500
    with pytest.raises(CheckpointError, match=r"data/1'.*checksum does not match"):
        bad.read()


def test_storage_views_of_old_legacy_files_are_read(tmp_path):
    # As PyTorch before 0.4 wrote them: a persistent id with (key, offset, size) of the view.
    class Reference:
        pass

    class Old(pickle.Pickler):
        def persistent_id(self, value):
            view = ("8", 2, 3)
            return ("storage", torch.FloatStorage, "7", "cpu", 6, view) if isinstance(value, Reference) else None

    class Tensor:
        def __init__(self, offset):
            self.arguments = (Reference(), offset, (2,), (1,))

        def __reduce__(self):
            return torch._utils._rebuild_tensor, self.arguments

    def write(tensor):
        stream = io.BytesIO()
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(value, stream, protocol=2)
        Old(stream, 2).dump(tensor)
        pickle.dump(["7"], stream, protocol=2)
        path = tmp_path / "x"
        path.write_bytes(stream.getvalue() + struct.pack("<q6f", 6, *range(6)))
        return open_file(path).content

    assert write(Tensor(1)).read().tolist() == [3.0, 4.0]
    with pytest.raises(CheckpointError, match="outside its part"):
        write(Tensor(2))


def test_a_whole_module_opens_as_records(tmp_path):
    module = torch.nn.Linear(2, 3)
    content = open_file(save(module, tmp_path / "x", kind="torch-legacy")).content
    assert isinstance(content, Record) and content.name == "Linear"
    assert_same(content.state["_parameters"]["weight"], module.weight)


def test_files_close_with_their_last_tensor(tmp_path):
    tensor = open_file(save(torch.ones(2), tmp_path / "x")).content
    descriptor = tensor.storage.source.region.file.descriptor
    os.fstat(descriptor)
    del tensor
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_file_changed_or_truncated_after_opening_is_detected(tmp_path):
    for change in (
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: os.truncate(path, 100),
    ):
        path = save(torch.ones(200), tmp_path / "x", kind="torch-legacy")
        tensor = open_file(path).content
        os.utime(path, ns=(0, 0))
        change(path)
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            tensor.read()


def test_a_link_given_by_the_user_is_followed(tmp_path):
    save([1], tmp_path / "x")
    (tmp_path / "link").symlink_to("x")
    assert open_file(tmp_path / "link").content == [1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, kind):
    whole = save({"a": torch.arange(9.0), "b": [1, "two"]}, tmp_path / "x", kind=kind).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_file(tmp_path / "cut")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"M\xe9\x03.", b"M\xea\x03.", "protocol 1001 with little endian"),
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "protocol 1001 with little endian"),
        (struct.pack("<q", 9), struct.pack("<q", 8), "has 8 items; 9 are expected"),
        (struct.pack("<q", 9), struct.pack("<q", 2**62), "items; 9 are expected"),
        (struct.pack("<f", 8.0), struct.pack("<f", 8.0) + b"x", "1 bytes follow"),
    ],
)
def test_an_inconsistent_legacy_file_is_refused(tmp_path, old, new, reason):
    path = save(torch.arange(9.0), tmp_path / "x", kind="torch-legacy")
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match=reason):
        open_file(path)


# --- safetensors ---

SAFE_DTYPES = [dtype for dtype in DTYPES if not dtype.is_complex]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=5), st.tuples(shapes, st.sampled_from(SAFE_DTYPES)), max_size=4))
def test_what_safetensors_wrote_reads_as_it_loads_it(tmp_path, contents):
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in contents.items()}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    opened = open_file(tmp_path / "x")
    assert (opened.kind, opened.metadata) == ("safetensors", {"format": "pt"})
    assert_same(opened.content, load_file(tmp_path / "x"))


def entry(begin, end, dtype="U8", **more):
    return {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 3)}, "do not fill the file"),
        ({"a": entry(0, 2), "b": entry(3, 4)}, "leave gaps"),
        ({"a": entry(0, 3), "b": entry(2, 4)}, "overlap"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, "overlap"),
        ({"a": entry(0, 5)}, "exceeds"),
        ({"a": entry(0, 4, "F8_E4M3")}, "'a': dtype 'F8_E4M3' is not read; F64, F32"),
        ({"a": entry(0, 4, "F32")}, "bytes 0 to 4 for shape"),
        ({"a": entry(0, 4, note=1)}, "is not read"),
        ({"a": {**entry(0, 4), "shape": [-4]}}, "shape"),
        ({"a": {**entry(0, 4), "shape": [2**40, 2**40]}}, "bytes 0 to 4 for shape"),
        ({"a": {**entry(0, 4), "shape": [4.0]}}, "shape"),
        ({"a": {**entry(0, 4), "shape": [True, 4]}}, "shape"),
        ({"a": {**entry(0, 4), "shape": [1] * 65}}, "shape"),
        ({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, "bytes 4 to 0"),
        ({"a": {"dtype": "U8"}}, "dtype, shape and data_offsets"),
        ({"a": 5}, "dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 4)}, "__metadata__"),
        ('{"a": 1, "a": 2}', "duplicate name"),
        ('{"a": ' + "[" * 10**5, "not JSON"),
        ('{"a": NaN}', "dtype, shape"),
        ('{"a": "\xff"}', "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_an_inconsistent_safetensors_file_is_refused(tmp_path, header, reason):
    text = (header if isinstance(header, str) else json.dumps(header)).encode("latin1")
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    with pytest.raises(CheckpointError, match=reason):
        open_file(tmp_path / "x")


def test_a_huge_safetensors_header_is_not_read(tmp_path):
    for length, reason in ((2**25, "at most 16777216"), (10**6, "exceeds")):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointError, match=reason):
            open_file(tmp_path / "x")


# --- Other files ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html><head><title>404</title>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b'{"error": "not found"}', "text file.*begins '{"),
        (b"hello", "text file"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
        (b"BZh9" + bytes(20), "bzip2"),
        (b"\xfd7zXZ\x00" + bytes(20), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        (b"model_config.yaml".ljust(257, b"\0") + b"ustar" + bytes(300), "tar archive. Take"),
        (b"sys_info".ljust(257, b"\0") + b"ustar" + bytes(300), "before 0.1.10.*save it again"),
        (b"\x80\x04N.", "without torch's magic number"),
        (b"\x00\x01\x02\xff" * 9, "begins with 00 01 02 ff"),
        (b"PK", "no end"),
    ],
)
def test_other_file_formats_are_named(tmp_path, data, reason):
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as error:
        open_file(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(error.value)


def test_folders_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "pipe"),
        (tmp_path / "no", "No such file"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            open_file(path)


# --- Any damage ---


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    content = {
        "a": torch.arange(6.0).view(2, 3),
        "n": argparse.Namespace(x=[1, 2.5], s={1}),
        "p": torch.nn.Parameter(torch.ones(2)),
    }
    files = [save(content, folder / f"{kind}{n}", kind=kind, protocol=n) for kind in FORMATS for n in (2, 4)]
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bool)}, folder / "safe", metadata={"k": "v"})
    with zipfile.ZipFile(files[0]) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    files += [folder / "safe", write_zip(folder / "packed", members, method=zipfile.ZIP_DEFLATED)]
    for number, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        inner = {"release/mp_rank_00/model_optim_rng.pt": files[number * 2].read_bytes()}
        files.append(write_zip(folder / f"archive{number}", inner, method=method))
    for path in files:
        read_all(path)
    return [path.read_bytes() for path in files]


@settings(max_examples=250, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_opens_or_raises_a_checkpoint_error(tmp_path, small_files, data):
    changed = bytearray(data.draw(st.sampled_from(small_files)))
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(changed)))]
    for _ in range(data.draw(st.integers(0, 2)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(changed)
    with contextlib.suppress(CheckpointError):
        read_all(tmp_path / "x")


# --- Hostile and genuine files, opened in a child process that records what it does ---

CHILD = """
import copyreg, json, pickle, sys
sys.path.insert(0, ".")  # the folder of evil_marker.py
from pathlib import Path
from megabert.checkpoints.files.weight_files import open_file
from megabert.checkpoints.files.pickle_reader import read_pickle
from megabert.errors import CheckpointError

for code in (5, 0x105, 0x10005):
    copyreg.add_extension("os", "system" if code == 5 else f"system{code}", code)
events = []

def watch(event, arguments):
    first = str(arguments[0]) if arguments else ""
    # 0o3103: to write, to create, to truncate, to append
    is_read = event == "open" and first in paths and not arguments[2] & 0o3103
    is_codec = event == "import" and first.startswith("encodings.")
    if not is_read and not is_codec and event != "builtins.id":
        events.append(f"{event} {first}")

def outcome(path):
    try:
        if path.suffix == ".pickle":
            read_pickle(path.read_bytes(), source=str(path))
        else:
            open_file(path)
    except CheckpointError as error:
        return f"refused: {error}"
    return "opened"

paths = json.loads(sys.stdin.read())
before = set(sys.modules)
sys.addaudithook(watch)
outcomes = {path: outcome(Path(path)) for path in paths}
seen, modules = list(events), sorted(set(sys.modules) - before)
if Path("control.pickle").exists():
    pickle.loads(Path("control.pickle").read_bytes())  # a reader that runs pickles
print(json.dumps({"outcomes": outcomes, "events": seen, "modules": modules, "control": events[len(seen):]}))
"""


def open_in_child(paths, folder):
    result = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([str(path) for path in paths]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


CALL = text("touch marker") + b"\x85R"  # calls what was pushed before


def techniques(protocol):
    def name(module, attribute):
        if protocol < 4:
            return f"c{module}\n{attribute}\n".encode()
        return text(module) + text(attribute) + b"\x93"

    system, marker = name("os", "system"), name("evil_marker", "Thing")
    namespace = name("argparse", "Namespace") + b")\x81"
    return {
        "reduce": system + CALL,
        "inst": b"(" + text("touch marker") + b"ios\nsystem\n",
        "inst of a module": b"(ievil_marker\nThing\n",
        "obj": b"(" + system + text("touch marker") + b"o",
        "newobj": system + text("touch marker") + b"\x85\x81",
        "newobj_ex": system + text("touch marker") + b"\x85}\x92",
        "newobj_ex with keywords": name("subprocess", "Popen") + b")}" + text("args") + text("true") + b"s\x92",
        "stack_global": text("os") + text("system") + b"\x93" + CALL,
        "a name": marker,
        "an instance": marker + b")R",
        "extension 1": b"\x82\x05" + CALL,
        "extension 2": b"\x83\x05\x01" + CALL,
        "extension 4": b"\x84\x05\x00\x01\x00" + CALL,
        "dotted name": name("os", "path.os.system") + CALL,
        "dotted module": name("os.path", "os.system") + CALL,
        "getattr": name("builtins", "getattr") + name("os", "path") + text("os") + b"\x86R" + CALL,
        "__import__": name("builtins", "__import__") + text("evil_marker") + b"\x85R",
        "eval": name("builtins", "eval") + text("open('marker', 'w')") + b"\x85R",
        "python 2": name("__builtin__", "apply") + system + text("touch marker") + b"\x85\x86R",
        "build __setstate__": namespace + b"}" + text("__setstate__") + system + b"sb}b",
        "build __class__": namespace + b"}" + text("__class__") + marker + b"sb",
        "build __reduce__": name("collections", "OrderedDict") + b")R}" + text("__reduce__") + system + b"sb",
        "build of a class": marker + b"}" + text("__init__") + system + b"sb",
        "build of slots": marker + b")\x81N}" + text("a") + system + b"s\x86b",
        "persistent id": system + CALL + b"Q",
        "text persistent id": b"Pevil_marker\n",
        "persistent id around a call": b"(" + text("storage") + system + CALL + text("0") + text("cpu") + b"K\1tQ",
        "key": b"}" + marker + b")RK\1s",
        "set": b"(" + system + CALL + b"l" if protocol < 4 else b"\x8f(" + system + CALL + b"\x90",
        "codec": name("_codecs", "encode") + text("a") + text("evil_marker") + b"\x86R",
        "rebuilt type": name("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + system
        + marker
        + text("touch marker")
        + b"\x85NtR",
        "hooks": name("torch._utils", "_rebuild_parameter") + b"N\x88" + system + CALL + b"\x87R",
        "reconstructor": name("copyreg", "_reconstructor") + marker + system + CALL + b"N\x87R",
        "nested pickle": name("torch.storage", "_load_from_bytes") + text("cos\nsystem\n)R.") + b"\x85R",
        "numpy": name("numpy", "load") + text("evil.npy") + b"\x85R",
    }


def hostile_files(folder):
    for protocol in (2, 3, 4, 5):
        for technique, body in techniques(protocol).items():
            data = bytes([0x80, protocol]) + text("weights") + body + b"\x86."
            stem = f"{technique} {protocol}".replace(" ", "_")
            alone = write_zip(folder / f"{stem}.zip", {"a/data.pkl": data, "a/data/0": b""})
            yield alone
            yield write_zip(folder / f"{stem}.archive", {"mp_rank_00/model_optim_rng.pt": alone.read_bytes()})
            system = b"\x80\x02}" + text("little_endian") + b"\x88s."
            head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."
            (folder / f"{stem}.legacy").write_bytes(head + system + data + b"\x80\x02].")
            yield folder / f"{stem}.legacy"
            (folder / f"{stem}.sys_info").write_bytes(head + data)
            yield folder / f"{stem}.sys_info"
            (folder / f"{stem}.pickle").write_bytes(data)
            yield folder / f"{stem}.pickle"


def test_a_hostile_file_runs_imports_and_writes_nothing(tmp_path):
    (tmp_path / "evil_marker.py").write_text("open('marker', 'w')\nclass Thing: pass\n")
    paths = list(hostile_files(tmp_path))
    (tmp_path / "control.pickle").write_bytes(b"\x80\x02" + techniques(2)["reduce"] + b".")
    result = open_in_child(paths, tmp_path)
    assert result["events"] == []
    assert [module for module in result["modules"] if not module.startswith("encodings.")] == []
    assert len(result["outcomes"]) == len(paths) == 4 * 5 * len(techniques(2))
    opened = [path for path, outcome in result["outcomes"].items() if outcome == "opened"]
    assert len(opened) > len(paths) / 2, result["outcomes"]
    # The same call is harmful, and detected, where a pickle is run.
    assert any("system" in event for event in result["control"]) and (tmp_path / "marker").exists()
    assert not any(path.exists() for path in (tmp_path / "true", tmp_path / "touch"))


def test_a_genuine_file_imports_nothing(genuine_checkpoints, tmp_path):
    paths = sorted(genuine_checkpoints.rglob("*.pt"))
    result = open_in_child(paths, tmp_path)
    assert set(result["outcomes"].values()) == {"opened"}
    assert result["events"] == [] and result["modules"] == []


# --- Genuine files ---


def test_every_genuine_file_reads_as_its_raw_bytes(genuine_checkpoints):
    num_tensors = 0
    for path in sorted(genuine_checkpoints.rglob("*.pt")):
        opened = open_file(path)
        assert opened.kind == "torch-zip" and opened.metadata["byteorder"] == "little"
        assert all(name.startswith("numpy.") for name in opened.unknown_globals)
        with zipfile.ZipFile(path) as archive:
            for _, tensor in leaves(opened.content):
                if isinstance(tensor, LazyTensor):
                    raw = archive.read(f"model_optim_rng/data/{tensor.storage.key}")
                    expected = torch.frombuffer(bytearray(raw), dtype=tensor.dtype)
                    assert torch.equal(tensor.read().flatten(), expected)
                    num_tensors += 1
    assert num_tensors > 400


def test_a_genuine_file_has_the_known_arguments_and_shapes(genuine_checkpoints):
    content = open_file(genuine_checkpoints / "v2.6_tp2/iter_0000007/mp_rank_01/model_optim_rng.pt").content
    assert content["checkpoint_version"] == 3.0 and content["iteration"] == 7
    args = content["args"].state
    assert (args["num_layers"], args["hidden_size"], args["num_attention_heads"]) == (2, 64, 4)
    assert args["params_dtype"] == torch.float32 and args["tensor_model_parallel_size"] == 2
    model = content["model"]["language_model"]
    assert model["embedding"]["word_embeddings"]["weight"].shape == (256, 64)
    assert model["encoder"]["layers.0.self_attention.query_key_value.weight"].shape == (96, 64)
    assert isinstance(content["random_rng_state"], tuple) and len(content["random_rng_state"][1]) == 625
    assert content["np_rng_state"][1].name == "_reconstruct"


def test_genuine_safetensors_read_as_their_library_reads_them(genuine_checkpoints):
    for path in sorted(genuine_checkpoints.rglob("oracle.safetensors")):
        assert_same(open_file(path).content, load_file(path))
