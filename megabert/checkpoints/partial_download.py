"""An unfinished download beside its destination, with the version of the remote file that it belongs to.

The bytes are in `<destination>.part`, the version (ETag, date, length) in `<destination>.part.json`.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path

from ..errors import CheckpointError
from ..json_documents import read_json_object
from .cache_files import explain_write_errors

# Called with the number of bytes that have arrived, resumed ones included, and the length (None: unknown).
Progress = Callable[[int, int | None], None]

BLOCK = 1 << 18  # bytes per read; at most this many are lost when a connection is reset


MOST_BYTES = 2**40  # of a file whose length is nowhere given
_VALIDATOR = re.compile(r"[\x20-\x7e]{1,1024}")  # that can be sent back in a header


class DownloadError(CheckpointError):
    """One address failed to provide the file, but another may succeed. A full disk is not of this kind."""


@dataclass
class Version:
    """The properties that distinguish versions of a remote file."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @classmethod
    def of_headers(cls, url: str, headers: Message, total: int | None) -> "Version":
        """Read the version from the headers of a response."""
        return cls(url, headers.get("ETag"), headers.get("Last-Modified"), total)

    @classmethod
    def of_file(cls, path: Path) -> "Version | None":
        """Read a version file; None if it is missing or is none, such as one truncated while it was written."""
        try:
            fields = read_json_object(path)
        except CheckpointError:
            return None
        texts, total = (fields.get(name) for name in ("url", "etag", "last_modified")), fields.get("total")
        is_valid = fields.keys() <= {"url", "etag", "last_modified", "total"} and isinstance(fields.get("url"), str)
        is_valid &= all(text is None or isinstance(text, str) for text in texts)
        return cls(**fields) if is_valid and (total is None or (type(total) is int and total >= 0)) else None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: a strong ETag, else the date."""
        is_strong = self.etag is not None and not self.etag.startswith("W/")
        validator = self.etag if is_strong else self.last_modified
        return validator if validator and _VALIDATOR.fullmatch(validator) else None


class PartialDownload:
    """The bytes downloaded so far, their SHA-256 and their version."""

    def __init__(self, destination: Path, url: str, expected_size: int | None) -> None:
        self.url = url
        self.expected_size = expected_size
        self.path = destination.with_name(f"{destination.name}.part")
        self.version_path = destination.with_name(f"{destination.name}.part.json")
        self.version, self.sha256, self.size = Version(url), hashlib.sha256(), 0
        with explain_write_errors(self.path):
            self._resume()

    def _resume(self) -> None:
        """Resume an earlier download if it has the same address and a version that the server can compare."""
        version = Version.of_file(self.version_path)
        if version is None:
            return
        if version.url != self.url or version.validator is None or not self.path.is_file():
            return
        self.version = version
        with self.path.open("rb") as handle:
            while block := handle.read(BLOCK):
                self.sha256.update(block)
                self.size += len(block)

    def start_over(self, version: Version) -> None:
        """Start an empty download of `version`. Raises DownloadError if it has the wrong length."""
        self.discard()
        if self.expected_size is not None and version.total not in (None, self.expected_size):
            raise DownloadError(f"{self.url}: it offers {version.total:,} bytes, not {self.expected_size:,}")
        self.version = version
        with explain_write_errors(self.path):
            self.path.touch()
            self.version_path.write_text(json.dumps(asdict(version)))

    @property
    def most_bytes(self) -> int:
        """The size that the download must not exceed: the announced or the expected one, else `MOST_BYTES`."""
        sizes = [size for size in (self.version.total, self.expected_size) if size is not None]
        return min(sizes, default=MOST_BYTES)

    def append(self, blocks: Iterator[bytes], report: Progress) -> None:
        """Write the blocks as they arrive. Written bytes are kept when the transfer is interrupted."""
        total = self.version.total
        most = self.most_bytes
        with explain_write_errors(self.path):
            handle = self.path.open("ab", buffering=0)  # so that a full disk fails here and not on closing
        with handle:
            for block in blocks:
                rest = memoryview(block)
                with explain_write_errors(self.path):
                    while rest:
                        rest = rest[handle.write(rest) :]
                self.sha256.update(block)
                self.size += len(block)
                if self.size > most:
                    self.discard()
                    raise DownloadError(f"{self.url}: it sends more than the {most:,} bytes that are expected")
                report(self.size, total)

    def discard(self) -> None:
        """Delete the downloaded bytes and the version."""
        with explain_write_errors(self.path):
            self.version_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.version, self.sha256, self.size = Version(self.url), hashlib.sha256(), 0

    def move_to(self, destination: Path) -> None:
        """Rename the complete file to its destination, after an fsync."""
        with explain_write_errors(destination):
            with self.path.open("rb+") as handle:
                os.fsync(handle.fileno())
            self.path.replace(destination)
            self.version_path.unlink(missing_ok=True)
