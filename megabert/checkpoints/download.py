"""Download one file: resumed where it broke off, checked, and put in its place whole or not at all.

An address and a destination go in; the file lies there, and its size and SHA-256 come out. Until then the
bytes are in `<destination>.part`, and what the server said of them (ETag, date, length) in
`<destination>.part.json`, so that a broken download goes on where it stopped. While one process fetches,
others wait and find its file.

Source: RFC 9110, sections 13.1.5 (If-Range), 14 (ranges) and 15.5.17 (answer 416).
"""

import errno
import hashlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from ..errors import CheckpointError

# The standard library's client does it: one GET with three headers. Another would bring connection pools,
# cookies and retries that know nothing of the part file, and slow down the start of `megabert models`.

# Called with the number of bytes that have arrived, resumed ones included, and the length (None: not told).
Progress = Callable[[int, int | None], None]

BLOCK = 1 << 18  # bytes a read; what a reset connection may lose
GAIN = 1 << 20  # a failure after this many new bytes starts the count of attempts afresh
ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After asks
WORTH_ANOTHER_TRY = frozenset({408, 429, 500, 502, 503, 504})
THIS_MACHINE = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/")  # nobody is in between


class DownloadError(CheckpointError):
    """This address did not give the file, but another may. A full disk is not of this kind."""


class _TryAgainError(Exception):
    """The transfer broke, but the server may do better after `wait` seconds."""

    def __init__(self, reason: str, *, wait: float | None = None, is_reached: bool = True) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_reached = is_reached


@dataclass(frozen=True)
class Downloaded:
    """What lies at the destination."""

    size: int
    sha256: str


