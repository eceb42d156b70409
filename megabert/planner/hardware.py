"""Tables of the cost model: GPUs with measured rates and interconnects, and implementations.

Rates are those that programs reach, not those of data sheets. Where nothing was measured, the data sheet's value times
the share measured on an H100 is used, and `source` notes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """A GPU model and the machine that usually holds it. Rates are FLOP/s and bytes/s."""

    title: str
    memory: float
    """Bytes of device memory."""
    matmul_rate: Mapping[str, float]
    """FLOP/s of very large matmuls inside a training step, by precision; precisions that are absent are unsupported.

    A step's matmuls keep a GPU at its power limit: an H100 reaches 785 TFLOP/s briefly, and less after a second.
    """
    peak: float
    """Data-sheet FLOP/s in 16 bits, without sparsity."""
    memory_bandwidth: float
    """Bytes/s of copies inside device memory, counting both reads and writes."""
    bus_bandwidth: Mapping[int, float]
    """Bus bandwidth of an all-reduce of about 100 MB inside a node, by the number of GPUs (nccl-tests' term)."""
    all_gather_efficiency: float
    """Share of the bus bandwidth that all-gather and reduce-scatter reach."""
    network_bandwidth: float
    """Bytes/s between nodes for each GPU and direction: a node's network adapters divided among its GPUs."""
    gpus_per_node: int
    source: str


_DGX = "NVIDIA's data sheet; rates and network times the shares measured on an H100 (0.85 of peak, 0.9 of bandwidth)"
_H100 = Gpu(
    title="NVIDIA H100 SXM 80 GB",
    memory=85.0 * GIGA,
    matmul_rate={"bf16": 780 * TERA, "16": 780 * TERA, "32": 52 * TERA},
    peak=989 * TERA,
    memory_bandwidth=3.0e12,
    bus_bandwidth={2: 286 * GIGA, 4: 309 * GIGA, 8: 314 * GIGA},
    all_gather_efficiency=0.77,
    network_bandwidth=40 * GIGA,
    gpus_per_node=8,
    source="measured: products, copies, collectives of 2 GPUs; of 4 and 8 all-reduces of 1 GiB (355 and 361 GB/s), "
    "taken to fall as those of 2 do (329 to 286); network: DGX H100, 400 Gb/s a GPU, 80 % of it",
)

GPUS: Mapping[str, Gpu] = {
    "h100": _H100,
    "h200": replace(
        _H100,
        title="NVIDIA H200 SXM 141 GB",
        memory=150.0 * GIGA,
        memory_bandwidth=4.3e12,
        source="the H100's processors and links with the data sheet's memory (4.8 TB/s, 0.9 of it)",
    ),
    "a100": replace(
        _H100,
        title="NVIDIA A100 SXM 80 GB",
        matmul_rate={"bf16": 265 * TERA, "16": 265 * TERA, "32": 17 * TERA},
        peak=312 * TERA,
        memory_bandwidth=1.8e12,
        bus_bandwidth={2: 200 * GIGA, 4: 220 * GIGA, 8: 230 * GIGA},
        network_bandwidth=20 * GIGA,
        source=f"{_DGX}; DGX A100: NVLink 300 GB/s each way, 200 Gb/s a GPU",
    ),
    "v100": Gpu(
        title="NVIDIA V100 SXM3 32 GB (DGX-2H)",
        memory=34.0 * GIGA,
        # Its tensor cores do not support bfloat16.
        matmul_rate={"16": 110 * TERA, "32": 14 * TERA},
        peak=130 * TERA,
        memory_bandwidth=0.8e12,
        bus_bandwidth={2: 110 * GIGA, 4: 115 * GIGA, 8: 120 * GIGA, 16: 120 * GIGA},
        all_gather_efficiency=0.77,
        network_bandwidth=5 * GIGA,
        gpus_per_node=16,
        source=f"{_DGX}; DGX-2H: NVLink 150 GB/s each way, 8 adapters of 100 Gb/s for 16 GPUs (Shoeybi et al. 2019)",
    ),
}


@dataclass(frozen=True)
class Implementation:
    """Costs of an implementation besides the model's FLOP: efficiencies, memory traffic, overheads, overlap.

    Fitted to sixteen measured steps of megabert on one and two H100s (docs/scaling.md), together with the GPU's
    matmul_rate: exposed_matmul_traffic, matmul_overhead, attention_efficiency, elementwise_efficiency, norm_bytes,
    fixed_seconds, tensor_overlap, fsdp_copy_bytes; sequence_overlap to four steps on two and four H200s. host_seconds
    is from a compiled step of 24 layers that took 55 ms, twice the time of its kernels, fsdp_host_seconds from one with
    FSDP that took 117 ms, its kernels 28, uncaptured_idle_seconds and fsdp_tensor_idle_seconds from steps of two and
    four GPUs. fsdp_overlap and both latencies are assumed. The rest follows from the code.
    """

    exposed_matmul_traffic: float = 0.32
    """Share of a matmul's memory traffic that does not overlap with its arithmetic."""
    matmul_overhead: float = 3e-6
    """Seconds to start and end a matmul."""
    attention_efficiency: float = 0.31
    """Rate of the attention kernel, as a share of matmul_rate."""
    elementwise_efficiency: float = 0.86
    """Share of `memory_bandwidth` that element-wise kernels reach."""
    norm_bytes: float = 66.0
    """Bytes for each token and hidden unit of a layer, forward and backward: norms, dropout, residuals."""
    norm_forward_bytes: float = 16.0
    """Those of the forward pass."""
    fused_norm_bytes: float = 30.0
    """The same for layers that are fused (model/fused_layers.py), which sum only one bias in a pass of its own; 0: none
    are. Fitted to the gain on one H200."""
    bias_bytes: float = 2.0
    """Bytes for each element that is summed to a bias gradient."""
    fixed_seconds: float = 0.5e-3
    """Fixed time of a micro-batch: losses, the task's head, copies of the batch."""
    host_seconds: float = 2e-3
    """Time of the host to launch one layer, forward and backward, without CUDA graphs."""
    fsdp_host_seconds: float = 5e-3
    """The same with FSDP, whose hooks prepare each all-gather and reduce-scatter."""
    adapter_host_seconds: float = 6.5e-3
    """The same with adapters, whose thin matmuls are launched one by one; with activation checkpointing, which is why
    such a step is not captured."""
    uncaptured_idle_seconds: float = 8e-3
    """Time that a GPU waits for the host at the start of a step without a CUDA graph."""
    fsdp_tensor_idle_seconds: float = 0.5e-3
    """Time that FSDP with tensor parallelism is idle in a layer, whose collectives wait for each other."""
    gelu_bytes: float = 20.0
    """Bytes for each token and unit of MLP width: two reads or writes forward, three backward."""
    adapter_bytes: float = 6.0
    """Bytes for each input and output of an adapted linear map, forward and backward: scaling and sums."""
    score_bytes: float = 0.0
    """Bytes for each attention weight; 0: they never leave the kernel."""
    score_forward_bytes: float = 0.0
    logit_bytes: float = 8.0
    """Bytes for each logit of the element-wise kernels of the loss."""
    adam_bytes: float = 30.0
    """Bytes for each weight of an optimizer step: norm, weight, moments and copy."""
    latency: float = 20e-6
    """Latency of a collective, seconds."""
    hop_latency: float = 10e-6
    """Additional latency for each doubling of the number of nodes."""
    gradient_width: int = 4
    """Bytes of a gradient element in the all-reduce between replicas."""
    overlap: float = 0.0
    """Share of the gradient all-reduce that may overlap with the backward pass."""
    tensor_overlap: float = 0.15
    """Share of tensor-axis communication that overlaps with matmuls."""
    sequence_overlap: float = 0.4
    """The same with sequence parallelism inside a node, where copies of chunks do so (parallel/sequence_shards.py)."""
    fsdp_overlap: float = 0.75
    """Share of FSDP's all-gathers and reduce-scatters that overlaps with compute."""
    fsdp_copy_bytes: float = 45.0
    """Bytes for each weight and micro-batch of FSDP's copies into and out of collective buffers."""


MEGABERT = Implementation()
