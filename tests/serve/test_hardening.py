"""Requests that no client should send: fuzzed, foreign, huge, slow; a key; what an address needs."""

import hashlib
import random
import socket
import time

import pytest

from megabert.errors import ConfigError
from megabert.serve.admission import ServerLimits
from megabert.serve.request_guard import host_name
from megabert.serve.server import check_address
from tests.fuzz.http_requests import hostile_fields, hostile_json
from tests.serve.running_server import load_runs, running

HEAD = "POST /v1/entities HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
QUICK = ServerLimits(header_seconds=0.4, body_seconds=0.4, idle_seconds=1, max_body_bytes=20_000)


@pytest.fixture(scope="module")
def small():
    with running(load_runs("ner"), limits=QUICK, key_digest=hashlib.sha256(b"the key").digest()) as found:
        yield found


def raw(server, data, *, seconds=5.0, is_open=False):
    """Send bytes and return all that comes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as client:
        received = b""
        try:
            client.sendall(data)
            if not is_open:
                client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                received += part
        except OSError:
            pass
        return received


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


def test_fuzzed_json_is_answered_and_never_with_an_error_of_the_server(server):
    draw = random.Random(1)
    routes = ("/v1/entities", "/v1/answers", "/v1/zero-shot", "/v1/relations", "/v1/documents", "/models/ner/embed",
              "/models/pairs/rerank", "/models/classes/predict", "/v1/embeddings", "/v1/rerank", "/models/ner/tokenize",
              "/v2/models/ner/infer", "/models/zero", "/plain", "/v1/predict", "/models/ner/decode")  # fmt: skip
    for number in range(400):
        body = draw.choice((hostile_json, hostile_fields))(draw)
        status, _, answer = server.call("POST", routes[number % len(routes)], body)
        assert status in (200, 400, 404, 413, 422), (status, body[:200], answer)
    assert server.metric('megabert_responses_total{status="500"}') == 0


def test_heads_are_bounded(server):
    assert (
        status_of(raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 120 + b"\r\n", is_open=True))
        == 431
    )
    assert status_of(raw(server, b"GET / HTTP/1.1\r\nA: " + b"a" * 40_000)) == 431


def test_pages_of_other_sites_are_refused(server):
    good = {"text": "Peter", "model": "ner"}
    for headers, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": f"http://127.0.0.1:{server.port}"}, 200),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": f"localhost:{server.port}"}, 200),
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_encoding": "gzip"}, 415),
    ):
        found, answered, _ = server.call("POST", "/v1/entities", good, **headers)
        assert found == status, headers
        assert not [name for name in answered if name.startswith("access-control")]
    _, headers, _ = server.call("GET", "/")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert server.call("OPTIONS", "/v1/entities")[0] == 405
    assert [host_name(host) for host in ("localhost:80", "[::1]:80", "a b", "localhost.", "")] == [
        "localhost",
        "::1",
        "",
        "localhost",
        "",
    ]


def test_a_key_is_needed_but_for_health_and_the_page(small):
    assert [small.call("GET", path)[0] for path in ("/", "/health", "/live", "/docs")] == [200] * 4
    assert [small.call("GET", path)[0] for path in ("/metrics", "/v1/models", "/models/ner/info")] == [401] * 3
    for value in ("", "Bearer", "Bearer wrong", "Basic the key", "Bearer th\xe9"):
        assert small.call("POST", "/v1/entities", {"text": "Peter"}, authorization=value)[0] == 401
    assert small.call("POST", "/v1/entities", {"text": "Peter"}, authorization="Bearer the key")[0] == 200


def test_an_address_that_others_reach_needs_a_key():
    with pytest.raises(ConfigError, match="MEGABERT_API_KEY"):
        check_address("0.0.0.0", None, [], is_open=False)
    assert check_address("0.0.0.0", b"digest", [], is_open=False)["hosts"] is None
    assert "models.example" in check_address("0.0.0.0", b"digest", ["models.example"], is_open=False)["hosts"]
    assert check_address("127.0.0.1", None, [], is_open=False)["host"] == "127.0.0.1"


def test_slow_and_silent_clients_are_closed_while_others_are_served(small):
    address = ("127.0.0.1", small.port)
    key = "Authorization: Bearer the key\r\n"
    starts = [
        b"",
        b"GET /hea",
        f"{HEAD}{key}Content-Length: 99\r\n\r\n{{".encode(),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    clients = []
    for number in range(40):
        client = socket.create_connection(address, timeout=120)
        client.sendall(starts[number % len(starts)])
        clients.append(client)
    begun = time.monotonic()
    assert small.call("GET", "/health")[0] == 200
    received = []
    for client in clients:
        data = b""
        while part := client.recv(65536):
            data += part
        received.append(data)
        client.close()
    assert time.monotonic() - begun < 60
    assert {status_of(data) for data in received[2::4]} == {408}
    assert {status_of(data) for data in received[3::4]} == {200}
    assert set(received[0::4] + received[1::4]) == {b""}


def test_bodies_are_bounded(small):
    key = {"authorization": "Bearer the key"}
    assert small.call("POST", "/v1/entities", {"text": "a" * 30_000}, **key)[0] == 413
    chunked = (
        f"{HEAD}Authorization: Bearer the key\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"4000\r\n"
        + b"a" * 0x4000
        + b"\r\n"
    )
    assert status_of(raw(small, chunked + b"4000\r\n" + b"a" * 0x4000 + b"\r\n0\r\n\r\n", is_open=True)) == 413
    assert small.server.application.admission.held_bytes == 0
