"""Rendezvous of processes: the launch environment of torchrun, srun or our launcher, and the key-value store."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

DEFAULT_PORT = 29500
PARENT = "MEGABERT_PARENT"


@dataclass(frozen=True)
class LaunchEnvironment:
    """What the launcher (torchrun, srun or our own) has set for this process."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    has_store: bool
    """Whether the launcher hosts the store; otherwise rank zero does."""
    attempt: str = "0"
    parent: int | None = None
    """Process id of our launcher, None under other launchers: this process must not outlive it."""


def read_launch_environment(environ: Mapping[str, str]) -> LaunchEnvironment | None:
    """Read what a launcher has set; None for a process that was started alone."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return LaunchEnvironment(
            rank=int(environ["RANK"]),
            size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ.get("LOCAL_RANK", 0)),
            address=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environ.get("MASTER_PORT", DEFAULT_PORT)),
            has_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
            parent=int(environ[PARENT]) if PARENT in environ else None,
        )
    # A shell inside an allocation has some SLURM variables too; only the tasks of srun have a step.
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1 or "SLURM_PROCID" not in environ:
        return None
    return LaunchEnvironment(
        rank=int(environ["SLURM_PROCID"]),
        size=size,
        local_rank=int(environ.get("SLURM_LOCALID", 0)),
        address=environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        port=int(environ.get("MASTER_PORT") or DEFAULT_PORT + int(environ.get("SLURM_JOB_ID", 0)) % 1000),
        has_store=False,
    )


def first_host(node_list: str) -> str:
    """Expand the first host name of SLURM's compressed list: node[03-07,9],other gives node03."""
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", node_list)
    return f"{match[1]}{match[2] or ''}" if match else node_list


def open_store(launch: LaunchEnvironment, *, is_master: bool, timeout: timedelta) -> Any:
    """Connect to the key-value store that the processes of this attempt share."""
    import torch.distributed as dist

    stores: Any = dist  # torch's type stubs lack both classes
    store = stores.TCPStore(launch.address, launch.port, None, is_master, timeout, wait_for_workers=False)
    return stores.PrefixStore(f"megabert/{launch.attempt}", store)
