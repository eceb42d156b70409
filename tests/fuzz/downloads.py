"""Faulty servers on the loopback interface: the file arrives unharmed, or one error and nothing at its place."""

import hashlib
import socket
import threading
from contextlib import suppress

from megabert.checkpoints.download import download
from megabert.errors import MegabertError
from tests.fuzz.bytes import damaged

NUM, NUM_IN_TESTS = 200, 12
CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HUGE = "9" * 5000


class Server:
    """Answers each connection with the next responses of `script`, lists of (bytes, pause in seconds)."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/file.bin"
        self.script = []
        self.stop = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(2)
                request = connection.recv(2**16)
                for piece, pause in self.script.pop(0) if self.script else [(honest(request), 0)]:
                    connection.sendall(piece)
                    if self.stop.wait(pause):
                        break
                connection.shutdown(socket.SHUT_WR)


def honest(request):
    """Respond with the whole file, or the rest that is requested."""
    start = 0
    for line in request.split(b"\r\n"):
        if line.lower().startswith(b"range: bytes="):
            start = int(line[13:].rstrip(b"-"))
    body, total = CONTENT[start:], len(CONTENT)
    status = f"206 Partial Content\r\nContent-Range: bytes {start}-{total - 1}/{total}" if start else "200 OK"
    if start >= total:
        return f"HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n".encode()
    return f'HTTP/1.1 {status}\r\nETag: "one"\r\nContent-Length: {len(body)}\r\n\r\n'.encode() + body


def fault(url, random):
    """Return a faulty response as (bytes, pause) pairs."""
    good = honest(b"")
    head, _, body = good.partition(b"\r\n\r\n")
    cut = random.randrange(len(good))
    header = random.choice(
        [f"Content-Length: {random.choice((0, 1, -1, len(CONTENT) + 9, 10**18, HUGE, 'x', ''))}", f"a: {'b' * 70_000}",
         "Transfer-Encoding: chunked", "Content-Encoding: gzip", f"Content-Range: bytes {HUGE}-1/{HUGE}",
         'ETag: "two"', "ETag: é\x01",
         "\r\n", ": x", "a\0b: c", "Content-Length: 5\r\nContent-Length: 6", "a: b\r\n" * 200]
    )  # fmt: skip
    target = random.choice(
        ["http://[::1", "file:///etc/passwd", "//", "", url, "/x", "http://127.0.0.1:99999999/", "ftp://127.0.0.1/x",
         "https://" + "a" * 300, "http://127.0.0.1:1/", "\\\\x", "http://127.0.0.1@example.org/", "x y", "\u00e9"]
    )  # fmt: skip
    status = random.choice((100, 204, 206, 301, 304, 400, 403, 404, 416, 429, 500, 503, 999, "abc"))
    kind = random.choice(("damaged", "cut", "header", "redirect", "status", "trickle", "endless", "chunks", "continue"))
    return {
        "damaged": lambda: [(damaged(head, random) + b"\r\n\r\n" + body, 0)],
        "cut": lambda: [(good[:cut], 0)],
        "header": lambda: [(b"HTTP/1.1 200 OK\r\n" + header.encode() + b"\r\n\r\n" + body, 0)],
        "redirect": lambda: [(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode() + bytes(10_000), 0)],
        "status": lambda: [(f"HTTP/1.1 {status} \x1b[31m\r\nRetry-After: {HUGE}\r\n\r\nabc".encode(), 0)],
        "trickle": lambda: [(good[:at], 0) for at in [random.choice((9, 30, len(head) + 9))]] + [(b"x", 0.05)] * 40,
        "endless": lambda: [(head + b"\r\n\r\n", 0)] + [(bytes(100_000), 0)] * 100,
        "chunks": lambda: [(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + random.choice(
            (b"xyz\r\n", b"-5\r\nabc", b"f" * 60 + b"\r\nabc", b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 5000,
            b"0" * 70_000)), 0)],
        "continue": lambda: [(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0.02)] * 30,
    }[kind](), kind  # fmt: skip


def prepare(folder):
    return folder, Server()


def run(state, random):
    folder, server = state
    path = folder / "file.bin"
    for file in folder.iterdir():
        file.unlink()
    if random.random() < 0.3:  # what an earlier attempt left
        (folder / "file.bin.part").write_bytes(random.choice((CONTENT[:999], b"junk", b"", CONTENT + b"x")))
        note = f'{{"url": "{server.url}", "etag": "\\"one\\"", "total": {len(CONTENT)}}}'.encode()
        (folder / "file.bin.part.json").write_bytes(note if random.random() < 0.5 else damaged(note, random))
    script = [fault(server.url, random) for _ in range(random.choice((1, 1, 2, 5)))]
    server.script = [pieces for pieces, _ in script]
    known = random.choice(({}, {"expected_size": len(CONTENT)}, {"expected_sha256": SHA256}))
    server.stop.clear()
    try:
        download(server.url, path, progress=lambda *_: None, timeout=0.3, sleep=lambda _: None, **known)
    except MegabertError:
        assert not path.exists(), "an error, but there is a file"
        assert len(list(folder.iterdir())) <= 3
        return f"{script[0][1]}: refused"
    finally:
        server.stop.set()
    if known:  # without checks a server may send another file
        assert path.read_bytes()[: len(CONTENT)] == CONTENT or "expected_sha256" not in known, "another file"
        assert path.stat().st_size == len(CONTENT)
    return f"{script[0][1]}: arrived"
