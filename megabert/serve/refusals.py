"""Refused requests: status, kind and message, and their JSON in the protocol of the route."""

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import MegabertError

RETRY_AFTER_SECONDS = 1


class Refusal(MegabertError):  # noqa: N818  (an answer, not a failure of the server)
    """A request that gets no result. `kind` is TEI's error_type; `field` is the field of the request at fault.

    `allowed` are the methods that the route takes instead.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "Validation",
        field: str | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.field, self.allowed = status, message, kind, field, allowed

    def headers(self) -> dict[str, str]:
        """Return when to try again, and which methods there are, where that makes sense."""
        if self.allowed:
            return {"allow": ", ".join(self.allowed)}
        return {"retry-after": str(RETRY_AFTER_SECONDS)} if self.status in (429, 503) else {}


class ClientGone(Exception):  # noqa: N818  (control flow, not an error)
    """The client closed the connection: nobody reads an answer."""


def invalid(message: str, field: str | None = None) -> Refusal:
    """Make the refusal of a request with an invalid value."""
    return Refusal(422, message, field=field)


def overloaded(message: str) -> Refusal:
    """Make the refusal of a request that does not fit into the queue."""
    return Refusal(429, message, kind="Overloaded")


def unavailable(message: str) -> Refusal:
    """Make the refusal of a request that came too late: deadline or shutdown."""
    return Refusal(503, message, kind="Unhealthy")


def too_large(message: str, field: str | None = None) -> Refusal:
    """Make the refusal of a request above a limit of size."""
    return Refusal(413, message, field=field)


def _plain(refusal: Refusal, request_id: str) -> dict[str, Any]:
    field = {"field": refusal.field} if refusal.field else {}
    return {"error": refusal.message, "error_type": refusal.kind, **field, "request_id": request_id}


def _openai(refusal: Refusal, request_id: str) -> dict[str, Any]:
    kind = "invalid_request_error" if refusal.status < 429 else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.field, "code": refusal.kind.lower()}
    return {"error": error, "request_id": request_id}


def _kserve(refusal: Refusal, request_id: str) -> dict[str, Any]:
    return {"error": refusal.message}


# A part of a path -> the shape of its errors
SHAPES: tuple[tuple[str, Callable[[Refusal, str], dict[str, Any]]], ...] = (
    ("/v1/embeddings", _openai),
    ("/v1/models", _openai),
    ("/v1/chat/", _openai),
    ("/v1/completions", _openai),
    ("/v2/models", _kserve),
    ("", _plain),
)


def refusal_json(refusal: Refusal, path: str, request_id: str) -> dict[str, Any]:
    """Return the JSON of a refusal, as clients of the route expect it."""
    return next(shape for start, shape in SHAPES if start in path)(refusal, request_id)
