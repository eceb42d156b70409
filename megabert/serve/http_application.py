"""The ASGI application: a table of endpoints, each request guarded, admitted, answered, measured and logged."""

import asyncio
import json
import re
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any

from ..errors import MegabertError
from .access_log import LogWriter
from .admission import Admission, WaitingPlace
from .hosted_models import ModelCatalog
from .model_queue import ModelFailure, Work
from .refusals import ClientGone, Refusal, refusal_json, unavailable
from .request_fields import RequestField, parse_body, read_fields
from .request_guard import RequestGuard, headers_of, plain_target, read_body, request_id_of
from .server_metrics import LOST_LINES

SEND_SECONDS = 5.0
"""How long a client may take to read a part of an answer."""
SEND_BYTES = 262_144
MAX_KEPT_REFUSALS = 64
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


def json_bytes_of(value: Any) -> bytes:
    """Encode a value as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_rows(rows: Iterable[Any]) -> bytes:
    """Encode lists or arrays row by row: the encoder keeps the interpreter's lock, and others come between."""
    parts = (
        json_rows(row) if getattr(row, "ndim", 1) > 1 else json_bytes_of(row if isinstance(row, list) else row.tolist())
        for row in rows
    )
    return b"[" + b",".join(parts) + b"]"


@dataclass
class Reply:
    """A response; `content` is bytes, or a value that becomes JSON."""

    content: Any
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    media_type: str = "application/json"

    def body(self) -> bytes:
        """Return the bytes."""
        if isinstance(self.content, bytes):
            return self.content
        return json_bytes_of(self.content)


@dataclass
class Call:
    """A request with its checked fields."""

    fields: Mapping[str, Any]
    path: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    """The raw body."""
    app: "HttpApplication"
    gone: Callable[[], Awaitable[None]]
    started: float
    place: WaitingPlace | None = None
    work: Work | None = None
    cut_tokens: int | None = None
    """Tokens that were cut on the client's request; None: it did not ask."""

    @property
    def catalog(self) -> ModelCatalog:
        """The models."""
        return self.app.admission.catalog

    async def compute(self, function: Callable[[Work], Any]) -> Any:
        """Run a function in a thread, admitted and bounded; its answer gets the headers of what was computed."""
        given = self.headers.get("x-request-timeout", "")
        seconds = float(given) if re.fullmatch(r"\d{1,5}(\.\d{1,6})?", given) else None
        result, self.work = await self.app.admission.run(function, self.gone, seconds, self.started, self.place)
        return result

    def timings(self) -> dict[str, str]:
        """Return TEI's headers of what was computed, times in milliseconds."""
        if self.work is None:
            return {}
        total, work = time.monotonic() - self.started, self.work
        cut = work.cut_tokens + (self.cut_tokens or 0)
        truncated = {"x-truncated-tokens": str(cut)} if cut or self.cut_tokens is not None else {}
        host = max(total - work.queue_seconds - work.inference_seconds, 0)
        return {
            "x-compute-type": self.app.compute_type,
            "x-compute-time": f"{total * 1000:.0f}",
            "x-compute-characters": str(len(self.body)),
            "x-compute-tokens": str(work.tokens),
            "x-total-time": f"{total * 1000:.0f}",
            "x-tokenization-time": f"{host * 1000:.0f}",
            "x-queue-time": f"{work.queue_seconds * 1000:.0f}",
            "x-inference-time": f"{work.inference_seconds * 1000:.0f}",
            "x-windows": str(work.windows),
            **truncated,
        }


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Endpoint:
    """A route: what it takes, who answers it. `group` is its label in the metrics."""

    method: str
    path: str
    handler: Handler
    summary: str
    group: str = "other"
    fields: tuple[RequestField, ...] = ()
    are_all_fields: bool = False
    reads_json: bool = True
    answer: str = ""
    """What the answer holds, in words."""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", self.path))

    def match(self, path: str) -> dict[str, str] | None:
        """Return the parts of a path that the route names, or None."""
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None


