"""How processes find each other: what torchrun, srun or our launcher set, and the key-value store."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

PORT = 29500


PARENT = "MEGABERT_PARENT"


@dataclass(frozen=True)
class LaunchEnvironment:
    """What the launcher (torchrun, srun or our own) told this process."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    has_store: bool
    """Whether the launcher holds the store through which processes find each other."""
    attempt: str = "0"
    parent: int | None = None
    """The process that started this one, where it is ours: without it nobody would stop this one."""


def read_launch_environment(environ: Mapping[str, str]) -> LaunchEnvironment | None:
    """Read what a launcher set; None where there is none, so that this is the only process."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return LaunchEnvironment(
            rank=int(environ["RANK"]),
            size=int(environ["WORLD_SIZE"]),
            local_rank=int(environ.get("LOCAL_RANK", 0)),
            address=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environ.get("MASTER_PORT", PORT)),
            has_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
            parent=int(environ[PARENT]) if PARENT in environ else None,
        )
    # A shell inside an allocation has some of these too; only the tasks of one srun have the number of their step.
    size = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1 or "SLURM_PROCID" not in environ:
        return None
    return LaunchEnvironment(
        rank=int(environ["SLURM_PROCID"]),
        size=size,
        local_rank=int(environ.get("SLURM_LOCALID", 0)),
        address=environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        port=int(environ.get("MASTER_PORT") or PORT + int(environ.get("SLURM_JOB_ID", 0)) % 1000),
        has_store=False,
    )


def first_host(nodes: str) -> str:
    """Take the first name of SLURM's short form: node[03-07,9],other is node03."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else nodes


def open_store(launch: LaunchEnvironment, *, is_master: bool, timeout: timedelta) -> Any:
    """Connect to the store of this attempt of the run: a table of texts that all processes see."""
    import torch.distributed as dist

    parts: Any = dist  # its stubs leave these two out
    store = parts.TCPStore(launch.address, launch.port, None, is_master, timeout, wait_for_workers=False)
    return parts.PrefixStore(f"megabert/{launch.attempt}", store)
