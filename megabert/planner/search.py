"""Search for the best parallel layout of GPUs: estimate all sensible layouts, choose one, and predict its scaling.

In: a `PlanRequest` with the workload, the GPUs, the global batch and the settings that the user has fixed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from .cost_model import Estimate
from .hardware import MEGABERT, Gpu, Implementation
from .layout import ParallelLayout
from .workload import MicroBatch, Workload

# A more complex layout must be faster by at least this share.
MIN_SPEEDUP = 0.02
GPU_COUNTS = (8, 64, 512)
ALL = -1


@dataclass(frozen=True)
class PlanRequest:
    """The workload and the GPUs; None for what the search is to choose."""

    workload: Workload
    gpu: Gpu
    gpus: int
    gpus_per_node: int
    batch: int
    """Global batch: sequences of an optimizer step on all GPUs."""
    length: int
    """Tokens of a sequence."""
    tensor: int | None = None
    fsdp: int | None = None
    """ALL: all data-parallel processes."""
    sequence: bool | None = None
    activation_checkpointing: bool | None = None
    implementation: Implementation = MEGABERT


def estimate_all(request: PlanRequest) -> list[Estimate]:
    """Estimate every sensible layout with its fastest micro-batch; those that fit come first, the fastest first.

    Raises ConfigError for impossible settings, and if no layout divides the global batch evenly.
    """
    layouts = list(_layouts(request))
    estimates = [estimate for layout in layouts for estimate in _fastest(request, layout)]
    if not estimates:
        counts = sorted({layout.data_size for layout in layouts})
        raise ConfigError(
            f"batch={request.batch} sequences do not divide evenly among {' or '.join(map(str, counts))} processes. "
            f"Give a multiple of {counts[0]}."
        )
    return sorted(estimates, key=lambda estimate: (not estimate.fits, _rank(estimate)))


def choose(estimates: Sequence[Estimate]) -> Estimate | None:
    """Choose the simplest layout among the fitting ones within MIN_SPEEDUP of the fastest; None if nothing fits."""
    fitting = [estimate for estimate in estimates if estimate.fits]
    if not fitting:
        return None
    limit = min(estimate.time.total for estimate in fitting) * (1 + MIN_SPEEDUP)
    return min(
        (estimate for estimate in fitting if estimate.time.total <= limit),
        key=lambda estimate: (_complexity(estimate.layout), estimate.time.total),
    )


@dataclass(frozen=True)
class ScalingPoint:
    """The best layout on a number of GPUs, and its scaling efficiency against the fewest GPUs that fit the model."""

    gpus: int
    estimate: Estimate | None
    efficiency: float | None


def scale(request: PlanRequest, counts: Sequence[int], *, is_weak: bool) -> list[ScalingPoint]:
    """Predict weak scaling (a constant batch for each GPU) or strong scaling (a constant global batch).

    The first point is the fewest GPUs that fit the model.
    """
    each = max(1, request.batch // request.gpus)
    base, points = None, []
    for count in sorted({1, 2, 4, *counts}):
        batch = each * count if is_weak else request.batch
        best = _best_on(replace(request, gpus=count, batch=batch))
        if count not in counts and (best is None or base is not None):
            continue
        base = base or best
        efficiency = None
        if best is not None and base is not None:
            efficiency = best.tokens_per_second / count / (base.tokens_per_second / base.layout.gpus)
        points.append(ScalingPoint(count, best, efficiency))
    return points


def _best_on(request: PlanRequest) -> Estimate | None:
    try:
        return choose(estimate_all(request))
    except ConfigError:
        # The fixed settings need another number of GPUs, or there are more processes than sequences.
        return None


def layout_settings(estimate: Estimate) -> dict[str, int | str]:
    """Convert a layout to settings of `megabert train`, without those that equal the defaults."""
    layout = estimate.layout
    words: dict[str, int | str] = {"trainer.devices": min(layout.gpus, layout.gpus_per_node)}
    optional: dict[str, int | str] = {
        "trainer.num_nodes": -(-layout.gpus // layout.gpus_per_node),
        "parallel.tensor": layout.tensor,
        "parallel.fsdp": layout.fsdp,
        "trainer.accumulate_grad_batches": layout.accumulate,
    }
    words |= {key: value for key, value in optional.items() if value != 1}
    if rank := estimate.workload.adapter_rank:
        words |= {"model.peft.peft_scheme": "lora", "model.peft.lora_tuning.adapter_dim": rank}
    if layout.sequence:
        words["parallel.sequence"] = "true"
    if layout.activation_checkpointing:
        words["parallel.activation_checkpointing"] = "true"
    return words | {
        "model.train_ds.batch_size": round(estimate.micro_batch.num_sequences),
        "trainer.precision": estimate.workload.precision,
    }


def _layouts(request: PlanRequest) -> Iterator[ParallelLayout]:
    for tensor in _tensor_sizes(request):
        for fsdp in _fsdp_sizes(request, tensor):
            for checkpointing in _options(request.activation_checkpointing):
                yield ParallelLayout(
                    gpus=request.gpus,
                    gpus_per_node=request.gpus_per_node,
                    tensor=tensor,
                    fsdp=fsdp,
                    # As many bytes are communicated, and all activations are sharded.
                    sequence=tensor > 1 if request.sequence is None else request.sequence,
                    activation_checkpointing=checkpointing,
                )


def _tensor_sizes(request: PlanRequest) -> list[int]:
    if request.tensor is not None:
        return [request.tensor]
    most = min(request.gpus, request.gpus_per_node)
    shape = request.workload.shape
    sizes = [
        size
        for size in (1, 2, 4, 8, 16)
        if size <= most
        and request.gpus % size == request.gpus_per_node % size == 0
        and shape.num_heads % size == shape.ffn_size % size == 0
        and (size > 1 or not request.sequence)
    ]
    if not sizes:
        raise ConfigError(
            f"sequence=true needs two GPUs or more of one machine; gpus={request.gpus}. Leave it out, or give more."
        )
    return sizes


def _fsdp_sizes(request: PlanRequest, tensor: int) -> list[int]:
    all_processes = max(1, request.gpus // tensor)
    if request.fsdp is not None:
        return [all_processes if request.fsdp == ALL else request.fsdp]
    on_a_node = max(1, min(request.gpus, request.gpus_per_node) // tensor)
    return sorted({1, all_processes} | ({on_a_node} if all_processes % on_a_node == 0 else set()))


def _options(fixed: bool | None) -> list[bool]:
    return [False, True] if fixed is None else [fixed]


def _fastest(request: PlanRequest, layout: ParallelLayout) -> Iterator[Estimate]:
    """Estimate a layout with the fastest micro-batch that fits, or the smallest; none if the batch does not divide."""
    per_process, remainder = divmod(request.batch, layout.data_size)
    if remainder or not per_process:
        return
    estimates = [
        Estimate(
            request.workload,
            MicroBatch.uniform(size, request.length),
            replace(layout, accumulate=per_process // size),
            request.gpu,
            request.implementation,
        ).with_kept_weights()
        for size in range(1, per_process + 1)
        if per_process % size == 0
    ]
    fitting = [estimate for estimate in estimates if estimate.fits]
    yield min(fitting, key=lambda estimate: estimate.time.total) if fitting else estimates[0]


def _rank(estimate: Estimate) -> float:
    return estimate.time.total if estimate.fits else estimate.memory.total


def _complexity(layout: ParallelLayout) -> int:
    return 2 * (layout.tensor > 1) + (layout.fsdp > 1) + layout.activation_checkpointing
