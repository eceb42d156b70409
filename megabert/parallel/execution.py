"""How a network is executed: device, precision, compilation, static batch sizes, steps without host synchronization."""

import math
from dataclasses import dataclass, replace

import torch

from ..config.schema import ParallelSettings, TrainerSettings
from ..model.config import EncoderConfig
from ..model.heads import TaskModel
from ..model.lora import lora_config
from ..model.precision import resolve_precision, resolve_static_batches
from ..planner.cost_model import Estimate
from ..planner.hardware import GPUS
from ..planner.layout import ParallelLayout
from ..planner.workload import MicroBatch, Workload
from .process_group import World

# Optimizers whose update is a kernel of the package, which a CUDA graph can capture.
FUSED_OPTIMIZERS = ("adam", "adamw")


@dataclass(frozen=True)
class Execution:
    """Device, precision, compilation and CUDA graph capture of a training, resolved once from the settings."""

    device: torch.device
    precision: str
    is_compiled: bool
    has_static_batches: bool
    """Every micro-batch is padded to one size, so that steps can be captured in a CUDA graph."""
    is_sync_free: bool
    """Steps run without host synchronization."""
    obstacle: str | None
    """Why steps on a GPU cannot be captured in a CUDA graph although trainer.cuda_graph is set."""
    device_name: str
    """The GPU model, or the CPU with its number of threads."""


def choose_what_to_shard(
    world: World, trainer: TrainerSettings, parallel: ParallelSettings, model: TaskModel, micro_batch: MicroBatch
) -> World:
    """Return the world in which only the optimizer is sharded over the fsdp axis, where whole weights fit.

    `megabert plan` decides by the same estimate of memory. Where replicas remain besides the axis, FSDP shards all; of
    adapters the optimizer is small, and FSDP shards the frozen weights.
    """
    if world.fsdp_size == 1 or world.fsdp_size < world.data_size or lora_config(model) is not None:
        return world
    precision = resolve_precision(trainer.precision, world.device).replace("fp8", "bf16")
    layout = ParallelLayout(
        gpus=world.size, gpus_per_node=world.size, tensor=world.tensor_size, fsdp=world.fsdp_size,
        sequence=parallel.sequence, activation_checkpointing=parallel.activation_checkpointing,
        accumulate=trainer.accumulate_grad_batches,
    )  # fmt: skip
    # Only the memory of the estimate is used, in which GPUs do not differ otherwise.
    gpu = replace(GPUS["h100"], memory=device_memory(world.device))
    workload = Workload(model.encoder.config, precision, is_pretraining=model.head.takes_targets)
    keeps_weights = Estimate(workload, micro_batch, layout, gpu).with_kept_weights().layout.keeps_weights
    if world.any_rank(not keeps_weights):
        return world
    return replace(world, fsdp_size=1, shards_optimizer=True)


def device_memory(device: torch.device) -> float:
    """Return a device's memory in bytes; that of a CPU is not limited."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf


def resolve_execution(
    trainer: TrainerSettings, parallel: ParallelSettings, optimizer: str, world: World, config: EncoderConfig
) -> Execution:
    """Resolve precision, compilation and CUDA graph capture for the device of a process.

    Raises ConfigError where the device does not support the precision.
    """
    device = world.device
    is_compiled = resolve_compile(trainer.compile, device)
    is_gpu = device.type == "cuda"
    device_name = torch.cuda.get_device_name(device) if is_gpu else f"cpu, {torch.get_num_threads()} threads"
    precision = resolve_precision(trainer.precision, device)
    is_static = resolve_static_batches(trainer.cuda_graph, device, config, precision)
    obstacle = None
    if trainer.cuda_graph and is_gpu:
        is_sharded = world.fsdp_size > 1
        obstacle = find_obstacle(
            parallel, optimizer, precision, config.head_dim, has_kernel=is_static, is_sharded=is_sharded
        )
    return Execution(
        device=device,
        precision=precision,
        is_compiled=is_compiled,
        has_static_batches=is_static,
        is_sync_free=is_static and supports_sync_free(optimizer, precision),
        obstacle=obstacle,
        device_name=device_name,
    )


def resolve_compile(requested: bool | None, device: torch.device) -> bool:
    """Resolve whether layers are compiled; None: on a GPU."""
    return device.type == "cuda" if requested is None else requested


def supports_sync_free(optimizer: str, precision: str) -> bool:
    """Whether a step needs no host: there is an optimizer kernel, and no loss scale, which the host must read."""
    return optimizer in FUSED_OPTIMIZERS and precision != "16"


def find_obstacle(
    parallel: ParallelSettings,
    optimizer: str,
    precision: str,
    head_dim: int,
    *,
    has_kernel: bool,
    is_sharded: bool = False,
) -> str | None:
    """Return why steps on a GPU cannot be captured in a CUDA graph; None where they can."""
    if not has_kernel:
        return f"there is no attention kernel for heads of {head_dim} in this installation (Triton; 16, 32, 64 or 128)"
    if is_sharded:
        return "FSDP gathers weights as it needs them: whole ones do not fit, or parallel.fsdp leaves replicas over"
    if parallel.activation_checkpointing:
        return "recomputed layers restore the random number generator's state (parallel.activation_checkpointing)"
    if precision == "16":
        return "with precision 16 the host reads the loss scale at each step; bf16 can be captured"
    if optimizer not in FUSED_OPTIMIZERS:
        return f"the optimizer {optimizer} cannot be captured; {', '.join(FUSED_OPTIMIZERS)} can"
    return None
