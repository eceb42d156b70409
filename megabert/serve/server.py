"""The server: load runs, warm them up, answer HTTP in this process or in several, stop without losing a request."""

import asyncio
import gc
import logging
import multiprocessing
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import uvicorn

from ..annotate.entity_linker import EntityLinker
from ..errors import ConfigError, InputWarning, MegabertError
from ..inference import Predictor
from .access_log import LogWriter
from .connections import MAX_HEADER_BYTES, BoundedConnection
from .front_ends import DRAIN, RemoteQueue, compute_for
from .http_application import HttpApplication
from .model_queue import Lane
from .queued_session import MEAN
from .request_guard import LOOPBACK
from .server_metrics import LOST_LINES, NUM_VALUES, ServerMetrics
from .server_parts import (
    LoadedRun,
    ServeSettings,
    compute_type,
    make_application,
    make_queue,
    warm_up,
    with_model_threads,
)

SWITCH_SECONDS = 0.0005
"""Each write to a socket gives up the interpreter's lock, which threads that tokenize and compute hold so long."""
MAX_RESTARTS = 10
"""Front ends that are started again; a server that loses more has another fault."""


class HttpServer(uvicorn.Server):
    """uvicorn's server with our connections; `stop` drains it."""

    def __init__(self, application: HttpApplication, settings: ServeSettings) -> None:
        limits = settings.limits
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            application,
            http=partial(BoundedConnection, application=application),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.idle_seconds),
            timeout_graceful_shutdown=int(limits.shutdown_seconds),
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            backlog=4096,
        )
        super().__init__(config)
        self.application = application

    def stop(self) -> None:
        """Refuse what is new, answer what was admitted, then end; callable from any thread."""
        if self.application.admission.is_draining:
            self.force_exit = True
        self.application.admission.is_draining = True
        self.should_exit = True

    def serve_socket(self, listener: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
        """Answer requests until `stop`."""

        async def main() -> None:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, self.stop)
            on_start()
            await self._serve([listener])

        asyncio.run(main())
        self.application.close()


def listen(settings: ServeSettings) -> socket.socket:
    """Open the server's socket. Raises ConfigError if the address is taken or no address."""
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY where the protocol is named; without it an answer may wait 40 ms for a delayed ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise ConfigError(f"{place}: {error.strerror or error}. Choose another --port or --host.") from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a server's socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(runs: Sequence[LoadedRun], settings: ServeSettings, on_start: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `on_start` takes the address once the models are warm."""
    sys.setswitchinterval(SWITCH_SECONDS)
    warnings.simplefilter("ignore", InputWarning)  # answers say what was cut
    settings = with_model_threads(settings, runs)
    listener = listen(settings)
    address = address_of(listener)
    if settings.processes:
        ServerProcesses(runs, settings, listener).serve(partial(on_start, address))
        return
    metrics = ServerMetrics()
    queue = make_queue(runs, settings, metrics)
    application = make_application(runs, settings, queue, metrics, compute_type(runs[0].predictor))
    warm_up(application)
    freeze_objects()
    HttpServer(application, settings).serve_socket(listener, partial(on_start, address))
    queue.close()