def download(
    url: str,
    destination: Path,
    *,
    expected_size: int | None = None,
    expected_sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Fetch `url` to `destination`, or find it there, and return its size and SHA-256.

    `check` gets the path of the complete file before it is placed and may raise CheckpointError. `timeout` is
    in seconds, for connecting and for each silence. Without `progress`, a terminal shows a bar, others one
    line. A broken connection and the answers 408, 429 and 5xx are tried up to ATTEMPTS times in a row.
    Raises DownloadError if the address does not give the file and CheckpointError if it cannot be written;
    nothing is at `destination` then. After Ctrl-C the next call goes on where this one stopped.
    """
    _check_address(url)
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
    with locked(destination):
        if destination.exists():
            with writing(destination):
                found = Downloaded(destination.stat().st_size, file_sha256(destination))
            _verify(found, str(destination), expected_size, expected_sha256)
            return found
        part = _Part(destination, url, expected_size)
        with _display(url, destination) if progress is None else nullcontext(progress) as report:
            _fetch(part, report, timeout=timeout, sleep=sleep)
        found = Downloaded(part.size, part.sha256.hexdigest())
        try:
            _verify(found, url, expected_size, expected_sha256)
            if check is not None:
                check(part.path)
        except CheckpointError:
            part.discard()  # there is no use in resuming the wrong file
            raise
        part.place(destination)
        return found


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, as hexadecimal digits. About a second for each 1.25 GB."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _verify(found: Downloaded, origin: str, size: int | None, sha256: str | None) -> None:
    if found.size == 0:
        raise DownloadError(f"{origin}: the file is empty")
    if size is not None and found.size != size:
        raise DownloadError(f"{origin}: the file has {found.size:,} bytes, but {size:,} are expected")
    if sha256 is not None and found.sha256 != sha256:
        raise DownloadError(f"{origin}: the file has SHA-256 {found.sha256}, but {sha256} is expected")


def _fetch(part: "_Part", report: Progress, *, timeout: float, sleep: Callable[[float], None]) -> None:
    """Transfer until the part is complete, again after failures that may pass."""
    failures, most = 0, part.size
    while True:
        try:
            return _transfer(part, report, timeout=timeout)
        except _TryAgainError as error:
            # A machine without a network should hear of it at once; a network lost on the way may come back.
            is_hopeless = failures == 0 and not error.is_reached
            failures = 1 if part.size >= most + GAIN else failures + 1
            most = max(most, part.size)
            if is_hopeless or failures >= ATTEMPTS:
                attempts = "" if is_hopeless else f" ({failures} attempts in a row)"
                raise DownloadError(f"{part.url}: {error}{attempts}") from error
            wait = min(2.0 ** (failures - 1) if error.wait is None else error.wait, LONGEST_WAIT)
            print(f"{part.url}: {error}; trying again in {wait:.0f} s", file=sys.stderr)
            sleep(wait)


def _transfer(part: "_Part", report: Progress, *, timeout: float) -> None:
    """Ask for what is missing and append it, until the part is complete or the connection breaks."""
    if 0 < part.size == part.version.total:
        return
    if part.version.validator is None:
        part.discard()  # nothing could tell whether the rest is of the same file
    response = _ask(part, timeout)
    if response is None:
        return
    with response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            _check_join(part, response.headers)
        else:
            part.start_over(_version(part.url, response.headers, response.length))
        part.append(_blocks(response), report)
    total = part.version.total
    if total is not None and part.size < total:
        raise _TryAgainError(f"the connection ended after {part.size:,} of {total:,} bytes")


def _ask(part: "_Part", timeout: float) -> http.client.HTTPResponse | None:
    """Send the request and return its answer, 200 or 206; None if the server says that nothing is missing."""
    headers = {"User-Agent": "megabert"}  # http.client adds Accept-Encoding: identity
    if part.size > 0:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version.validator or ""}
    request = urllib.request.Request(part.url, headers=headers)  # noqa: S310  (_check_address has seen it)
    proxies = urllib.request.ProxyHandler({} if THIS_MACHINE.match(part.url) else None)  # None: the system's
    opener = urllib.request.build_opener(proxies, _Redirects)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or part.size == 0:
                raise _refusal(part.url, error) from error
            if re.fullmatch(rf"bytes \*/{part.size}", error.headers.get("Content-Range", "")):
                return None
        part.discard()
        raise _TryAgainError("the server has no such range; starting over") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{part.url}: its certificate is not valid: {error.reason}") from error
        raise _TryAgainError(f"no connection ({error.reason})", is_reached=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"no answer ({error})") from error
    encoding = response.headers.get("Content-Encoding", "identity")
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT) or encoding != "identity":
        response.close()
        raise DownloadError(f"{part.url}: answers {response.status} with content encoding {encoding!r}")
    return response


def _refusal(url: str, error: urllib.error.HTTPError) -> DownloadError | _TryAgainError:
    answer = f"the server answers {error.code} {error.reason}"
    if error.code not in WORTH_ANOTHER_TRY:
        return DownloadError(f"{url}: {answer}")
    wait = error.headers.get("Retry-After", "")
    return _TryAgainError(answer, wait=float(wait) if re.fullmatch(r"\d{1,9}", wait) else None)


def _check_join(part: "_Part", headers: Message) -> None:
    """See that answer 206 goes on where the part ends, in the same version of the file; else start over."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    total = int(match[2]) if match and match[2] != "*" else None
    known, fresh = part.version, _version(part.url, headers, total)
    # A server may heed Range and not know If-Range, so what it says of the file is compared here too.
    pairs = zip(asdict(known).values(), asdict(fresh).values(), strict=True)
    is_same = all(new in (old, None) or old is None for old, new in pairs)
    if match is None or int(match[1]) != part.size or not is_same:
        part.discard()
        raise _TryAgainError("the file has changed on the server; starting over")
    known.total = known.total or total


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"the connection broke ({error})") from error
        if not block:
            return
        yield block


@dataclass
class _Version:
    """What tells one version of a remote file from another."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may hold: a strong ETag or else the date."""
        is_strong = self.etag is not None and not self.etag.startswith("W/")
        return self.etag if is_strong else self.last_modified


def _version(url: str, headers: Message, total: int | None) -> _Version:
    return _Version(url, headers.get("ETag"), headers.get("Last-Modified"), total)


