"""Atomic writes of files and folders: under a temporary name, fsync, then a rename to the final name; digests.

A temporary file or folder is locked while it is written. One without a lock was left by a killed process; the next
write of the same name overwrites or removes it.
"""

import ctypes
import glob
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from .errors import InputError

TEMPORARY = ".tmp-"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file atomically, a string as UTF-8; a file of that name is replaced."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside `path` to write to; rename it to `path` on success, remove it on an error.

    A device or pipe, such as /dev/stdout, is written to itself: a rename would replace it. Errors name `path`.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file's name.")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
        else:
            with _temporary_file(path.resolve() if path.is_symlink() else path) as file:
                yield file
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and (error.filename is None or TEMPORARY in str(error.filename)):
            if error.errno is None:
                raise OSError(0, str(error), str(path)) from error
            error.filename = str(path)
        raise


@contextmanager
def _temporary_file(path: Path) -> Iterator[IO[bytes]]:
    temporary, file = _open_temporary_file(path)
    with file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _open_temporary_file(path: Path) -> tuple[Path, IO[bytes]]:
    """Open and lock the first temporary file that no other process writes; a leftover is overwritten."""
    number = 0
    while True:
        temporary = path.with_name(f".{path.name}{TEMPORARY}{number}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        file = os.fdopen(descriptor, "r+b")
        if lock_file(descriptor) is False:
            number += 1
        # The process that had it may have renamed it before it was locked here.
        elif temporary.exists() and os.path.samestat(temporary.stat(), os.fstat(descriptor)):
            file.truncate()
            return temporary, file
        file.close()


def save_array(path: Path, array: Any) -> None:
    """Write a numpy array to a .npy file; raises OSError where the disk is full.

    numpy.save alone gives a file's last bytes to a buffer of C, and ignores the error when that cannot be written.
    """
    import numpy

    with path.open("wb") as file:
        numpy.save(cast("Any", SimpleNamespace(write=file.write)), array, allow_pickle=False)


class GrowingArray:
    """A .npy file to which blocks of rows are appended; numpy's header has room for any number of them."""

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape = path, dtype, row_shape
        self.num_rows = 0

    def __enter__(self) -> "GrowingArray":
        self._file = self.path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        from numpy.lib import format as npy

        shape = (self.num_rows, *self.row_shape)
        header = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(cast("Any", self._file), header)

    def append(self, rows: Any) -> None:
        """Write rows, an array of the file's type and shape; raises OSError where the disk is full."""
        assert (rows.dtype, rows.shape[1:]) == (self.dtype, self.row_shape), f"{self.path} has rows of one type"
        self._file.write(rows.tobytes())
        self.num_rows += len(rows)


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as hexadecimal digits. About a second for each 1.25 GB."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_sha256(path: Path) -> str:
    """Compute the SHA-256 of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; rename it to `final` on success, remove it on an error."""
    temporary = temporary_name(final)
    temporary.mkdir()
    with folder_lock(temporary):
        try:
            yield temporary
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        replace_folder(temporary, final)
    remove_leftovers(final.parent, f"{glob.escape(final.name)}{TEMPORARY}*")


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`, and remove it afterwards, with those that killed processes left."""
    temporary = temporary_name(final)
    temporary.mkdir()
    with folder_lock(temporary):
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    remove_leftovers(final.parent, f"{glob.escape(final.name)}{TEMPORARY}*")


def _rename_over(complete: Path, final: Path) -> Path:
    """Rename a folder to a name that another has, which is renamed first; returns that one's temporary name."""
    replaced = rename_aside(final)
    try:
        complete.rename(final)
    except OSError:
        replaced.rename(final)
        raise
    return replaced


def replace_folder(complete: Path, final: Path) -> None:
    """Rename a complete folder to its final name, replacing a folder of that name; its files are already synced.

    The two are exchanged in one operation where the system can. Otherwise there is a moment at which both have a
    temporary name; who finds no folder of the final name then looks for a complete one under a temporary name.
    """
    for folder in (*(path for path in complete.rglob("*") if path.is_dir()), complete):
        fsync_folder(folder)
    if not final.exists():
        complete.rename(final)
        fsync_folder(final.parent)
        return
    replaced = complete if _exchange(complete, final) else _rename_over(complete, final)
    fsync_folder(final.parent)
    shutil.rmtree(replaced)


def rename_aside(folder: Path) -> Path:
    """Rename a folder that is to be deleted, so that it is never seen half deleted under its own name."""
    aside = temporary_name(folder)
    folder.rename(aside)
    return aside


def temporary_name(folder: Path) -> Path:
    """Return a name beside a folder's for a folder that is incomplete, or to be deleted."""
    return folder.with_name(f"{folder.name}{TEMPORARY}{uuid.uuid4().hex[:8]}")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary folders in `folder` that match the glob pattern and that no process is writing."""
    for leftover in folder.glob(pattern):
        with suppress(FileNotFoundError), folder_lock(leftover) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(leftover, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Write a folder's entries, such as a new name, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one operation; false where the system or the file system cannot."""
    at_current_folder, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or glibc before 2.28
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return rename(at_current_folder, names[0], at_current_folder, names[1], exchange) == 0


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool | None]:
    """Hold the lock of a folder; yields whether it was free, None where there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lock_file(descriptor)
    finally:
        os.close(descriptor)


def lock_file(descriptor: int) -> bool | None:
    """Lock an open file until it is closed; returns whether it was free, None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True
