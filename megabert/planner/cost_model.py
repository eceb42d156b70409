"""Cost model of a training step on a parallel layout of GPUs: memory of each GPU and time, broken down into parts.

In: a workload, a micro-batch, a layout and the tables of hardware.py. Out: an `Estimate`. Nothing is run, and torch is
not imported. docs/scaling.md states the assumptions and how well they were verified.

Sources: tensor parallelism as in Shoeybi et al. 2019 (arXiv:1909.08053), sequence parallelism as in Korthikanti et al.
2022 (arXiv:2205.05198).
"""

from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import ConfigError
from .breakdown import MemoryUse, StepTime
from .hardware import MEGABERT, Gpu, Implementation
from .layout import ParallelLayout
from .workload import (
    FSDP_UNIT_SIZE,
    TILE,
    MicroBatch,
    ParameterCounts,
    Workload,
    count_adapted_units,
    count_adapter_parameters,
    count_parameters,
    forward_flops,
)

# Logits that are in memory at once (model/vocabulary_loss.py).
MAX_LOGITS = 2**29
# Share of memory left free for what the allocator does not count: driver, NCCL channels, fragmentation.
FREE_SHARE = 0.08
WORKSPACE = 0.1e9


@dataclass(frozen=True)
class Estimate:
    """Estimate of a step with `layout.accumulate` micro-batches in each data-parallel process."""

    workload: Workload
    micro_batch: MicroBatch
    layout: ParallelLayout
    gpu: Gpu
    implementation: Implementation = MEGABERT

    def __post_init__(self) -> None:
        """Raise ConfigError for models that tensor parallelism cannot shard, and for precisions that the GPU lacks."""
        shape, tensor = self.workload.shape, self.layout.tensor
        for name, size in (("attention heads", shape.num_heads), ("MLP width", shape.ffn_size)):
            if size % tensor:
                fitting = ", ".join(str(n) for n in (1, 2, 4, 8, 16) if size % n == 0)
                raise ConfigError(
                    f"tensor={tensor}: the network's {name}, {size}, do not divide by it. Choose one of {fitting}."
                )
        if self.workload.precision not in self.gpu.matmul_rate:
            raise ConfigError(
                f"precision={self.workload.precision}: the {self.gpu.title} does not support it. "
                f"Choose one of {', '.join(self.gpu.matmul_rate)}."
            )

    @cached_property
    def parameters(self) -> ParameterCounts:
        """Parameters of one process of the tensor axis."""
        return count_parameters(self.workload, self.layout.tensor)

    @property
    def fits(self) -> bool:
        """Whether it fits into a GPU's memory, with FREE_SHARE left free."""
        return self.memory.total <= self.gpu.memory * (1 - FREE_SHARE)

    @property
    def tokens(self) -> float:
        """Tokens per step on all GPUs."""
        return self.micro_batch.num_tokens * self.layout.accumulate * self.layout.data_size

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all GPUs together."""
        return self.tokens / self.time.total

    @cached_property
    def num_trained(self) -> float:
        """Parameters that one process trains and holds float32 masters and moments of."""
        if self.workload.adapter_rank:
            return count_adapter_parameters(self.workload, self.layout.tensor) / self.layout.fsdp
        return self.parameters.total / self.layout.fsdp

    @property
    def model_flops_per_second(self) -> float:
        """Model FLOP/s of each GPU: three forward passes per step (two with frozen weights), without recomputation."""
        passes = 2 if self.workload.adapter_rank else 3
        flops = passes * forward_flops(self.workload, self.micro_batch) * self.layout.accumulate * self.layout.data_size
        return flops / self.layout.gpus / self.time.total

    def with_kept_weights(self) -> "Estimate":
        """Return the estimate of what a training with fsdp does: it keeps whole weights where they fit.

        Where there are replicas besides, or adapters, it does not.
        """
        if self.layout.fsdp == 1 or self.layout.num_replicas > 1 or self.workload.adapter_rank:
            return self
        kept = replace(self, layout=replace(self.layout, keeps_weights=True))
        return kept if kept.fits else self

    # Memory

    @cached_property
    def memory(self) -> MemoryUse:
        """Peak memory of each GPU, at the beginning or the end of the backward pass."""
        num_held, width = self.num_trained, self.workload.width
        (activations, transient), logits = self._activations(), self._logits()
        if self.layout.activation_checkpointing:
            # The logits are freed before the first layer is recomputed.
            transient = max(0.0, transient - logits)
        activations += transient
        if self.workload.adapter_rank:
            # The frozen weights in the precision of the training, no gradients of them, and no masters.
            frozen, gradients = width * self.parameters.total / self.layout.fsdp, (width + 4) * num_held
            copy, buffers = frozen + (width * num_held if width < 4 else 0.0), WORKSPACE
            if self.layout.fsdp > 1:
                copy += width * (2 * self._gathered_at_once + self.parameters.rest)
                buffers += width * self._gathered_at_once
            return MemoryUse(4 * num_held, 8 * num_held, copy, gradients, activations, logits, buffers)
        if self.layout.weight_shards > 1:
            # The current unit and the prefetched next one; embeddings and heads stay gathered until the end.
            copy = width * (2 * self._gathered_at_once + self.parameters.rest)
            gradients = 4 * num_held
            buffers = (width + 4) * self._gathered_at_once
        else:
            total = self.parameters.total
            # Masters in float32 are the weights themselves, or this process' part of them.
            copy = width * total if width < 4 else width * (total - num_held)
            accumulates = self.layout.accumulate > 1 or self.layout.gpus > 1 or self.workload.precision == "16"
            gradients, buffers = (4 * total if accumulates else 0.0), 0.0
            # Gradients are allocated while activations are freed; with few tokens the peak is at the end.
            new_gradients = width * total
            if new_gradients > activations + logits:
                gradients, activations, logits = gradients + new_gradients, 0.0, 0.0
        return MemoryUse(4 * num_held, 8 * num_held, copy, gradients, activations, logits, buffers + WORKSPACE)

    @property
    def _gathered_at_once(self) -> float:
        """Parameters of the layers of one FSDP unit."""
        layer = self.parameters.layer
        return layer * min(self.parameters.num_layers, -(-FSDP_UNIT_SIZE // layer))

    def _activations(self) -> tuple[float, float]:
        """Count bytes of activations: (stored until the backward pass, temporary in the backward pass of one layer)."""
        shape, layout, width = self.workload.shape, self.layout, self.workload.width
        hidden, ffn = shape.hidden_size, shape.ffn_size
        shared = layout.tensor if layout.sequence else 1
        # A compiled layer stores, of all tokens, 2 hidden states and 2 norm outputs as matmul inputs; qkv, context and
        # logsumexp of attention, and the GELU's input and output.
        outer = 2 * hidden * width / shared + 2 * hidden * width + 16
        inner = ((4 * hidden + 2 * ffn) * width + 4 * shape.num_heads) / layout.tensor
        # The gradients of one layer; with activation checkpointing also its recomputed activations.
        transient = (2 * ffn / layout.tensor + 3 * hidden / shared) * width
        stored = shape.num_layers * (outer + inner)
        if layout.activation_checkpointing:
            stored = shape.num_layers * hidden * width / shared
            transient += outer + inner
        tokens = self.micro_batch.num_tokens
        return tokens * (stored + 2 * hidden * width / shared + 64), tokens * transient

    def _logits(self) -> float:
        num_targets, hidden = self.workload.num_targets(self.micro_batch), self.workload.shape.hidden_size
        if not num_targets:
            return 0.0
        rows = self.workload.shape.vocabulary_size / self.layout.tensor
        # The logits, in whose place their gradients come; the gradient of the vocabulary weights.
        logits = min(num_targets * rows, MAX_LOGITS) * self.workload.width
        return logits + 4 * rows * hidden + 3 * num_targets * hidden * self.workload.width

    # Time

    @cached_property
    def time(self) -> StepTime:
        """Time of a step, seconds."""
        num_micro_batches = self.layout.accumulate
        forward, products = self._matmuls()
        attention = self._attention()
        elementwise = self._elementwise()
        tensor = self._tensor_communication()
        fixed = self.implementation.fixed_seconds
        compute = products + attention + elementwise + fixed
        optimizer = self._optimizer()
        data = self._data_communication(compute + tensor, compute + tensor - forward)
        busy = num_micro_batches * (compute + tensor) + optimizer + data
        implementation = self.implementation
        host_seconds = (
            implementation.fsdp_host_seconds if self.layout.weight_shards > 1 else implementation.host_seconds
        )
        if self.workload.adapter_rank:
            host_seconds = max(host_seconds, implementation.adapter_host_seconds)
        num_launched = 0 if self.layout.is_captured else num_micro_batches * self.workload.shape.num_layers
        waits = 0.0 if self.layout.is_captured else implementation.uncaptured_idle_seconds
        idle = max(waits, num_launched * host_seconds - busy)
        if self.layout.weight_shards > 1 and self.layout.tensor > 1:
            idle += num_launched * implementation.fsdp_tensor_idle_seconds
        return StepTime(
            products=num_micro_batches * products,
            attention=num_micro_batches * attention,
            elementwise=num_micro_batches * elementwise,
            optimizer=optimizer,
            tensor_communication=num_micro_batches * tensor,
            data_communication=data,
            other=num_micro_batches * fixed + idle,
        )

    def _matmul(self, rows: float, columns: float, inner: float) -> float:
        """Time a matmul: arithmetic, exposed memory traffic and overhead."""
        traffic = self.workload.width * (rows * inner + inner * columns + rows * columns)
        return (
            2 * rows * columns * inner / self.gpu.matmul_rate[self.workload.precision]
            + self.implementation.exposed_matmul_traffic * traffic / self.gpu.memory_bandwidth
            + self.implementation.matmul_overhead
        )

    def _matmuls(self) -> tuple[float, float]:
        """Time a micro-batch's matmuls with weights: (forward, forward and backward)."""
        shape, tensor, tokens = self.workload.shape, self.layout.tensor, self.micro_batch.num_tokens
        hidden, ffn = shape.hidden_size, shape.ffn_size
        layer = (
            self._matmul(tokens, 3 * hidden / tensor, hidden)
            + self._matmul(tokens, hidden, hidden / tensor)
            + self._matmul(tokens, ffn / tensor, hidden)
            + self._matmul(tokens, hidden, ffn / tensor)
        )
        forward = shape.num_layers * layer
        num_targets, head = self.workload.num_targets(self.micro_batch), 0.0
        if num_targets:
            rows = shape.vocabulary_size / tensor
            is_kept = num_targets * rows <= MAX_LOGITS
            head = (3 if is_kept else 4) * self._matmul(num_targets, rows, hidden)
            head += 0 if shape.is_causal else 3 * self._matmul(num_targets, hidden, hidden)
        passes = 4 if self.layout.activation_checkpointing else 3
        if self.workload.adapter_rank:
            # No gradients of frozen weights; two thin matmuls beside each layer's, whose own gradients are computed and
            # whose time is that of reading or writing the layer's inputs and outputs.
            thin = (
                self.workload.width
                * tokens
                * count_adapted_units(self.workload, self.layout.tensor)
                / self._elementwise_bandwidth
            )
            thin += 8 * self.implementation.matmul_overhead
            return forward, (passes - 1) * forward + passes * shape.num_layers * thin + head
        return forward, passes * forward + head

    def _attention(self) -> float:
        # Nine matmuls of a tile, two of them forward: the backward pass computes the attention scores twice.
        shape, pairs = self.workload.shape, self.micro_batch.num_tiled_pairs
        if shape.is_causal:
            pairs = (pairs + TILE * self.micro_batch.num_tokens) / 2
        passes = 5.5 if self.layout.activation_checkpointing else 4.5
        flops = passes * 4 * shape.num_layers * shape.hidden_size * pairs / self.layout.tensor
        return flops / (self.gpu.matmul_rate[self.workload.precision] * self.implementation.attention_efficiency)

    def _elementwise(self) -> float:
        shape, implementation, layout = self.workload.shape, self.implementation, self.layout
        hidden, ffn, tensor = shape.hidden_size, shape.ffn_size, layout.tensor
        shared = tensor if layout.sequence else 1
        scores = self.micro_batch.num_pairs * shape.num_heads / tensor
        # The tables count bytes for 16-bit activations.
        norms, gelu, score = implementation.norm_bytes, implementation.gelu_bytes / 2, implementation.score_bytes
        if layout.activation_checkpointing:
            norms, gelu = norms + implementation.norm_forward_bytes, gelu * 1.4
            score += implementation.score_forward_bytes
        others = implementation.bias_bytes * (3 * hidden + ffn) / tensor
        if self.workload.adapter_rank:  # no gradients of biases; sums with the adapters' outputs and gradients
            others = (
                implementation.adapter_bytes
                * count_adapted_units(self.workload, self.layout.tensor)
                * (1.4 if layout.activation_checkpointing else 1)
            )
        elif implementation.fused_norm_bytes and tensor == 1 and layout.is_captured:  # as parallel/sharding.py decides
            norms, others = implementation.fused_norm_bytes, implementation.bias_bytes * 3 * hidden
        layer = self.micro_batch.num_tokens * (norms * hidden / shared + gelu * ffn / tensor + others) + scores * score
        head = self.workload.num_targets(self.micro_batch) * shape.vocabulary_size / tensor * implementation.logit_bytes
        outer = 30 * hidden * self.micro_batch.num_tokens
        # Frozen weights are gathered twice, and have no gradients to reduce.
        share = 2 / 3 if self.workload.adapter_rank else 1.0
        copies = share * self.parameters.total * implementation.fsdp_copy_bytes if layout.weight_shards > 1 else 0.0
        num_bytes = self.workload.width / 2 * (shape.num_layers * layer + outer) + head + copies
        return num_bytes / self._elementwise_bandwidth

    def _optimizer(self) -> float:
        """Time the update and the accumulation of gradients in float32."""
        num_micro_batches, num_held = self.layout.accumulate, self.num_trained
        accumulates = self.layout.gpus > 1 or num_micro_batches > 1
        accumulation = 6 + 10 * (num_micro_batches - 1) if accumulates else 0
        num_summed = self.parameters.total if self.layout.keeps_weights else num_held
        num_bytes = num_held * self.implementation.adam_bytes + num_summed * accumulation
        return num_bytes / self._elementwise_bandwidth

    @property
    def _elementwise_bandwidth(self) -> float:
        return self.gpu.memory_bandwidth * self.implementation.elementwise_efficiency

    def _tensor_communication(self) -> float:
        """Time a micro-batch's tensor-axis all-reduces: two a layer forward, two backward, embeddings and head.

        With sequence parallelism each is an all-gather and a reduce-scatter.
        """
        layout, workload, gpu, implementation = self.layout, self.workload, self.gpu, self.implementation
        group = layout.group(layout.tensor, 1)
        tokens, hidden = self.micro_batch.num_tokens, workload.shape.hidden_size
        per_layer = 6 if layout.activation_checkpointing else 4
        if layout.sequence:
            one = 2 * group.all_gather_seconds(tokens * hidden * workload.width, gpu, implementation)
        else:
            one = group.all_reduce_seconds(tokens * hidden * workload.width, gpu, implementation)
        num_targets = workload.num_targets(self.micro_batch)
        head = 0.0
        if num_targets:
            head = group.all_reduce_seconds(num_targets * hidden * workload.width, gpu, implementation)
        is_chunked = layout.sequence and group.size <= group.per_node
        overlap = implementation.sequence_overlap if is_chunked else implementation.tensor_overlap
        return (1 - overlap) * (per_layer * workload.shape.num_layers + 1) * one + head

    def _data_communication(self, compute: float, backward: float) -> float:
        """Time the exposed communication of gradients and, with fsdp, of weights."""
        layout, parameters, implementation = self.layout, self.parameters, self.implementation
        replicas = layout.group(layout.num_replicas, layout.tensor * layout.fsdp)
        share = self.num_trained
        all_reduce = replicas.all_reduce_seconds(share * implementation.gradient_width, self.gpu, implementation)
        if layout.fsdp == 1:
            return all_reduce - min(implementation.overlap * all_reduce, backward)
        shards = layout.group(layout.fsdp, layout.tensor)
        if layout.keeps_weights:  # gradients are reduce-scattered as they are all-reduced, then weights all-gathered
            reduced = shards.all_gather_seconds(
                parameters.total * implementation.gradient_width, self.gpu, implementation
            )
            gathered = shards.all_gather_seconds(parameters.total * self.workload.width, self.gpu, implementation)
            return reduced - min(implementation.overlap * reduced, backward) + gathered
        num_units = parameters.num_layers * parameters.layer / self._gathered_at_once + 1
        weights = parameters.total * self.workload.width / num_units
        gradients = (share * layout.fsdp if self.workload.adapter_rank else parameters.total) * 4 / num_units
        unit = 2 * shards.all_gather_seconds(weights, self.gpu, implementation)
        unit += shards.all_gather_seconds(gradients, self.gpu, implementation)
        total = unit * num_units * layout.accumulate + all_reduce
        overlapped = min(implementation.fsdp_overlap * total, implementation.fsdp_overlap * compute * layout.accumulate)
        return total - overlapped
