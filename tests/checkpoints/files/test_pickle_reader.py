"""The pickle reader returns the values of `pickle` for plain data, and records or an error for all else."""

import argparse
import collections
import contextlib
import enum
import pickle
import pickletools
import struct
import time
import types

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megabert.checkpoints.files.pickle_opcodes import CHANGES, PUSHES
from megabert.checkpoints.files.pickle_reader import Global, Limits, Record, read_pickle
from megabert.errors import CheckpointError

PROTOCOLS = range(6)


def read(data, **settings):
    return read_pickle(data, source="test.pt", **settings).value


# --- The same values as pickle ---

keys = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=9) | st.binary(max_size=9)
leaves = keys | st.integers() | st.floats(allow_nan=False) | st.binary(max_size=300) | st.text(max_size=300)
plain_values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
        | st.binary(max_size=9).map(bytearray)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(value=plain_values, protocol=st.sampled_from(PROTOCOLS))
@example(value=[True, False, "a\\b'\n\u20ac", b"\x00\xff", -1, 2**70, -(2**1000), 1e300], protocol=0)
@example(value=["x" * 70_000, b"y" * 70_000, list(range(70_000))], protocol=4)
def test_plain_values_read_as_pickle_reads_them(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_types_are_those_of_pickle(protocol):
    values = [None, True, 1, 2**70, 1.5, "a", b"b", bytearray(b"c"), [1], (1,), {1: 2}, {1}, frozenset([1])]
    assert list(map(type, read(pickle.dumps(values, protocol)))) == list(map(type, values))


def test_every_opcode_of_the_protocols_has_an_entry_and_only_those():
    known = {opcode.code.encode("latin1") for opcode in pickletools.opcodes}
    assert PUSHES.keys() | CHANGES.keys() | {b"."} == known
    assert not PUSHES.keys() & CHANGES.keys()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_namespaces_become_records_whose_state_is_a_dict(protocol):
    args = argparse.Namespace(num_layers=2, nested=types.SimpleNamespace(fp16=True), empty=argparse.Namespace())
    result = read_pickle(pickle.dumps(args, protocol), source="test.pt")
    assert (result.value.module, result.value.name) == ("argparse", "Namespace")
    assert result.value.state["num_layers"] == 2
    assert result.value.state["nested"].state == {"fp16": True}
    assert result.value.state["empty"].state == {}
    assert result.unknown_globals <= {"__builtin__.object"}


def test_strings_of_python_2_are_text_where_ascii_and_bytes_elsewhere():
    assert read(b"(S'it\\'s\\x41\\n'\nS\"\\\\\"\nU\x03abcT\x02\x00\x00\x00\xff\x00l.") == [
        "it'sA\n",
        "\\",
        "abc",
        b"\xff\x00",
    ]


def test_shared_values_stay_shared():
    inner = [1]
    first, second = read(pickle.dumps([inner, inner], 2))
    assert first is second


def test_several_pickles_are_read_one_after_the_other():
    data = b"junk" + pickle.dumps([1], 2) + pickle.dumps("two", 4) + b"more"
    first = read_pickle(data, source="test.pt", offset=4)
    second = read_pickle(data, source="test.pt", offset=first.end)
    assert (first.value, second.value, data[second.end :]) == ([1], "two", b"more")


def test_persistent_ids_are_resolved_by_the_caller():
    assert read(b"Pkey 7\n.", persistent_id=lambda identity: (identity, "!")) == ("key 7", "!")
    assert read(b"\x80\x02K\x05Q.", persistent_id=lambda identity: identity + 1) == 6


# --- Unknown classes ---


class Scaler:
    def __init__(self):
        self.scale = 2.0


class Stack(list):
    pass


class Table(dict):
    pass


class Era(enum.Enum):
    OLD = 1

    def __reduce_ex__(self, protocol):
        return Era, (self.value,)  # the first releases of Python 3.11 write getattr(Era, "OLD")


class Point:
    def __new__(cls, x, *, y):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"y": 2}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_unknown_classes_become_records_of_their_parts(protocol):
    table = Table(a=1)
    table.note = "n"
    parts = [Scaler(), Stack([1, 2]), table, Era.OLD, Point(1, y=2), Scaler]
    result = read_pickle(pickle.dumps(parts, protocol), source="test.pt")
    scaler, stack, table, era, point, cls = result.value
    assert scaler.state == {"scale": 2.0} and repr(scaler) == f"<Record {__name__}.Scaler>"
    assert stack.items == [1, 2] and stack.entries == []
    assert table.entries == [("a", 1)] and table.state == {"note": "n"}
    assert (era.name, era.arguments) == ("Era", (1,))
    if protocol >= 4:  # before, the keywords stand in a functools.partial
        assert (point.name, point.arguments, point.keywords) == ("Point", (1,), {"y": 2})
    assert cls == Global(__name__, "Scaler")
    assert {f"{__name__}.{name}" for name in ("Scaler", "Stack", "Table", "Era")} <= result.unknown_globals
    assert result.unknown_globals <= result.globals


