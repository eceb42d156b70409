"""Checks before a request is looked at: host, origin, key, content type, sizes; and reading its body in time."""

import asyncio
import hashlib
import hmac
import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .admission import Admission, ServerLimits
from .refusals import ClientGone, Refusal, overloaded, too_large

METHODS = ("GET", "HEAD", "POST")
MAX_HEADERS = 100
BYTES_PER_SECOND = 1024
LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))
OPEN_PATHS = frozenset(("/", "/health", "/ping", "/live", "/ready", "/v2/health/live", "/v2/health/ready", "/docs"))
"""Paths that need no key: health, and the pages, which hold no data."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
Receive = Callable[[], Awaitable[Any]]


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the client's request id if it is a plain word, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """Return a random id."""
    return f"{random.getrandbits(128):032x}"


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers by lower-case name; of one given twice the values are joined by commas."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


@dataclass(frozen=True)
class RequestGuard:
    """Refuses what no client of the server's owner sends."""

    hosts: Collection[str] | None = LOOPBACK
    """Names under which the server is reached; None: any. Against DNS rebinding."""
    key_digest: bytes | None = None
    """SHA-256 of the API key; None: no key is needed."""

    def check(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Raise Refusal for a request that is not to be looked at."""
        if len(scope["headers"]) > MAX_HEADERS:
            raise Refusal(431, f"more than {MAX_HEADERS} headers.")
        if scope["method"] not in METHODS:
            raise Refusal(405, "the methods are GET, HEAD and POST.", allowed=METHODS)
        host, target = headers.get("host", ""), scope.get("target_host")
        # HTTP/1.0 has no Host; browsers, against which this stands, send one.
        is_old = scope.get("http_version") == "1.0" and "host" not in headers
        names = [*([] if is_old else [host]), *([] if target is None else [target])]
        if self.hosts is not None and any(host_name(name) not in self.hosts for name in names):
            raise Refusal(421, "the Host header names another server.")
        self._check_origin(scope["method"], host, headers)
        if scope["method"] == "POST":
            self._check_content(headers, scope["path"])
        if self.key_digest is not None and scope["path"] not in OPEN_PATHS:
            word, _, key = headers.get("authorization", "").partition(" ")
            given = hashlib.sha256((key if word.lower() == "bearer" else "").strip().encode("latin-1")).digest()
            if not hmac.compare_digest(given, self.key_digest):
                raise Refusal(401, "the API key is missing or wrong. Send Authorization: Bearer KEY.")

    def _check_origin(self, method: str, host: str, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(403, "requests of other sites' pages are refused.")
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and not (
            method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        ):
            raise Refusal(403, "requests of other sites' pages are refused.")

    def _check_content(self, headers: Mapping[str, str], path: str) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_triton = path.startswith("/v2/models/") and kind in ("", "application/octet-stream")  # as its client sends
        if kind != "application/json" and not is_triton:
            raise Refusal(415, "the body must be JSON: Content-Type: application/json.")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed bodies are not read. Send it without Content-Encoding.")


def plain_target(target: str) -> tuple[str | None, str]:
    """Split what a request asks for: the host that a client of a proxy writes before the path, and the path.

    A slash at the end of a path means nothing here.
    """
    match = re.match(r"https?://([^/?#]*)", target)
    path = target[match.end() :] or "/" if match else target
    return match and match[1], path[:-1] if re.search(r"[^/]/$", path) else path


def host_name(host: str) -> str:
    """Return a Host header without its port, or "" for a malformed one."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([\w.-]+)(?::\d+)?", host)
    return (match[1] or match[2]).lower().rstrip(".") if match else ""


async def read_body(
    headers: Mapping[str, str], receive: Receive, admission: Admission, *, is_whole: bool = False
) -> bytearray:
    """Read a body within its bounds of size and time; the caller gives `held_bytes` back by its length.

    Raises Refusal, or ClientGone.
    """
    limits = admission.limits
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise too_large(f"the body has more than {limits.max_body_bytes:,} bytes.")
    body = bytearray()
    try:
        await _read_into(body, limits, receive, admission, is_whole=is_whole)
    except BaseException:
        admission.held_bytes -= len(body)
        raise
    return body


async def _read_into(
    body: bytearray, limits: ServerLimits, receive: Receive, admission: Admission, *, is_whole: bool
) -> None:
    clock = asyncio.get_running_loop().time
    start = clock()
    while True:
        left = start + limits.body_seconds + len(body) / BYTES_PER_SECOND - clock()
        try:
            message = await (receive() if is_whole else asyncio.wait_for(receive(), max(left, 0.001)))
        except TimeoutError:
            raise Refusal(408, "the body came too slowly.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        body += chunk
        admission.held_bytes += len(chunk)
        if len(body) > limits.max_body_bytes:
            raise too_large(f"the body has more than {limits.max_body_bytes:,} bytes.")
        if admission.held_bytes > limits.max_held_bytes:
            raise overloaded("the bodies of the requests that wait fill the memory. Try again later.")
        if not message.get("more_body"):
            return
