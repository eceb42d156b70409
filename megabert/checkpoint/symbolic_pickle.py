"""Read a Python pickle as data: its bytes go in, plain values and inert records come out, and nothing runs.

A pickle is a program for a small stack machine. Python's own `pickle` imports the names in it and calls them,
so whoever wrote the file runs code in our process. This machine follows the same opcodes but knows only the
names in its tables, and each of those leads to a function of ours. Any other name becomes a `Global`, and any
object made from it a `Record`.
Source: protocols 0 to 5 in https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

from ..errors import CheckpointError

Call = Callable[[tuple[object, ...]], object]
Name = tuple[str, str]


class ByteSource(Protocol):
    """Bytes that can be read in pieces: a file, a part of one, a member of an archive."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return exactly `length` bytes."""


@dataclass(frozen=True)
class Limits:
    """How far a pickle may go: far above what genuine checkpoints need, far below what harms a computer."""

    # A 24-layer model with its optimizer takes about 50,000; two million run for seconds and fill 500 MB.
    opcodes: int = 2_000_000
    # A recursive reader of the result stays below Python's 1,000 frames with up to three of them for a level.
    nesting: int = 256
    # Values in the result, each counted as often as a recursive reader meets it: a list that holds ten times
    # a list that holds ten times a list and so on is small here and endless there.
    values: int = 20_000_000
    # One string or bytes object. Tensors lie outside the pickle, so the largest here are numpy arrays.
    text_bytes: int = 2**28
    # The magic number of torch takes 10 bytes, numpy's 128-bit generators 17. Time grows with the square.
    integer_bytes: int = 256
    # What our own functions may copy in all: a few opcodes can name one long string again and again.
    copied_bytes: int = 2**27
    # Keys that are tuples: their hashes can be made to collide, and then n of them cost n * n comparisons.
    tuple_keys: int = 10_000


