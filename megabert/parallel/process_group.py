"""Where and how precisely a run computes: its processes on three axes, the device of each, the seed of micro-batches.

The axes are those of Megatron-LM and FSDP: `data` (copies of the network, each with texts of its own), `fsdp` (the
data axis' part among which weights are spread) and `tensor` (processes that share each layer, so they see the same
texts). One process is a World of its own and starts nothing.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..config.schema import ParallelSettings, TrainerSettings
from ..errors import ConfigError
from .rendezvous import LaunchEnvironment, open_store, read_launch_environment


def count_processes(trainer: TrainerSettings) -> int:
    """Count the processes that the settings ask for."""
    if trainer.num_nodes < 1 or (trainer.devices < 1 and trainer.devices != -1):
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}: give 1 or more of each; "
            "trainer.devices=-1 takes every GPU."
        )
    devices = trainer.devices
    if devices == -1:
        devices = max(torch.cuda.device_count(), 1) if trainer.accelerator != "cpu" else 1
    return devices * trainer.num_nodes


def check_devices(trainer: TrainerSettings) -> None:
    """Raise ConfigError where this machine has GPUs, but fewer than it is to have processes."""
    count = torch.cuda.device_count() if trainer.accelerator != "cpu" else 0
    if 0 < count < trainer.devices:
        raise ConfigError(
            f"trainer.devices={trainer.devices}, but there are {count} GPUs here. Lower it, or set "
            "trainer.accelerator=cpu."
        )


@dataclass(frozen=True)
class World:
    """This process among those of a run."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    data_rank: int = 0
    """Which share of the texts is this process'."""
    data_size: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1
    fsdp_size: int = 1
    mesh: Any = None
    """The DeviceMesh with the axes data, fsdp and tensor."""
    data_group: Any = None
    tensor_group: Any = None
    writing_group: Any = None
    """For the thread that writes checkpoints, beside what the main one does."""

    watch: Any = None
    """The thread that notices when another process is gone."""

    def set_recovery_command(self, command: str) -> None:
        """Say what a person can do when another process is gone."""
        if self.watch is not None:
            self.watch.advice = command

    @property
    def tensor_group_name(self) -> str:
        """Name the processes that share layers with this one."""
        return str(self.tensor_group.group_name)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process speaks for all: logs, bars, documents."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in its place."""
        self._reduce(tensor, None, self.size)

    def all_reduce_data(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes with other texts, in its place."""
        self._reduce(tensor, self.data_group, self.data_size)

    def all_reduce_data_async(self, tensor: Tensor) -> list[Any]:
        """Do the same beside what follows; the sum is there when what this returns was waited for."""
        if self.data_size == 1:
            return []
        import torch.distributed as dist

        return [dist.all_reduce(tensor, group=self.data_group, async_op=True)]

    def all_reduce_tensor(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes that share layers with this one, in its place."""
        self._reduce(tensor, self.tensor_group, self.tensor_size)

    def _reduce(self, tensor: Tensor, group: Any, size: int) -> None:
        if size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor, group=group)

    def any_rank(self, flag: bool) -> bool:
        """Say whether the flag is set in any process; waits for the others, and not for a device."""
        if self.size == 1:
            return flag
        count = torch.tensor([float(flag)])
        self.all_reduce(count)
        return bool(count)

    def all_gather_text(self, text: str, *, group: Any = None) -> list[str]:
        """Give a text to all, and get everybody's, by rank; nobody goes on before all are here."""
        if self.size == 1:
            return [text]
        import torch.distributed as dist

        data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        lengths = torch.zeros(self.size, dtype=torch.long)
        lengths[self.rank] = len(data)
        dist.all_reduce(lengths, group=group)
        longest = max(int(lengths.max()), 1)
        rows = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(rows, torch.nn.functional.pad(data, (0, longest - len(data))), group=group)
        pairs = zip(rows, lengths.tolist(), strict=True)
        return [row[:length].numpy().tobytes().decode() for row, length in pairs]

    def all_gather_text_on_writer_thread(self, text: str) -> list[str]:
        """Do the same in the thread that writes checkpoints."""
        return self.all_gather_text(text, group=self.writing_group)

    def broadcast_text(self, text: str) -> str:
        """Take what the first process says."""
        return self.all_gather_text(text if self.is_rank_zero else "")[0]

    def barrier(self) -> None:
        """Go on when all are here."""
        self.any_rank(False)

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Let the first process of each machine go first: it makes the files that the others find."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


