"""A JSON value that is read part by part: members and items that fit into memory, of a file that need not.

Which parts are entered and which are decoded whole is the caller's choice. Errors have line and column (RFC 8259).
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from ..tokenizers.characters import require_characters

CHUNK = 2**20
# The longest thing that is cut at the end of a chunk and is no string: -Infinity, or half of an escape.
LONGEST_WORD = 12


class JsonReader:
    """A place in a JSON text. `members` and `items` enter an object or a list; the caller then reads each value."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._lines = self._columns = 0  # before the text: lines, and characters of the last one
        self._lines_read = 0
        if not self.peek():
            raise InputError(f"{path} is empty.")

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end."""
        while True:
            rest = self._text[self._at : self._at + 1]
            if rest and rest not in " \t\n\r":
                return rest
            if rest:
                self._at += 1
            elif not self._fill():
                return ""

    def members(self) -> Iterator[str]:
        """Enter an object; returns its names, at each of which the caller reads the value."""
        return self._parts("{", "}")

    def items(self) -> Iterator[int]:
        """Enter a list; returns the numbers of its items, at each of which the caller reads the item."""
        return (number for number, _ in enumerate(self._parts("[", "]")))

    def _parts(self, opening: str, closing: str) -> Iterator[str]:
        self._expect(opening, "Expecting value")
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            name = ""
            if opening == "{":
                if self.peek() != '"':
                    raise self._error("Expecting property name enclosed in double quotes", self._at)
                name = self.value()
                self._expect(":", "Expecting ':' delimiter")
            yield name
            if self.peek() == closing:
                self._at += 1
                return
            self._expect(",", "Expecting ',' delimiter")

    def _expect(self, letter: str, message: str) -> None:
        if self.peek() != letter:
            raise self._error(message, self._at)
        self._at += 1

    def value(self) -> Any:
        """Decode the next value."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - LONGEST_WORD
                failure = self._error(error.msg, error.pos)
                if is_cut and self._fill():
                    continue
                raise failure from None
            except RecursionError:
                raise InputError(f"{self.path}: not JSON: nested too deeply.") from None
            except ValueError as error:  # an integer of thousands of digits
                raise InputError(f"{self.path}: not JSON: {str(error).partition(';')[0]}.") from None
            length = end - self._at
            if end > len(self._text) - LONGEST_WORD and self._fill():  # a number may go on: 1.5e+10
                continue
            end = self._at + length
            if self._text.find("\\u", self._at, end) >= 0:
                require_characters(value, str(self.path))
            self._at = end
            return value

    def end(self) -> None:
        """Raise InputError unless nothing follows."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _fill(self) -> bool:
        """Append at least as much text as is left, so that a long value is scanned few times; false at the end."""
        done, rest = self._text[: self._at], self._text[self._at :]
        self._lines += done.count("\n")
        self._columns = len(done) - done.rindex("\n") - 1 if "\n" in done else self._columns + len(done)
        data = self._file.read(max(CHUNK, len(rest)))
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._lines_read + error.object.count(b"\n", 0, error.start) + 1
            problem = f"not UTF-8 text: byte {error.object[error.start]:#04x}. Save the file as UTF-8."
            raise InputError(f"{self.path}:{line}: {problem}") from None
        if "\0" in more:
            line = self._lines_read + more.count("\n", 0, more.index("\0")) + 1
            raise InputError(f"{self.path}:{line}: a NUL character. Is this a text file?")
        self._lines_read += more.count("\n")
        self._text, self._at = rest + more, 0
        return bool(more) or (bool(data) and self._fill())

    def _error(self, message: str, place: int) -> InputError:
        before = self._text[:place]
        line = self._lines + before.count("\n") + 1
        column = place - before.rindex("\n") if "\n" in before else self._columns + place + 1
        return InputError(f"{self.path}:{line}:{column}: not JSON: {message}.")
