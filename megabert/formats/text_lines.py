"""UTF-8 text files as lines, compressed or not; every error names file, line and remedy."""

from pathlib import Path

from ..errors import InputError
from .data_files import open_data


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a byte-order mark at the start is dropped. Raises InputError if it is empty."""
    with open_data(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 text: byte {data[error.start]:#04x}. Save the file as UTF-8."
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty.")
    return text


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines without their ends (LF, CRLF, or CR alone)."""
    text = read_text(path)
    if "\0" in text:
        raise InputError(
            f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL character. Is this a text file?"
        )
    # split, not splitlines: U+2028 and its like are part of the text. Old Macintosh files have lone carriage returns.
    lines = [line.removesuffix("\r") for line in text.split("\n" if "\n" in text else "\r")]
    return lines[:-1] if not lines[-1] else lines


def blank_split(line: str) -> list[str]:
    """Split a line at blanks and tabs; other white space, such as U+00A0, is part of a word."""
    return [word for word in line.replace("\t", " ").split(" ") if word]
