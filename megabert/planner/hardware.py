"""What the cost model (cost.py) stands on: GPUs with their measured rates and links, programs, published networks.

A table and nothing that acts on it. Rates are what programs reach, not what data sheets promise; where nobody here has
measured, the data sheet's number times the share that was measured on an H100 stands, and the source says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..model.config import EncoderConfig

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU and the machine that it usually sits in. Rates are FLOP/s and bytes/s."""

    title: str
    memory: float
    """Bytes of device memory."""
    matrix_rate: Mapping[str, float]
    """What products of endless matrices would reach inside a step, by precision; one that is not there cannot be used.

    A step of products keeps a GPU at its power limit: an H100 does 785 TFLOP/s for a while, and less for a second.
    """
    peak: float
    """The data sheet's FLOP/s in 16 bits, without sparsity."""
    bandwidth: float
    """Bytes/s of copies inside device memory, read and written bytes both counted."""
    bus: Mapping[int, float]
    """Bus bandwidth of an all-reduce of some 100 MB inside a machine, by the number of GPUs (nccl-tests' term)."""
    gathering_share: float
    """Share of it that gathers and scatters reach."""
    network: float
    """Bytes/s between machines for each GPU, each way: the adapters of a machine, shared out among its GPUs."""
    gpus_per_node: int
    source: str


_DGX = "NVIDIA's data sheet; rates and network times the shares measured on an H100 (0.85 of peak, 0.9 of bandwidth)"

GPUS: Mapping[str, Gpu] = {
    "h100": Gpu(
        title="NVIDIA H100 SXM 80 GB",
        memory=85.0 * GIGA,
        matrix_rate={"bf16": 780 * TERA, "16": 780 * TERA, "32": 52 * TERA},
        peak=989 * TERA,
        bandwidth=3.0e12,
        bus={2: 286 * GIGA, 4: 309 * GIGA, 8: 314 * GIGA},
        gathering_share=0.77,
        network=40 * GIGA,
        gpus_per_node=8,
        source="measured: products, copies, collectives of 2 GPUs; of 4 and 8 all-reduces of 1 GiB (355 and 361 GB/s), "
        "taken to fall as those of 2 do (329 to 286); network: DGX H100, 400 Gb/s a GPU, 80 % of it",
    ),
    "h200": Gpu(
        title="NVIDIA H200 SXM 141 GB",
        memory=150.0 * GIGA,
        matrix_rate={"bf16": 780 * TERA, "16": 780 * TERA, "32": 52 * TERA},
        peak=989 * TERA,
        bandwidth=4.3e12,
        bus={2: 286 * GIGA, 4: 309 * GIGA, 8: 314 * GIGA},
        gathering_share=0.77,
        network=40 * GIGA,
        gpus_per_node=8,
        source="the H100's processors and links with the data sheet's memory (4.8 TB/s, 0.9 of it)",
    ),
    "a100": Gpu(
        title="NVIDIA A100 SXM 80 GB",
        memory=85.0 * GIGA,
        matrix_rate={"bf16": 265 * TERA, "16": 265 * TERA, "32": 17 * TERA},
        peak=312 * TERA,
        bandwidth=1.8e12,
        bus={2: 200 * GIGA, 4: 220 * GIGA, 8: 230 * GIGA},
        gathering_share=0.77,
        network=20 * GIGA,
        gpus_per_node=8,
        source=f"{_DGX}; DGX A100: NVLink 300 GB/s each way, 200 Gb/s a GPU",
    ),
    "v100": Gpu(
        title="NVIDIA V100 SXM3 32 GB (DGX-2H)",
        memory=34.0 * GIGA,
        # No bfloat16 in its tensor cores.
        matrix_rate={"16": 110 * TERA, "32": 14 * TERA},
        peak=130 * TERA,
        bandwidth=0.8e12,
        bus={2: 110 * GIGA, 4: 115 * GIGA, 8: 120 * GIGA, 16: 120 * GIGA},
        gathering_share=0.77,
        network=5 * GIGA,
        gpus_per_node=16,
        source=f"{_DGX}; DGX-2H: NVLink 150 GB/s each way, 8 adapters of 100 Gb/s for 16 GPUs (Shoeybi et al. 2019)",
    ),
}


