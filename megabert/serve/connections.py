"""HTTP/1.1 connections that cost a bounded time: silent, slow and surplus ones are closed, bad requests answered."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from .admission import WaitingPlace
from .http_application import HttpApplication
from .refusals import Refusal
from .request_guard import new_request_id

MAX_HEADER_BYTES = 16_384
LINGER_SECONDS = 2.0
"""How long a closed connection may take to read what was sent."""
MAX_HELD_BYTES = 65_536
_PLAIN_POST = re.compile(rb"POST (/[\w./-]*)(?:\?\S*)? HTTP/1\.1\r\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?:\r|\Z)")
_OTHERWISE = re.compile(rb"\n(?:transfer-encoding|expect|upgrade|connection:(?![ \t]*keep-alive[ \t]*(?:\r|\Z)))")
_FINAL = (b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")
_ID = re.compile(rb"\nx-request-id:[ \t]*([\w.:-]{1,64})[ \t]*(?:\r|\Z)")


class PlainPost(NamedTuple):
    """A whole request without anything special."""

    path: str
    request_id: str
    """The client's, or ""."""


def plain_post(data: bytes) -> PlainPost | None:
    """Look at what one read of a socket returned; None: it is to be parsed."""
    line = _PLAIN_POST.match(data)
    head, _, body = data.partition(b"\r\n\r\n")
    if line is None or len(data) > MAX_HELD_BYTES or len(head) > MAX_HEADER_BYTES:
        return None
    head = head.lower()
    lengths = _LENGTH.findall(head)
    if len(lengths) != 1 or head.count(b"content-length") != 1 or int(lengths[0]) != len(body):
        return None
    if _OTHERWISE.search(head):
        return None
    own = _ID.search(head)
    return PlainPost(line[1].decode(), own[1].decode() if own else "")


class JoinedWrites:
    """A transport that sends the head of an answer together with its first part: one call of the system, not two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._head = transport, b""

    def write(self, data: bytes) -> None:
        """Write, or keep the head of a final answer until its body follows."""
        if not self._head and data.startswith(_FINAL) and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedConnection(H11Protocol):
    """A connection with a deadline for the head of each request."""

    def __init__(self, *arguments: Any, application: HttpApplication, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.application, self.admission = application, application.admission
        self.limits, self.metrics = self.admission.limits, self.admission.metrics
        self.app_state = {**self.app_state, "abort": self.abort, "place": None}
        self.head_timer: asyncio.TimerHandle | None = None
        self.held = bytearray()
        """A request that is counted and not parsed yet."""
        self.place: WaitingPlace | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close one too many at once; otherwise wait for a head."""
        super().connection_made(transport)
        self.transport = JoinedWrites(transport)  # type: ignore[assignment]
        self.metrics.set("megabert_connections", len(self.connections))
        if len(self.connections) > self.limits.max_connections:
            self.abort()
        else:
            self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer, and what is held."""
        self.stop_timer()
        self.admission.drop(self.place)
        super().connection_lost(exc)
        self.metrics.set("megabert_connections", len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Refuse or hold a whole request unparsed where many come; otherwise parse."""
        self.admission.catalog.host.pause(self.loop.call_soon)
        if self.held:
            self.held += data
            if len(self.held) > 2 * MAX_HELD_BYTES:
                self.flow.pause_reading()
            return
        is_next = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        if is_next and not self.conn.trailing_data[0]:
            self.app_state["arrived"] = time.monotonic()
            if (post := plain_post(data)) is not None and not self.admission.is_draining:
                self._admit(data, post)
                return
        self.parse(data)

    def _admit(self, data: bytes, post: PlainPost) -> None:
        try:
            self.place = self.admission.reserve()
        except Refusal as refusal:
            try:
                answer = self.application.refuse_unparsed(refusal, post.path, post.request_id or new_request_id())
            except Refusal:  # there is no such route
                self.parse(data)
                return
            self.transport.write(answer)
            self.stop_timer()
            self.on_response_complete()  # it may be idle now
            return
        self.held += data
        self.stop_timer()
        self._unset_keepalive_if_required()
        self.admission.hold_or_start(self.place, self._parse_held)

    def _parse_held(self) -> None:
        data, cycle = bytes(self.held), self.cycle
        self.held.clear()
        self.app_state["place"] = self.place
        self.parse(data)
        self.app_state["place"] = None
        if self.cycle is cycle and self.place is not None:  # it was no request
            self.place.leave()

    def parse(self, data: bytes) -> None:
        """Parse; where a head has begun and is not complete its time runs."""
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self.stop_timer()
        elif (cycle is None or cycle.response_complete) and self.head_timer is None:
            self.expect_head()

    def shutdown(self) -> None:
        """Close where nothing is to be answered; a request that is held will be."""
        if not self.held:
            super().shutdown()

    def expect_head(self) -> None:
        """Start the time of a head."""
        self.head_timer = self.loop.call_later(self.limits.header_seconds, self.look_again, self.abort)

    def look_again(self, end: Callable[[], None]) -> None:
        """End a connection whose time is over, once what came while the loop was busy is read: it may be a request."""
        self.head_timer = self.loop.call_later(0, end)

    def stop_timer(self) -> None:
        """Stop the time of a head."""
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None and not self.transport.is_closing():
            self.metrics.add("megabert_connections_closed_total")
        if self.transport is not None:
            self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and soon for good."""
        self.timeout_keep_alive_task = self.loop.call_later(0, self._close_idle)

    def _close_idle(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(LINGER_SECONDS, self.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; 431 for a head that is too long."""
        self.stop_timer()
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        error = {"error": str(sys.exc_info()[1] or msg)[:200], "error_type": "Validation"}
        body = json.dumps(error).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with suppress(h11.LocalProtocolError):
                response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES.get(status, b""))
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
        self.metrics.count_response(status)
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.abort)