def freeze_objects() -> None:
    """Take what is loaded out of garbage collection: to look at all of it takes 0.1 s, in which nothing is answered."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class _NoSession:
    """Stands for a network of another process."""

    has_states: bool
    precision: str
    max_positions: int


class ServerProcesses:
    """Front ends as processes, the networks in this one."""

    def __init__(self, runs: Sequence[LoadedRun], settings: ServeSettings, listener: socket.socket) -> None:
        self.settings = replace(settings, linkers=[_without_network(item) for item in settings.linkers])
        self.listener = listener
        self._context = multiprocessing.get_context("spawn")
        self._memory = self._context.RawArray("d", (settings.processes + 1) * NUM_VALUES)
        self._metrics = ServerMetrics(self._memory, settings.processes)
        self._queue = make_queue(runs, settings, self._metrics)
        self._kind = compute_type(runs[0].predictor)
        self._runs = [replace(run, predictor=replace(run.predictor, session=_stand_in(run.predictor))) for run in runs]
        self._processes: dict[int, tuple[Any, Connection]] = {}
        self._num_ready = self._num_restarts = 0
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self._log = LogWriter("-", partial(self._metrics.add, LOST_LINES))

    def serve(self, on_start: Callable[[], None]) -> None:
        """Start the front ends and watch them until SIGTERM or Ctrl-C."""
        for name, lane in self._queue.lanes.items():
            if name.endswith(MEAN):
                self._queue.submit(name, [_short_sequence(lane)]).result()
        previous = {
            number: signal.signal(number, lambda *_: self._is_stopping.set())
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            for row in range(self.settings.processes):
                self._start(row)
            while self._num_ready < self.settings.processes and not self._is_stopping.wait(0.02):
                self._restart()
            on_start()
            while not self._is_stopping.wait(0.2):
                self._restart()
        finally:
            self._stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _restart(self) -> None:
        """Start front ends that have died again."""
        for row in [row for row, (process, _) in self._processes.items() if not process.is_alive()]:
            self._num_restarts += 1
            if self._num_restarts > MAX_RESTARTS:
                raise MegabertError("the front ends end unexpectedly again and again; the server stops.")
            code = self._processes[row][0].exitcode
            self._log.write(f"megabert: a front end ended unexpectedly (exit code {code}); it is started again.")
            self._metrics.add("megabert_front_end_restarts_total")
            self._start(row)

    def _count_ready(self) -> None:
        with self._lock:
            self._num_ready += 1

    def _start(self, row: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=run_front_end,
            args=(there, self._runs, self.settings, self.listener, self._memory, row, self._kind),
            daemon=True,
        )
        process.start()
        there.close()
        self._processes[row] = process, here
        threading.Thread(target=compute_for, args=(here, self._queue, self._count_ready), daemon=True).start()

    def _stop(self) -> None:
        end = time.monotonic() + self.settings.limits.shutdown_seconds
        for _, connection in self._processes.values():
            with suppress(OSError):
                connection.send(DRAIN)
        for process, _ in self._processes.values():
            process.join(max(end - time.monotonic(), 0.1))
            if process.is_alive():
                process.kill()
                process.join()
        self._queue.close()
        self._log.close()


def _short_sequence(lane: Lane) -> Any:
    import numpy as np

    from ..data.packing import Features

    return Features(np.full(4, lane.pad_id), np.zeros(4, dtype=np.int64))


def _without_network(item: EntityLinker) -> EntityLinker:
    dense = item.linker.dense
    stand_ins: list[Any] = [] if dense is None else [_NoSession(False, "32", dense.session.max_positions)]
    return replace(item, linker=item.linker.with_sessions(iter(stand_ins)))


def _stand_in(predictor: Predictor) -> Any:
    session = predictor.session
    return _NoSession(hasattr(session, "token_states"), str(getattr(session, "precision", "32")), session.max_positions)


def run_front_end(
    connection: Connection,
    runs: Sequence[LoadedRun],
    settings: ServeSettings,
    listener: socket.socket,
    memory: Any,
    row: int,
    kind: str,
) -> None:
    """Answer HTTP in a process of its own, until the other process says so or ends."""
    sys.setswitchinterval(SWITCH_SECONDS)
    warnings.simplefilter("ignore", InputWarning)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process of the networks decides when to stop
    metrics = ServerMetrics(memory, row)
    metrics.clear_gauges()  # of a front end that died in this row
    servers: list[HttpServer] = []
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        for server in servers:
            server.stop()

    queue = RemoteQueue(connection, stop, stop)
    servers.append(HttpServer(make_application(runs, settings, queue, metrics, kind), settings))
    freeze_objects()
    if not stopped.is_set():  # the other process may say so while this one starts
        servers[0].serve_socket(listener, queue.report_ready)


def check_address(host: str, key_digest: bytes | None, hosts: Collection[str], *, is_open: bool) -> Mapping[str, Any]:
    """Decide which Host headers are right; an address that others reach needs a key, or an explicit option."""
    if host in LOOPBACK:
        return {"host": host, "hosts": frozenset((*LOOPBACK, *hosts))}
    if key_digest is None and not is_open:
        raise ConfigError(f"--host {host} is reached by others. Set MEGABERT_API_KEY, or add --no-key.")
    return {"host": host, "hosts": frozenset((*LOOPBACK, *hosts)) if hosts else None}
