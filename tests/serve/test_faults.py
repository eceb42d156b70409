"""A few of the requests of `python -m tests.fuzz.serving`, to a server in this process; logs that cannot be written."""

import os
from contextlib import contextmanager

import pytest

from megabert.errors import ConfigError
from megabert.serve.access_log import MAX_WAITING_LINES, LogWriter
from megabert.serve.admission import ServerLimits
from tests.fuzz import serving
from tests.serve.running_server import running


class OwnProcess(serving.Server):
    """A server in this process."""

    def __init__(self, port):
        self.port = port

    def family(self):
        return [os.getpid()]


@contextmanager
def in_process(*, limits=None, pause=0.0):
    run = serving.faulty_run(pause)
    with running([run], limits=ServerLimits(**(limits or {}))) as server:
        yield OwnProcess(server.port)


@pytest.mark.parametrize("part", ["vanish", "malformed", "memory"])
def test_a_part_has_no_defect(part, capfd):
    report = serving.PARTS[part](0.02, 7, in_process)
    # Memory of a whole test process says nothing about the server's.
    assert [item for item in report["defects"] if not item.startswith("memory")] == []


def test_a_log_that_nobody_reads_holds_up_nothing(tmp_path):
    reader, writer = os.pipe()
    lost = []
    log = LogWriter(f"/dev/fd/{writer}", lambda: lost.append(1))
    for number in range(2 * MAX_WAITING_LINES):
        log.write(f"line {number} " + "-" * 90)
    assert len(lost) >= MAX_WAITING_LINES - 700  # a pipe holds 64 kB
    assert os.read(reader, 7) == b"line 0 "
    log.close(0.01)
    os.close(reader)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_costs_lines_only(tmp_path):
    lost = []
    log = LogWriter("/dev/full", lambda: lost.append(1))
    log.write("a line")
    log.close()
    assert len(lost) == 1
    with pytest.raises(ConfigError, match="Is a directory"):
        LogWriter(str(tmp_path))


def test_answers_do_not_wait_for_an_acknowledgement(server):
    import http.client
    import socket

    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/live")
    connection.getresponse().read()
    sockets = [item.transport.get_extra_info("socket") for item in server.server.server_state.connections]
    assert sockets and all(item.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for item in sockets)
    connection.close()