DEFAULT_LIMITS = Limits()
_LARGEST_KEY = 4096  # characters: comparing two equal keys reads both
_KEY_BITS = 64  # hashes of larger integers can be made to collide
_LONGEST_NAME = 1024
_LONGEST_CALL = 8  # torch._utils._rebuild_tensor_v3; also the longest tuple that is a key
_WINDOW = 2**16


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle: two strings, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """One object of a class that we do not know, or a Namespace: its parts as they stand in the file.

    It compares by identity and prints as its name, since it may contain itself. What the file gets by calling
    another Record has the name `<call>` and (callee, arguments) as its `arguments`.
    """

    module: str
    name: str
    arguments: tuple[object, ...] = ()
    keywords: dict[object, object] = field(default_factory=dict)
    state: object = None
    items: list[object] = field(default_factory=list)
    entries: list[tuple[object, object]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Record {self.module}.{self.name}>"


@dataclass(frozen=True)
class Pickle:
    """What one pickle holds; `end` is the offset of the first byte behind it."""

    value: object
    globals: frozenset[str]
    unknown_globals: frozenset[str]
    end: int


def load(
    data: bytes | ByteSource,
    *,
    source: str,
    offset: int = 0,
    calls: Mapping[Name, Call] | None = None,
    values: Mapping[Name, object] | None = None,
    persistent_id: Callable[[object], object] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Pickle:
    """Read the one pickle that begins at `offset`.

    `calls` adds to `CALLS`: exact (module, name) -> our function of the arguments. `values` holds names that
    stand for a value. `persistent_id` turns the identity of an object outside the pickle into a value. All of
    them raise ValueError for what does not fit. `limits` also bounds how
    much a recursive reader of the result meets, and any cycle in it goes through a Record.
    Raises CheckpointError, with `source` and the byte offset, for anything but a complete pickle.
    """
    readable = _Bytes(data) if isinstance(data, bytes) else data
    machine = _Machine(readable, offset, CALLS | dict(calls or {}), values or {}, persistent_id, limits)
    try:
        value = machine.run()
        _check_nesting(value, limits)
    except ValueError as error:
        raise CheckpointError(f"{source}: opcode at byte {machine.opcode_offset}: {error}") from None
    unknown = machine.names - machine.calls.keys() - machine.values.keys()
    dotted, unknown_dotted = (frozenset(map(".".join, names)) for names in (machine.names, unknown))
    return Pickle(value, dotted, unknown_dotted, machine.position)


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class _Machine:
    """The stack, the marks into it, the memo and the place in the file. Misfits raise ValueError."""

    def __init__(
        self,
        data: ByteSource,
        offset: int,
        calls: Mapping[Name, Call],
        values: Mapping[Name, object],
        persistent_id: Callable[[object], object] | None,
        limits: Limits,
    ) -> None:
        self.data = data
        self.position = self.opcode_offset = self.window_offset = offset
        self.window: bytes | bytearray = b""
        self.calls, self.values, self.persistent_id, self.limits = calls, values, persistent_id, limits
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.names: set[Name] = set()
        self.copied_bytes = self.num_tuple_keys = 0

    def run(self) -> object:
        for _ in range(self.limits.opcodes):
            self.opcode_offset = self.position
            code = bytes(self.take(1))
            if code == b".":
                return self.pop()
            if code in PUSHES:
                self.stack.append(PUSHES[code](self))
            elif code in CHANGES:
                CHANGES[code](self)
            else:
                raise ValueError(f"0x{code.hex()} is no opcode of pickle; the file is damaged.")
        raise ValueError(f"it has more than {self.limits.opcodes} opcodes, which no checkpoint needs.")

    # Reading: a declared length is compared with the bytes that are there before memory is taken.

    def take(self, length: int) -> bytes | bytearray:
        left = self.data.size - self.position
        if length > left:
            raise ValueError(f"{length} bytes expected, {max(0, left)} left; the file is cut off or damaged.")
        begin = self.position - self.window_offset
        if begin + length > len(self.window):
            self.window_offset, begin = self.position, 0
            self.window = self.data.read(self.position, max(length, min(_WINDOW, left)))
        self.position += length
        return self.window[begin : begin + length]

    def number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(number)

    def sized(self, layout: str, most: int) -> bytes:
        length = self.number(layout)
        if not 0 <= length <= most:
            raise ValueError(f"a value of {length} bytes; at most {most} are read.")
        return bytes(self.take(length))

    def text(self, layout: str) -> bytes:
        return self.sized(layout, self.limits.text_bytes)

    def long(self, layout: str) -> int:
        return int.from_bytes(self.sized(layout, self.limits.integer_bytes), "little", signed=True)

    def line(self) -> bytes:
        line, end = bytearray(), b""
        while not end:
            piece = bytes(self.take(max(1, min(256, self.data.size - self.position))))
            text, end, behind = piece.partition(b"\n")
            self.position -= len(behind)  # still inside the window
            line += text
            if len(line) > self.limits.text_bytes:
                raise ValueError(f"a line of more than {self.limits.text_bytes} bytes.")
        return bytes(line)

    # The stack

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is taken from an empty stack; the file is damaged.")
        return self.stack.pop()

    def pop_tuple(self, length: int) -> tuple[object, ...]:
        return tuple([self.pop() for _ in range(length)][::-1])

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise ValueError("a mark is missing on the stack; the file is damaged.")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def pop_one_or_mark(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def top(self) -> object:
        self.stack.append(value := self.pop())
        return value

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> object:
        if index not in self.memo:
            raise ValueError(f"memo entry {index} is used but never stored; the file is damaged.")
        return self.memo[index]

    # Names and what is made from them

    def find(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"a global is named by {_kind(module)} and {_kind(name)}, not by two strings.")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError(f"the name of a global has {len(module) + len(name)} characters.")
        self.names.add((module, name))
        return self.values.get((module, name), Global(module, name))

    def find_lines(self) -> object:
        module = _text(self.line())
        return self.find(module, _text(self.line()))

    def call(self, callee: object, arguments: object, keywords: object = None) -> object:
        keywords = {} if keywords is None else keywords
        if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
            raise ValueError(f"a call with {_kind(arguments)} and {_kind(keywords)}, not a tuple and a dict.")
        if isinstance(callee, Record):
            return Record("", "<call>", (callee, arguments), keywords)
        if not isinstance(callee, Global):
            raise ValueError(f"{_kind(callee)} is called, which is neither a class nor a function.")
        ours = self.calls.get((callee.module, callee.name))
        if ours is None or keywords:
            return Record(callee.module, callee.name, arguments, keywords)
        if len(arguments) > _LONGEST_CALL:
            raise ValueError(f"{callee} is called with {len(arguments)} arguments.")
        self.copied_bytes += sum(map(sys.getsizeof, arguments))
        if self.copied_bytes > self.limits.copied_bytes:
            raise ValueError(
                f"its calls copy more than {self.limits.copied_bytes} bytes, which no checkpoint needs."
            )
        try:
            return ours(arguments)
        except ValueError as error:
            raise ValueError(f"{callee}: {error}") from None

    def call_marked(self) -> object:
        callee, *arguments = self.pop_to_mark() or [None]
        return self.call(callee, tuple(arguments))

    def refer(self, identity: object) -> object:
        if self.persistent_id is None:
            raise ValueError("it refers to an object outside the pickle, and there is none here.")
        return self.persistent_id(identity)

    # Changes to a value

    def key(self, value: object) -> object:
        if not isinstance(value, tuple):
            return _check_key(value)
        self.num_tuple_keys += 1
        if len(value) > _LONGEST_CALL or self.num_tuple_keys > self.limits.tuple_keys:
            raise ValueError(f"a key that is a tuple of {len(value)} items is too long, or one of too many.")
        return tuple(map(_check_key, value))

    def set_items(self, flat: list[object]) -> None:
        target = self.top()
        if len(flat) % 2:
            raise ValueError("a key without a value; the file is damaged.")
        if isinstance(target, Record):
            target.entries.extend(zip(flat[::2], flat[1::2], strict=True))
        elif isinstance(target, dict):
            target.update(zip(map(self.key, flat[::2]), flat[1::2], strict=True))
        else:
            raise ValueError(f"items are set in {_kind(target)}, which has no keys.")

    def make_dict(self) -> None:
        flat = self.pop_to_mark()
        self.stack.append({})
        self.set_items(flat)

    def extend(self, values: Iterable[object]) -> None:
        target = self.top()
        if isinstance(target, set):
            target.update(map(self.key, values))
        elif isinstance(target, (list, Record)):
            (target.items if isinstance(target, Record) else target).extend(values)
        else:
            raise ValueError(f"items are added to {_kind(target)}, which is neither a list nor a set.")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            if (target.module, target.name) in _NAMESPACES and not isinstance(state, dict):
                raise ValueError(f"the state of a Namespace is {_kind(state)}, not a dict.")
            target.state = state
        elif target is None or isinstance(target, (int, float, str, bytes, tuple, Global)):
            raise ValueError(f"a state is given to {_kind(target)}, which has none.")
        # Else a value of our own, such as a state dict with `_metadata`: that state is known and not kept.

    def check_protocol(self) -> None:
        if (version := self.number("<B")) > 5:
            raise ValueError(f"pickle protocol {version}; 0 to 5 exist.")

    def check_frame(self) -> None:
        if (length := self.number("<Q")) > self.data.size - self.position:
            raise ValueError(f"a frame of {length} bytes is longer than the rest of the file; it is cut off.")

    def refuse_buffer(self) -> None:
        raise ValueError("it refers to buffers outside the file, which no checkpoint format has.")


def _kind(value: object) -> str:
    return f"an object of type {type(value).__name__}"


def _check_key(value: object) -> object:
    """Let through what is hashed and compared in bounded time. Deeply nested tuples would crash Python."""
    if isinstance(value, (list, dict, set, frozenset, bytearray, tuple)):
        raise ValueError(f"{_kind(value)} cannot be a key or an item of a set here.")
    if isinstance(value, (str, bytes)) and len(value) > _LARGEST_KEY:
        raise ValueError(f"a key of {len(value)} characters; at most {_LARGEST_KEY} are read.")
    if isinstance(value, int) and value.bit_length() > _KEY_BITS:
        raise ValueError(f"a key of {value.bit_length()} bits; at most {_KEY_BITS} are read.")
    return value


def _check_nesting(root: object, limits: Limits) -> None:
    """Refuse what a recursive reader cannot walk, and cycles without a Record. Does not recurse itself."""
    measured: dict[int, tuple[int, int]] = {}  # depth and number of values of what is done, leaves first
    num_records_above: dict[int, int] = {id(root): 0}  # of the values on the path from the root to here
    path = [(root, iter(_parts(root)), 0)]
    while path:
        value, parts, num_records = path[-1]
        num_records += isinstance(value, Record)
        for part in parts:
            if id(part) in num_records_above:
                if num_records_above[id(part)] == num_records:
                    raise ValueError("a list, tuple, dict or set contains itself, which no checkpoint needs.")
            elif id(part) not in measured and isinstance(part, _CONTAINERS):
                num_records_above[id(part)] = num_records
                path.append((part, iter(_parts(part)), num_records))
                break
        else:
            measured[id(value)] = _measure(value, measured, limits)
            del num_records_above[id(value)]
            path.pop()


def _measure(value: object, measured: dict[int, tuple[int, int]], limits: Limits) -> tuple[int, int]:
    depth, size = 0, 0
    for part in _parts(value):
        part_depth, part_size = measured.get(id(part), (0, 1))
        depth, size = max(depth, part_depth), size + part_size
    if depth >= limits.nesting or size > limits.values:
        raise ValueError(
            f"values are nested more than {limits.nesting} deep, or are more than {limits.values} when shared "
            "ones are counted each time. No checkpoint needs that."
        )
    return depth + 1, size + 1


_CONTAINERS = (list, tuple, dict, set, frozenset, Record)


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, Record):
        return (value.arguments, value.keywords, value.state, value.items, *value.entries)
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


# What strings and numbers look like in the file


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _python2_text(raw: bytes) -> str | bytes:
    """Decode a string of Python 2, which was text and bytes alike: names are ASCII, arrays are not."""
    return raw.decode("ascii") if raw.isascii() else raw


def _quoted(line: bytes) -> str | bytes:
    """Read a string as Python 2's repr wrote it."""
    match = re.fullmatch(rb"""(['"])((?:[^\\]|\\x[0-9a-f]{2}|\\[\\'"nrt])*)\1""", line, re.DOTALL)
    if not match:
        raise ValueError("a string without its quotes or with an escape that Python does not write.")
    return _python2_text(re.sub(rb"\\(x..|.)", _unescape, match[2], flags=re.DOTALL))


_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    return bytes([int(escape[1:], 16)]) if len(escape) == 3 else _ESCAPES.get(escape, escape)


def _integer(line: bytes) -> int:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if not re.fullmatch(rb"-?[0-9]{1,600}L?", line):
        raise ValueError(f"{line[:20]!r} is not an integer.")
    return int(line.rstrip(b"L"))


# Our own functions behind names that are harmless and common


def _pairs_to_dict(arguments: tuple[object, ...]) -> object:
    match arguments:
        case () | ([],):
            return {}
        case (list() as pairs,) if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            return {_check_key(key): value for key, value in pairs}
    raise ValueError("its arguments are not a list of pairs.")


def _namespace(name: Name) -> Call:
    def make_namespace(arguments: tuple[object, ...]) -> object:
        if arguments:
            raise ValueError("it takes no arguments.")
        return Record(*name, state={})

    return make_namespace


def _reconstruct(arguments: tuple[object, ...]) -> object:
    """Make an object as protocols 0 and 1 write it: its class, `object` and None."""
    match arguments:
        case (Global(module, name), Global(_, "object"), None):
            return _NAMESPACES[module, name](()) if (module, name) in _NAMESPACES else Record(module, name)
        case (Global(module, name), *_):
            return Record(module, name, arguments)
    raise ValueError("its first argument is not a class.")


def _bytes(arguments: tuple[object, ...]) -> object:
    match arguments:
        case ():
            return b""
        case (str() as text, "latin1" | "latin-1"):  # how protocols 0 to 2 write bytes
            return text.encode("latin1")
        case (bytes() as raw,):
            return raw
    raise ValueError("its arguments are not a string and its encoding latin1.")


def _bytearray(arguments: tuple[object, ...]) -> object:
    return bytearray(cast(bytes, _bytes(arguments)))


def _items(arguments: tuple[object, ...]) -> list[object]:
    match arguments:
        case ():
            return []
        case (list() as items,):
            return [_check_key(item) for item in items]
    raise ValueError("its arguments are not one list.")


_NAMESPACES: dict[Name, Call] = {
    name: _namespace(name) for name in (("argparse", "Namespace"), ("types", "SimpleNamespace"))
}

# Protocols 0 to 2 write the modules of Python 2: __builtin__ and copy_reg.
CALLS: dict[Name, Call] = {
    **_NAMESPACES,
    ("collections", "OrderedDict"): _pairs_to_dict,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("copy_reg", "_reconstructor"): _reconstruct,
    ("_codecs", "encode"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
    ("builtins", "set"): lambda arguments: set(_items(arguments)),
    ("__builtin__", "set"): lambda arguments: set(_items(arguments)),
    ("builtins", "frozenset"): lambda arguments: frozenset(_items(arguments)),
    ("__builtin__", "frozenset"): lambda arguments: frozenset(_items(arguments)),
}

# Opcodes that push one value
PUSHES: dict[bytes, Callable[[_Machine], object]] = {
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": lambda m: _integer(m.line()),
    b"L": lambda m: _integer(m.line()),
    b"J": lambda m: m.number("<i"),
    b"K": lambda m: m.number("<B"),
    b"M": lambda m: m.number("<H"),
    b"\x8a": lambda m: m.long("<B"),
    b"\x8b": lambda m: m.long("<i"),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],
    b"S": lambda m: _quoted(m.line()),
    b"T": lambda m: _python2_text(m.text("<i")),
    b"U": lambda m: _python2_text(m.text("<B")),
    b"B": lambda m: m.text("<I"),
    b"C": lambda m: m.text("<B"),
    b"\x8e": lambda m: m.text("<Q"),
    b"\x96": lambda m: bytearray(m.text("<Q")),
    b"V": lambda m: m.line().decode("raw-unicode-escape"),
    b"X": lambda m: _text(m.text("<I")),
    b"\x8c": lambda m: _text(m.text("<B")),
    b"\x8d": lambda m: _text(m.text("<Q")),
    b"]": lambda m: [],
    b")": lambda m: (),
    b"}": lambda m: {},
    b"\x8f": lambda m: set(),
    b"l": lambda m: m.pop_to_mark(),
    b"t": lambda m: tuple(m.pop_to_mark()),
    b"\x91": lambda m: frozenset(map(m.key, m.pop_to_mark())),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"2": lambda m: m.top(),
    b"g": lambda m: m.get(_integer(m.line())),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"P": lambda m: m.refer(_text(m.line())),
    b"Q": lambda m: m.refer(m.pop()),
    b"c": lambda m: m.find_lines(),
    b"\x93": lambda m: m.find(*m.pop_tuple(2)),
    # Numbers of copyreg's registry, which only the process that wrote the file knew.
    b"\x82": lambda m: m.find("copyreg", f"<extension {m.number('<B')}>"),
    b"\x83": lambda m: m.find("copyreg", f"<extension {m.number('<H')}>"),
    b"\x84": lambda m: m.find("copyreg", f"<extension {m.number('<i')}>"),
    b"R": lambda m: m.call(*m.pop_tuple(2)),
    b"\x81": lambda m: m.call(*m.pop_tuple(2)),
    b"\x92": lambda m: m.call(*m.pop_tuple(3)),
    b"i": lambda m: m.call(m.find_lines(), tuple(m.pop_to_mark())),
    b"o": _Machine.call_marked,
}

# Opcodes that change the stack, the memo or the value on top
CHANGES: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine.check_protocol,
    b"\x95": _Machine.check_frame,
    b"\x97": _Machine.refuse_buffer,
    b"\x98": _Machine.refuse_buffer,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _Machine.pop_one_or_mark,
    b"1": lambda m: m.pop_to_mark().clear(),
    b"d": _Machine.make_dict,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"\x90": lambda m: m.extend(m.pop_to_mark()),
    b"s": lambda m: m.set_items(list(m.pop_tuple(2))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"p": lambda m: m.put(_integer(m.line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"b": _Machine.build,
}
