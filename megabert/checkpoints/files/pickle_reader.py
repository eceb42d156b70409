"""Read a Python pickle as data: bytes in, plain values and inert records out; no code of the file is run.

A pickle is a program for a small stack machine. Python's own `pickle` imports and calls the names in it, so the
author of a file can run code in our process. This machine interprets the same opcodes but resolves only the
names in its tables, each to a function of this package. Any other name becomes a `Global`, and any object made from
it a `Record`.
Source: protocols 0 to 5 in https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...errors import CheckpointError
from .pickle_machine import Machine
from .pickle_opcodes import CALLS, CHANGES, KEYED_CALLS, PUSHES
from .pickle_values import DEFAULT_LIMITS, ByteSource, Call, Global, Limits, Name, Record, check_nesting

__all__ = ["DEFAULT_LIMITS", "Call", "Global", "Limits", "Name", "Pickle", "Record", "read_pickle"]


@dataclass(frozen=True)
class Pickle:
    """The content of one pickle; `end` is the offset of the first byte after it."""

    value: object
    globals: frozenset[str]
    unknown_globals: frozenset[str]
    end: int


def read_pickle(
    data: bytes | ByteSource,
    *,
    source: str,
    offset: int = 0,
    calls: Mapping[Name, Call] | None = None,
    values: Mapping[Name, object] | None = None,
    persistent_id: Callable[[object], object] | None = None,
    limits: Limits | None = None,
) -> Pickle:
    """Read the one pickle that begins at `offset`.

    `calls` adds to `CALLS`: exact (module, name) to a function of the arguments. `values` maps names to values.
    `persistent_id` resolves the identity of an object outside the pickle. All of them raise ValueError for invalid
    arguments. `limits` (default: those of its size) also bounds recursive traversals of the result, in which every
    cycle contains a Record.
    Raises CheckpointError, with `source` and the byte offset, for anything but a complete pickle.
    """
    readable = _Bytes(data) if isinstance(data, bytes) else data
    limits = limits or Limits.of_size(readable.size)
    machine = Machine(readable, offset, CALLS | dict(calls or {}), KEYED_CALLS, values or {}, persistent_id, limits)
    try:
        value = _run(machine)
        check_nesting(value, limits)
    except ValueError as error:
        raise CheckpointError(f"{source}: opcode at byte {machine.opcode_offset}: {error}") from None
    names = machine.globals.keys()
    unknown = names - machine.calls.keys() - machine.keyed_calls.keys() - machine.values.keys()
    dotted, unknown_dotted = (frozenset(map(".".join, some)) for some in (names, unknown))
    return Pickle(value, dotted, unknown_dotted, machine.position)


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def _run(machine: Machine) -> object:
    for _ in range(machine.limits.opcodes):
        machine.opcode_offset = machine.position
        code = machine.take(1)
        if code == b".":
            return machine.pop()
        if code in PUSHES:
            machine.push(PUSHES[code](machine))
        elif code in CHANGES:
            CHANGES[code](machine)
        else:
            raise ValueError(f"0x{code.hex()} is no pickle opcode; the file is damaged.")
    raise ValueError(f"it has more than {machine.limits.opcodes} opcodes, which no checkpoint needs.")
