"""The inert values of a pickle read as data, and the limits on its size.

A `Global` is a name that is never looked up, a `Record` an object that is never created; `Limits` and the checks keep
every reader of the result from exhausting time, memory or stack.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

Call = Callable[[tuple[object, ...]], object]
Name = tuple[str, str]


class ByteSource(Protocol):
    """Bytes read in pieces: a file, a part of one, or a member of an archive."""

    @property
    def size(self) -> int:
        """Number of bytes."""

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return exactly `length` bytes."""


@dataclass(frozen=True)
class Limits:
    """Bounds on a pickle: far above the needs of genuine checkpoints, far below what harms a computer."""

    # A 24-layer model with its optimizer takes about 50,000; a million run for one to three seconds.
    opcodes: int = 600_000
    # Containers, results of calls and entries of the memo: an opcode of one byte can make one of 300 bytes.
    objects: int = 200_000
    # A recursive reader of the result stays below Python's 1,000 frames with up to three of them for a level.
    nesting: int = 256
    # Values in the result, each counted as often as a recursive reader visits it: a list of ten references to a
    # list of ten references to a list and so on is small in the file and endless for the reader.
    values: int = 2_000_000
    # One string or bytes object. Tensors lie outside the pickle, so the largest here are numpy arrays.
    text_bytes: int = 2**28
    # The magic number of torch takes 10 bytes, numpy's 128-bit generators 17. Time grows with the square.
    integer_bytes: int = 256
    # Total bytes copied by the functions of the tables: a few opcodes can pass one long string many times.
    copied_bytes: int = 2**26
    # Keys that are numbers or tuples: their hashes can be made to collide, and then n of them cost n * n comparisons.
    # Those of strings depend on a random number.
    number_keys: int = 20_000
    tuple_keys: int = 4_000

    @classmethod
    def of_size(cls, num_bytes: int) -> "Limits":
        """Choose the limits of a file: those above, and of a file of more than some megabytes up to five times more.

        The metadata of a checkpoint from many processes need them.
        """
        factor = min(max(num_bytes / 2_400_000, 1.0), 5.0)
        scaled = {name: int(getattr(cls, name) * factor) for name in ("opcodes", "objects", "values")}
        return cls(**scaled)


DEFAULT_LIMITS = Limits()
_LARGEST_KEY = 4096  # characters: comparing two equal keys reads both
_KEY_BITS = 64  # hashes of larger integers can be made to collide


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function in a pickle: two strings, never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object of an unknown class, or a Namespace, with its parts as stored.

    It compares by identity and prints as its name, since it may contain itself. The result of calling another Record
    has the name `<call>` and (callee, arguments) as its `arguments`.
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


# Classes whose objects are only attributes: a Record of them has a dict as its state.
NAMESPACES: tuple[Name, ...] = (("argparse", "Namespace"), ("types", "SimpleNamespace"))


def kind_of(value: object) -> str:
    """Describe a value in a message."""
    return f"an object of type {type(value).__name__}"


def check_key(value: object) -> object:
    """Return a key that is hashed and compared in bounded time. Deeply nested tuples would crash Python."""
    # Other values are compared by identity, or like tensors by parts whose hashes are predictable.
    if not isinstance(value, (str, bytes, int, float, Global)) and type(value).__eq__ is not object.__eq__:
        raise ValueError(f"{kind_of(value)} cannot be a key or an item of a set here.")
    if isinstance(value, (str, bytes)) and len(value) > _LARGEST_KEY:
        raise ValueError(f"a key of {len(value)} characters; at most {_LARGEST_KEY} are read.")
    if isinstance(value, int) and value.bit_length() > _KEY_BITS:
        raise ValueError(f"a key of {value.bit_length()} bits; at most {_KEY_BITS} are read.")
    return value


def check_nesting(root: object, limits: Limits) -> None:
    """Refuse values too deep for a recursive reader, and cycles without a Record. Does not recurse itself."""
    too_much = ValueError(
        f"values are nested more than {limits.nesting} deep, or are more than {limits.values} when "
        "shared ones are counted each time. No checkpoint needs that."
    )
    measured: dict[int, tuple[int, int]] = {}  # depth and number of values, leaves first
    num_records_above: dict[int, int] = {id(root): 0}  # of the values on the path from the root to here
    path = [(root, iter(_parts(root)), 0)]
    while path:
        value, parts, num_records = path[-1]
        num_records += isinstance(value, Record)
        for part in parts:
            if id(part) in num_records_above:
                if num_records_above[id(part)] == num_records:
                    raise ValueError("a list, tuple, dict or set contains itself, which no checkpoint needs.")
            elif id(part) not in measured and isinstance(part, CONTAINERS):
                if len(path) >= limits.nesting:
                    raise too_much
                inner = _parts(part)
                if not any(isinstance(item, CONTAINERS) for item in inner):  # most of them
                    measured[id(part)] = 1, len(inner) + 1
                    continue
                num_records_above[id(part)] = num_records
                path.append((part, iter(inner), num_records))
                break
        else:
            depth, size = _measure(value, measured)
            if depth > limits.nesting or size > limits.values:
                raise too_much
            measured[id(value)] = depth, size
            del num_records_above[id(value)]
            path.pop()


def _measure(value: object, measured: dict[int, tuple[int, int]]) -> tuple[int, int]:
    depth, size = 0, 0
    for part in _parts(value):
        part_depth, part_size = measured.get(id(part), (0, 1))
        depth, size = max(depth, part_depth), size + part_size
    return depth + 1, size + 1


CONTAINERS = (list, tuple, dict, set, frozenset, Record)


def _parts(value: object) -> Collection[object]:
    if isinstance(value, Record):
        return (value.arguments, value.keywords, value.state, value.items, *value.entries)
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()
