"""Parse JSON that may be malformed or hostile, and seal our own with its SHA-256.

Whatever is wrong (not UTF-8, too large, nested too deeply, an integer of thousands of digits, another JSON value than
an object) is one error that names the file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, MegabertError

# The largest genuine documents, tokenizer.json of large vocabularies, have some megabytes. Parsed, the worst JSON takes
# about 30 times its size.
LARGEST_DOCUMENT = 2**24


def parse_json(data: bytes | str, source: str, *, error: type[MegabertError] = CheckpointError, hint: str = "") -> Any:
    """Parse a JSON value of at most `LARGEST_DOCUMENT` bytes. Raises `error`, naming `source`, for anything else."""
    if len(data) > LARGEST_DOCUMENT:
        raise error(f"{source} has {len(data)} bytes; JSON of at most {LARGEST_DOCUMENT} is read. {hint}".rstrip())
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as invalid:
        reason = str(invalid).partition(";")[0]  # what follows is about Python's own settings
    raise error(f"{source} cannot be read as JSON: {reason}. {hint}".rstrip())


def parse_json_object(
    data: bytes | str, source: str, *, error: type[MegabertError] = CheckpointError, hint: str = ""
) -> dict[str, Any]:
    """Parse a JSON object as `parse_json` does; any other value is an error, too."""
    document = parse_json(data, source, error=error, hint=hint)
    if not isinstance(document, dict):
        raise error(f"{source} holds no JSON object but {json.dumps(document)[:40]}. {hint}".rstrip())
    return document


def read_json_object(file: Path, *, hint: str = "") -> dict[str, Any]:
    """Read a file that holds a JSON object. Raises CheckpointError if it is unreadable, too large or no object."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST_DOCUMENT + 1)
    except OSError as failed:
        raise CheckpointError(f"{file} cannot be read: {failed.strerror or failed}. {hint}".rstrip()) from None
    return parse_json_object(data, str(file), hint=hint)


def json_bytes(document: Any) -> bytes:
    """Serialize a document as it is stored: indented, UTF-8, with a line end."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sealed(document: Mapping[str, Any]) -> bytes:
    """Serialize an object with its own SHA-256 as the last key."""
    return json_bytes({**document, "sha256": hashlib.sha256(json_bytes(document)).hexdigest()})


def parse_sealed(data: bytes, source: str) -> dict[str, Any]:
    """Parse what `sealed` wrote. Raises CheckpointError if a single bit has changed."""
    document = parse_json_object(data, source)
    content = {key: value for key, value in document.items() if key != "sha256"}
    try:
        # It must serialize to the same bytes, so that a change of any bit, even in white space, is detected.
        is_same = sealed(content) == data
    except (ValueError, RecursionError):  # NaN, lone surrogates
        is_same = False
    if not is_same:
        raise CheckpointError(f"{source} is damaged: it does not match its own SHA-256.")
    return document
