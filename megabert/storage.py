"""Files that are there whole or as they were before."""

import os
from pathlib import Path

from .errors import InputError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file by one rename, its text as UTF-8."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file's name.")
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
