"""Files of the cache: locks between processes, and write errors with remedies."""

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import CheckpointError


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a CheckpointError with a remedy."""
    known = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your disk quota is used up"}
    try:
        yield
    except OSError as error:
        reason = known.get(error.errno or 0, error.strerror or str(error))
        raise CheckpointError(
            f"Cannot write {path}: {reason}. Free space or grant permissions there, or choose another folder with "
            "MEGABERT_HOME. What has been downloaded is kept; the next attempt resumes from it."
        ) from error


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: IO[bytes]) -> None:
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: IO[bytes]) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for writing `path`; waits while another process holds it.

    The lock file `.<name>.lock` beside it is never removed: otherwise two processes could hold a lock on different
    files. The system releases the lock of a process that dies. Raises CheckpointError if the folder is not writable.
    """
    with explain_write_errors(path):
        handle = path.with_name(f".{path.name}.lock").open("ab")
    with handle:  # closing it releases the lock
        if not _try_lock(handle, path):
            print(f"Waiting for another process that writes {path}", file=sys.stderr)
            while not _try_lock(handle, path):
                time.sleep(0.1)
        yield


def _try_lock(handle: IO[bytes], path: Path) -> bool:
    with explain_write_errors(path):
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError):  # the second is Windows' answer
            return False
    return True
