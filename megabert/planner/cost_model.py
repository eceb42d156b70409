"""What a training step costs on a layout of GPUs: bytes of each one's memory and seconds, part by part.

A network's shape, the texts of a step, a layout and the tables of cost_tables.py go in, an `Estimate` comes out;
nothing is run and no torch is loaded. docs/scaling.md says what is assumed and how far it was checked.

Sources: tensor parallelism as in Shoeybi et al. 2019 (arXiv:1909.08053), its sequence parallelism as in Korthikanti et
al. 2022 (arXiv:2205.05198); a ring's traffic, 2 (n - 1) / n of what is summed, as in nccl-tests.
"""

from dataclasses import dataclass, fields
from functools import cached_property

from ..errors import ConfigError
from .hardware import MEGABERT, Gpu, Program
from .workload import FSDP_UNIT_SIZE, TILE, Parameters, Texts, Work, count_parameters, forward_flops

# Tokens whose logits are there at once (model/vocabulary_loss.py).
CHUNK = 2048
# Left free for what an allocator does not see: the driver, NCCL's channels, gaps.
FREE_SHARE = 0.08
WORKSPACE = 0.1e9


@dataclass(frozen=True)
class ParallelLayout:
    """How a step is spread: tensor innermost, then fsdp, then the data axis, whose processes hold the same weights."""

    gpus: int = 1
    gpus_per_node: int = 8
    tensor: int = 1
    fsdp: int = 1
    sequence: bool = False
    activation_checkpointing: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be laid out."""
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
                f"gpus={self.gpus} does not divide by tensor={self.tensor} x fsdp={self.fsdp} = "
                f"{self.tensor * self.fsdp} processes."
            )
        if self.sequence and self.tensor == 1:
            raise ConfigError("sequence=true shares tokens out over the tensor axis. Give tensor=2 or more with it.")

    @property
    def num_copies(self) -> int:
        """Length of the data axis."""
        return self.gpus // (self.tensor * self.fsdp)

    @property
    def num_data(self) -> int:
        """Processes that see different texts."""
        return self.gpus // self.tensor

    @property
    def is_recorded(self) -> bool:
        """Whether steps are launched as CUDA graphs (parallel/plan.py)."""
        return self.fsdp == 1 and not self.activation_checkpointing

    def group(self, size: int, stride: int) -> "Group":
        """Give the processes of one axis, whose neighbours are `stride` processes apart."""
        on_a_node = max(1, min(size, self.gpus_per_node // stride))
        return Group(size, on_a_node)


@dataclass(frozen=True)
class Group:
    """Processes that talk to each other, and how many of them sit in one machine."""

    size: int
    on_a_node: int

    def bus(self, gpu: Gpu) -> float:
        """Give the bus bandwidth, bytes/s: the links', and between machines the adapters' of the members there."""
        inside = gpu.bus[min(gpu.bus, key=lambda count: abs(count - self.on_a_node))]
        if self.size <= self.on_a_node:
            return inside
        between = self.on_a_node * gpu.network
        return between if self.on_a_node == 1 else min(inside, between)

    def summing(self, num_bytes: float, gpu: Gpu, program: Program) -> float:
        """Time an all-reduce of `num_bytes`: each sends and receives 2 (n - 1) / n of them."""
        if self.size == 1:
            return 0.0
        nodes = -(-self.size // self.on_a_node)
        latency = program.latency + program.hop_latency * (nodes - 1).bit_length()
        return 2 * (self.size - 1) / self.size * num_bytes / self.bus(gpu) + latency

    def gathering(self, num_bytes: float, gpu: Gpu, program: Program) -> float:
        """Time a gathering or scattering of `num_bytes` altogether: half an all-reduce, at a lower rate."""
        return self.summing(num_bytes / gpu.gathering_share, gpu, program) / 2


class _Parts:
    """Figures that add up to a total."""

    @property
    def total(self) -> float:
        """Sum all parts."""
        return sum(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, float]:
        """Give the parts and their total by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return parts | {"total": self.total}


