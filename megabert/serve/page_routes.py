"""Pages and state of the server: the page, the description of the routes (OpenAPI), health, models, metrics."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .http_application import Call, Endpoint, Reply
from .refusals import unavailable
from .request_fields import REQUIRED

PAGE = Path(__file__).with_name("page.html")
_ERROR = {"description": "An error: {error, error_type, field, request_id}, or that of the protocol."}
STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}code{background:#8882}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0}"  # noqa: E501


def page_endpoints(others: Sequence[Endpoint], file: Path = PAGE) -> list[Endpoint]:
    """Return the routes; / is the page of a file, /openapi.json and /docs describe them and the others."""
    endpoints: list[Endpoint] = []
    page = file.read_bytes()
    policy = content_policy(page.decode())
    html_type = "text/html; charset=utf-8"

    async def show_page(call: Call) -> Reply:
        return Reply(page, {"content-security-policy": policy}, media_type=html_type)

    async def show_openapi(call: Call) -> Reply:
        return Reply(openapi(endpoints))

    async def show_docs(call: Call) -> Reply:
        document = docs_page(endpoints)
        return Reply(document.encode(), {"content-security-policy": content_policy(document)}, media_type=html_type)

    endpoints += [
        Endpoint("GET", "/", show_page, "The page."),
        Endpoint("GET", "/docs", show_docs, "This list."),
        Endpoint("GET", "/openapi.json", show_openapi, "It as OpenAPI 3.1."),
        Endpoint("GET", "/v1/models", _models, "List the models.", answer="data: [{id, task, fields, labels}]"),
        Endpoint("GET", "/v1/models/{model}", _model, "Describe a model.", answer="id, task, fields, labels"),
        *(Endpoint("GET", path, _ready, "200 if it takes requests.") for path in ("/health", "/ping", "/ready")),
        Endpoint("GET", "/live", _live, "200 while the process runs."),
        Endpoint("GET", "/metrics", _metrics, "Prometheus' metrics."),
        *others,
    ]  # fmt: skip
    return endpoints


def content_policy(document: str) -> str:
    """Return the policy of a page: its own inline script and style by their hashes, requests to this server only."""
    rules = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        if hashes:
            rules.append(" ".join([name, *(f"'sha256-{item}'" for item in hashes)]))
    return "; ".join(rules)


async def _models(call: Call) -> Reply:
    models = [model.description() for model in call.catalog.models.values()]
    linkers = [linker.description() for linker in call.catalog.linkers.values()]
    created = {"created": call.app.created}
    return Reply({"object": "list", "data": [item | created for item in (*models, *linkers)]})


async def _model(call: Call) -> Reply:
    linker = call.catalog.linkers.get(call.path["model"])
    description = (linker or call.catalog.find(call.path["model"])).description()
    return Reply(description | {"created": call.app.created})


async def _ready(call: Call) -> Reply:
    if call.app.admission.is_draining or not call.app.is_ready:
        raise unavailable("the server does not take requests now.")
    return Reply({"status": "ready"})


async def _live(call: Call) -> Reply:
    return Reply({"status": "live"})


async def _metrics(call: Call) -> Reply:
    text = call.app.admission.metrics.text()
    return Reply(text.encode(), media_type="text/plain; version=0.0.4; charset=utf-8")


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Describe the routes as OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        names = re.findall(r"\{(\w+)\}", endpoint.path)
        operation: dict[str, Any] = {
            "summary": endpoint.summary,
            "parameters": [_path_parameter(name) for name in names],
            "responses": {"200": {"description": endpoint.answer or "Success."}, "4XX": _ERROR, "5XX": _ERROR},
        }  # fmt: skip
        if endpoint.fields:
            schema = {
                "type": "object",
                "properties": {field.name: field.schema() for field in endpoint.fields},
                "required": [field.name for field in endpoint.fields if field.default is REQUIRED],
                "additionalProperties": not endpoint.are_all_fields,
            }  # fmt: skip
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {"openapi": "3.1.0", "info": {"title": "megabert", "version": __version__}, "paths": paths}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def docs_page(endpoints: Sequence[Endpoint]) -> str:
    """Describe the routes as a page that needs no network."""
    escape = html.escape
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>megabert: routes</title>",
        f"<style>{STYLE}</style>",
    ]
    parts.append('<h1>Routes</h1><p>As <a href="/openapi.json">OpenAPI</a>. <a href="/">The page</a>.</p>')
    for endpoint in endpoints:
        parts.append(
            f"<h2><code>{endpoint.method} {escape(endpoint.path)}</code></h2><p>{escape(endpoint.summary)}</p>"
        )
        rows = [
            f"<tr><td><code>{escape(field.name)}</code><td>{escape(field.kind)}<td>{escape(field.help)}"
            f"<td>{'' if field.default is None or not _is_plain(field.default) else escape(json.dumps(field.default))}"
            for field in endpoint.fields
        ]
        parts += ["<table><tr><th>field<th>kind<th>meaning<th>default", *rows, "</table>"] if rows else []
        parts += [f"<p>Answer: {escape(endpoint.answer)}</p>"] if endpoint.answer else []
    return "".join(parts)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | str)
