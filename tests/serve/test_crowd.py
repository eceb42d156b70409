"""What is decided before a request is parsed: refused, held or parsed; idle connections whose request is on its way."""

import random
import socket
import time
from contextlib import contextmanager

import h11
import pytest

from megabert.serve.admission import ServerLimits
from megabert.serve.connections import plain_post
from tests.fuzz.http_requests import hostile_request, request
from tests.serve.running_server import load_runs, running
from tests.serve.test_load import GatedSession, wait_until

DATA = request("POST", "/v1/entities", {"text": "Peter"}, "X-Request-Id: own-1\r\n")


def test_only_a_whole_plain_request_is_decided_unparsed():
    assert plain_post(DATA) == ("/v1/entities", "own-1")
    assert plain_post(DATA.replace(b" HTTP", b"?a=b HTTP")) == ("/v1/entities", "own-1")
    for old, new in (
        (b"POST", b"GET"), (b"HTTP/1.1", b"HTTP/1.0"), (b"entities", b"%65ntities"), (b"}", b""), (b"}", b"}}"),
        (b"X-Request-Id:", b"Connection: close\r\nX-Request-Id:"), (b"X-Request-Id:", b"Expect: 100-continue\r\nX:"),
        (b"X-Request-Id:", b"Transfer-Encoding: chunked\r\nX:"), (b"X-Request-Id:", b"Content-Length: 17\r\nX:"),
        (b"\r\n\r\n", b"\r\n"),
    ):  # fmt: skip
        assert old in DATA and plain_post(DATA.replace(old, new, 1)) is None, new


def test_h11_finds_the_same_end_of_a_request_that_is_decided_unparsed():
    draw, found = random.Random(3), 0
    for _ in range(3000):
        data = hostile_request(draw)
        if plain_post(data) is None:
            continue
        found += 1
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        try:
            while not isinstance(connection.next_event(), h11.EndOfMessage):
                pass
            assert connection.trailing_data == (b"", False)
        except h11.RemoteProtocolError:
            pass
    assert found > 100


@pytest.fixture(scope="module")
def small():
    limits = ServerLimits(max_concurrent_requests=8, idle_seconds=1)
    with running(load_runs("ner"), GatedSession, limits=limits) as found:
        found.server.application.admission._num_threads = 2
        yield found
        GatedSession.gate.set()


@contextmanager
def client(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        yield connection, connection.makefile("rb")


def answer(reader):
    head = b"".join(iter(reader.readline, b"\r\n")).decode().lower()
    return int(head.split(" ")[1]), head, reader.read(int(head.partition("content-length: ")[2].split("\r")[0]))


def test_a_crowd_is_counted_unparsed_and_each_gets_its_answer(small):
    def queued(count):
        return lambda: small.metric("te_queue_size") == count

    admission = small.server.application.admission
    GatedSession.gate.clear()
    connections = [socket.create_connection(("127.0.0.1", small.port), timeout=120) for _ in range(8)]
    for number, connection in enumerate(connections):
        connection.sendall(request("POST", "/v1/entities", {"text": f"Peter {number}"}))
        wait_until(queued(number + 1))
    wait_until(lambda: admission.num_active == 2)
    with client(small) as (connection, reader):
        for name in (b"own-1", b"the-second-1"):
            connection.sendall(DATA.replace(b"own-1", name))
            status, head, body = answer(reader)
            assert (status, b"Overloaded" in body, name in body) == (429, True, True)
            assert f"x-request-id: {name.decode()}\r\n" in head and "retry-after: 1\r\n" in head
        connection.sendall(request("POST", "/nowhere", {}))
        assert answer(reader)[0] == 404
        connections.pop().close()  # one that is held
        wait_until(queued(7))
        GatedSession.gate.set()
        for number, item in enumerate(connections):
            status, head, body = answer(item.makefile("rb"))
            assert status == 200 and f'"text":"Peter {number}"'.encode() in body, body
            assert "keep-alive: timeout=1\r\n" in head
            item.close()
        connection.sendall(DATA)
        assert answer(reader)[0] == 200
    wait_until(queued(0))
    assert (admission.num_active, admission.num_starting) == (0, 0)


def test_a_request_that_came_while_the_loop_was_busy_is_answered(small):
    with client(small) as (connection, reader):
        connection.sendall(DATA)
        assert answer(reader)[0] == 200
        due = 0.0
        while due - time.monotonic() < 0.2:  # this thread was late
            if due:
                connection.sendall(DATA)
                assert answer(reader)[0] == 200
            own = next(iter(small.server.server_state.connections))
            wait_until(lambda own=own: own.timeout_keep_alive_task is not None)
            due = own.timeout_keep_alive_task.when()
        own.loop.call_soon_threadsafe(own.loop.call_at, due - 0.0002, time.sleep, 0.5)  # both are due at once
        time.sleep(max(due + 0.2 - time.monotonic(), 0))
        connection.sendall(DATA)
        assert answer(reader)[0] == 200
