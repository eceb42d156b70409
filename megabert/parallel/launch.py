"""Launch the processes of a training on this machine, as torchrun would, and combine their exit codes into one.

Each process runs the same command with its rank in the environment. Under torchrun or srun nothing is launched.
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
from ..errors import ConfigError, Interrupted, MegabertError, PeerLost
from .rendezvous import PARENT, read_launch_environment
from .signals import signal_handler

# Seconds that the other processes get to detect a failed one and to stop by themselves.
SHUTDOWN_TIMEOUT = 45.0


def count_to_start(settings: Settings, environ: Mapping[str, str]) -> int:
    """Count the processes to launch here; 0 for one process, or where another launcher has started this one.

    Raises ConfigError if the settings do not fit, before any process starts.
    """
    trainer = settings.trainer
    if (trainer.devices == 1 and trainer.num_nodes == 1) or read_launch_environment(environ) is not None:
        return 0
    from .process_group import check_devices, count_processes, resolve_mesh_axes

    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: start the command on each machine with torchrun "
            f"(--nnodes={trainer.num_nodes} --nproc_per_node={trainer.devices} -m megabert train ...) or with srun."
        )
    count = count_processes(trainer)
    resolve_mesh_axes(count, settings.parallel)
    check_devices(trainer)
    return count if count > 1 else 0


class ProcessesFailed(MegabertError):  # noqa: N818  (the processes have printed their errors)
    """Launched processes failed; `exit_code` is theirs."""

    is_reported = True

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the processes ended with {exit_code}")
        self.exit_code = exit_code


def launch(words: Sequence[str], count: int) -> None:
    """Run `megabert WORDS` in `count` processes and forward Ctrl-C and SIGTERM to them.

    Raises ProcessesFailed if a process fails or is killed.
    """
    command = [sys.executable, "-m", "megabert", *words]
    children: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []
    try:
        with signal_handler(partial(_forward_signal, children, signals)):
            for environment in environments(count):
                # A new session each: Ctrl-C in the terminal reaches them once, through this process.
                child = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603  (our own)
                children.append(child)
                for number in signals:  # they came before this child
                    child.send_signal(number)
            code = _exit_code(_wait(children), was_interrupted=bool(signals))
    finally:
        for child in _running(children):
            child.kill()
    if code:
        raise ProcessesFailed(code)


def environments(count: int) -> Iterator[dict[str, str]]:
    """Yield the environment of each process of this machine: torchrun's variables and the launcher's process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), PARENT: str(os.getpid())}
    # The processes share the cores; by default each would start a thread for every core. PyTorch logs a page of
    # addresses for a lost connection; the heartbeat reports it in a line.
    defaults = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    for rank in range(count):
        yield defaults | dict(os.environ) | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _running(children: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [child for child in children if child.poll() is None]


def _forward_signal(children: Sequence[subprocess.Popen[bytes]], signals: list[int], number: int, frame: Any) -> None:
    signals.append(number)
    for child in _running(children):
        child.send_signal(number)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for all processes; after the first failure, kill those that run beyond the timeout."""
    deadline: float | None = None
    while running := _running(children):
        if deadline is None and any(child.returncode for child in children):
            deadline = time.monotonic() + SHUTDOWN_TIMEOUT
        if deadline is not None and time.monotonic() > deadline:
            print("megabert: the other processes do not stop by themselves; they are killed.", file=sys.stderr)
            for child in running:
                child.kill()
        time.sleep(0.1)
    return [child.returncode for child in children]


def _exit_code(codes: Sequence[int], *, was_interrupted: bool = False) -> int:
    if was_interrupted and any(codes):
        # A signal may reach a process before it handles it, or a process that waits for one that has stopped already.
        codes = [Interrupted.exit_code if code < 0 or code == PeerLost.exit_code else code for code in codes]
    if any(code < 0 for code in codes):  # killed by a signal
        return PeerLost.exit_code
    return next((code for code in codes if code), 0)
