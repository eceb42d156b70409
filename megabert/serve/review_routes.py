"""The server of a review: its page, documents one at a time, and decisions, each saved before it is answered.

A request names documents by number and opens no file: the files were chosen when the server started.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..correction.decisions import DECISIONS, UNDO, ReviewState, decision_of
from ..correction.review_store import Outdated, ReviewStore
from ..errors import InputError
from .admission import Admission
from .hosted_models import ModelCatalog
from .http_application import Call, Endpoint, HttpApplication, Reply
from .page_routes import page_endpoints
from .refusals import Refusal, invalid
from .request_fields import RequestField
from .request_guard import RequestGuard
from .server import HttpServer, address_of, listen
from .server_metrics import ServerMetrics
from .server_parts import ServeSettings

REVIEW_PAGE = Path(__file__).with_name("review.html")
DECISION_FIELDS = (
    RequestField("revision", "integer", "The document's revision that the decision is about."),
    RequestField("decision", "string", "What was decided.", choices=(*DECISIONS, UNDO)),
    RequestField("entity", "string", "The entity, of accept, reject and change.", None),
    RequestField("type", "string", "Its new type, of change and add.", None),
    RequestField("start", "integer", "Its first character (code point), of change and add.", None),
    RequestField("end", "integer", "The end of its last character.", None),
    RequestField("who", "string", "The annotator's name.", ""),
)


def review_endpoints(store: ReviewStore, types: Sequence[str]) -> list[Endpoint]:
    """Return the routes of a review; new entities have one of the types."""

    async def overview(call: Call) -> Reply:
        documents = [_summary(number, states[-1]) for number, states in enumerate(store.history)]
        return Reply({"types": list(types), "output": store.output.name, "documents": documents})

    async def show(call: Call) -> Reply:
        number = _number(call, store)
        return Reply(state_json(number, store.state(number)))

    async def decide(call: Call) -> Reply:
        number, fields = _number(call, store), call.fields
        if fields["type"] is not None and fields["type"] not in types:
            raise invalid(f"{fields['type'][:40]!r} is no type of this review: {', '.join(types)}.", "type")

        def save(_: Any) -> ReviewState:
            return store.decide(number, fields["revision"], decision_of(fields), fields["who"])

        try:
            return Reply(state_json(number, await call.compute(save)))
        except Outdated as error:
            raise Refusal(409, str(error), field="revision") from None
        except InputError as error:
            raise invalid(str(error)) from None
        except OSError as error:
            raise Refusal(500, f"The decision cannot be saved: {error.strerror}.", kind="Backend") from None

    return [
        Endpoint("GET", "/v1/review", overview, "List documents and types.", "documents",
                 answer="types, documents: [{number, id, entities, open, revision, finished}]"),
        Endpoint("GET", "/v1/review/{number}", show, "Show a document.", "documents", answer="text, entities"),
        Endpoint("POST", "/v1/review/{number}", decide, "Save a decision.", "documents", DECISION_FIELDS, True,
                 answer="the document after it"),
    ]  # fmt: skip


def serve_review(
    store: ReviewStore, types: Sequence[str], settings: ServeSettings, on_start: Callable[[str], None]
) -> None:
    """Serve the page and the documents until SIGTERM or Ctrl-C; `on_start` takes the address."""
    listener = listen(settings)
    application = make_review_application(store, types, settings)
    HttpServer(application, settings).serve_socket(listener, partial(on_start, address_of(listener)))


def make_review_application(store: ReviewStore, types: Sequence[str], settings: ServeSettings) -> HttpApplication:
    """Build the application, without models."""
    admission = Admission(settings.limits, ModelCatalog([], host_threads=settings.host_threads), ServerMetrics())
    guard = RequestGuard(settings.hosts, settings.key_digest)
    endpoints = page_endpoints(review_endpoints(store, types), REVIEW_PAGE)
    return HttpApplication(endpoints, admission, guard, access_log=settings.access_log)


def _number(call: Call, store: ReviewStore) -> int:
    word = call.path["number"]
    if not (word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < len(store.history)):
        raise Refusal(404, f"there is no such document; they are numbered from 0 to {len(store.history) - 1}.")
    return int(word)


def _summary(number: int, state: ReviewState) -> dict[str, Any]:
    return {
        "number": number, "id": state.document.id, "entities": len(state.entities), "open": len(state.open),
        "revision": state.revision, "finished": state.is_finished,
    }  # fmt: skip


def state_json(number: int, state: ReviewState) -> dict[str, Any]:
    """Return a document under review as plain values, offsets in code points."""
    entities = [
        {"id": item.id, "type": item.type, "text": item.text, "start": item.start, "end": item.end,
         "score": item.score, "identifier": item.identifier, "open": item.id in state.open}
        for item in sorted(state.entities, key=lambda item: (item.start, item.end))
    ]  # fmt: skip
    return {**_summary(number, state), "text": state.document.text(), "entities": entities}
