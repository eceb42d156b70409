"""Download one file: resumable, verified by size and SHA-256, and placed at its destination atomically.

Until it is complete the file is a `PartialDownload`, which the next attempt resumes. While one process downloads a
file, others wait and then find it.

Source: RFC 9110, sections 13.1.5 (If-Range), 14 (ranges) and 15.5.17 (status 416).
"""

import http.client
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from ..errors import CheckpointError
from ..storage import file_sha256
from .cache_files import explain_write_errors, locked
from .partial_download import BLOCK, DownloadError, PartialDownload, Progress, Version

# The standard library's client suffices for one GET with three headers. Others would bring connection pools, cookies
# and retries that do not support resuming, and slow down the start of `megabert models`.

GAIN = 1 << 20  # a failure after this many new bytes resets the count of attempts
ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds, an upper bound on Retry-After
RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
SLOWEST = 1024  # bytes a second on average over `timeout`; a slower server counts as silent
LONGEST_DOWNLOAD = 7 * 24 * 3600.0  # seconds for one file, waits included
_NUMBER = r"\d{1,18}"
LOCALHOST = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/")  # safe without encryption


class _RetryableError(Exception):
    """The transfer failed, but may succeed after `wait` seconds. `is_reached`: whether the server responded."""

    def __init__(self, reason: str, *, wait: float | None = None, is_reached: bool = True) -> None:
        super().__init__(reason)
        self.wait = wait
        self.is_reached = is_reached


