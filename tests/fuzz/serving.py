"""Load and faults for `megabert serve`: crowds, slow and vanishing clients, malformed requests, kills, full disks.

    python -m tests.fuzz.serving [PART ...] [--share X] [--seed N] [--cores LIST] [--out FILE]

Each part starts a server of a tiny network in a process of its own, loads it from this one, and prints its counts as a
line of JSON. Something that must not happen is a defect, and means exit code 1. `--share 0.1` is a tenth of the load.
"""

import argparse
import asyncio
import contextlib
import heapq
import json
import math
import os
import random
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.fuzz.http_requests import hostile_request, request

RUN = next((Path(__file__).parent.parent / "runs_v1" / "token_classification" / "run" / "checkpoints").iterdir())
PATIENCE = 40
"""Seconds after which an answer counts as lost."""
POISON = "zugzwang"
WORDS = ("Peter", "lives", "in", "Paris", "Anna", "left", "Rome", "river", "1999", "\U0001f600")
PARTS = {}


def part(function):
    """Register a part by its name."""
    PARTS[function.__name__] = function
    return function


# --- the server -------------------------------------------------------------------------------------------------------


class FaultySession:
    """The network, with a pause a batch, and an out-of-memory error for batches with the poison in them."""

    def __init__(self, session, pause, poison):
        self.session, self.pause, self.poison = session, pause, poison
        self.device, self.max_positions = "cpu", session.max_positions

    def without_head(self):
        return FaultySession(self.session.without_head(), self.pause, self.poison)

    def run(self, features, **options):
        time.sleep(self.pause)
        if any(set(self.poison) <= set(item.token_ids.tolist()) for item in features):
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return self.session.run(features, **options)


def faulty_run(pause):
    """Load the run, with its session made faulty."""
    import megabert
    from megabert.serve.server_parts import LoadedRun

    predictor = megabert.load(RUN, accelerator="cpu")
    poison = predictor.tokenizer.encode_ids([POISON])[0].tolist()
    return LoadedRun("m", replace(predictor, session=FaultySession(predictor.session, pause, poison)))


def serve_child(options):
    """Serve in this process; `jumps`: time.time() is another year at each call."""
    from megabert.serve.admission import ServerLimits
    from megabert.serve.server import serve
    from megabert.serve.server_parts import ServeSettings

    if options.pop("jumps"):
        draw = random.Random(1)
        time.time = lambda: draw.uniform(0, 4e9)
    limits, run = ServerLimits(**options.pop("limits")), faulty_run(options.pop("pause"))
    serve([run], ServeSettings(port=0, limits=limits, **options), lambda where: print(where, flush=True))


class Server:
    """A server in a process of its own; `stderr` is a file, or a pipe that nobody reads (None)."""

    cores = None
    """Its cores; the clients then have the others."""

    def __init__(self, *, stderr=subprocess.DEVNULL, limits=None, pause=0.0, jumps=False, access_log="none", **options):
        given = {"limits": limits or {}, "pause": pause, "jumps": jumps, "access_log": access_log, **options}
        command = [sys.executable, "-m", "tests.fuzz.serving", "--child", json.dumps(given)]
        if self.cores:
            command = ["taskset", "--cpu-list", self.cores, *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if stderr is None else stderr, env=environment
        )
        found = re.search(rb":(\d+)\s*$", self.process.stdout.readline())
        if found is None:
            raise SystemExit(f"the server did not start: exit code {self.process.wait()}")
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def family(self):
        """List the server's processes."""
        found = [self.process.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(") ")[2].split()[1]) == self.process.pid:
                    found.append(int(stat.parent.name))
        return found

    def usage(self):
        """Measure memory in MB, open files and threads of all processes."""
        memory = files = threads = 0
        for pid in self.family():
            status = Path(f"/proc/{pid}/status").read_text()
            memory += int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
            threads += int(re.search(r"Threads:\s+(\d+)", status)[1])
            files += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return {"mb": round(memory, 1), "files": files, "threads": threads}

    def metrics(self):
        """Read the metrics."""
        text = asyncio.run(one(self.port, request("GET", "/metrics")))[2].decode()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}

    def stop(self):
        """Send SIGTERM; returns exit code and seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return {"exit_code": self.process.wait(30), "seconds": round(time.monotonic() - began, 2)}


# --- clients ----------------------------------------------------------------------------------------------------------


def text_request(draw, tag):
    """Make a request for the entities of a text that is only this request's; returns it with the text."""
    text = f"{' '.join(draw.choices(WORDS, k=draw.randint(3, 12)))} {tag}"
    return request("POST", "/v1/entities", {"text": text}), text


