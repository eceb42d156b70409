"""Requests for a server, well-formed and malformed: of the HTTP, the JSON, Unicode, numbers, depth, fields."""

import json
import re

ROUTES = (
    "/v1/entities",
    "/v1/documents",
    "/embed",
    "/v1/embeddings",
    "/tokenize",
    "/decode",
    "/v2/models/m/infer",
    "/models/m",
    "/plain",
    "/v1/predict",
    "/similarity",
    "/v1/rerank",
    "/nowhere",
    "/v1/answers",
    "/info",
)
METHODS = ("FOO", "PUT", "TRACE", "CONNECT", "OPTIONS")
PATHS = ("/../../etc/passwd", "/%00", "/%ff", "//a", "*", "/models/%2e%2e", "/?a=" + "b" * 9999)
FIELDS = (
    "text",
    "inputs",
    "input",
    "model",
    "truncate",
    "tokens",
    "id",
    "labels",
    "content",
    "query",
    "texts",
    "ids",
    "raw_scores",
    "format",
    "models",
    "pairs",
    "dimensions",
    "parameters",
    "outputs",
    "documents",
    "top_n",
)
VALUES = (
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    1e308,
    "",
    " ",
    "m",
    "x" * 9999,
    [],
    {},
    [[]],
    ["a", 1],
    {"a": {}},
    "\0",
    "\u202e",
    ["Peter"] * 40,
    [[1, 2], [3]],
    [-1],
    [10**9],
    "Peter \U0001f600",
    "\ufeff",
    "e\u0301" * 50,
    [["a", "b"]],
    {"source_sentence": "a", "sentences": ["b"]},
    [{"text": "Peter"}],
    [{"name": "text", "datatype": "BYTES", "shape": [1], "data": "a"}],
)


def request(method, path, body=None, head=""):
    """Encode a request."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}{head}\r\n".encode() + data


def hostile_request(draw):
    """Make a malformed request: of the HTTP or of the body."""
    kind = draw.choice((_hostile_http, hostile_json, hostile_json, hostile_fields, hostile_fields))
    if kind is _hostile_http:
        return _hostile_http(draw)
    method = "POST" if kind is hostile_json else draw.choice(("POST", "POST", "POST", "GET", "HEAD"))
    return request(method, draw.choice(ROUTES), kind(draw))


def hostile_fields(draw):
    """Make a JSON body whose fields have values of the wrong types."""
    return json.dumps({draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.randint(0, 4))}).encode()


def hostile_json(draw):
    """Make a body that is malformed, too deep or too large."""
    good = json.dumps({"text": "Peter lives in Paris", "id": "1"}, ensure_ascii=False).encode()
    depth = draw.choice((33, 500, 20_000, 100_000))
    changed = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return draw.choice(
        (
            bytes(changed),
            bytes(changed),
            good[: draw.randrange(len(good))],
            b'{"text": ' + b"[" * depth + b"]" * depth + b"}",
            b'{"a":' * depth + b"1" + b"}" * depth,
            b'{"text": "\\ud800"}',
            b'{"text": "\xed\xa0\x80"}',
            b'{"text": "\xc0\xaf"}',
            b'{"text": NaN}',
            b'{"text": -Infinity}',
            b'{"inputs": ' + draw.choice((b"1e999", b"9" * 6000, b"-0", b"0x1", b"1.")) + b"}",
            b'{"text": "a", "text": "b"}',
            good.decode().encode("utf-16"),
            b"\xef\xbb\xbf" + good,
            good + good,
            b"[]",
            b"",
            b"null",
            b'{"text": "' + "\U0001f600\u0301\u200d".encode() * draw.randint(1, 3000) + b'"}',
            draw.randbytes(50),
        )
    )


def _hostile_http(draw):
    good = request("POST", "/v1/entities", {"text": "Peter"})
    head, end = good.partition(b"\r\n\r\n")[0], b"\r\n\r\n"
    short = re.sub(rb"Content-Length: \d+\r\n", b"", good.partition(end)[0] + b"\r\n")
    return draw.choice(
        (
            bytes(byte if draw.random() > 0.03 else draw.randrange(256) for byte in good),
            good[: draw.randrange(len(good))],
            good + good[: draw.randrange(len(good))],
            b"GET /\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"\r\n" * 50,
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            head + b"\r\na: " + b"b" * draw.choice((9000, 70_000)) + end,
            head + b"\r\n" + b"a: b\r\n" * draw.choice((99, 101, 3000)) + b"\r\n",
            short + b"Content-Length: -5" + end,
            short + b"Content-Length: 5, 6" + end,
            short + b"Content-Length: 99999999999999999999" + end,
            short + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n{\r\n" * draw.choice((3, 3000)) + b"0\r\n\r\n",
            short + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            short + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            short + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            short + b"Expect: 100-continue\r\nContent-Length: 2" + end,
            f"{draw.choice(METHODS)} /x HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            f"GET {draw.choice(PATHS)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
            head.replace(b"localhost", draw.choice((b"evil.example", b"", b"localhost:x", b"[::1"))) + end,
            head + b"\r\n continued" + end,
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            head + b"\r\nOrigin: " + draw.choice((b"null", b"http://evil.example", b"http://[")) + end + b"{}",
            draw.randbytes(200),
        )
    )