@dataclass(frozen=True)
class Memory(_Parts):
    """Bytes on each GPU at the fullest moment of a step."""

    masters: float
    """float32 weights."""
    moments: float
    """Adam's two."""
    copy: float
    """Weights in 16 bits: a whole copy, or with fsdp those of the layers that are gathered at once."""
    gradients: float
    activations: float
    logits: float
    """The vocabulary's head: a chunk of logits and what goes with it."""
    buffers: float
    """What is on its way between processes, and workspaces."""


@dataclass(frozen=True)
class Time(_Parts):
    """Seconds of a step."""

    products: float
    attention: float
    elementwise: float
    optimizer: float
    tensor_communication: float
    """Sums over the tensor axis: nothing hides them."""
    data_communication: float
    """What computing does not hide of gradients and weights on their way."""
    other: float
    """Fixed costs, and waiting for the host to launch."""


@dataclass(frozen=True)
class Estimate:
    """A step of `layout.accumulate` micro-batches of `texts` on each process of the data axes."""

    work: Work
    texts: Texts
    layout: ParallelLayout
    gpu: Gpu
    program: Program = MEGABERT

    def __post_init__(self) -> None:
        """Refuse networks that cannot be cut so, and precisions that the GPU has not."""
        shape, tensor = self.work.shape, self.layout.tensor
        for name, size in (("attention heads", shape.num_heads), ("MLP width", shape.ffn_size)):
            if size % tensor:
                fitting = ", ".join(str(n) for n in (1, 2, 4, 8, 16) if size % n == 0)
                raise ConfigError(
                    f"tensor={tensor}: the network's {name}, {size}, do not divide by it. Fitting are {fitting}."
                )
        if self.work.precision not in self.gpu.matrix_rate:
            raise ConfigError(
                f"precision={self.work.precision}: the {self.gpu.title} has none. "
                f"Choose one of {', '.join(self.gpu.matrix_rate)}."
            )

    @cached_property
    def parameters(self) -> Parameters:
        """The weights of one process of the tensor axis."""
        return count_parameters(self.work, self.layout.tensor)

    @property
    def fits(self) -> bool:
        """Whether a GPU's memory holds it, with some left free."""
        return self.memory.total <= self.gpu.memory * (1 - FREE_SHARE)

    @property
    def tokens(self) -> float:
        """Tokens of a step on all GPUs."""
        return self.texts.num_tokens * self.layout.accumulate * self.layout.num_data

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all GPUs together go through."""
        return self.tokens / self.time.total

    @property
    def model_flops_per_second(self) -> float:
        """FLOP/s of one GPU that the network asks for: three forward passes a step, nothing computed twice."""
        flops = 3 * forward_flops(self.work, self.texts) * self.layout.accumulate * self.layout.num_data
        return flops / self.layout.gpus / self.time.total

    # Memory

    @cached_property
    def memory(self) -> Memory:
        """Bytes on each GPU at the fullest moment, the end of the backward pass or its beginning."""
        held, width = self.parameters.total / self.layout.fsdp, self.work.width
        (activations, passing), logits = self._activations(), self._logits()
        if self.layout.activation_checkpointing:
            # The logits are gone when the first layer is computed again.
            passing = max(0.0, passing - logits)
        activations += passing
        has_copy = width < 4
        if self.layout.fsdp > 1:
            # The layers in work and the next; embeddings and heads stay until the end.
            copy = width * (2 * self._gathered_at_once + self.parameters.rest)
            gradients = 4 * held
            buffers = (width + 4) * self._gathered_at_once
        else:
            copy = width * held if has_copy else 0.0
            keeps_sums = self.layout.accumulate > 1 or self.layout.gpus > 1 or self.work.precision == "16"
            gradients, buffers = (4 * held if keeps_sums else 0.0), 0.0
            # Gradients appear as activations go. Where there are few texts they are what is left at the end.
            fresh = width * held
            if fresh > activations + logits:
                gradients, activations, logits = gradients + fresh, 0.0, 0.0
        return Memory(4 * held, 8 * held, copy, gradients, activations, logits, buffers + WORKSPACE)

    @property
    def _gathered_at_once(self) -> float:
        """Weights of the layers that FSDP takes as one."""
        layer = self.parameters.layer
        return layer * min(self.parameters.num_layers, -(-FSDP_UNIT_SIZE // layer))

    def _activations(self) -> tuple[float, float]:
        """Count what layers keep until the backward pass, and what there is of one of them on the way back."""
        shape, layout, width = self.work.shape, self.layout, self.work.width
        hidden, ffn = shape.hidden_size, shape.ffn_size
        shared = layout.tensor if layout.sequence else 1
        # Kept by a compiled layer: 2 hidden vectors, and 2 norms as they enter products, of all tokens; qkv, mixed
        # values and their log sums, GELU's input and output.
        ends = 2 * hidden * width / shared + 2 * hidden * width + 16
        inner = ((4 * hidden + 2 * ffn) * width + 4 * shape.num_heads) / layout.tensor
        # Gradients of one layer on the way back; with activation checkpointing what was computed again, too.
        passing = (2 * ffn / layout.tensor + 3 * hidden / shared) * width
        kept = shape.num_layers * (ends + inner)
        if layout.activation_checkpointing:
            kept = shape.num_layers * hidden * width / shared
            passing += ends + inner
        tokens = self.texts.num_tokens
        return tokens * (kept + 2 * hidden * width / shared + 64), tokens * passing

    def _logits(self) -> float:
        asked, hidden = self.work.num_asked(self.texts), self.work.shape.hidden_size
        if not asked:
            return 0.0
        rows = self.work.shape.vocabulary_size / self.layout.tensor
        # A chunk in the network's width, its float32 form, shares and their product; the matrix's gradient.
        chunk = min(asked, CHUNK) * rows * (self.work.width + 12)
        return chunk + 4 * rows * hidden + 3 * asked * hidden * self.work.width

    # Time

    @cached_property
    def time(self) -> Time:
        """Seconds of a step."""
        rounds = self.layout.accumulate
        forward, products = self._products()
        attention = self._attention()
        elementwise = self._elementwise()
        tensor = self._tensor_communication()
        fixed = self.program.fixed_seconds
        computing = products + attention + elementwise + fixed
        optimizer = self._optimizer()
        data = self._data_communication(computing + tensor, computing + tensor - forward)
        busy = rounds * (computing + tensor) + optimizer + data
        a_layer = self.program.fsdp_host_seconds if self.layout.fsdp > 1 else self.program.host_seconds
        launching = 0.0 if self.layout.is_recorded else rounds * self.work.shape.num_layers * a_layer
        waiting = max(0.0, launching - busy)
        return Time(
            products=rounds * products,
            attention=rounds * attention,
            elementwise=rounds * elementwise,
            optimizer=optimizer,
            tensor_communication=rounds * tensor,
            data_communication=data,
            other=rounds * fixed + waiting,
        )

    def _product(self, rows: float, columns: float, inner: float) -> float:
        """Time a product: arithmetic, the memory traffic that it does not hide, and its start."""
        traffic = self.work.width * (rows * inner + inner * columns + rows * columns)
        return (
            2 * rows * columns * inner / self.gpu.matrix_rate[self.work.precision]
            + self.program.product_traffic * traffic / self.gpu.bandwidth
            + self.program.product_seconds
        )

    def _products(self) -> tuple[float, float]:
        """Time a micro-batch's products with weights: (forward, forward and backward)."""
        shape, tensor, tokens = self.work.shape, self.layout.tensor, self.texts.num_tokens
        hidden, ffn = shape.hidden_size, shape.ffn_size
        layer = (
            self._product(tokens, 3 * hidden / tensor, hidden)
            + self._product(tokens, hidden, hidden / tensor)
            + self._product(tokens, ffn / tensor, hidden)
            + self._product(tokens, hidden, ffn / tensor)
        )
        forward = shape.num_layers * layer
        asked, head = self.work.num_asked(self.texts), 0.0
        if asked:
            rows = shape.vocabulary_size / tensor
            head = self.program.logits_passes * self._product(asked, rows, hidden)
            head += 0 if shape.is_causal else 3 * self._product(asked, hidden, hidden)
        passes = 4 if self.layout.activation_checkpointing else 3
        return forward, passes * forward + head

    def _attention(self) -> float:
        # Nine products of a tile in all, two of them forward: the backward pass computes the scores twice.
        shape, pairs = self.work.shape, self.texts.num_pairs
        if shape.is_causal:
            pairs = (pairs + TILE * self.texts.num_tokens) / 2
        passes = 5.5 if self.layout.activation_checkpointing else 4.5
        flops = passes * 4 * shape.num_layers * shape.hidden_size * pairs / self.layout.tensor
        return flops / (self.gpu.matrix_rate[self.work.precision] * self.program.attention_share)

    def _elementwise(self) -> float:
        shape, program, layout = self.work.shape, self.program, self.layout
        hidden, ffn, tensor = shape.hidden_size, shape.ffn_size, layout.tensor
        shared = tensor if layout.sequence else 1
        scores = self.texts.num_true_pairs * shape.num_heads / tensor
        # The tables count 16-bit numbers.
        norms, gelu, score = program.norm_bytes, program.gelu_bytes / 2, program.score_bytes
        if layout.activation_checkpointing:
            norms, gelu = norms + program.norm_forward_bytes, gelu * 1.4
            score += program.score_forward_bytes
        biases = program.bias_bytes * (3 * hidden + ffn) / tensor
        layer = self.texts.num_tokens * (norms * hidden / shared + gelu * ffn / tensor + biases) + scores * score
        head = self.work.num_asked(self.texts) * shape.vocabulary_size / tensor * program.logit_bytes
        ends = 30 * hidden * self.texts.num_tokens
        copies = self.parameters.total * program.fsdp_copy_bytes if layout.fsdp > 1 else 0.0
        return (self.work.width / 2 * (shape.num_layers * layer + ends) + head + copies) / self._stream_rate

    def _optimizer(self) -> float:
        """Time the step itself, and the adding up of gradients in float32."""
        rounds, held = self.layout.accumulate, self.parameters.total / self.layout.fsdp
        adding = 0 if self.layout.gpus == 1 and rounds == 1 else 6 + 10 * (rounds - 1)
        return held * (self.program.adam_bytes + adding) / self._stream_rate

    @property
    def _stream_rate(self) -> float:
        return self.gpu.bandwidth * self.program.stream_share

    def _tensor_communication(self) -> float:
        """Time a micro-batch's sums over the tensor axis: two a layer forward, two backward, those of both ends.

        With sequence parallelism each is a gathering and a scattering.
        """
        layout, work, gpu, program = self.layout, self.work, self.gpu, self.program
        group = layout.group(layout.tensor, 1)
        tokens, hidden = self.texts.num_tokens, work.shape.hidden_size
        a_layer = 6 if layout.activation_checkpointing else 4
        if layout.sequence:
            one = 2 * group.gathering(tokens * hidden * work.width, gpu, program)
        else:
            one = group.summing(tokens * hidden * work.width, gpu, program)
        asked = work.num_asked(self.texts)
        head = group.summing(asked * hidden * work.width, gpu, program) if asked else 0.0
        return (1 - program.tensor_overlap) * (a_layer * work.shape.num_layers + 1) * one + head

    def _data_communication(self, computing: float, backward: float) -> float:
        """Time what is not hidden of gradients on their way, and with fsdp of weights."""
        layout, parameters, program = self.layout, self.parameters, self.program
        copies = layout.group(layout.num_copies, layout.tensor * layout.fsdp)
        share = parameters.total / layout.fsdp
        summing = copies.summing(share * program.gradient_width, self.gpu, program)
        if layout.fsdp == 1:
            return summing - min(program.overlap * summing, backward)
        shards = layout.group(layout.fsdp, layout.tensor)
        num_units = parameters.num_layers * parameters.layer / self._gathered_at_once + 1
        one = 2 * shards.gathering(parameters.total * self.work.width / num_units, self.gpu, program)
        one += shards.gathering(parameters.total * 4 / num_units, self.gpu, program)
        moving = one * num_units * layout.accumulate + summing
        hidden = min(program.fsdp_overlap * moving, program.fsdp_overlap * computing * layout.accumulate)
        return moving - hidden
