"""Process groups: the device mesh of a run with its ranks and collectives, its devices, and the dropout seed.

The mesh has three axes, as in Megatron-LM and FSDP: `data` (replicas, each with its own sequences), `fsdp` (data
parallelism with sharded weights) and `tensor` (processes that share each layer and see the same sequences). A single
process is a World of size 1 and initializes nothing.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ..config.schema import ParallelSettings, TrainerSettings, check_accelerator
from ..errors import ConfigError
from .rendezvous import LaunchEnvironment, open_store, read_launch_environment

# Their names before and since torch 2.13.
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def count_processes(trainer: TrainerSettings) -> int:
    """Count the processes that the settings request, -1 being all GPUs of the machine."""
    if trainer.num_nodes < 1 or (trainer.devices < 1 and trainer.devices != -1):
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}: give 1 or more of each; "
            "trainer.devices=-1 takes every GPU."
        )
    devices = trainer.devices
    if trainer.device_ids is not None and len(trainer.device_ids) != devices:
        raise ConfigError(f"trainer.devices={devices}, but trainer.device_ids={trainer.device_ids}. Give one of them.")
    if devices == -1:
        devices = max(torch.cuda.device_count(), 1) if trainer.accelerator != "cpu" else 1
    return devices * trainer.num_nodes


def check_devices(trainer: TrainerSettings) -> None:
    """Raise ConfigError if this machine has GPUs, but fewer than processes to start."""
    count = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    if 0 < count < trainer.devices:
        raise ConfigError(
            f"trainer.devices={trainer.devices}, but this machine has {count} GPUs. Lower it, or set "
            "trainer.accelerator=cpu."
        )
    if count and trainer.device_ids is not None:
        check_device_ids(trainer.device_ids, count)


@dataclass(frozen=True)
class World:
    """The rank of this process on each mesh axis, and the collectives of its groups."""

    device: torch.device
    rank: int = 0
    size: int = 1
    """World size, the number of processes."""
    local_rank: int = 0
    data_rank: int = 0
    """Index of the shard of the data that this process sees, over the axes data and fsdp together."""
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    fsdp_size: int = 1
    shards_optimizer: bool = False
    """Whether the data-parallel processes share the optimizer: each has master weights and state of a part."""
    mesh: Any = None
    """The DeviceMesh with the axes data, fsdp and tensor."""
    data_group: Any = None
    tensor_group: Any = None
    writing_group: Any = None
    """A separate group for the thread that writes checkpoints."""
    heartbeat: Any = None
    """The thread that detects lost processes."""

    def set_recovery_command(self, command: str) -> None:
        """Set the command that the error about a lost process recommends."""
        if self.heartbeat is not None:
            self.heartbeat.recovery_command = command

    @property
    def tensor_group_name(self) -> str:
        """Name of the tensor group, for functional collectives."""
        return str(self.tensor_group.group_name)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process logs and writes files for all."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        self._reduce(tensor, None, self.size)

    def all_reduce_data(self, tensor: Tensor) -> None:
        """Sum a tensor over the data-parallel processes, in place."""
        self._reduce(tensor, self.data_group, self.data_size)

    def all_reduce_data_async(self, tensor: Tensor) -> list[Any]:
        """Start the same all-reduce; the sum is complete after `wait()` on what this returns."""
        if self.data_size == 1:
            return []
        return [dist.all_reduce(tensor, group=self.data_group, async_op=True)]

    def reduce_scatter_data_async(self, buffer: Tensor, own: Tensor) -> list[Any]:
        """Start to sum a buffer over the data-parallel processes into `own`, this process' part of that buffer."""
        return [_REDUCE_SCATTER(own, buffer, group=self.data_group, async_op=True)]

    def all_gather_data_async(self, buffer: Tensor, own: Tensor) -> list[Any]:
        """Start to fill a buffer with the parts of the data-parallel processes; `own` is this process' part of it."""
        return [_ALL_GATHER(buffer, own, group=self.data_group, async_op=True)]

    def broadcast_data(self, tensor: Tensor, data_rank: int) -> None:
        """Overwrite a tensor with that of one data-parallel process."""
        dist.broadcast(tensor, group=self.data_group, group_src=data_rank)

    def all_reduce_tensor(self, tensor: Tensor) -> None:
        """Sum a tensor over the tensor axis, in place."""
        self._reduce(tensor, self.tensor_group, self.tensor_size)

    def _reduce(self, tensor: Tensor, group: Any, size: int) -> None:
        if size > 1:
            dist.all_reduce(tensor, group=group)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set in any process; a barrier that does not synchronize with the device."""
        if self.size == 1:
            return flag
        count = torch.tensor([float(flag)])
        self.all_reduce(count)
        return bool(count)

    def all_gather_text(self, text: str, *, group: Any = None) -> list[str]:
        """Gather a string from every process, in the order of ranks; a barrier."""
        if self.size == 1:
            return [text]
        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        lengths = torch.zeros(self.size, dtype=torch.long)
        lengths[self.rank] = len(data)
        dist.all_reduce(lengths, group=group)
        width = max(int(lengths.max()), 1)
        rows = [torch.empty(width, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(rows, torch.nn.functional.pad(data, (0, width - len(data))), group=group)
        pairs = zip(rows, lengths.tolist(), strict=True)
        return [row[:length].numpy().tobytes().decode() for row, length in pairs]

    def all_gather_text_on_writer_thread(self, text: str) -> list[str]:
        """Gather in the thread that writes checkpoints, through its own group."""
        return self.all_gather_text(text, group=self.writing_group)

    def broadcast_text(self, text: str) -> str:
        """Broadcast rank zero's string to all."""
        return self.all_gather_text(text if self.is_rank_zero else "")[0]

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        self.any_rank(False)

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Run the body on local rank zero first: it writes the files that the other ranks of the machine read."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