def test_names_resolve_to_functions_only_if_they_match_exactly():
    def calls(arguments):
        return sum(arguments)

    data = b"(cmath\nfsum\n(K\x01K\x02tRcmath\nfsum2\n(K\x01tRcMath\nfsum\n)Rl."
    three, *others = read(data, calls={("math", "fsum"): calls})
    assert three == 3 and all(isinstance(other, Record) for other in others)


def test_names_resolve_to_the_caller_s_values():
    result = read_pickle(b"ctorch\nfloat32\n.", source="test.pt", values={("torch", "float32"): "f32"})
    assert (result.value, result.globals, result.unknown_globals) == ("f32", {"torch.float32"}, frozenset())


HOSTILE = {
    "reduce": (b"cos\nsystem\n(X\x04\x00\x00\x00exittR.", "system"),
    "inst": (b"(X\x04\x00\x00\x00exitios\nsystem\n.", "system"),
    "obj": (b"(cos\nsystem\nX\x04\x00\x00\x00exito.", "system"),
    "newobj": (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85\x81.", "system"),
    "newobj_ex": (b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00exit\x85}\x92.", "system"),
    "stack_global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04exit\x85R.", "system"),
    "dotted": (b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93\x8c\x04exit\x85R.", "path.system"),
    "extension": (b"\x80\x02\x82\x05X\x04\x00\x00\x00exit\x85R.", "<extension 5>"),
    "getattr": (
        b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR(X\x04\x00\x00\x00exittR.",
        "<call>",
    ),
}


@pytest.mark.parametrize("technique", HOSTILE)
def test_a_call_in_a_pickle_stays_a_record_of_it(technique):
    data, name = HOSTILE[technique]
    result = read_pickle(data, source="test.pt")
    assert isinstance(result.value, Record) and result.value.name == name
    assert result.unknown_globals


def test_a_state_with_hostile_names_is_kept_as_data():
    record = read(b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.")
    assert type(record) is Record and record.state == {"__setstate__": Global("os", "system")}


# --- Damage ---

DAMAGED = {
    b"": "cut off",
    b"K\x01": "cut off",
    b"\x80\x02": "cut off",
    b"\x80\x06N.": "protocol 6",
    b"\x80\x04\x95\xff\x00\x00\x00\x00\x00\x00\x00N.": "frame of 255 bytes",
    b"\xffN.": "0xff is no pickle opcode",
    b".": "empty stack",
    b"(.": "empty stack",
    b"0.": "empty stack",
    b"(a.": "empty stack",
    b"t.": "mark is missing",
    b"h\x05.": "memo entry 5",
    b"g7\n.": "memo entry 7",
    b"X\xff\xff\xff\x7fabc.": "at most",
    b"X\xff\xff\x00\x00abc.": "65535 bytes expected, 4 left",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.": "at most",
    b"T\xff\xff\xff\xffabc.": "-1 bytes",
    b"\x8b\xff\xff\xff\x7f\x00.": "at most 256",
    b"X\x02\x00\x00\x00\xff\xff.": "utf-8",
    b"I12x\n.": "not an integer",
    b"L" + b"9" * 5000 + b"L\n.": "not an integer",
    b"F1.x\n.": "could not convert",
    b"S'a\n.": "quotes",
    b"V\\ud\n.": "truncated",
    b"}]K\x01s.": "cannot be a key",
    b"}}K\x01s.": "cannot be a key",
    b"}]\x85K\x01s.": "cannot be a key",
    b"}(K\x01u.": "key without a value",
    b"(K\x01d.": "key without a value",
    b"]K\x01K\x02s.": "no keys",
    b"K\x01K\x02a.": "neither a list nor a set",
    b"K\x01}b.": "which has none",
    b"\x80\x02cargparse\nNamespace\n)\x81]b.": "not a dict",
    b"K\x01)R.": "neither a class nor a function",
    b"(o.": "neither a class nor a function",
    b"cos\nsystem\n]R.": "not a tuple",
    b"\x80\x04cos\nsystem\n)]\x92.": "a dict",
    b"\x80\x04K\x01K\x02\x93.": "two strings",
    b"c" + b"a" * 2000 + b"\nb\n.": "2001 characters",
    b"Pkey\n.": "outside the pickle",
    b"K\x01Q.": "outside the pickle",
    b"\x97.": "buffers",
    b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.": "latin1",
    b"]2a.": "contains itself",
    b"}q\0K\x01h\0s.": "contains itself",
}


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: repr(data[:12]))
def test_damage_is_reported_with_its_offset(data):
    with pytest.raises(CheckpointError) as error:
        read(data)
    assert str(error.value).startswith("test.pt: opcode at byte ")
    assert DAMAGED[data] in str(error.value)


def test_the_reported_offset_is_that_in_the_file():
    with pytest.raises(CheckpointError, match="opcode at byte 6: memo entry 5"):
        read(b"junk" + b"\x80\x02h\x05.", offset=4)


samples = [opcode.code.encode("latin1") for opcode in pickletools.opcodes] + [
    b"\x80\x02",
    b"K\x01",
    b"X\x01\x00\x00\x00a",
    b"cargparse\nNamespace\n",
    b"ccollections\nOrderedDict\n",
    b"c_codecs\nencode\n",
    b"cbuiltins\nset\n",
    b"cos\nsystem\n",
    b"q\x00",
    b"h\x00",
    b"\x85",
    b")R",
]


@settings(max_examples=400, deadline=60_000)
@given(st.lists(st.sampled_from(samples) | st.binary(max_size=3), max_size=40).map(b"".join))
def test_any_bytes_load_or_raise_a_checkpoint_error(data):
    try:
        result = read(data + b".")
    except CheckpointError:
        return
    repr(result)


@settings(max_examples=200, deadline=60_000)
@given(st.data())
def test_any_mutation_of_a_pickle_loads_or_raises_a_checkpoint_error(data):
    value = {
        "args": argparse.Namespace(a=[1, 2.5, "s"]),
        "o": collections.OrderedDict(b=b"raw"),
        "s": {1},
        "r": Scaler(),
    }
    original = pickle.dumps(value, data.draw(st.sampled_from(PROTOCOLS)))
    changed = bytearray(original[: data.draw(st.integers(1, len(original)))])
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CheckpointError):
        read(bytes(changed))


# --- Limits: memory and time for a small file stay small ---

MILLION = 10**6
DEEP = 30_000  # thirty times Python's own limit for recursion
LONG_TEXT = b"X" + struct.pack("<I", MILLION) + b"a" * MILLION
TEN_TIMES_THE_LAST = b"]q\0" + b"".join(b"(" + (b"h" + bytes([i])) * 10 + b"lq" + bytes([i + 1]) for i in range(60))
ENDLESS = {
    "opcodes": (b"N0" * MILLION + b"N.", "more than 600000 opcodes"),
    "marks": (b"(" * DEEP + b".", "empty stack"),
    "nested lists": (b"]" * DEEP + b"a" * (DEEP - 1) + b".", "nested more than"),
    "nested tuples": (b")" + b"\x85" * DEEP + b".", "nested more than"),
    "nested dicts": (b"}" + b"N}" * DEEP + b"s" * DEEP + b".", "nested more than"),
    "nested calls": (b"cx\ny\n" + b")R" * DEEP + b".", "nested more than"),
    "nested tuple as a key": (b"})" + b"\x85" * DEEP + b"K\x01s.", "cannot be a key"),
    "lists of shared lists": (TEN_TIMES_THE_LAST + b".", "counted each time"),
    "copies of one string": (
        b"c_codecs\nencode\n" + LONG_TEXT + b"X\6\0\0\0latin1\x86q\0\x86" + b"c_codecs\nencode\nh\0R0" * 1000 + b".",
        "calls copy more",
    ),
    "long key": (b"}" + LONG_TEXT + b"K\x01s.", "key of 1000000 characters"),
    "colliding integers": (b"}\x8a\x0a" + b"\x01" * 10 + b"K\x01s.", "key of 73 bits"),
    "colliding tuples": (
        b"}" + b"".join(b"M" + struct.pack("<H", i) + b"\x85Ns" for i in range(4_001)) + b".",
        "one of too many",
    ),
    "numbers as keys": (b"}" + b"K\x01Ns" * 20_001 + b".", "20000 keys that are numbers"),
    "numbers as items": (b"\x8f(" + b"K\x01" * 20_001 + b"\x90.", "20000 keys that are numbers"),
    "numbers as items of calls": (
        b"cbuiltins\nset\n(" + b"K\x01" * 5_000 + b"l\x85q\0" + b"cbuiltins\nset\nh\0R" * 5 + b".",
        "20000 keys that are numbers",
    ),
    "sets of a shared list": (
        b"cbuiltins\nset\n(" + b"N" * 100_000 + b"l\x85q\0" + b"cbuiltins\nset\nh\0R" * 20 + b".",
        "calls copy more",
    ),
    "long number of a memo entry": (b"Np" + b"9" * 30 + b"\n.", "memo entry whose number"),
    "memo entries": (b"N" + b"\x94" * 200_001 + b".", "more than 200000 objects"),
    "sets": (b"\x8f" * 200_001 + b".", "more than 200000 objects"),
    "calls": (b"cx\ny\n2" + b")R2" * 70_001 + b".", "more than 200000 objects"),
    "long float": (b"F" + b"1" * 5000 + b"\n.", "line of more than 1024 bytes"),
}


@pytest.mark.parametrize("attack", ENDLESS)
def test_a_small_file_cannot_take_much_time_or_break_a_recursive_reader(attack):
    data, reason = ENDLESS[attack]
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=reason):
        read(data)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("limits", "data", "reason"),
    [
        (Limits(opcodes=3), b"NNNN.", "more than 3 opcodes"),
        (Limits(nesting=2), b"]]]aa.", "more than 2 deep"),
        (Limits(values=3), b"(NNNNl.", "more than 3 when"),
        (Limits(text_bytes=2), b"U\x03abc.", "at most 2"),
        (Limits(text_bytes=2), b"Vabc\n.", "more than 2 bytes"),
        (Limits(integer_bytes=1), b"\x8a\x02\x01\x01.", "at most 1"),
        (Limits(copied_bytes=9), b"c_codecs\nencode\n(X\1\0\0\0aX\6\0\0\0latin1tR.", "copy more than 9"),
        (Limits(tuple_keys=0), b"})Ns.", "one of too many"),
    ],
)
def test_each_limit_holds(limits, data, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(data, limits=limits)
    read(data, persistent_id=str)


def test_the_limits_of_large_files_are_higher_and_bounded():
    limits = [Limits.of_size(size) for size in (0, 2_400_000, 4_800_000, 10**12)]
    assert [limit.opcodes for limit in limits] == [600_000, 600_000, 1_200_000, 3_000_000]
    assert limits[3].nesting == Limits().nesting


def test_the_deepest_allowed_nesting_can_be_traversed_recursively():
    def depth(value):
        return 1 + max(map(depth, value), default=0)

    assert depth(read(b"]" * 256 + b"a" * 255 + b".")) == 256


def test_a_cycle_through_a_record_is_read_and_prints():
    record = read(b"\x80\x02cx\ny\n)\x81q\0}X\4\0\0\0selfh\0sb.")
    assert record.state["self"] is record
    repr(record)


def test_what_a_file_declares_is_not_allocated():
    with pytest.raises(CheckpointError, match="268435456 bytes expected, 1 left"):
        read(b"X\0\0\0\x10.")