SINGLE_PROCESS = World(torch.device("cpu"))


"""For those who ask nothing of a world but its size."""


@contextmanager
def connect(
    trainer: TrainerSettings, parallel: ParallelSettings, environ: Mapping[str, str] | None = None
) -> Iterator[World]:
    """Find the other processes of a run. Leaving it, all have come so far, or hear of the error at once.

    Raises ConfigError where the processes that there are do not fit the settings; PeerLost where one is gone.
    """
    launch = read_launch_environment(os.environ if environ is None else environ)
    asked = count_processes(trainer)
    size = 1 if launch is None else launch.size
    if size != asked:
        raise ConfigError(
            f"trainer.devices={trainer.devices} x trainer.num_nodes={trainer.num_nodes} asks for {asked} processes, "
            f"but {size} {'was' if size == 1 else 'were'} started. Let them agree (torchrun --nproc_per_node, srun -n)."
        )
    axes = resolve_mesh_axes(size, parallel)
    if launch is None or size == 1:
        yield World(resolve_device(trainer.accelerator))
        return
    world = lay_out(launch, start(launch, trainer.accelerator, timeout=parallel.timeout), axes)
    from .heartbeat import heartbeat_thread

    with heartbeat_thread(launch) as watch:
        yield replace(world, watch=watch)
        # Whoever holds the store must not leave before the others have heard the last of it.
        world.barrier()


def start(launch: LaunchEnvironment, accelerator: str, *, timeout: int) -> torch.device:
    """Find the others; returns this process' device."""
    import torch.distributed as dist

    device = resolve_device(accelerator, launch.local_rank)
    wait = timedelta(seconds=timeout)
    store = open_store(launch, is_master=launch.rank == 0 and not launch.has_store, timeout=wait)
    # What the host decides goes through gloo also where networks talk through NCCL: it waits for no device.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=wait)
    return device


def lay_out(launch: LaunchEnvironment, device: torch.device, axes: tuple[int, int, int]) -> World:
    """Lay the processes out: neighbours share layers, then weights, then nothing but gradients."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, axes, mesh_dim_names=("data", "fsdp", "tensor"))
    data = mesh["data", "fsdp"]._flatten("texts")
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
    """Settle the sizes of the axes data, fsdp and tensor. Raises ConfigError where they do not divide."""
    tensor, fsdp = parallel.tensor, parallel.fsdp
    if tensor < 1 or size % tensor:
        raise ConfigError(
            f"parallel.tensor={tensor} does not divide the {size} processes (trainer.devices x trainer.num_nodes)."
        )
    rest = size // tensor
    fsdp = rest if fsdp == -1 else fsdp
    if fsdp < 1 or rest % fsdp:
        raise ConfigError(
            f"parallel.fsdp={parallel.fsdp} does not divide the {rest} processes that parallel.tensor={tensor} leaves "
            f"of {size}. Give -1 for all of them."
        )
    if parallel.sequence and tensor == 1:
        raise ConfigError("parallel.sequence=true shares work along the tensor axis. Set parallel.tensor to 2 or more.")
    return rest // fsdp, fsdp, tensor


def resolve_device(accelerator: str, local_rank: int | None = None) -> torch.device:
    """Choose the device that a run computes on: auto takes a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if accelerator == "gpu" and not has_gpu:
        raise ConfigError("trainer.accelerator=gpu, but PyTorch sees no GPU here. Use auto or cpu.")
    if not has_gpu or accelerator == "cpu":
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise ConfigError(f"process {local_rank + 1} of this machine has no GPU: there are {count}.")
    # A scheduler may show each process its own GPU only.
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    return device


def seed_step(seed: int, micro_batch: int) -> None:
    """Seed dropout for a micro-batch by its number, so that resuming needs no saved random state.

    Processes with other texts have micro-batches of other numbers. The two numbers are mixed by SplitMix64's
    finalizer (Steele, Lea and Flood 2014, doi:10.1145/2714064.2660195).
    """
    mask = (1 << 64) - 1
    mixed = (seed * 0x9E3779B97F4A7C15 + micro_batch + 1) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    torch.manual_seed((mixed ^ (mixed >> 31)) & mask)
