"""The connections of the ranks: the end of a process is detected; one that keeps Python's lock is not lost."""

import os
import subprocess
import sys
import time

import pytest

from tests.parallel.processes import find_port

RANK = """
import ctypes, os, sys, threading, time
from datetime import timedelta
from megabert.parallel import heartbeat
from megabert.parallel.rendezvous import LaunchEnvironment, open_store
rank, port, role = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
launch = LaunchEnvironment(rank, 2, rank, "127.0.0.1", port, has_store=False)
master = open_store(launch, is_master=rank == 0, timeout=timedelta(seconds=60))
heartbeat.INTERVAL = 0.1
with heartbeat.heartbeat_thread(launch):
    master.set(f"ready/{rank}", "1")
    master.get(f"ready/{1 - rank}")
    if rank == 1 and role == "killed":
        os.kill(os.getpid(), 9)
    if rank == 1 and role == "interrupted":
        raise KeyboardInterrupt
    if rank == 1 and role == "keeps_lock":
        ctypes.PyDLL(None).sleep(int(sys.argv[4]))  # without releasing Python's lock
    elif role != "keeps_lock":
        time.sleep(20)
    master.set(f"done/{rank}", "1")
    master.get(f"done/{1 - rank}")
# It would abort the process if it were in a call of the store when the interpreter ends.
assert all(thread.name != "heartbeat" for thread in threading.enumerate())
"""


def run_pair(role, *more):
    environment = os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-c", RANK]
    port = str(find_port())
    pair = [
        subprocess.Popen([*command, str(rank), port, role, *more], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(2)
    ]
    errors = [child.communicate(timeout=120)[1] for child in pair]
    return [child.returncode for child in pair], errors


@pytest.mark.parametrize(("role", "codes"), [("killed", [76, -9]), ("interrupted", [75, 1])])
def test_the_end_of_a_process_ends_the_other(role, codes):
    begin = time.monotonic()
    ends, errors = run_pair(role)
    assert ends[0] == codes[0], errors
    assert ends[1] in (codes[1], -2)  # an uncaught KeyboardInterrupt ends a process by SIGINT
    assert time.monotonic() - begin < 60  # not when a timeout ends
    assert ("process 2 of 2 is gone" in errors[0]) == (role == "killed")


def test_a_process_that_keeps_pythons_lock_is_not_lost():
    # MEGABERT_TEST_SECONDS=30 is longer than any time after which a silent process counted as lost.
    ends, errors = run_pair("keeps_lock", os.environ.get("MEGABERT_TEST_SECONDS", "3"))
    assert ends == [0, 0], errors