class Connection:
    """A keep-alive connection that opens again, once, where the server closed it while it was idle."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    async def open(self):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)

    async def ask(self, data):
        """Send a request; returns status, seconds and body. Status 0: no answer, -1: none in time."""
        began, was_idle = time.monotonic(), self.writer is not None
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    first = await self._send(data)
                except (ConnectionError, asyncio.IncompleteReadError):
                    if not was_idle:
                        raise
                    # Closed without a byte of an answer: the server has not read the request. RFC 9112, 9.3.1
                    self.close()
                    first = await self._send(data)
                head = (first + await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                body = await self.reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1]))
            if "connection: close" in head:
                self.close()
            return int(head.split(" ", 2)[1]), time.monotonic() - began, body
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return -isinstance(error, TimeoutError), time.monotonic() - began, b""

    async def _send(self, data):
        """Send a request; returns the first byte of its answer."""
        await self.open()
        self.writer.write(data)
        return await self.reader.readexactly(1)

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.writer = None


async def one(port, data):
    """Ask once."""
    connection = Connection(port)
    answer = await connection.ask(data)
    connection.close()
    await asyncio.sleep(0)  # in which asyncio closes it
    return answer


def percentile(values, share):
    """Return a percentile in milliseconds."""
    ordered = sorted(values)
    return round(1000 * ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1], 1) if ordered else None


async def closed_loop(port, clients, seconds, seed=0, num=math.inf, on_count=lambda count: None):
    """Let clients ask one after the other; returns (status, seconds, whether the answer is the request's own)."""
    rows, end, count = [], time.monotonic() + seconds, 0

    async def client(number):
        nonlocal count
        draw, connection = random.Random(f"{seed}/{number}"), Connection(port)
        while time.monotonic() < end and count < num:
            count += 1
            own = count
            data, text = text_request(draw, f"{number} {own}")
            rows.append(check(await connection.ask(data), text))
            on_count(own)
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return rows


def check(answer, text):
    """Return status, seconds, and whether an answer of 200 is that of the text."""
    status, seconds, body = answer
    return status, seconds, status != 200 or json.loads(body)["results"][0]["text"] == text


def summary(rows):
    """Count statuses, and latencies of answers and refusals."""
    statuses = Counter(row[0] for row in rows)
    done, refused = ([row[1] for row in rows if row[0] in wanted] for wanted in ((200,), (429, 503)))
    return {
        "statuses": {str(status): statuses[status] for status in sorted(statuses)},
        "p50_ms": percentile(done, 0.5), "p99_ms": percentile(done, 0.99), "refusal_p99_ms": percentile(refused, 0.99),
    }  # fmt: skip


def wrong(rows, allowed=(200, 429, 503)):
    """List what must not have happened to requests."""
    found = Counter(f"status {row[0]}" for row in rows if row[0] not in allowed)
    found["answers of another request"] = sum(not row[2] for row in rows)
    return [f"{count} x {what}" for what, count in found.items() if count]


def reconcile(server):
    """List where the server's counts disagree: admitted = answered + failed + cancelled; none is left."""
    metrics = server.metrics()
    admitted, *ends = (
        metrics[key]
        for key in ("te_request_count", "te_request_success", "te_request_failure", "megabert_requests_cancelled_total")
    )
    found = [f"admitted {admitted} but ended {ends}"] if admitted != sum(ends) else []
    return found + ([f"{metrics['te_queue_size']} requests are left"] if metrics["te_queue_size"] else [])


# --- parts ------------------------------------------------------------------------------------------------------------


@part
def crowd(share, seed, make):
    """1,000 clients: all at the same moment, then for 10 s at three times what the server can do."""
    clients, seconds = max(round(1000 * share), 20), max(10 * share, 2)
    with make(pause=0.02, limits={"max_concurrent_requests": max(round(256 * share), 8)}) as server:
        alone = asyncio.run(closed_loop(server.port, 1, seconds / 3))
        rate = sum(row[0] == 200 for row in asyncio.run(closed_loop(server.port, 32, seconds / 2))) / (seconds / 2)
        began = server.usage()
        moment = storm(server.port, clients, seed)
        overload = storm(server.port, clients, seed, 3 * rate, seconds)
        time.sleep(min(10 * share, 2))
        after = asyncio.run(closed_loop(server.port, 1, seconds / 3))
        ended = server.usage()
        defects = wrong(moment) + wrong(overload) + wrong(after, (200,)) + reconcile(server)
    return {
        "clients": clients, "capacity_per_second": round(rate), "alone": summary(alone), "at_once": summary(moment),
        "three_times": {"requests": len(overload), **summary(overload)}, "later": summary(after),
        "usage": [began, ended], "defects": defects,
    }  # fmt: skip


class Client:
    """A client of a storm: a socket that a selector watches, its request and what has come of the answer."""

    def __init__(self, number, port, selector):
        self.number, self.port, self.selector, self.socket, self.sent = number, port, selector, None, None
        self.open()

    def open(self):
        self.close()
        self.socket = socket.create_connection(("127.0.0.1", self.port))
        self.socket.setblocking(False)
        self.selector.register(self.socket, selectors.EVENT_READ, self)
        self.has_answered = False

    def close(self):
        if self.socket is not None:
            self.selector.unregister(self.socket)
            self.socket.close()
        self.socket = None

    def send(self, draw, due):
        self.due = due
        self.data, self.text = text_request(draw, f"{self.number} {time.monotonic()}")
        self.sent, self.seconds, self.answer = time.monotonic(), None, b""
        if self.socket is None:
            self.open()
        self.socket.send(self.data)

    def receive(self):
        """Return status, seconds to the first byte, and whether the answer is the own one; None: it is not whole."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self.socket.recv(2**18)
        if not data:  # closed
            is_idle, may_repeat = self.sent is None, self.has_answered and not self.answer
            self.close()
            if is_idle or not may_repeat:
                return None if is_idle else (0, time.monotonic() - self.sent, True)
            self.open()  # without a byte of an answer: the server has not read the request. RFC 9112, 9.3.1
            self.socket.send(self.data)
            return None
        self.seconds = self.seconds or time.monotonic() - self.sent
        self.answer += data
        head, _, body = self.answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not length or len(body) < int(length[1]):
            return None
        self.sent, self.has_answered = None, True
        return check((int(head[9:12]), self.seconds, body), self.text)


def storm(port, clients, seed, rate=math.inf, seconds=0.0):
    """Connect clients, then let all ask at a rate of all together, as long as each has its answer; without one, once.

    Sockets and a selector, since 1,000 coroutines would measure themselves. Seconds: those to an answer's first byte.
    """
    draw, rows, waiting = random.Random(seed), [], 0
    with selectors.DefaultSelector() as selector:
        items = [Client(number, port, selector) for number in range(clients)]
        time.sleep(1)
        begin = time.monotonic()
        due = [(begin + number / rate, number) for number in range(clients)]
        while (due or waiting) and time.monotonic() < begin + seconds + PATIENCE:
            while due and due[0][0] <= time.monotonic():
                when, number = heapq.heappop(due)
                items[number].send(draw, when)
                waiting += 1
            for key, _ in selector.select(max(due[0][0] - time.monotonic(), 0) if due else 1):
                item, row = key.data, key.data.receive()
                if row is not None:
                    rows.append(row)
                    waiting -= 1
                    next_due = max(item.due + clients / rate, time.monotonic())
                    if next_due < begin + seconds:
                        heapq.heappush(due, (next_due, item.number))
        for item in items:
            item.close()
    return rows + [(-1, PATIENCE, True)] * waiting


HEAD = "POST /v1/entities HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = request("POST", "/v1/entities", {"inputs": ["Peter lives in Paris " * 40] * 32})
LONGER = request("POST", "/tokenize", {"inputs": ["Peter lives in Paris " * 400] * 32})
"""Its answer does not fit into the buffers of a connection."""


@part
def slow(share, seed, make):
    """300 clients with half a head, a byte of a body a second, no reading, or silence: closed in 15 s."""
    clients = max(round(300 * share), 8)
    with make(limits={"deadline_seconds": 8}) as server:
        report = asyncio.run(_slow_clients(server.port, clients))
        defects = report.pop("defects") + reconcile(server)
    return {"clients": clients, **report, "defects": defects}


async def _slow_clients(port, clients):
    began, health, closed = time.monotonic(), [], None
    trickles = asyncio.gather(*(_trickle(port, number % 4) for number in range(clients)))
    while time.monotonic() < began + PATIENCE and not (trickles.done() and closed):
        health.append((*(await one(port, request("GET", "/health")))[:2], True))
        open_ = re.search(rb"\nmegabert_connections (\d+)", (await one(port, request("GET", "/metrics")))[2])
        if closed is None and open_ and int(open_[1]) <= 1:  # that of /metrics itself
            closed = time.monotonic() - began
        await asyncio.sleep(0.05)
    seconds = await trickles
    defects = wrong(health, (200,)) + (
        [f"slow clients are closed after {closed or PATIENCE:.1f} s"] if (closed or PATIENCE) > 15 else []
    )
    return {
        "closed_after_s": [round(max(seconds[kind::4]), 1) for kind in range(3)],
        "all_closed_after_s": closed and round(closed, 1),
        "health_p99_ms": percentile([row[1] for row in health], 0.99), "defects": defects,
    }  # fmt: skip


async def _trickle(port, kind):
    """Be slow until the server closes the connection; returns the seconds, of a client that never reads 0."""
    loop, began = asyncio.get_running_loop(), time.monotonic()
    transport, listener = await loop.create_connection(lambda: _Listener(kind == 3), "127.0.0.1", port)
    transport.write((b"GET /health HT", f"{HEAD}Content-Length: 9999\r\n\r\n".encode(), b"", LONGER)[kind])
    if kind == 3:  # what it has not read hides that the server has closed: its metrics show it
        await asyncio.sleep(25)
        transport.abort()
        return 0
    while not listener.closed.is_set() and time.monotonic() < began + PATIENCE:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listener.closed.wait(), 1)
        if kind < 2:
            transport.write(b"a")
    transport.abort()
    return time.monotonic() - began


class _Listener(asyncio.Protocol):
    def __init__(self, is_deaf):
        self.is_deaf, self.closed = is_deaf, asyncio.Event()

    def connection_made(self, transport):
        if self.is_deaf:
            transport.pause_reading()

    def connection_lost(self, exc):
        self.closed.set()

    def eof_received(self):
        self.closed.set()


@part
def vanish(share, seed, make):
    """300 clients that go away: within a head, a body, before and within an answer, and after one."""
    clients = max(round(300 * share), 10)
    with make(pause=0.02) as server:
        before = server.usage()
        asyncio.run(_vanishing(server.port, clients, seed))
        end = time.monotonic() + 10
        while time.monotonic() < end and not _is_idle(server.metrics()):
            time.sleep(0.05)
        rows = asyncio.run(closed_loop(server.port, 4, 2, num=40))
        metrics, after = server.metrics(), server.usage()
        defects = reconcile(server) + wrong(rows, (200,))
        defects += ["connections are left"] if not _is_idle(metrics) else []
        defects += ["files are left open"] if after["files"] > before["files"] + 2 else []
    cancelled = int(metrics["megabert_requests_cancelled_total"])
    return {"clients": clients, "cancelled": cancelled, "usage": [before, after], "defects": defects}


def _is_idle(metrics):
    return metrics["te_queue_size"] == 0 and metrics["megabert_connections"] <= 1  # that of /metrics itself


async def _vanishing(port, clients, seed):
    draw = random.Random(seed)
    data, _ = text_request(draw, "gone")
    head, body = data.index(b"\r\n\r\n") + 4, len(data)

    async def vanish_at(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(draw.random())
        kind = number % 5
        size = (draw.randrange(1, head), draw.randrange(head, body), body, 0, body)[kind]
        writer.write(LONG if kind == 3 else data[:size])
        await asyncio.sleep(draw.random() * 0.1)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if kind > 2:
                await reader.readexactly(10)
            if number % 2:
                writer.transport.abort()  # a reset where data is unread
            writer.close()

    await asyncio.gather(*(vanish_at(number) for number in range(clients)))
    await asyncio.sleep(0)  # in which asyncio closes the last


@part
def malformed(share, seed, make):
    """10,000 malformed requests: HTTP, JSON, Unicode, numbers, depth. None is answered with 5xx, all are answered."""
    count = max(round(10_000 * share), 40)
    limits = {"header_seconds": 1, "body_seconds": 1, "idle_seconds": 1}
    with make(limits=limits) as server:
        asyncio.run(_malformed(server.port, count // 4, seed + 1))
        before = server.usage()
        statuses = asyncio.run(_malformed(server.port, count, seed))
        after, defects = server.usage(), reconcile(server)
        answered = {key[-5:-2]: value for key, value in server.metrics().items() if "responses_total" in key}
        defects += [f"{answered['500']:.0f} x 500"] if answered["500"] else []
    defects += [
        f"{count} x status {status}" for status, count in statuses.items() if status >= 500 and status not in (501, 505)
    ]
    defects += [f"{statuses[-1]} without an end"] if statuses[-1] else []
    defects += [f"memory {before['mb']} to {after['mb']} MB"] if after["mb"] > 1.05 * before["mb"] + 2 else []
    return {
        "requests": count, "usage": [before, after], "defects": defects,
        "statuses": {str(status or "closed"): statuses[status] for status in sorted(statuses)},
    }  # fmt: skip


async def _malformed(port, count, seed):
    statuses, gate = Counter(), asyncio.Semaphore(64)

    async def send(number):
        draw = random.Random(f"{seed}/{number}")
        async with gate:
            statuses[await _status(port, hostile_request(draw), is_open=draw.random() < 0.9)] += 1

    await asyncio.gather(*(send(number) for number in range(count)))
    return statuses


async def _status(port, data, *, is_open):
    """Send bytes and read an answer; returns its status, 0 if closed without one, -1 if neither comes."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            if not is_open:
                writer.write_eof()
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            return int(head.split(b" ", 2)[1])
    except TimeoutError:
        return -1
    except (OSError, asyncio.IncompleteReadError):
        return 0


@part
def soak(share, seed, make):
    """200,000 requests on 16 keep-alive connections: memory, files and threads stay as they are."""
    count = max(round(200_000 * share), 200)
    with make() as server:
        samples, begin = [], time.monotonic()

        def sample(number):
            if number % max(count // 40, 1) == 0:
                samples.append({"requests": number, "s": round(time.monotonic() - begin), **server.usage()})

        rows = Counter()
        for first in range(0, count, 4000):
            size = min(4000, count - first)
            some = asyncio.run(
                closed_loop(server.port, 16, 3600, f"{seed}/{first}", size, lambda n, first=first: sample(first + n))
            )
            rows.update(Counter((row[0], row[2]) for row in some))
        defects = reconcile(server)
    warm = samples[len(samples) // 10]
    growth = max(item["mb"] for item in samples) / warm["mb"] - 1
    defects += [f"{number} x {what}" for what, number in rows.items() if what != (200, True)]
    defects += [f"memory grew by {growth:.1%}"] if growth > 0.05 else []
    defects += (
        ["files or threads grew"] if any(samples[-1][key] > warm[key] + 8 for key in ("files", "threads")) else []
    )
    rate = round(count / (time.monotonic() - begin))
    return {"requests": count, "per_second": rate, "growth": f"{growth:.2%}", "samples": samples, "defects": defects}


@part
def kill(share, seed, make):
    """`kill -9` of front ends under load, then of the process with the network: nothing hangs, nothing stays."""
    with make(processes=2) as server, _loaded(server.port, max(20 * share, 4)) as rows:
        killed = 0
        for _ in range(max(round(5 * share), 1)):
            time.sleep(1)
            fronts = [pid for pid in server.family()[1:] if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(fronts[seed % len(fronts)], signal.SIGKILL)
            killed += 1
        time.sleep(3)
        again = asyncio.run(closed_loop(server.port, 4, 10, num=40))
        family = server.family()
        with _loaded(server.port, 4) as last:
            time.sleep(1)
            server.process.kill()
        time.sleep(2)
        left = [pid for pid in family if b"spawn_main" in _command_line(pid)]
    lost = sum(row[0] == 0 for row in rows)
    defects = wrong(rows, (200, 429, 503, 0)) + wrong(again, (200,)) + wrong(last, (200, 429, 500, 503, 0))
    defects += [f"{len(left)} processes are left"] if left else []
    return {"front_ends_killed": killed, "closed_connections": lost, **summary(rows),
            "networks_killed": summary(last)["statuses"], "defects": defects}  # fmt: skip


def _command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def _loaded(port, seconds):
    """Load a server in a thread; the list has the rows at the end."""
    rows = []
    thread = threading.Thread(target=lambda: rows.extend(asyncio.run(closed_loop(port, 8, seconds, "load"))))
    thread.start()
    try:
        yield rows
    finally:
        thread.join()


@part
def memory(share, seed, make):
    """One of four requests fails for want of memory on the device (injected): it alone is 500, the others 200."""
    count = max(round(1000 * share), 40)
    with make(pause=0.005) as server:
        rows = asyncio.run(_some_poisoned(server.port, count, seed))
        defects = reconcile(server) + [
            f"{number} x {what}" for what, number in rows.items() if what not in ((True, 500), (False, 200))
        ]
        last = asyncio.run(closed_loop(server.port, 4, 5, num=40))
        defects += wrong(last, (200,))
    return {"requests": count, "failed_alone": rows[True, 500], "answered": rows[False, 200], "defects": defects}


async def _some_poisoned(port, count, seed):
    found, gate, draw = Counter(), asyncio.Semaphore(24), random.Random(seed)

    async def send(number, is_poisoned):
        text = f"{POISON if is_poisoned else 'Peter'} {number}"
        async with gate:
            found[is_poisoned, (await one(port, request("POST", "/v1/entities", {"text": text})))[0]] += 1

    await asyncio.gather(*(send(number, draw.random() < 0.25) for number in range(count)))
    return found


@part
def logs(share, seed, make):
    """Logs on a full disk, in a pipe that nobody reads, and in one whose reader is gone: answers as without."""
    found, defects = {}, []
    count = max(round(4000 * share), 1200)  # more lines than a pipe holds
    for name in ("full disk", "unread pipe", "closed pipe"):
        with (
            Path("/dev/full").open("wb") as full,
            make(
                stderr=full if name == "full disk" else None, access_log="/dev/full" if name == "full disk" else "-"
            ) as server,
        ):
            if name == "closed pipe":
                server.process.stderr.close()
            rows = asyncio.run(_some_poisoned(server.port, count, seed))
            found[name] = {f"{status}": number for (_, status), number in sorted(rows.items())}
            defects += [
                f"{name}: {number} x {what}" for what, number in rows.items() if what not in ((True, 500), (False, 200))
            ]
            end = server.stop()
            defects += [f"{name}: {end}"] if end["exit_code"] else []
    return {"requests": count, **found, "defects": defects}


@part
def clock(share, seed, make):
    """The wall clock is in another year at each look: deadlines, times and idle connections are as ever."""
    limits = {"deadline_seconds": 2, "idle_seconds": 1}
    with make(jumps=True, limits=limits, pause=0.01) as server:
        rows = asyncio.run(closed_loop(server.port, 8, max(10 * share, 2), seed))
        late = asyncio.run(
            one(server.port, request("POST", "/v1/entities", {"text": "Peter"}, "x-request-timeout: 0.001\r\n"))
        )
        idle = asyncio.run(_trickle(server.port, 2))
        defects = wrong(rows, (200,)) + reconcile(server)
        defects += [f"a deadline of 1 ms: {late[0]}"] if late[0] != 503 else []
        defects += [f"a silent client is closed after {idle:.1f} s"] if not 0.5 < idle < 8 else []
        end = server.stop()
        defects += [f"SIGTERM: {end}"] if end["exit_code"] or end["seconds"] > 20 else []
    return {"requests": len(rows), **summary(rows), "SIGTERM": end, "defects": defects}


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the reports also go here")
    parser.add_argument("--cores", help="the server's cores, such as 0,1; the clients have the others")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.child is not None:
        return serve_child(arguments.child)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if arguments.cores:
        Server.cores = arguments.cores
        os.sched_setaffinity(0, os.sched_getaffinity(0) - set(map(int, arguments.cores.split(","))))
    reports = []
    for name in arguments.parts or PARTS:
        reports.append({"part": name, "seed": arguments.seed, **PARTS[name](arguments.share, arguments.seed, Server)})
        print(json.dumps(reports[-1]), flush=True)
        if arguments.out:
            arguments.out.write_text("".join(json.dumps(report) + "\n" for report in reports), encoding="utf-8")
    return min(sum(len(report["defects"]) for report in reports), 1)


if __name__ == "__main__":
    sys.exit(main())
