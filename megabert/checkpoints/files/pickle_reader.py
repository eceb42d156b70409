"""Read a Python pickle as data: its bytes go in, plain values and inert records come out, and nothing runs.

A pickle is a program for a small stack machine. Python's own `pickle` imports the names in it and calls them,
so whoever wrote the file runs code in our process. This machine follows the same opcodes but knows only the
names in its tables, and each of those leads to a function of ours. Any other name becomes a `Global`, and any
object made from it a `Record`.
Source: protocols 0 to 5 in https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...errors import CheckpointError
from .pickle_machine import Machine
from .pickle_opcodes import CALLS, CHANGES, PUSHES
from .pickle_values import DEFAULT_LIMITS, ByteSource, Call, Global, Limits, Name, Record, check_nesting

__all__ = ["DEFAULT_LIMITS", "Call", "Global", "Limits", "Name", "Pickle", "Record", "load"]


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
    machine = Machine(readable, offset, CALLS | dict(calls or {}), values or {}, persistent_id, limits)
    try:
        value = _run(machine)
        check_nesting(value, limits)
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


def _run(machine: Machine) -> object:
    for _ in range(machine.limits.opcodes):
        machine.opcode_offset = machine.position
        code = bytes(machine.take(1))
        if code == b".":
            return machine.pop()
        if code in PUSHES:
            machine.stack.append(PUSHES[code](machine))
        elif code in CHANGES:
            CHANGES[code](machine)
        else:
            raise ValueError(f"0x{code.hex()} is no opcode of pickle; the file is damaged.")
    raise ValueError(f"it has more than {machine.limits.opcodes} opcodes, which no checkpoint needs.")
