"""The pickle stack machine: the operations of all opcodes, none of which runs code of the file.

The bytes come from a `ByteSource`; `pickle_opcodes` maps opcodes to operations. Invalid input raises ValueError, to
which the reader adds the byte offset.
"""

import sys
from collections.abc import Callable, Iterable, Mapping

from .pickle_values import CONTAINERS, NAMESPACES, ByteSource, Call, Global, Limits, Name, Record, check_key, kind_of

_LONGEST_NAME = 1024
_LONGEST_CALL = 8  # torch._utils._rebuild_tensor_v3; also the longest tuple accepted as a key
_WINDOW = 2**16
_NUMBERS = {"<B": (1, False), "<H": (2, False), "<I": (4, False), "<Q": (8, False), "<i": (4, True)}
_MOST_MEMO = 2**32  # LONG_BINPUT's; hashes of larger integers can be made to collide
_CALL_WEIGHT = 3  # objects: a call makes a tensor or record of several, a new name some strings
_ENTRY_BYTES = 64  # of a dict or set, about


class Machine:
    """The stack, its marks, the memo and the position in the file. Invalid operations raise ValueError."""

    def __init__(
        self,
        data: ByteSource,
        offset: int,
        calls: Mapping[Name, Call],
        keyed_calls: "Mapping[Name, Callable[[Machine, tuple[object, ...]], object]]",
        values: Mapping[Name, object],
        persistent_id: Callable[[object], object] | None,
        limits: Limits,
    ) -> None:
        self.data = data
        self.position = self.opcode_offset = self.window_offset = offset
        self.window = b""
        self.calls, self.keyed_calls, self.values = calls, keyed_calls, values
        self.persistent_id, self.limits = persistent_id, limits
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.copied_bytes = self.num_objects = self.num_number_keys = self.num_tuple_keys = 0
        self.globals: dict[Name, object] = {}

    # Reading: a declared length is compared with the remaining bytes before memory is allocated.

    def take(self, length: int) -> bytes:
        """Read the next bytes."""
        begin = self.position - self.window_offset
        if begin + length > len(self.window):
            self._read_window(length)
            begin = 0
        self.position += length
        return self.window[begin : begin + length]

    def _read_window(self, length: int) -> None:
        left = self.data.size - self.position
        if length > left:
            raise ValueError(f"{length} bytes expected, {max(0, left)} left; the file is cut off or damaged.")
        self.window = bytes(self.data.read(self.position, max(length, min(_WINDOW, left))))
        self.window_offset = self.position

    def number(self, layout: str) -> int:
        """Read one number in a format of `_NUMBERS`, named as `struct` does."""
        length, is_signed = _NUMBERS[layout]
        return int.from_bytes(self.take(length), "little", signed=is_signed)

    def sized(self, layout: str, most: int) -> bytes:
        """Read a length and as many bytes, at most `most`."""
        length = self.number(layout)
        if not 0 <= length <= most:
            raise ValueError(f"a value of {length} bytes; at most {most} are read.")
        return self.take(length)

    def text(self, layout: str) -> bytes:
        """Read a length and the bytes of a string."""
        return self.sized(layout, self.limits.text_bytes)

    def long(self, layout: str) -> int:
        """Read a length and an integer of as many bytes."""
        return int.from_bytes(self.sized(layout, self.limits.integer_bytes), "little", signed=True)

    def line(self, most: int | None = None) -> bytes:
        """Read up to the next line feed, excluding it; at most `most` bytes, or those of a string."""
        most = self.limits.text_bytes if most is None else most
        pieces, length = [], 0
        while True:
            begin = self.position - self.window_offset
            end = self.window.find(b"\n", begin)
            pieces.append(self.take((len(self.window) if end < 0 else end) - begin))
            length += len(pieces[-1])
            if length > most:
                raise ValueError(f"a line of more than {most} bytes.")
            if end >= 0:
                self.position += 1
                return b"".join(pieces)
            self._read_window(1)

    # The stack

    def push(self, value: object) -> None:
        """Push a value. Raises ValueError if there are too many containers."""
        if isinstance(value, CONTAINERS):
            self.count_object()
        self.stack.append(value)

    def count_object(self, weight: int = 1) -> None:
        """Count a container, a call or an entry of the memo, which may take more memory than its opcode."""
        self.num_objects += weight
        if self.num_objects > self.limits.objects:
            raise ValueError(f"it makes more than {self.limits.objects} objects, which no checkpoint needs.")

    def pop(self) -> object:
        """Pop the top value, which must be above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is popped from an empty stack; the file is damaged.")
        return self.stack.pop()

    def pop_tuple(self, length: int) -> tuple[object, ...]:
        """Pop several values, in the order in which they were pushed."""
        return tuple([self.pop() for _ in range(length)][::-1])

    def pop_to_mark(self) -> list[object]:
        """Pop the last mark and all values above it."""
        if not self.marks:
            raise ValueError("a mark is missing on the stack; the file is damaged.")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def pop_one_or_mark(self) -> None:
        """Pop the top value, or the mark if that is on top."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def top(self) -> object:
        """Return the top value without popping it."""
        self.stack.append(value := self.pop())
        return value

    def put(self, index: int) -> None:
        """Store the top value in the memo."""
        if not 0 <= index < _MOST_MEMO:
            raise ValueError("a memo entry whose number is negative or too large; the file is damaged.")
        self.count_object()
        self.memo[index] = self.top()

    def get(self, index: int) -> object:
        """Return a value of the memo."""
        if index not in self.memo:
            raise ValueError(f"memo entry {index} is used but never stored; the file is damaged.")
        return self.memo[index]

    # Names and calls

    def find(self, module: object, name: object) -> object:
        """Resolve a name to a value of the caller or a Global."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"a global is named by {kind_of(module)} and {kind_of(name)}, not by two strings.")
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError(f"the name of a global has {len(module) + len(name)} characters.")
        if (module, name) not in self.globals:
            self.count_object(_CALL_WEIGHT)
            self.globals[module, name] = self.values.get((module, name), Global(module, name))
        return self.globals[module, name]

    def find_lines(self) -> object:
        """Read and resolve a name written as two lines."""
        module = decode_text(self.line())
        return self.find(module, decode_text(self.line()))

    def call(self, callee: object, arguments: object, keywords: object = None) -> object:
        """Call the function that the tables map a name to, or return a Record of the call."""
        keywords = {} if keywords is None else keywords
        if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
            raise ValueError(f"a call with {kind_of(arguments)} and {kind_of(keywords)}, not a tuple and a dict.")
        self.count_object(_CALL_WEIGHT)
        if isinstance(callee, Record):
            return Record("", "<call>", (callee, arguments), keywords)
        if not isinstance(callee, Global):
            raise ValueError(f"{kind_of(callee)} is called, which is neither a class nor a function.")
        name = callee.module, callee.name
        if keywords or (name not in self.calls and name not in self.keyed_calls):
            return Record(callee.module, callee.name, arguments, keywords)
        if len(arguments) > _LONGEST_CALL:
            raise ValueError(f"{callee} is called with {len(arguments)} arguments.")
        self.charge(sum(map(sys.getsizeof, arguments)))
        try:
            return self.calls[name](arguments) if name in self.calls else self.keyed_calls[name](self, arguments)
        except ValueError as error:
            raise ValueError(f"{callee}: {error}") from None

    def charge(self, num_bytes: int) -> None:
        """Count bytes that a call copies."""
        self.copied_bytes += num_bytes
        if self.copied_bytes > self.limits.copied_bytes:
            raise ValueError(f"its calls copy more than {self.limits.copied_bytes} bytes, which no checkpoint needs.")

    def call_marked(self) -> object:
        """Call the first value above the mark with the values after it."""
        callee, *arguments = self.pop_to_mark() or [None]
        return self.call(callee, tuple(arguments))

    def refer(self, identity: object) -> object:
        """Resolve an object outside the pickle through the caller."""
        if self.persistent_id is None:
            raise ValueError("it refers to an object outside the pickle, and there is none here.")
        return self.persistent_id(identity)

    # Changes to the top value

    def key(self, value: object) -> object:
        """Check a dict key or an item of a set."""
        if isinstance(value, tuple):
            self.num_tuple_keys += 1
            if len(value) > _LONGEST_CALL or self.num_tuple_keys > self.limits.tuple_keys:
                raise ValueError(f"a key that is a tuple of {len(value)} items is too long, or one of too many.")
            return tuple(map(check_key, value))
        if isinstance(value, (int, float)):
            self.num_number_keys += 1
            if self.num_number_keys > self.limits.number_keys:
                raise ValueError(f"it has more than {self.limits.number_keys} keys that are numbers.")
        return check_key(value)

    def copied_keys(self, values: list[object]) -> Iterable[object]:
        """Check the keys or items of a dict or set that a call makes."""
        self.charge(_ENTRY_BYTES * len(values))
        return map(self.key, values)

    def set_items(self, flat: list[object]) -> None:
        """Set alternating keys and values in the value on top."""
        target = self.top()
        if len(flat) % 2:
            raise ValueError("a key without a value; the file is damaged.")
        if isinstance(target, Record):
            target.entries.extend(zip(flat[::2], flat[1::2], strict=True))
        elif isinstance(target, dict):
            target.update(zip(map(self.key, flat[::2]), flat[1::2], strict=True))
        else:
            raise ValueError(f"items are set in {kind_of(target)}, which has no keys.")

    def make_dict(self) -> None:
        """Push a dict of the keys and values above the mark."""
        flat = self.pop_to_mark()
        self.stack.append({})
        self.set_items(flat)

    def extend(self, values: Iterable[object]) -> None:
        """Add items to the list, set or Record on top."""
        target = self.top()
        if isinstance(target, set):
            target.update(map(self.key, values))
        elif isinstance(target, (list, Record)):
            (target.items if isinstance(target, Record) else target).extend(values)
        else:
            raise ValueError(f"items are added to {kind_of(target)}, which is neither a list nor a set.")

    def build(self) -> None:
        """Set the top value as the state of the one below it."""
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            if (target.module, target.name) in NAMESPACES and not isinstance(state, dict):
                raise ValueError(f"the state of a Namespace is {kind_of(state)}, not a dict.")
            target.state = state
        elif target is None or isinstance(target, (int, float, str, bytes, tuple, Global)):
            raise ValueError(f"a state is set in {kind_of(target)}, which has none.")
        # Else a value made by this package, such as a state dict, whose `_metadata` is dropped.

    def check_protocol(self) -> None:
        """Read the version and refuse one that does not exist."""
        if (version := self.number("<B")) > 5:
            raise ValueError(f"pickle protocol {version}; 0 to 5 exist.")

    def check_frame(self) -> None:
        """Read the length of a frame, which is used only to detect a file that is cut off."""
        if (length := self.number("<Q")) > self.data.size - self.position:
            raise ValueError(f"a frame of {length} bytes is longer than the rest of the file; it is cut off.")

    def refuse_buffer(self) -> None:
        """Refuse the out-of-band buffers of protocol 5."""
        raise ValueError("it refers to buffers outside the file, which no checkpoint format has.")


def decode_text(raw: bytes) -> str:
    """Decode UTF-8 with lone surrogates, as pickle does."""
    return raw.decode("utf-8", "surrogatepass")