class _Part:
    """The unfinished file beside its destination, its SHA-256 so far, and the version it is a part of."""

    def __init__(self, destination: Path, url: str, expected_size: int | None) -> None:
        self.url = url
        self.expected_size = expected_size
        self.path = destination.with_name(f"{destination.name}.part")
        self.version_path = destination.with_name(f"{destination.name}.part.json")
        self.version, self.sha256, self.size = _Version(url), hashlib.sha256(), 0
        with writing(self.path):
            self._resume()

    def _resume(self) -> None:
        """Take up what an earlier run left, if it is of this address and the server can tell its version."""
        try:
            version = _Version(**json.loads(self.version_path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):  # not there, or cut off while it was written
            return
        if version.url != self.url or version.validator is None or not self.path.is_file():
            return
        self.version = version
        with self.path.open("rb") as handle:
            while block := handle.read(BLOCK):
                self.sha256.update(block)
                self.size += len(block)

    def start_over(self, version: _Version) -> None:
        """Begin an empty part of `version`, if that has the right length."""
        self.discard()
        if self.expected_size is not None and version.total not in (None, self.expected_size):
            raise DownloadError(f"{self.url}: it offers {version.total:,} bytes, not {self.expected_size:,}")
        self.version = version
        with writing(self.path):
            self.path.touch()
            self.version_path.write_text(json.dumps(asdict(version)))

    def append(self, blocks: Iterator[bytes], report: Progress) -> None:
        """Write the blocks as they arrive. What was written stays, whatever stops it."""
        total = self.version.total
        with writing(self.path):
            handle = self.path.open("ab", buffering=0)  # a full disk must show here, not when it is closed
        with handle:
            for block in blocks:
                rest = memoryview(block)
                with writing(self.path):
                    while rest:
                        rest = rest[handle.write(rest) :]
                self.sha256.update(block)
                self.size += len(block)
                report(self.size, total)
        if total is not None and self.size > total:
            self.discard()
            raise DownloadError(f"{self.url}: it sends more than the {total:,} bytes that it promised")

    def discard(self) -> None:
        """Forget what has arrived."""
        with writing(self.path):
            self.version_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.version, self.sha256, self.size = _Version(self.url), hashlib.sha256(), 0

    def place(self, destination: Path) -> None:
        """Put the complete file at its destination, on the disk before it has the name."""
        with writing(destination):
            with self.path.open("rb+") as handle:
                os.fsync(handle.fileno())
            self.path.replace(destination)
            self.version_path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a CheckpointError for people."""
    known = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "your disk quota is used up"}
    try:
        yield
    except OSError as error:
        reason = known.get(error.errno or 0, error.strerror or str(error))
        raise CheckpointError(
            f"Cannot write {path}: {reason}. Make room or rights there, or choose another folder with "
            "MEGABERT_HOME. What has arrived so far is kept, and a next attempt goes on from it."
        ) from error


def _check_address(url: str) -> None:
    if not url.startswith("https://") and not THIS_MACHINE.match(url):
        raise DownloadError(f"{url}: only https addresses are downloaded")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirection only to where a download may go, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url}: it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
    """Keep other processes from writing `path`, having waited as long as one of them does.

    The lock is on a file `.<name>.lock` beside it, which stays: if it were removed, two processes could hold
    a lock each. The system frees the lock of a process that dies. Raises CheckpointError if it may not write.
    """
    with writing(path):
        handle = path.with_name(f".{path.name}.lock").open("ab")
    with handle:  # closing it frees the lock
        if not _has_locked(handle, path):
            print(f"Waiting for another process that writes {path}", file=sys.stderr)
            while not _has_locked(handle, path):
                time.sleep(0.1)
        yield


def _has_locked(handle: IO[bytes], path: Path) -> bool:
    with writing(path):
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError):  # the second is Windows' answer
            return False
    return True


@contextmanager
def _display(url: str, destination: Path) -> Iterator[Progress]:
    print(f"Downloading {url} to {destination}", file=sys.stderr)
    if not sys.stderr.isatty():
        yield lambda received, total: None
        return
    from rich import progress as shown
    from rich.console import Console

    columns = [*shown.Progress.get_default_columns(), shown.DownloadColumn(), shown.TransferSpeedColumn()]
    with shown.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(destination.name, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)
