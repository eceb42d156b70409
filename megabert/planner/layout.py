"""Parallel layouts of GPUs, and the time of collectives on their groups.

Source of a ring all-reduce's traffic, 2 (n - 1) / n of the bytes: nccl-tests.
"""

from dataclasses import dataclass

from ..errors import ConfigError
from .hardware import Gpu, Implementation


@dataclass(frozen=True)
class ParallelLayout:
    """How a step is parallelized: the tensor axis is innermost, then fsdp, then data, whose processes are replicas."""

    gpus: int = 1
    gpus_per_node: int = 8
    tensor: int = 1
    fsdp: int = 1
    sequence: bool = False
    activation_checkpointing: bool = False
    accumulate: int = 1
    keeps_weights: bool = False
    """With fsdp: only master weights and optimizer state are sharded (parallel/optimizer_shards.py)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible layouts."""
        for name in ("gpus", "gpus_per_node", "tensor", "fsdp", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; at least 1 is needed.")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ConfigError(
                f"gpus={self.gpus} does not fill machines of gpus_per_node={self.gpus_per_node}. "
                f"Give a multiple of {self.gpus_per_node}."
            )
        if self.gpus % (self.tensor * self.fsdp):
            raise ConfigError(
                f"gpus={self.gpus} is not divisible by tensor={self.tensor} x fsdp={self.fsdp} = "
                f"{self.tensor * self.fsdp} processes. Change one of them."
            )
        if self.sequence and self.tensor == 1:
            raise ConfigError("sequence=true shards tokens over the tensor axis. Give tensor=2 or more with it.")

    @property
    def num_replicas(self) -> int:
        """Size of the data axis."""
        return self.gpus // (self.tensor * self.fsdp)

    @property
    def axes(self) -> str:
        """Sizes of the axes, as tables show them."""
        return f"{self.num_replicas} x {self.fsdp} x {self.tensor}"

    @property
    def data_size(self) -> int:
        """Number of processes with different sequences, over the axes data and fsdp."""
        return self.gpus // self.tensor

    @property
    def is_captured(self) -> bool:
        """Whether steps are CUDA graphs (parallel/sharding.py)."""
        return self.weight_shards == 1 and not self.activation_checkpointing

    @property
    def weight_shards(self) -> int:
        """Number of processes that weights themselves are sharded over."""
        return 1 if self.keeps_weights else self.fsdp

    def group(self, size: int, stride: int) -> "CommunicationGroup":
        """Return the group of one axis, whose neighbouring ranks are `stride` apart."""
        return CommunicationGroup(size, max(1, min(size, self.gpus_per_node // stride)))


@dataclass(frozen=True)
class CommunicationGroup:
    """The size of a process group, and how many of its processes are on one node."""

    size: int
    per_node: int

    def bus_bandwidth(self, gpu: Gpu) -> float:
        """Return the bus bandwidth, bytes/s: that of NVLink, between nodes limited by the members' network adapters."""
        inside = gpu.bus_bandwidth[min(gpu.bus_bandwidth, key=lambda count: abs(count - self.per_node))]
        if self.size <= self.per_node:
            return inside
        between = self.per_node * gpu.network_bandwidth
        return between if self.per_node == 1 else min(inside, between)

    def all_reduce_seconds(self, num_bytes: float, gpu: Gpu, implementation: Implementation) -> float:
        """Time a ring all-reduce, in which each process sends and receives 2 (n - 1) / n of the bytes."""
        if self.size == 1:
            return 0.0
        nodes = -(-self.size // self.per_node)
        latency = implementation.latency + implementation.hop_latency * (nodes - 1).bit_length()
        return 2 * (self.size - 1) / self.size * num_bytes / self.bus_bandwidth(gpu) + latency

    def all_gather_seconds(self, num_bytes: float, gpu: Gpu, implementation: Implementation) -> float:
        """Time an all-gather or reduce-scatter of `num_bytes` in total: half an all-reduce, at a lower bandwidth."""
        return self.all_reduce_seconds(num_bytes / gpu.all_gather_efficiency, gpu, implementation) / 2
