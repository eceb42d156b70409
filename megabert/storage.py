"""Files and folders that are there whole or as they were before."""

import os
import shutil
import uuid
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


class whole_folder:  # noqa: N801  (a context manager reads as a function)
    """Give a folder to write in beside `final`; it takes that name at the end, or goes if there is an error."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.partial = final.with_name(f"{final.name}.tmp-{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> Path:
        self.partial.mkdir()
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        put_in_place(self.partial, self.final)


def put_in_place(partial: Path, final: Path) -> None:
    """Give a folder that is complete its name, in place of one that has it."""
    for folder in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
        sync_folder(folder)
    replaced = set_aside(final) if final.exists() else None
    partial.rename(final)
    sync_folder(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(folder: Path) -> Path:
    """Rename a folder that goes, so that it is never seen half there."""
    aside = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    folder.rename(aside)
    return aside
