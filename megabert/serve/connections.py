"""HTTP/1.1 connections that cost a bounded time: silent, slow and surplus ones are closed, bad requests answered."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from .admission import ServerLimits
from .server_metrics import ServerMetrics

MAX_HEADER_BYTES = 16_384
LINGER_SECONDS = 2.0
"""How long a closed connection may take to read what was sent."""


class BoundedConnection(H11Protocol):
    """A connection with a deadline for the head of each request."""

    def __init__(self, *arguments: Any, limits: ServerLimits, metrics: ServerMetrics, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.limits, self.metrics = limits, metrics
        self.app_state = {**self.app_state, "abort": self.abort}
        self.head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close one too many at once; otherwise wait for a head."""
        super().connection_made(transport)
        self.metrics.set("megabert_connections", len(self.connections))
        if len(self.connections) > self.limits.max_connections:
            self.abort()
        else:
            self.expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self.stop_timer()
        super().connection_lost(exc)
        self.metrics.set("megabert_connections", len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Parse; where a head has begun and is not complete its time runs."""
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle:
            self.stop_timer()
        elif (cycle is None or cycle.response_complete) and self.head_timer is None:
            self.expect_head()

    def expect_head(self) -> None:
        """Start the time of a head."""
        self.head_timer = self.loop.call_later(self.limits.header_seconds, self.abort)

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
