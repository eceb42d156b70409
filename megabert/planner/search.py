"""Which layout of GPUs is best for a training: all sensible ones, estimated by cost.py, and how the best one scales.

A `Question` goes in: network, number of GPUs, texts of a step, and what the user has settled already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from .cost_model import Estimate, ParallelLayout
from .hardware import MEGABERT, Gpu, Program
from .workload import Texts, Work

# A simpler layout is better than one that is faster by less than this.
WORTH = 0.02
COUNTS = (8, 64, 512)
ALL = -1


@dataclass(frozen=True)
class Question:
    """What is to be laid out; None: to be chosen."""

    work: Work
    gpu: Gpu
    gpus: int
    gpus_per_node: int
    batch: int
    """Texts of an optimizer step, on all GPUs."""
    length: int
    """Tokens of a text."""
    tensor: int | None = None
    fsdp: int | None = None
    """ALL: every process of the data axes."""
    sequence: bool | None = None
    activation_checkpointing: bool | None = None
    program: Program = MEGABERT


def estimate_all(question: Question) -> list[Estimate]:
    """Estimate every sensible layout, each with its fastest micro-batch: those that fit first, fastest first.

    Raises ConfigError for what the user has settled and cannot be, and if no layout can share the batch out evenly.
    """
    layouts = list(_layouts(question))
    found = [estimate for layout in layouts for estimate in _fastest(question, layout)]
    if not found:
        counts = sorted({layout.num_data for layout in layouts})
        raise ConfigError(
            f"batch={question.batch}: so many texts cannot be shared out evenly among {_listed(counts)} processes. "
            f"Give a multiple of {counts[0]}."
        )
    return sorted(found, key=lambda estimate: (not estimate.fits, _rank(estimate)))


def choose(estimates: Sequence[Estimate]) -> Estimate | None:
    """Choose the simplest layout of those about as fast as the fastest that fits; None if nothing fits."""
    fitting = [estimate for estimate in estimates if estimate.fits]
    if not fitting:
        return None
    limit = min(estimate.time.total for estimate in fitting) * (1 + WORTH)
    return min(
        (estimate for estimate in fitting if estimate.time.total <= limit),
        key=lambda estimate: (_complexity(estimate.layout), estimate.time.total),
    )


@dataclass(frozen=True)
class Point:
    """The best layout on some GPUs, and its share of linear scaling from the fewest GPUs that the network fits on."""

    gpus: int
    estimate: Estimate | None
    efficiency: float | None


def scale(question: Question, counts: Sequence[int], *, is_weak: bool) -> list[Point]:
    """Tell how a training scales: with the same texts on each GPU (weak), or the same on all together.

    The first point is the fewest GPUs on which it fits.
    """
    each = max(1, question.batch // question.gpus)
    base, points = None, []
    for count in sorted({1, 2, 4, *counts}):
        batch = each * count if is_weak else question.batch
        best = _best_on(replace(question, gpus=count, batch=batch))
        if base is None and best is None and count not in counts:
            continue
        if base is not None and count not in counts:
            continue
        base = base or best
        efficiency = None
        if best is not None and base is not None:
            efficiency = best.tokens_per_second / count / (base.tokens_per_second / base.layout.gpus)
        points.append(Point(count, best, efficiency))
    return points


def _best_on(question: Question) -> Estimate | None:
    try:
        return choose(estimate_all(question))
    except ConfigError:
        # What the user has settled is for another number of GPUs, or there are more processes than texts.
        return None


def settings(estimate: Estimate) -> dict[str, int | str]:
    """Give the settings that make a layout; those that are as they would be without are left out."""
    layout = estimate.layout
    words: dict[str, int | str] = {"trainer.devices": min(layout.gpus, layout.gpus_per_node)}
    optional: dict[str, int | str] = {
        "trainer.num_nodes": -(-layout.gpus // layout.gpus_per_node),
        "parallel.tensor": layout.tensor,
        "parallel.fsdp": layout.fsdp,
        "trainer.accumulate_grad_batches": layout.accumulate,
    }
    words |= {key: value for key, value in optional.items() if value != 1}
    if layout.sequence:
        words["parallel.sequence"] = "true"
    if layout.activation_checkpointing:
        words["parallel.activation_checkpointing"] = "true"
    return words | {
        "model.train_ds.batch_size": round(estimate.texts.num_texts),
        "trainer.precision": estimate.work.precision,
    }


def _layouts(question: Question) -> Iterator[ParallelLayout]:
    for tensor in _tensor_sizes(question):
        for fsdp in _fsdp_sizes(question, tensor):
            for checkpointing in _options(question.activation_checkpointing):
                yield ParallelLayout(
                    gpus=question.gpus,
                    gpus_per_node=question.gpus_per_node,
                    tensor=tensor,
                    fsdp=fsdp,
                    # It costs no more bytes than sums do, and cuts what tensor parallelism does not.
                    sequence=tensor > 1 if question.sequence is None else question.sequence,
                    activation_checkpointing=checkpointing,
                )


def _tensor_sizes(question: Question) -> list[int]:
    if question.tensor is not None:
        return [question.tensor]
    most = min(question.gpus, question.gpus_per_node)
    shape = question.work.shape
    sizes = [
        size
        for size in (1, 2, 4, 8, 16)
        if size <= most
        and question.gpus % size == question.gpus_per_node % size == 0
        and shape.num_heads % size == shape.ffn_size % size == 0
        and (size > 1 or not question.sequence)
    ]
    if not sizes:
        raise ConfigError(
            f"sequence=true needs two GPUs or more of one machine; gpus={question.gpus}. Leave it out, or give more."
        )
    return sizes


def _fsdp_sizes(question: Question, tensor: int) -> list[int]:
    everybody = max(1, question.gpus // tensor)
    if question.fsdp is not None:
        return [everybody if question.fsdp == ALL else question.fsdp]
    on_a_node = max(1, min(question.gpus, question.gpus_per_node) // tensor)
    return sorted({1, everybody} | ({on_a_node} if everybody % on_a_node == 0 else set()))


def _options(settled: bool | None) -> list[bool]:
    return [False, True] if settled is None else [settled]


def _fastest(question: Question, layout: ParallelLayout) -> Iterator[Estimate]:
    """Estimate a layout with the fastest micro-batch that fits, or the smallest; nothing if texts do not divide."""
    each, left = divmod(question.batch, layout.num_data)
    if left or not each:
        return
    estimates = [
        Estimate(
            question.work,
            Texts.alike(size, question.length),
            replace(layout, accumulate=each // size),
            question.gpu,
            question.program,
        )
        for size in range(1, each + 1)
        if each % size == 0
    ]
    fitting = [estimate for estimate in estimates if estimate.fits]
    yield min(fitting, key=lambda estimate: estimate.time.total) if fitting else estimates[0]


def _rank(estimate: Estimate) -> float:
    return estimate.time.total if estimate.fits else estimate.memory.total


def _complexity(layout: ParallelLayout) -> int:
    return 2 * (layout.tensor > 1) + (layout.fsdp > 1) + layout.activation_checkpointing


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
