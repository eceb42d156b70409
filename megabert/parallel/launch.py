"""Start the processes of a training on this machine, as torchrun would, and end with one exit code for all.

Each process is the same command again, told its number in the environment. Under torchrun or srun nothing is started.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..config.schema import Settings
from ..errors import ConfigError, MegabertError, PeerLost
from .signals import signal_handler

# Seconds that the others get to notice that one is gone, and to say so.
PATIENCE = 45.0


def count_to_start(settings: Settings, environ: Mapping[str, str]) -> int:
    """Count the processes to start here: 0 where this one is all, or one of several that somebody else started.

    Raises ConfigError where they cannot be, before there are several to say so.
    """
    trainer = settings.trainer
    if trainer.devices == 1 and trainer.num_nodes == 1:
        return 0
    from .process_group import check_devices, count_processes, resolve_mesh_axes
    from .rendezvous import read_launch_environment

    if read_launch_environment(environ) is not None:
        return 0
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: start the command on each machine with torchrun "
            f"(--nnodes={trainer.num_nodes} --nproc_per_node={trainer.devices} -m megabert train ...) or with srun."
        )
    count = count_processes(trainer)
    resolve_mesh_axes(count, settings.parallel)
    check_devices(trainer)
    return count if count > 1 else 0


class ProcessesFailed(MegabertError):  # noqa: N818  (they said themselves why)
    """The processes of a training ended with an exit code, which is this one's too."""

    is_reported = True

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the processes ended with {exit_code}")
        self.exit_code = exit_code


def launch(words: Sequence[str], count: int) -> None:
    """Run `megabert` with these words in `count` processes.

    Ctrl-C and SIGTERM are passed on. Raises ProcessesFailed if one fails, or dies, which the others notice.
    """
    command = [sys.executable, "-m", "megabert", *words]
    # A session of their own: Ctrl-C on the terminal reaches them once, through this process.
    children = [
        subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603  (our own command)
        for environment in environments(count)
    ]
    try:
        with signal_handler(partial(_pass_on, children)):
            code = _exit_code(_wait(children))
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
    if code:
        raise ProcessesFailed(code)


def environments(count: int) -> Iterator[dict[str, str]]:
    """Give the environment of each of several processes of this machine: as torchrun sets it, and who started them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common["MEGABERT_PARENT"] = str(os.getpid())
    # As many threads as there are cores, in all; each process would take as many. Of a lost connection PyTorch prints
    # a page of addresses; who is gone is said in a line.
    defaults = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for rank in range(count):
        yield defaults | dict(os.environ) | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _pass_on(children: Sequence[subprocess.Popen[bytes]], number: int, frame: Any) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for all; where one failed, for the others only so long."""
    deadline: float | None = None
    while any(child.poll() is None for child in children):
        if deadline is None and any(child.returncode for child in children):
            deadline = time.monotonic() + PATIENCE
        if deadline is not None and time.monotonic() > deadline:
            print("megabert: the other processes do not stop by themselves; they are stopped.", file=sys.stderr)
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(0.1)
    return [child.returncode for child in children]


def _exit_code(codes: Sequence[int]) -> int:
    if any(code < 0 for code in codes):  # killed by a signal
        return PeerLost.exit_code
    return next((code for code in codes if code), 0)