# For code that needs a world of size 1 on no particular device.
SINGLE_PROCESS = World(torch.device("cpu"))


@contextmanager
def connect(
    trainer: TrainerSettings, parallel: ParallelSettings, environ: Mapping[str, str] | None = None
) -> Iterator[World]:
    """Join the processes of a run; leaving the context is a barrier, and an error in one process stops all.

    Raises ConfigError if the number of processes differs from the settings', PeerLost if a process is lost.
    """
    launch = read_launch_environment(os.environ if environ is None else environ)
    requested = count_processes(trainer)
    size = 1 if launch is None else launch.size
    if size != requested:
        raise ConfigError(
            f"trainer.devices={trainer.devices} x trainer.num_nodes={trainer.num_nodes} requests {requested} "
            f"processes, but {size} {'was' if size == 1 else 'were'} started. Make them equal "
            "(torchrun --nproc_per_node, srun -n)."
        )
    axes = resolve_mesh_axes(size, parallel)
    if launch is None or size == 1:
        yield World(resolve_device(trainer.accelerator, device_ids=trainer.device_ids))
        return
    device = init_process_group(launch, trainer.accelerator, trainer.device_ids, timeout=parallel.timeout)
    world = init_mesh(launch, device, axes)
    from .heartbeat import heartbeat_thread

    with heartbeat_thread(launch) as heartbeat:
        yield replace(world, heartbeat=heartbeat)
        # The rank that hosts the store must not end before the others have read it for the last time.
        world.barrier()


def init_process_group(
    launch: LaunchEnvironment, accelerator: str, device_ids: list[int] | None = None, *, timeout: int
) -> torch.device:
    """Initialize torch.distributed and return this process' device."""
    device = resolve_device(accelerator, launch.local_rank, device_ids)
    wait = timedelta(seconds=timeout)
    store = open_store(launch, is_master=launch.rank == 0 and not launch.has_store, timeout=wait)
    # Tensors of the host go through gloo also where those of GPUs use NCCL: gloo does not synchronize with the device.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=wait)
    return device


def init_mesh(launch: LaunchEnvironment, device: torch.device, axes: tuple[int, int, int]) -> World:
    """Create the device mesh and its groups, with the tensor axis innermost and the data axis outermost."""
    mesh = init_device_mesh(device.type, axes, mesh_dim_names=("data", "fsdp", "tensor"))
    data = mesh["data", "fsdp"]._flatten("data_fsdp")
    return World(
        device,
        rank=launch.rank,
        size=launch.size,
        local_rank=launch.local_rank,
        data_rank=data.get_local_rank(),
        data_size=data.size(),
        tensor_rank=mesh["tensor"].get_local_rank(),
        tensor_size=axes[2],
        fsdp_size=axes[1],
        mesh=mesh,
        data_group=data.get_group(),
        tensor_group=mesh["tensor"].get_group(),
        writing_group=dist.new_group(backend="gloo"),
    )


def resolve_mesh_axes(size: int, parallel: ParallelSettings) -> tuple[int, int, int]:
    """Resolve the sizes of the axes data, fsdp and tensor. Raises ConfigError if they do not divide `size`."""
    tensor, fsdp = parallel.tensor, parallel.fsdp
    if tensor < 1 or size % tensor:
        raise ConfigError(
            f"parallel.tensor={tensor} does not divide the {size} processes (trainer.devices x trainer.num_nodes)."
        )
    rest = size // tensor
    fsdp = rest if fsdp == -1 else fsdp
    if fsdp < 1 or rest % fsdp:
        raise ConfigError(
            f"parallel.fsdp={parallel.fsdp} does not divide the {rest} processes that remain of {size} after "
            f"parallel.tensor={tensor}. Give -1 for all of them."
        )
    if parallel.sequence and tensor == 1:
        raise ConfigError("parallel.sequence=true shards over the tensor axis. Set parallel.tensor to 2 or more.")
    return rest // fsdp, fsdp, tensor


def check_device_ids(device_ids: list[int], count: int) -> list[int]:
    """Return numbers of GPUs. Raises ConfigError for one that is not among the machine's `count`, or is there twice."""
    if len(set(device_ids)) < len(device_ids) or any(not 0 <= number < count for number in device_ids):
        raise ConfigError(
            f"trainer.devices={device_ids}, but this machine has the GPUs 0 to {count - 1}. Name each once."
        )
    return device_ids


def resolve_device(
    accelerator: str, local_rank: int | None = None, device_ids: list[int] | None = None
) -> torch.device:
    """Resolve the device to compute on; auto is a GPU if PyTorch finds one. `device_ids` are those of the ranks."""
    check_accelerator(accelerator)
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer.accelerator=gpu, but PyTorch finds no GPU. Use auto or cpu.")
    if not has_gpu or accelerator == "cpu":
        return torch.device("cpu")
    if local_rank is None and device_ids is None:
        return torch.device("cuda")
    count, rank = torch.cuda.device_count(), local_rank or 0
    if device_ids is None and rank >= count > 1:
        raise ConfigError(f"process {rank + 1} of this machine has no GPU. Set trainer.devices={count} or less.")
    # A scheduler may expose to each process its own GPU only.
    own = (rank if count > 1 else 0) if device_ids is None else check_device_ids(device_ids, count)[rank]
    device = torch.device("cuda", own)
    torch.cuda.set_device(device)
    return device