@dataclass(frozen=True)
class Downloaded:
    """The size and hash of a downloaded file."""

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
    longest: float = LONGEST_DOWNLOAD,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Download `url` to `destination` unless it exists, and return its size and SHA-256.

    `check` is called with the path of the complete file before it is moved, and may raise CheckpointError. `timeout` is
    in seconds, for connecting, for all headers, and for each read; a body slower than SLOWEST counts as a broken
    connection. After `longest` seconds the download fails, and the next call resumes it. Without `progress`, a bar is
    shown on a terminal, one line elsewhere. A broken connection and the status codes 408, 429 and 5xx are retried up to
    ATTEMPTS times in a row.
    Raises DownloadError if the address does not provide the file and CheckpointError if it cannot be written; then
    nothing is at `destination`. After an interruption the next call resumes.
    """
    _check_address(url)
    with explain_write_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
    with locked(destination):
        if destination.exists():
            with explain_write_errors(destination):
                existing = Downloaded(destination.stat().st_size, file_sha256(destination))
            _verify(existing, str(destination), expected_size, expected_sha256)
            PartialDownload(destination, url, expected_size).discard()  # of a process that was killed after its rename
            return existing
        part = PartialDownload(destination, url, expected_size)
        with _display(url, destination) if progress is None else nullcontext(progress) as report:
            _fetch(part, report, timeout=timeout, longest=longest, sleep=sleep)
        downloaded = Downloaded(part.size, part.sha256.hexdigest())
        try:
            _verify(downloaded, url, expected_size, expected_sha256)
            if check is not None:
                check(part.path)
        except CheckpointError:
            part.discard()  # the wrong file must not be resumed
            raise
        part.move_to(destination)
        return downloaded


def _verify(file: Downloaded, origin: str, size: int | None, sha256: str | None) -> None:
    if file.size == 0:
        raise DownloadError(f"{origin}: the file is empty")
    if size is not None and file.size != size:
        raise DownloadError(f"{origin}: the file has {file.size:,} bytes, but {size:,} are expected")
    if sha256 is not None and file.sha256 != sha256:
        raise DownloadError(f"{origin}: the file has SHA-256 {file.sha256}, but {sha256} is expected")


def _fetch(
    part: PartialDownload, report: Progress, *, timeout: float, longest: float, sleep: Callable[[float], None]
) -> None:
    """Transfer until the download is complete, with retries after temporary failures."""
    failures, most, deadline = 0, part.size, time.monotonic() + longest
    while True:
        try:
            return _transfer(part, report, timeout=timeout, deadline=deadline)
        except _RetryableError as error:
            # Fail at once on a machine without a network; retry when the connection is lost later.
            is_hopeless = failures == 0 and not error.is_reached
            failures = 1 if part.size >= most + GAIN else failures + 1
            most = max(most, part.size)
            if is_hopeless or failures >= ATTEMPTS:
                attempts = "" if is_hopeless else f" ({failures} attempts in a row)"
                raise DownloadError(f"{part.url}: {error}{attempts}") from error
            wait = min(2.0 ** (failures - 1) if error.wait is None else error.wait, LONGEST_WAIT)
            print(f"{part.url}: {error}; trying again in {wait:.0f} s", file=sys.stderr)
            sleep(wait)


def _transfer(part: PartialDownload, report: Progress, *, timeout: float, deadline: float) -> None:
    """Request the missing bytes and append them, until the download is complete or the connection breaks."""
    if 0 < part.size == part.version.total:
        return
    if part.version.validator is None:
        part.discard()  # the server cannot confirm that the rest belongs to the same version
    response = _request(part, timeout)
    if response is None:
        return
    with response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            _check_join(part, response.headers)
        else:
            part.start_over(Version.of_headers(part.url, response.headers, response.length))
        part.append(_blocks(response, part.url, timeout, deadline), report)
    total = part.version.total
    if total is not None and part.size < total:
        raise _RetryableError(f"the connection ended after {part.size:,} of {total:,} bytes")


def _request(part: PartialDownload, timeout: float) -> http.client.HTTPResponse | None:
    """Send the request and return the response, 200 or 206; None if the server reports that nothing is missing."""
    headers = {"User-Agent": "megabert"}  # http.client adds Accept-Encoding: identity
    if part.size > 0:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version.validator or ""}
    request = urllib.request.Request(part.url, headers=headers)  # noqa: S310  (_check_address has checked it)
    proxies = urllib.request.ProxyHandler({} if LOCALHOST.match(part.url) else None)  # None: the system's
    opener = urllib.request.build_opener(proxies, _Redirects, _Http, _Https)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with closing(error):
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or part.size == 0:
                raise _error_of(part.url, error) from error
            if re.fullmatch(rf"bytes \*/{part.size}", error.headers.get("Content-Range", "")):
                return None
        part.discard()
        raise _RetryableError("the server has no such range; starting over") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{part.url}: its certificate is not valid: {error.reason}") from error
        raise _RetryableError(f"no connection ({error.reason})", is_reached=False) from error
    except http.client.InvalidURL as error:
        raise DownloadError(f"{part.url}: it redirects to an address that is none: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _RetryableError(f"no answer ({error})") from error
    except (ValueError, OverflowError) as error:  # of urllib, for hosts, ports and headers that cannot be
        raise DownloadError(f"{part.url}: it is or redirects to an address that is none: {error}") from error
    encoding = response.headers.get("Content-Encoding", "identity")
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT) or encoding != "identity":
        response.close()
        raise DownloadError(f"{part.url}: answers {response.status} with content encoding {encoding!r}")
    return response


def _error_of(url: str, error: urllib.error.HTTPError) -> DownloadError | _RetryableError:
    answer = f"the server answers {error.code} {error.reason}"
    if error.code not in RETRYABLE_STATUS:
        return DownloadError(f"{url}: {answer}")
    wait = error.headers.get("Retry-After", "")
    return _RetryableError(answer, wait=float(wait) if re.fullmatch(r"\d{1,9}", wait) else None)


def _check_join(part: PartialDownload, headers: Message) -> None:
    """Check that a 206 response continues the download in the same version of the file; else start over."""
    match = re.fullmatch(rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)", headers.get("Content-Range", ""))
    total = int(match[2]) if match and match[2] != "*" else None
    known, fresh = part.version, Version.of_headers(part.url, headers, total)
    # A server may support Range without If-Range, so the version is also compared here.
    pairs = zip(asdict(known).values(), asdict(fresh).values(), strict=True)
    is_same = all(new in (old, None) or old is None for old, new in pairs)
    if match is None or int(match[1]) != part.size or not is_same:
        part.discard()
        raise _RetryableError("the file has changed on the server; starting over")
    known.total = known.total or total


def _blocks(response: http.client.HTTPResponse, url: str, timeout: float, deadline: float) -> Iterator[bytes]:
    """Read what has arrived, again and again; a whole block would be waited for, however slowly it comes."""
    since, received = time.monotonic(), 0
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException, ValueError) as error:  # the last: an invalid length of a chunk
            raise _RetryableError(f"the connection broke ({error})") from error
        if not block:
            return
        yield block
        received, now = received + len(block), time.monotonic()
        if now > deadline:
            raise DownloadError(f"{url}: it takes too long. Repeat the command to resume it.")
        if now - since > timeout:
            if received < SLOWEST * (now - since):
                raise _RetryableError(f"only {received:,} bytes came in {now - since:.0f} s")
            since, received = now, 0


def _check_address(url: str) -> None:
    if not url.startswith("https://") and not LOCALHOST.match(url):
        raise DownloadError(f"{url}: only https addresses are downloaded")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects only to allowed addresses, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url}: it redirects to {newurl}, which is not encrypted")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        fp.close()  # urllib would read all of its body
        return request


class _EndsInTime(http.client.HTTPConnection):
    """A connection whose headers must all arrive within the timeout, which urllib applies to each read alone."""

    def getresponse(self) -> http.client.HTTPResponse:
        assert self.timeout is not None, "download passes a timeout"
        is_late = threading.Event()
        stop = threading.Timer(self.timeout, _shut_down, [self.sock, is_late])
        stop.start()
        try:
            response = super().getresponse()
        finally:
            stop.cancel()
        if is_late.is_set():
            raise TimeoutError(f"its headers did not come within {self.timeout:g} s")
        return response


class _SecureEndsInTime(_EndsInTime, http.client.HTTPSConnection):
    """The same over TLS."""


def _shut_down(connection: socket.socket, is_late: threading.Event) -> None:
    is_late.set()
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of SSLSocket would end only the encryption


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_EndsInTime, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureEndsInTime, req)


@contextmanager
def _display(url: str, destination: Path) -> Iterator[Progress]:
    print(f"Downloading {url} to {destination}", file=sys.stderr)
    if not sys.stderr.isatty():
        yield lambda received, total: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, TransferSpeedColumn
    from rich.progress import Progress as ProgressBar

    columns = [*ProgressBar.get_default_columns(), DownloadColumn(), TransferSpeedColumn()]
    with ProgressBar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(destination.name, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)
