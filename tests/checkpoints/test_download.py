"""Downloads from a real local server whose misbehaviour is scripted."""

import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.checkpoints.download import ATTEMPTS, Downloaded, DownloadError, download, locked
from megabert.errors import CheckpointError

CONTENT = random.Random(0).randbytes(700_001)  # more than two blocks, and not a multiple of one
SHA256 = hashlib.sha256(CONTENT).hexdigest()


# --- the server ---


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.seen.append({name.lower(): value for name, value in self.headers.items()})
        behave = self.server.script.pop(0) if self.server.script else honest
        behave(self)

    def answer(self, status: int, headers: dict[str, object], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.server.num_bytes_sent += len(body)  # before sending: the client may finish before this thread continues
        with suppress(OSError):  # the client may hang up in a test
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


Behaviour = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """Serves `content`; each request takes the next behaviour of `script`, or else the default."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.versions: dict[str, object] = {"ETag": '"one"'}
        self.seen: list[dict[str, str]] = []
        self.script: list[Behaviour] = []
        self.num_bytes_sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


def honest(handler: Handler, *, keep: int | None = None) -> None:
    """Respond as RFC 9110 defines, but close the connection after `keep` bytes of the body."""
    server, request = handler.server, handler.server.seen[-1]
    match = re.fullmatch(r"bytes=(\d+)-", request.get("range", ""))
    if match is None or request.get("if-range") not in (None, *server.versions.values()):
        body, status, headers = server.content, 200, {}
    else:
        start, total = int(match[1]), len(server.content)
        if start >= total:
            handler.answer(416, {"Content-Range": f"bytes */{total}"})
            return
        body, status = server.content[start:], 206
        headers = {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
    handler.answer(status, headers | server.versions | {"Content-Length": len(body)}, body[:keep])


def breaks_off(keep: int) -> Behaviour:
    return lambda handler: honest(handler, keep=keep)


def answers(status: int, body: bytes = b"", **headers: object) -> Behaviour:
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, {"Content-Length": len(body)} | dashed, body)


def ignores_range(handler: Handler) -> None:
    content = handler.server.content
    handler.answer(200, handler.server.versions | {"Content-Length": len(content)}, content)


def ignores_if_range(handler: Handler) -> None:
    del handler.server.seen[-1]["if-range"]
    honest(handler)


def changes_the_file(content: bytes, then: Behaviour) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.server.content = content
        handler.server.versions = {"ETag": '"two"'}
        then(handler)

    return behave


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    with Server(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT) as running:
        yield running


@dataclass
class Client:
    """Downloads to `path` without ever sleeping; `waits` are the seconds it would have slept."""

    path: Path
    waits: list[float] = field(default_factory=list)

    def get(self, server: Server, **options: Any) -> Downloaded:
        defaults: dict[str, Any] = {"progress": lambda received, total: None, "timeout": 5.0}
        return download(server.url, self.path, sleep=self.waits.append, **(defaults | options))

    def leftovers(self) -> set[str]:
        return {entry.name for entry in self.path.parent.iterdir()} - {f".{self.path.name}.lock"}


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "folder" / "file.bin")


# --- A correct server ---


def test_a_complete_file_is_returned_with_size_and_sha256(server: Server, client: Client) -> None:
    reports: list[tuple[int, int | None]] = []
    actual = client.get(server, progress=lambda *report: reports.append(report))
    assert actual == Downloaded(len(CONTENT), SHA256)
    assert client.path.read_bytes() == CONTENT
    assert client.leftovers() == {"file.bin"}
    assert server.seen[0]["accept-encoding"] == "identity"
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert reports == sorted(reports)


def test_permissions_are_those_of_the_umask(server: Server, client: Client) -> None:
    previous = os.umask(0o027)
    try:
        client.get(server)
    finally:
        os.umask(previous)
    assert client.path.stat().st_mode & 0o777 == 0o640


def test_an_existing_file_is_verified_instead_of_downloaded(server: Server, client: Client) -> None:
    client.path.parent.mkdir()
    client.path.write_bytes(CONTENT)
    assert client.get(server, expected_sha256=SHA256) == Downloaded(len(CONTENT), SHA256)
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256}, but {'0' * 64} is expected"):
        client.get(server, expected_sha256="0" * 64)
    assert server.seen == []
    assert client.path.exists()  # not to be removed


def test_redirections_are_followed(server: Server, client: Client) -> None:
    server.script = [answers(302, Location="/elsewhere"), answers(307, Location=server.url)]
    assert client.get(server).sha256 == SHA256
    assert len(server.seen) == 3


def test_a_body_of_unknown_length_is_accepted(server: Server, client: Client) -> None:
    server.script = [lambda handler: handler.answer(200, {}, CONTENT)]
    assert client.get(server).sha256 == SHA256


# --- broken connections ---


def test_a_broken_download_fetches_only_the_rest(server: Server, client: Client) -> None:
    server.script = [breaks_off(300_000)]
    assert client.get(server).sha256 == SHA256
    assert [(seen.get("range"), seen.get("if-range")) for seen in server.seen] == [
        (None, None),
        ("bytes=300000-", '"one"'),
    ]
    assert server.num_bytes_sent == len(CONTENT)
    assert client.waits == [1.0]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 3000), max_size=ATTEMPTS - 1), content=st.binary(min_size=1, max_size=4000))
def test_a_break_at_any_byte_resumes_without_loss_or_duplicates(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], content: bytes
) -> None:
    client = Client(tmp_path_factory.mktemp("cuts") / "file.bin")
    with serving(content) as server:
        server.script = [breaks_off(cut) for cut in cuts]
        actual = client.get(server)
    assert client.path.read_bytes() == content
    assert actual == Downloaded(len(content), hashlib.sha256(content).hexdigest())
    assert server.num_bytes_sent == len(content)


def test_after_ctrl_c_the_next_call_resumes(server: Server, client: Client) -> None:
    def interrupt(received: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.get(server, progress=interrupt)
    assert client.leftovers() == {"file.bin.part", "file.bin.part.json"}
    kept = (client.path.parent / "file.bin.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    assert client.get(server).sha256 == SHA256
    assert server.seen[-1]["range"] == f"bytes={kept}-"
    assert client.path.read_bytes() == CONTENT


def test_a_complete_part_of_a_killed_process_is_only_renamed(server: Server, client: Client) -> None:
    client.path.parent.mkdir()
    client.path.with_name("file.bin.part").write_bytes(CONTENT)
    version = {"url": server.url, "etag": '"one"', "total": len(CONTENT)}
    client.path.with_name("file.bin.part.json").write_text(json.dumps(version))
    assert client.get(server).sha256 == SHA256
    assert server.seen == []
    assert client.leftovers() == {"file.bin"}


def test_the_version_of_a_file_that_was_renamed_when_its_process_was_killed_is_removed(
    server: Server, client: Client
) -> None:
    client.path.parent.mkdir()
    client.path.write_bytes(CONTENT)
    client.path.with_name("file.bin.part.json").write_text(json.dumps({"url": server.url, "etag": '"one"'}))
    assert client.get(server).sha256 == SHA256
    assert server.seen == []
    assert client.leftovers() == {"file.bin"}


OTHER_ADDRESS = '{"url": "https://example.org/other", "etag": "\\"one\\""}'


@pytest.mark.parametrize("note", ["", "{", "[]", '{"unknown": 1}', OTHER_ADDRESS])
def test_a_part_of_unknown_origin_is_not_used(server: Server, client: Client, note: str) -> None:
    client.path.parent.mkdir()
    client.path.with_name("file.bin.part").write_bytes(b"something else")
    client.path.with_name("file.bin.part.json").write_text(note)
    assert client.get(server).sha256 == SHA256
    assert "range" not in server.seen[0]


def test_a_version_file_without_its_part_is_not_used(server: Server, client: Client) -> None:
    client.path.parent.mkdir()
    client.path.with_name("file.bin.part.json").write_text(json.dumps({"url": server.url, "etag": '"one"'}))
    assert client.get(server).sha256 == SHA256


def test_a_truncated_chunked_body_is_detected(server: Server, client: Client) -> None:
    def cut(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.answer(200, {"Transfer-Encoding": "chunked"}, b"10\r\nonly this")

    server.script = [cut]
    assert client.get(server).sha256 == SHA256
    assert len(server.seen) == 2


def test_a_silent_server_times_out_and_is_retried(server: Server, client: Client) -> None:
    server.script = [lambda handler: time.sleep(1.5)]
    assert client.get(server, timeout=1.0).sha256 == SHA256
    assert client.waits == [1.0]


def test_no_connection_fails_at_once(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match=r"file\.bin: no connection \(.*refused"):
            download(url, client.path, sleep=client.waits.append)
    assert client.waits == []
    assert client.leftovers() == set()


def test_long_downloads_may_break_often_if_they_progress(client: Client) -> None:
    content = random.Random(1).randbytes(9 << 20)
    with serving(content) as server:
        server.script = [breaks_off((1 << 20) + 1)] * 8
        assert client.get(server).size == len(content)
    assert client.waits == [1.0] * 8


# --- Servers without ranges, and files that change ---


def test_a_server_without_ranges_is_read_from_the_start(server: Server, client: Client) -> None:
    server.script = [breaks_off(300_000), ignores_range]
    assert client.get(server).sha256 == SHA256
    assert client.path.read_bytes() == CONTENT


@pytest.mark.parametrize("then", [honest, ignores_if_range])
def test_two_versions_of_a_file_are_never_joined(server: Server, client: Client, then: Behaviour) -> None:
    new = CONTENT[::-1]
    server.script = [breaks_off(300_000), changes_the_file(new, then)]
    assert client.get(server).sha256 == hashlib.sha256(new).hexdigest()
    assert client.path.read_bytes() == new


def test_a_file_that_has_become_shorter_is_read_from_the_start(server: Server, client: Client) -> None:
    server.script = [breaks_off(300_000), changes_the_file(b"short", ignores_if_range)]
    assert client.get(server).size == len(b"short")
    assert client.path.read_bytes() == b"short"


def test_a_response_at_another_offset_is_not_appended(server: Server, client: Client) -> None:
    elsewhere = answers(206, CONTENT[:100], ETag='"one"', Content_Range=f"bytes 0-99/{len(CONTENT)}")
    server.script = [breaks_off(300_000), elsewhere]
    assert client.get(server).sha256 == SHA256


def test_answer_416_for_a_complete_part_completes_it(server: Server, client: Client) -> None:
    client.path.parent.mkdir()
    client.path.with_name("file.bin.part").write_bytes(CONTENT)
    client.path.with_name("file.bin.part.json").write_text(json.dumps({"url": server.url, "etag": '"one"'}))
    assert client.get(server).sha256 == SHA256
    assert len(server.seen) == 1


def test_a_weak_etag_is_not_sent_but_the_date_is(server: Server, client: Client) -> None:
    date = "Wed, 21 Oct 2020 07:28:00 GMT"
    server.versions = {"ETag": 'W/"one"', "Last-Modified": date}
    server.script = [breaks_off(300_000)]
    client.get(server)
    assert server.seen[1]["if-range"] == date
    assert server.num_bytes_sent == len(CONTENT)


def test_without_etag_and_date_a_broken_download_starts_over(server: Server, client: Client) -> None:
    server.versions = {}
    server.script = [breaks_off(300_000)]
    assert client.get(server).sha256 == SHA256
    assert "range" not in server.seen[1]


# --- Errors and inconsistent responses: nothing may be at the destination ---


def refused(server: Server, client: Client, message: str, **options: Any) -> None:
    with pytest.raises(DownloadError, match=message):
        client.get(server, **options)
    assert not client.path.exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_client_error_is_final(server: Server, client: Client, status: int) -> None:
    server.script = [answers(status, b"<html>no</html>")]
    refused(server, client, f"the server answers {status}")
    assert len(server.seen) == 1
    assert client.leftovers() == set()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_overloaded_server_is_retried(server: Server, client: Client, status: int) -> None:
    server.script = [answers(status)]
    assert client.get(server).sha256 == SHA256
    assert client.waits == [1.0]


def test_retry_after_is_respected_up_to_a_limit(server: Server, client: Client) -> None:
    server.script = [
        answers(503, Retry_After="7"),
        answers(503, Retry_After="86400"),
        answers(503, Retry_After="soon"),
    ]
    client.get(server)
    assert client.waits == [7.0, 60.0, 4.0]


def test_attempts_are_bounded(server: Server, client: Client) -> None:
    server.script = [answers(503)] * 99
    refused(server, client, r"503 Service Unavailable \(5 attempts in a row\)")
    assert len(server.seen) == ATTEMPTS
    assert client.waits == [1.0, 2.0, 4.0, 8.0]


def test_a_length_that_is_never_reached_is_an_error(server: Server, client: Client) -> None:
    promised = len(CONTENT) + 10
    wrong_length = answers(200, CONTENT, Content_Length=promised)
    server.script = [wrong_length] * 99
    refused(server, client, f"ended after 700,001 of {promised:,} bytes")


def test_a_length_that_is_too_small_is_an_error_where_the_size_is_known(server: Server, client: Client) -> None:
    server.script = [answers(200, CONTENT, Content_Length=1000)]
    refused(server, client, "it offers 1,000 bytes, not 700,001", expected_size=len(CONTENT))
    assert server.num_bytes_sent <= len(CONTENT)
    server.script = [answers(200, CONTENT, Content_Length=1000)]
    refused(server, client, f"but {SHA256} is expected", expected_sha256=SHA256)
    assert client.leftovers() == set()


def test_more_bytes_than_announced_are_an_error(server: Server, client: Client) -> None:
    server.script = [
        breaks_off(700_000),
        answers(206, b"xx", ETag='"one"', Content_Range=f"bytes 700000-700000/{len(CONTENT)}"),
    ]
    refused(server, client, "sends more than the 700,001 bytes")
    assert client.leftovers() == set()


def test_another_file_than_the_expected_one_is_refused(server: Server, client: Client) -> None:
    refused(server, client, f"SHA-256 {SHA256}, but {'ab' * 32} is expected", expected_sha256="ab" * 32)
    assert client.leftovers() == set()
    server.script = [lambda handler: handler.answer(200, {}, CONTENT)]
    refused(server, client, "sends more than the 5 bytes that are expected", expected_size=5)


def test_an_empty_file_is_refused(server: Server, client: Client) -> None:
    server.script = [answers(200)]
    refused(server, client, "the file is empty")


def test_a_check_can_refuse_the_file_before_it_is_moved(server: Server, client: Client) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        assert not client.path.exists()
        raise CheckpointError("not a vocabulary")

    with pytest.raises(CheckpointError, match="not a vocabulary"):
        client.get(server, check=check)
    assert client.leftovers() == set()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file.bin", "http://example.org/file.bin"])
def test_redirections_elsewhere_are_refused(server: Server, client: Client, target: str) -> None:
    server.script = [answers(302, Location=target)]
    refused(server, client, "only https|not allowed")


def test_redirections_in_a_circle_end(server: Server, client: Client) -> None:
    server.script = [answers(302, Location="/file.bin")] * 99
    refused(server, client, "the server answers 302")


def test_compressed_bodies_are_refused(server: Server, client: Client) -> None:
    server.script = [answers(200, b"?", Content_Encoding="gzip")]
    refused(server, client, "content encoding 'gzip'")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/file.bin",
        "data:text/plain,hello",
        "http://example.org/file.bin",
        "http://localhost.example.org/file.bin",
        "http://127.0.0.1:80@example.org/file.bin",
        "file.bin",
    ],
)
def test_only_encrypted_addresses_are_opened(client: Client, url: str) -> None:
    with pytest.raises(DownloadError, match="only https"):
        download(url, client.path)


# --- Hostile servers: bounded time, memory and disk, and one error ---


def sends(*pieces: bytes, pause: float = 0.0, repeat: int = 1) -> Behaviour:
    """Send raw bytes instead of a correct response."""

    def behave(handler: Handler) -> None:
        handler.close_connection = True
        with suppress(OSError):
            for piece in pieces * repeat:
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(pause)

    return behave


OK = b"HTTP/1.1 200 OK\r\n"
TRICKLES = {
    "a body of a byte now and then": sends(
        OK + b'ETag: "one"\r\nContent-Length: 700001\r\n\r\n', *[b"x"] * 90, pause=0.02
    ),
    "headers of a byte now and then": sends(OK, *[b"a"] * 90, pause=0.02),
    "endless status lines": sends(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.02, repeat=90),
}


@pytest.mark.parametrize("case", TRICKLES)
def test_a_server_that_never_pauses_and_never_ends_is_left(server: Server, client: Client, case: str) -> None:
    server.script = [TRICKLES[case]] * ATTEMPTS
    refused(server, client, "in a row", timeout=0.2)
    assert len(server.seen) == ATTEMPTS


def test_the_whole_download_has_a_longest_time(server: Server, client: Client) -> None:
    refused(server, client, "takes too long. Repeat the command", longest=0.0)
    assert client.leftovers() == {"file.bin.part", "file.bin.part.json"}
    assert client.get(server).sha256 == SHA256


@pytest.mark.parametrize("length", ["", "Content-Length: 99999999999\r\n"])
def test_an_expected_size_is_enforced_while_receiving(server: Server, client: Client, length: str) -> None:
    endless = sends(OK + length.encode() + b"\r\n", *[b"x" * 100_000] * 200)
    server.script = [endless]
    refused(server, client, "700,001", expected_size=len(CONTENT))
    assert client.leftovers() == set()


MALFORMED = {
    "many headers": OK + b"a: b\r\n" * 200 + b"\r\n",
    "a long header": OK + b"a: " + b"b" * 100_000 + b"\r\n\r\n",
    "no status": b"hello\r\n\r\n",
    "a status of letters": b"HTTP/1.1 abc\r\n\r\n",
    "nothing": b"",
    "a chunk of letters": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n",
    "a negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
    "a huge chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 60 + b"\r\nabc\r\n",
    "a long chunk header": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 100_000,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_response_is_a_failed_attempt(server: Server, client: Client, case: str) -> None:
    server.script = [sends(MALFORMED[case])]
    assert client.get(server).sha256 == SHA256
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "target",
    ["http://[::1", "http://127.0.0.1:x/", "http://127.0.0.1:99999999/", "https://" + "a" * 300 + ".com/", "//", "http:///x",
     "https://\x01/", "https://x y/", "/" + "x" * 40_000, "https://[fe80::1%eth0\u00e9]/", "", "\\"],
)  # fmt: skip
def test_a_malformed_redirection_is_one_error(server: Server, client: Client, target: str) -> None:
    server.script = [answers(302, Location=target)]
    with suppress(CheckpointError):
        client.get(server)
        assert len(server.seen) > 1  # an address on this server
    assert client.leftovers() <= {"file.bin"}


def test_the_body_of_a_redirection_is_not_read(server: Server, client: Client) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {server.url}\r\n\r\n".encode()
    server.script = [sends(head, *[b"x"] * 10_000, pause=0.01)]
    assert client.get(server).sha256 == SHA256


@pytest.mark.parametrize(
    "header", [f"bytes {'9' * 5000}-1/2", "bytes 300000-1/" + "9" * 5000, "bytes", "x", "bytes -1-2/3"]
)
def test_a_malformed_range_starts_over(server: Server, client: Client, header: str) -> None:
    server.script = [breaks_off(300_000), answers(206, b"abc", ETag='"one"', Content_Range=header)]
    assert client.get(server).sha256 == SHA256
    assert client.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "change",
    [{"etag": 3}, {"etag": '"a\nb"'}, {"etag": "\u20ac"}, {"total": "5"}, {"total": -1}, {"total": 10**30},
     {"total": True}, {"url": None}, {"etag": None, "last_modified": ["x"]}, {"more": 1}],
)  # fmt: skip
def test_a_malformed_version_file_is_not_used(server: Server, client: Client, change: dict[str, object]) -> None:
    client.path.parent.mkdir()
    client.path.with_name("file.bin.part").write_bytes(b"something else")
    version = {"url": server.url, "etag": '"one"', "total": len(CONTENT)} | change
    client.path.with_name("file.bin.part.json").write_text(json.dumps(version))
    assert client.get(server, expected_size=len(CONTENT), expected_sha256=None).size == len(CONTENT)


# --- the disk ---


def test_a_folder_that_is_not_writable_is_named(server: Server, client: Client) -> None:
    client.path.parent.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=f"Cannot write {client.path}.*MEGABERT_HOME"):
        client.get(server)


def test_a_folder_at_the_path_of_the_file_is_named(server: Server, client: Client) -> None:
    client.path.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"Cannot write {client.path}"):
        client.get(server)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX")
def test_a_full_disk_is_named_and_the_part_is_kept(server: Server, client: Client) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from megabert.checkpoints.download import download\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "download(sys.argv[1], Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, server.url, str(client.path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"CheckpointError: Cannot write {client.path}.part" in finished.stderr
    assert client.leftovers() == {"file.bin.part", "file.bin.part.json"}
    assert client.get(server).sha256 == SHA256  # with more room
    assert server.seen[-1]["range"] == "bytes=400000-"


# --- more than one process ---


def get_in_a_process(url: str, path: Path, results: "multiprocessing.Queue[str]") -> None:
    results.put(download(url, path).sha256)


def test_two_processes_fetch_the_file_once(server: Server, client: Client) -> None:
    both_run = threading.Event()

    def slowly(handler: Handler) -> None:
        both_run.wait(120)
        honest(handler)

    server.script = [slowly]
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=get_in_a_process, args=(server.url, client.path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    time.sleep(1.0)  # the second waits for the lock by now; if it is late, the test is only weaker
    both_run.set()
    assert [results.get(timeout=120) for _ in processes] == [SHA256, SHA256]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(server.seen) == 1
    assert server.num_bytes_sent == len(CONTENT)
    assert client.leftovers() == {"file.bin"}


def test_a_lock_excludes_and_ends_with_its_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "file.bin"):
            order.append("second")

    with locked(tmp_path / "file.bin"):
        thread = threading.Thread(target=second)
        thread.start()
        printed = ""
        while not printed:
            printed = capsys.readouterr().err
        order.append("first")
    thread.join(120)
    assert order == ["first", "second"]
    assert (printed + capsys.readouterr().err).count("Waiting for another process") == 1


# --- Output ---


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_progress_bar(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    client.get(server, progress=None)
    assert "700.0/700.0 kB" in terminal.getvalue()


def test_a_log_gets_one_line(server: Server, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.get(server, progress=None)
    assert capsys.readouterr() == ("", f"Downloading {server.url} to {client.path}\n")


def test_the_module_loads_neither_torch_nor_rich() -> None:
    program = "import sys, megabert.checkpoints.download; print({'torch', 'rich'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"