@dataclass(frozen=True)
class Program:
    """How a program does its work: what the GPU must move and compute besides what the network asks for.

    Fitted to sixteen measured steps of megabert on one and two H100s (docs/scaling.md), with the GPU's matrix_rate:
    product_traffic, product_seconds, attention_share, stream_share, norm_bytes, fixed_seconds, tensor_overlap,
    fsdp_copy_bytes. host_seconds is of a compiled step of 24 layers that took 55 ms where its kernels took half,
    fsdp_host_seconds of one with FSDP that took 117 ms where they took 28. fsdp_overlap and both latencies are
    assumed. The rest follows from the code.
    """

    product_traffic: float = 0.32
    """Share of a product's reads and writes that is not hidden behind its arithmetic."""
    product_seconds: float = 3e-6
    """Start and end of a product."""
    attention_share: float = 0.31
    """Rate of the attention kernel, as a share of matrix_rate."""
    stream_share: float = 0.86
    """Share of `bandwidth` that element-wise kernels reach."""
    norm_bytes: float = 66.0
    """Bytes a token and unit of hidden size in a layer, forward and backward: norms, dropout, residuals."""
    norm_forward_bytes: float = 16.0
    """Those of the forward pass."""
    bias_bytes: float = 2.0
    """Bytes for each element whose gradient is summed for a bias."""
    fixed_seconds: float = 0.5e-3
    """Of each micro-batch: losses, the task's head, copies of the batch."""
    host_seconds: float = 2e-3
    """What the host needs to launch one layer forward and backward where steps are not recorded in CUDA graphs."""
    fsdp_host_seconds: float = 5e-3
    """The same with FSDP, whose hooks prepare each gathering and scattering."""
    gelu_bytes: float = 20.0
    """Bytes a token and unit of MLP width, forward and backward: two reads or writes forward, three backward."""
    score_bytes: float = 0.0
    """Bytes for each attention weight; 0: they never leave the kernel."""
    score_forward_bytes: float = 0.0
    logits_passes: int = 4
    """Products with the vocabulary's matrix: forward, again in the backward pass, two gradients."""
    logit_bytes: float = 60.0
    """Bytes for each logit of the element-wise part of the loss."""
    adam_bytes: float = 30.0
    """Bytes a weight of an optimizer step: norm, weight, moments and copy."""
    latency: float = 20e-6
    """Seconds before the first byte of a collective arrives."""
    hop_latency: float = 10e-6
    """And for each doubling of the number of machines."""
    gradient_width: int = 4
    """Bytes of a gradient on its way between processes that hold the same weights."""
    overlap: float = 0.0
    """Share of that way which the backward pass may hide."""
    tensor_overlap: float = 0.15
    """Share of the sums over the tensor axis that products beside them hide."""
    fsdp_overlap: float = 0.75
    """Share of the way of weights that are shared out, and of their gradients, that computing hides."""
    fsdp_copy_bytes: float = 45.0
    """Bytes a weight and micro-batch of copies: into and out of what is gathered, twice, and what is scattered."""


MEGABERT = Program()

# Megatron-LM as of its paper (Shoeybi et al. 2019): attention as separate kernels, gradients in 16 bits that PyTorch's
# DistributedDataParallel sends during the backward pass. Fitted: the bytes of attention weights to its one-GPU rate, 39
# TFLOP/s, and those of norms to its weak scaling on 8 GPUs, 77 %; they stand for all that is cut and all that is not.
MEGATRON_2019 = replace(
    MEGABERT,
    attention_share=0.5,
    norm_bytes=250.0,
    norm_forward_bytes=90.0,
    gelu_bytes=60.0,
    score_bytes=60.0,
    score_forward_bytes=26.0,
    logits_passes=3,
    adam_bytes=60.0,
    host_seconds=0.0,
    gradient_width=2,
    overlap=0.7,
    tensor_overlap=0.0,
    product_traffic=0.45,
)

BERT_VOCABULARY = 30_522
GPT_VOCABULARY = 50_257


def _bert(num_layers: int, hidden_size: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(BERT_VOCABULARY, num_layers, hidden_size, num_heads, 4 * hidden_size, 512)


def _gpt(num_layers: int, hidden_size: int, num_heads: int) -> EncoderConfig:
    return EncoderConfig(
        GPT_VOCABULARY, num_layers, hidden_size, num_heads, 4 * hidden_size, 1024, num_segments=0, is_causal=True
    )


# Shoeybi et al. 2019 (arXiv:1909.08053v4), table 4 (BERT) and table 2 (GPT-2).
NETWORKS: Mapping[str, EncoderConfig] = {
    "345m": _bert(24, 1024, 16),
    "1.3b": _bert(24, 2048, 32),
    "3.9b": _bert(48, 2560, 40),
    "gpt-345m": _gpt(24, 1024, 16),
    "2.5b": _gpt(54, 1920, 20),
    "8.3b": _gpt(72, 3072, 24),
}