class HttpApplication:
    """The application of one process."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        admission: Admission,
        guard: RequestGuard,
        *,
        compute_type: str = "cpu",
        access_log: str = "none",
    ) -> None:
        self.endpoints, self.admission, self.guard = endpoints, admission, guard
        self.compute_type = compute_type
        on_loss = partial(admission.metrics.add, LOST_LINES)
        self.error_log = LogWriter("-", on_loss)
        self.access_log = self.error_log if access_log == "-" else LogWriter(access_log, on_loss)
        self.is_ready = True
        self._refusals: dict[tuple[int, str, str, int], tuple[Endpoint, bytes]] = {}
        """Answers with ~ for the request's id, by status, message, path and the id's length."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        target_host, path = plain_target(scope["path"])
        scope = {**scope, "path": path, "target_host": target_host}
        state = scope.get("state", {})
        start = state.get("arrived") or time.monotonic()
        headers = headers_of(scope)
        request_id = request_id_of(headers)
        line: dict[str, Any] = {"request_id": request_id, "method": scope["method"][:16], "path": "?"}
        patience: float | None = SEND_SECONDS
        try:
            reply = await self._answer(scope, headers, receive, start, line)
        except ClientGone:
            self.access_log.write_access({**line, "status": 499, "seconds": round(time.monotonic() - start, 4)})
            return
        except asyncio.CancelledError:  # the time to stop is over: what is sent must not wait
            patience = None
            late = unavailable("the server has stopped. Use another one.")
            reply = Reply(refusal_json(late, scope["path"], request_id), late.headers(), late.status)
        except Exception as error:
            reply = self._reply_to_error(error, scope["path"], request_id)
        finally:
            if (place := state.get("place")) is not None:
                place.leave()
                self.admission.start_held()
        seconds = time.monotonic() - start
        self.admission.metrics.count_response(reply.status)
        self.admission.metrics.observe("te_request_duration", seconds)
        self.access_log.write_access({**line, "status": reply.status, "seconds": round(seconds, 4)})
        await self._send(reply, request_id, scope, send, patience)

    def _reply_to_error(self, error: Exception, path: str, request_id: str) -> Reply:
        """Answer a refused, invalid or failed request; a failure (a bug, or an error in the network) is logged."""
        if isinstance(error, Refusal):
            return Reply(refusal_json(error, path, request_id), error.headers(), error.status)
        if isinstance(error, MegabertError):
            return Reply(refusal_json(Refusal(422, str(error)), path, request_id), status=422)
        # Each request ends here, so that the server survives.
        detail = str(error) if isinstance(error, ModelFailure) else "".join(traceback.format_exception(error))
        self.error_log.write(f"megabert: request {request_id} failed: {detail}")
        failure = Refusal(500, f"the server failed; its log names the request {request_id}.", kind="Backend")
        return Reply(refusal_json(failure, path, request_id), status=500)

    def refuse_unparsed(self, refusal: Refusal, path: str, request_id: str) -> bytes:
        """Return the refusal of a whole request as bytes, counted and logged. Raises Refusal for no route."""
        path = plain_target(path)[1]
        key = refusal.status, refusal.message, path, len(request_id)
        if key not in self._refusals:
            if len(self._refusals) >= MAX_KEPT_REFUSALS:
                self._refusals.clear()
            self._refusals[key] = self._find("POST", path)[0], self._refusal_bytes(refusal, path, "~" * key[-1])
        endpoint, answer = self._refusals[key]
        metrics = self.admission.metrics
        metrics.add(f'megabert_requests_total{{route="{endpoint.group}"}}')
        metrics.count_response(refusal.status)
        metrics.observe("te_request_duration", 0.0)
        line = {"request_id": request_id, "method": "POST", "path": endpoint.path, "status": refusal.status}
        self.access_log.write_access({**line, "seconds": 0.0})
        return answer.replace(b"~" * len(request_id), request_id.encode())

    def _refusal_bytes(self, refusal: Refusal, path: str, request_id: str) -> bytes:
        reply = Reply(refusal_json(refusal, path, request_id), refusal.headers(), refusal.status)
        body = reply.body()
        lines = [f"{name}: {value}\r\n" for name, value in self._headers(reply, body, request_id).items()]
        return f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n{''.join(lines)}\r\n".encode() + body

    async def _answer(
        self, scope: Any, headers: Mapping[str, str], receive: Any, start: float, line: dict[str, Any]
    ) -> Reply:
        place: WaitingPlace | None = scope.get("state", {}).get("place")
        self.guard.check(scope, headers)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        endpoint, parts = self._find(method, scope["path"])
        line["path"] = endpoint.path
        self.admission.metrics.add(f'megabert_requests_total{{route="{endpoint.group}"}}')
        if method == "POST" and place is None:
            self.admission.check()
        body = await read_body(headers, receive, self.admission, is_whole=place is not None)
        try:
            parsed = parse_body(bytes(body)) if method == "POST" and endpoint.reads_json else {}
            fields = read_fields(parsed, endpoint.fields, are_all=endpoint.are_all_fields)
            call = Call(fields, parts, headers, bytes(body), self, _until_gone(receive), start, place)
            reply = await endpoint.handler(call)
        finally:
            self.admission.held_bytes -= len(body)
        reply.headers = {**call.timings(), **reply.headers}
        self._account(call, line)
        return reply

    def close(self) -> None:
        """Stop the threads, and write what is to be logged."""
        self.admission.close()
        self.access_log.close()
        self.error_log.close()

    def _find(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
        allowed = []
        for endpoint in self.endpoints:
            parts = endpoint.match(path)
            if parts is not None:
                if endpoint.method == method:
                    return endpoint, parts
                allowed.append(endpoint.method)
        if allowed:
            raise Refusal(405, f"this route takes {' and '.join(allowed)}.", allowed=allowed)
        raise Refusal(404, "there is no such route; /docs lists them.")

    def _account(self, call: Call, line: dict[str, Any]) -> None:
        if call.work is not None:
            metrics = self.admission.metrics
            metrics.add("megabert_tokens_total", call.work.tokens)
            metrics.add("megabert_windows_total", call.work.windows)
            metrics.observe("te_request_queue_duration", call.work.queue_seconds)
            metrics.observe("te_request_inference_duration", call.work.inference_seconds)
            line |= {"tokens": call.work.tokens, "windows": call.work.windows}

    def _headers(self, reply: Reply, body: bytes, request_id: str) -> dict[str, str]:
        own = {"x-request-id": request_id, **reply.headers}
        headers = {"content-type": reply.media_type, "content-length": str(len(body)), **SAFE, **own}
        headers.setdefault("content-security-policy", NO_PAGE)
        if self.admission.is_draining or reply.status in (408, 413, 431):
            headers["connection"] = "close"
        else:
            headers["keep-alive"] = f"timeout={self.admission.limits.idle_seconds:.0f}"
        return headers

    async def _send(self, reply: Reply, request_id: str, scope: Any, send: Any, patience: float | None) -> None:
        body = reply.body()
        headers = self._headers(reply, body, request_id)
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
            for first in range(0, max(len(body), 1), SEND_BYTES):
                part = {"body": body[first : first + SEND_BYTES], "more_body": first + SEND_BYTES < len(body)}
                await asyncio.wait_for(send({"type": "http.response.body", **part}), patience)
        except TimeoutError:
            scope["state"]["abort"]()


def _until_gone(receive: Any) -> Callable[[], Awaitable[None]]:
    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return wait
