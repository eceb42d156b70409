"""Tables of pickle opcodes, and of the harmless names that resolve to functions of this module.

`PUSHES` and `CHANGES` hold all opcodes of protocols 0 to 5 except STOP; `CALLS` holds the names.
Source: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import codecs
import re
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

from .pickle_machine import Machine, decode_text
from .pickle_values import NAMESPACES, Call, Global, Name, Record


def _python2_text(raw: bytes) -> str | bytes:
    """Decode a str of Python 2, which held text and bytes: names are ASCII, arrays are not."""
    return raw.decode("ascii") if raw.isascii() else raw


def _quoted(line: bytes) -> str | bytes:
    """Parse the repr of a Python 2 string."""
    # Possessive: no backtracking, whose records would take twenty times the length of the string.
    match = re.fullmatch(rb"""(['"])((?:[^\\]++|\\x[0-9a-f]{2}|\\[\\'"nrt])*+)(?<=\1)""", line, re.DOTALL)
    if not match or len(line) < 2:
        raise ValueError("a string without quotes or with an escape that Python does not write.")
    return _python2_text(codecs.escape_decode(match[2][:-1])[0])  # as pickle does


def _integer(line: bytes) -> int:
    if len(line) == 1 and line.isdigit():
        return int(line)
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if not re.fullmatch(rb"-?[0-9]{1,600}L?", line):
        raise ValueError(f"{line[:20]!r} is not an integer.")
    return int(line.rstrip(b"L"))


def _pairs_to_dict(machine: Machine, arguments: tuple[object, ...]) -> object:
    match arguments:
        case () | ([],):
            return {}
        case (list() as pairs,) if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            keys = machine.copied_keys([key for key, _ in pairs])
            return dict(zip(keys, (value for _, value in pairs), strict=True))
    raise ValueError("its arguments are not a list of pairs.")


def _make_namespace(name: Name, arguments: tuple[object, ...]) -> object:
    if arguments:
        raise ValueError("it takes no arguments.")
    return Record(*name, state={})


def _reconstruct(arguments: tuple[object, ...]) -> object:
    """Rebuild an object of protocols 0 and 1 from its class, `object` and None."""
    match arguments:
        case (Global(module, name), Global(_, "object"), None):
            return _MAKE_NAMESPACE[module, name](()) if (module, name) in _MAKE_NAMESPACE else Record(module, name)
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


def _items(machine: Machine, arguments: tuple[object, ...]) -> Iterable[object]:
    match arguments:
        case ():
            return []
        case (list() as items,):
            return machine.copied_keys(items)
    raise ValueError("its arguments are not one list.")


_LONGEST_FLOAT = 1024

_MAKE_NAMESPACE: dict[Name, Call] = {name: partial(_make_namespace, name) for name in NAMESPACES}

# Protocols 0 to 2 write the modules of Python 2: __builtin__ and copy_reg.
CALLS: dict[Name, Call] = {
    **_MAKE_NAMESPACE,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("copy_reg", "_reconstructor"): _reconstruct,
    ("_codecs", "encode"): _bytes,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    ("__builtin__", "bytearray"): _bytearray,
}
# Those that make a dict or set: the machine counts their keys.
KEYED_CALLS: dict[Name, Callable[[Machine, tuple[object, ...]], object]] = {
    ("collections", "OrderedDict"): _pairs_to_dict,
    ("builtins", "set"): lambda machine, arguments: set(_items(machine, arguments)),
    ("__builtin__", "set"): lambda machine, arguments: set(_items(machine, arguments)),
    ("builtins", "frozenset"): lambda machine, arguments: frozenset(_items(machine, arguments)),
    ("__builtin__", "frozenset"): lambda machine, arguments: frozenset(_items(machine, arguments)),
}

# Opcodes that push one value
PUSHES: dict[bytes, Callable[[Machine], object]] = {
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
    b"F": lambda m: float(m.line(most=_LONGEST_FLOAT)),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],
    b"S": lambda m: _quoted(m.line()),
    b"T": lambda m: _python2_text(m.text("<i")),
    b"U": lambda m: _python2_text(m.text("<B")),
    b"B": lambda m: m.text("<I"),
    b"C": lambda m: m.text("<B"),
    b"\x8e": lambda m: m.text("<Q"),
    b"\x96": lambda m: bytearray(m.text("<Q")),
    b"V": lambda m: m.line().decode("raw-unicode-escape"),
    b"X": lambda m: decode_text(m.text("<I")),
    b"\x8c": lambda m: decode_text(m.text("<B")),
    b"\x8d": lambda m: decode_text(m.text("<Q")),
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
    b"P": lambda m: m.refer(decode_text(m.line())),
    b"Q": lambda m: m.refer(m.pop()),
    b"c": lambda m: m.find_lines(),
    b"\x93": lambda m: m.find(*m.pop_tuple(2)),
    # Codes of copyreg's extension registry, which exists only in the process that wrote the file.
    b"\x82": lambda m: m.find("copyreg", f"<extension {m.number('<B')}>"),
    b"\x83": lambda m: m.find("copyreg", f"<extension {m.number('<H')}>"),
    b"\x84": lambda m: m.find("copyreg", f"<extension {m.number('<i')}>"),
    b"R": lambda m: m.call(*m.pop_tuple(2)),
    b"\x81": lambda m: m.call(*m.pop_tuple(2)),
    b"\x92": lambda m: m.call(*m.pop_tuple(3)),
    b"i": lambda m: m.call(m.find_lines(), tuple(m.pop_to_mark())),
    b"o": Machine.call_marked,
}

# Opcodes that change the stack, the memo or the value on top
CHANGES: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine.check_protocol,
    b"\x95": Machine.check_frame,
    b"\x97": Machine.refuse_buffer,
    b"\x98": Machine.refuse_buffer,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": Machine.pop_one_or_mark,
    b"1": lambda m: m.pop_to_mark().clear(),
    b"d": Machine.make_dict,
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"\x90": lambda m: m.extend(m.pop_to_mark()),
    b"s": lambda m: m.set_items(list(m.pop_tuple(2))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
    b"p": lambda m: m.put(_integer(m.line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"b": Machine.build,
}
