"""Atomic writes of files and folders: under a temporary name, fsync, then a rename to the final name."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file atomically, a string as UTF-8; a file of that name is replaced."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file's name.")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; rename it to `final` on success, remove it on an error."""
    temporary = _temporary_name(final)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    replace_folder(temporary, final)


def replace_folder(complete: Path, final: Path) -> None:
    """Rename a complete folder to its final name, replacing a folder of that name; its files are already synced."""
    for folder in (*(path for path in complete.rglob("*") if path.is_dir()), complete):
        _fsync_folder(folder)
    replaced = rename_aside(final) if final.exists() else None
    complete.rename(final)
    _fsync_folder(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)


def rename_aside(folder: Path) -> Path:
    """Rename a folder that is to be deleted, so that it is never seen half deleted under its own name."""
    aside = _temporary_name(folder)
    folder.rename(aside)
    return aside


def _temporary_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
