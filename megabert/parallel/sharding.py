"""Parallelize a model from outside: tensor parallelism, compilation, activation checkpointing, FSDP, in this order.

Model code does not depend on it. A table in Megatron-LM's terms defines how modules are sharded. A `Sharding` records
where the shards of each parameter are, so that a checkpoint holds full tensors, independent of the sharding.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import ParallelSettings
from ..errors import ConfigError
from ..model.encoder import Encoder
from ..model.fused_layers import fuse_layers
from ..model.lora import LoraLinear, lora_config
from ..model.precision import DTYPES
from ..planner.workload import FSDP_UNIT_SIZE
from .optimizer_shards import Place
from .process_group import World

VOCABULARY_PARALLEL, COLUMN_PARALLEL, ROW_PARALLEL = "vocabulary", "column", "row"

# Module -> how it is sharded over the tensor axis; modules that are not listed are replicated.
SHARDING = {
    "encoder.embeddings.word": VOCABULARY_PARALLEL,  # shards of rows
    "encoder.layers.*.attention.qkv": COLUMN_PARALLEL,  # rows: full heads, since rows are [heads, 3, dim]
    "encoder.layers.*.attention.out": ROW_PARALLEL,  # columns; outputs are summed over the axis
    "encoder.layers.*.mlp.up": COLUMN_PARALLEL,
    "encoder.layers.*.mlp.down": ROW_PARALLEL,
}

# For models with a language-model head.
HEAD_SHARDING = {
    "head.language_model.vocabulary": VOCABULARY_PARALLEL,  # tied to the word embedding
}

# The sharded dim of a weight; a bias is sharded with rows, never with columns.
DIMS = {VOCABULARY_PARALLEL: 0, COLUMN_PARALLEL: 0, ROW_PARALLEL: 1}


@dataclass(frozen=True)
class Sharding:
    """Where the shards of a model's parameters are, by name; replicated parameters are not listed."""

    world: World
    tensor_sharded: Mapping[str, tuple[int, torch.Size]] = field(default_factory=dict)
    """Sharded over the tensor axis: the dim and the full shape."""
    fsdp_sharded: Mapping[str, Any] = field(default_factory=dict)
    """Sharded over the fsdp axis: FSDP's parameter, a DTensor."""
    sequence_parallel: frozenset[str] = frozenset()
    """Replicated, but applied to a shard of the tokens: their gradients are summed over the tensor axis."""
    is_capturable: bool = True
    """Whether a step can be captured in a CUDA graph."""
    optimizer_sharded: Mapping[str, Place] = field(default_factory=dict)
    """Whole, but with master weights and optimizer state that are sharded over the data axis."""

    @property
    def uses_fsdp(self) -> bool:
        """Whether FSDP reduces the gradients, which needs a plain `backward()`."""
        return bool(self.fsdp_sharded)

    def kind(self, name: str) -> tuple[bool, bool]:
        """Return whether a parameter is sharded over the tensor axis, and whether it is sequence-parallel."""
        return name in self.tensor_sharded, name in self.sequence_parallel

    def unshard(self, name: str, shard: Tensor) -> Tensor:
        """Gather a full parameter, or a tensor of its shape; a collective, so all processes call it in one order."""
        from torch.distributed.tensor import DTensor, Shard

        tensor = shard
        if name in self.optimizer_sharded:
            tensor = self.optimizer_sharded[name].gather(tensor, self.world)
        if name in self.fsdp_sharded:
            like = self.fsdp_sharded[name]
            tensor = DTensor.from_local(
                tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
            ).full_tensor()
        if name in self.tensor_sharded:
            dim, shape = self.tensor_sharded[name]
            stride = torch.empty(shape, device="meta").stride()
            mesh = self.world.mesh["tensor"]
            tensor = DTensor.from_local(tensor, mesh, [Shard(dim)], shape=shape, stride=stride).full_tensor()
        return tensor

    def shard(self, name: str, full: Tensor) -> Tensor:
        """Return this process' shard of a full parameter, or of a tensor of its shape."""
        if name in self.tensor_sharded:
            full = _tensor_shard(full, self.tensor_sharded[name][0], self.world)
        if name in self.optimizer_sharded:
            full = self.optimizer_sharded[name].take(full, self.world.data_rank)
        if name in self.fsdp_sharded:
            rank = self.fsdp_sharded[name].device_mesh.get_local_rank("fsdp")
            full = _chunk(full, 0, self.world.fsdp_size, rank)
        return full

    def full_shape(self, name: str, shard: Tensor) -> torch.Size:
        """Return the shape of the full parameter."""
        if name in self.tensor_sharded:
            return self.tensor_sharded[name][1]
        sharded = self.optimizer_sharded.get(name) or self.fsdp_sharded.get(name, shard)
        return torch.Size(sharded.shape)


def parallelize(
    model: nn.Module, world: World, settings: ParallelSettings, *, precision: str, is_compiled: bool
) -> Sharding:
    """Shard a full model on the CPU over the processes and move it to its device.

    Raises ConfigError if its sizes do not divide.
    """
    if precision == "fp8" and (world.tensor_size > 1 or world.fsdp_size > 1):
        raise ConfigError(
            "trainer.precision=fp8 needs unsharded layers: use bf16 with parallel.tensor, or parallel.fsdp where "
            "whole weights do not fit."
        )
    if lora_config(model) is not None and precision == "fp8":
        raise ConfigError(
            "Adapters (model.peft) are trained in bf16, 16 or 32: the functions of 8-bit layers do not compute them. "
            "Leave out trainer.precision=fp8."
        )
    tensor_sharded: dict[str, tuple[int, torch.Size]] = {}
    sequence_parallel: frozenset[str] = frozenset()
    if world.tensor_size > 1:
        tensor_sharded = _apply_tensor_parallelism(model, world, is_sequence_parallel=settings.sequence)
        if settings.sequence:
            sequence_parallel = _sequence_parallel_parameters(model, tensor_sharded)
    model.to(world.device)
    if is_compiled:
        # FSDP gathers a layer's weights when it is called, and a checkpointed layer is called again: no borders there.
        is_whole = world.fsdp_size == 1 and not settings.activation_checkpointing
        compile_layers(model, fuse=is_whole and precision != "fp8")
    if settings.activation_checkpointing:
        apply_activation_checkpointing(model)
    fsdp_sharded = _apply_fsdp(model, world, precision) if world.fsdp_size > 1 else {}
    # FSDP's hooks allocate memory and synchronize; recomputation restores the state of the random number generator.
    is_capturable = not fsdp_sharded and not settings.activation_checkpointing
    return Sharding(world, tensor_sharded, fsdp_sharded, sequence_parallel, is_capturable)


def _apply_tensor_parallelism(
    model: nn.Module, world: World, *, is_sequence_parallel: bool
) -> dict[str, tuple[int, torch.Size]]:
    """Replace modules by tensor-parallel ones with this process' shard; returns the dims and shapes of the sharded."""
    from . import tensor_parallel
    from .sequence_shards import SequenceShards

    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    _check_divides(encoder, world)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tokens = SequenceShards(world) if is_sequence_parallel else None
    shards: dict[nn.Parameter, nn.Parameter] = {}
    tensor_sharded: dict[str, tuple[int, torch.Size]] = {}

    def shard(parameter: nn.Parameter | None, dim: int) -> Any:
        if parameter is None:
            return None
        if parameter not in shards:  # the word embedding is tied to the head
            values = _tensor_shard(parameter.detach(), dim, world).clone()
            shards[parameter] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            tensor_sharded[names[id(parameter)]] = (dim, parameter.shape)
        return shards[parameter]

    for name, kind in find_sharded_modules(model).items():
        module: Any = model.get_submodule(name)
        weight = shard(module.weight, DIMS[kind])
        rows = _tensor_shard(torch.arange(module.weight.shape[0]), 0, world)
        start = int(rows[0]) if len(rows) else module.weight.shape[0]
        sharded: nn.Module
        if kind == COLUMN_PARALLEL:
            sharded = tensor_parallel.ColumnParallelLinear(weight, shard(module.bias, 0), world, tokens)
        elif kind == ROW_PARALLEL:
            sharded = tensor_parallel.RowParallelLinear(weight, module.bias, world, tokens)
        elif isinstance(module, nn.Embedding):
            sharded = tensor_parallel.VocabularyParallelEmbedding(weight, start, world)
        else:
            bias = shard(module.bias, 0)
            sharded = tensor_parallel.VocabularyParallelLinear(weight, bias, start, module.out_features, world)
        if isinstance(module, LoraLinear):
            a, b = module.lora_a, module.lora_b
            pair = (a, shard(b, 0)) if kind == COLUMN_PARALLEL else (shard(a, 1), b)
            # Of a column-parallel layer all processes have the same inputs, unless tokens are sharded.
            stream = 0 if kind == COLUMN_PARALLEL and tokens is None else world.tensor_rank + 1
            assert isinstance(sharded, tensor_parallel.ColumnParallelLinear | tensor_parallel.RowParallelLinear)
            sharded.add_lora(pair[0], pair[1], module.config, stream)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, sharded)
    _set_dropout_streams(encoder, world, is_sequence_parallel=is_sequence_parallel)
    if tokens is not None:
        _apply_sequence_parallelism(encoder, tokens)
    return tensor_sharded


def find_sharded_modules(model: nn.Module) -> dict[str, str]:
    """Find the modules that the tables name; a pattern without a module is an error."""
    modules = [name for name, _ in model.named_modules(remove_duplicate=False)]
    tables = SHARDING | (HEAD_SHARDING if "head.language_model" in modules else {})
    sharded: dict[str, str] = {}
    for pattern, kind in tables.items():
        expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        names = [name for name in modules if expression.fullmatch(name)]
        assert names, f"the sharding table's {pattern} names no module of the model"
        sharded |= dict.fromkeys(names, kind)
    return sharded


def _check_divides(encoder: Encoder, world: World) -> None:
    config, size = encoder.config, world.tensor_size
    for what, count in (("attention heads", config.num_heads), ("MLP width", config.ffn_size)):
        if count % size:
            raise ConfigError(
                f"parallel.tensor={size} does not divide the network's {what}, {count}. Choose a size that divides it; "
                "only the vocabulary may have a remainder."
            )


def _chunk(full: Tensor, dim: int, size: int, rank: int) -> Tensor:
    """Take a shard as DTensor does: ceil(n / size) rows each, the last shards fewer or none."""
    rows = -(-full.shape[dim] // size)
    start = min(rank * rows, full.shape[dim])
    return full.narrow(dim, start, min(rows, full.shape[dim] - start))


def _tensor_shard(full: Tensor, dim: int, world: World) -> Tensor:
    return _chunk(full, dim, world.tensor_size, world.tensor_rank)


def _set_dropout_streams(encoder: Encoder, world: World, *, is_sequence_parallel: bool) -> None:
    """Give sharded activations different dropout masks in each process; replicated ones need equal masks."""
    stream = world.tensor_rank + 1
    for layer in encoder.layers:
        layer.attention.stream = stream  # type: ignore[union-attr]
        if is_sequence_parallel:
            layer.dropout.stream = stream  # type: ignore[union-attr]
    if is_sequence_parallel:
        encoder.embeddings.dropout.stream = stream


def _apply_sequence_parallelism(encoder: Encoder, tokens: Any) -> None:
    """Shard the tokens between the sharded layers: from the embeddings' dropout to the last norm."""
    from .tensor_parallel import gather_tokens, shard_tokens

    def shard(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens.num_tokens = len(inputs[0])
        return (shard_tokens(inputs[0], tokens),)

    def gather(module: nn.Module, inputs: Any, hidden_SD: Tensor) -> Tensor:
        return gather_tokens(hidden_SD, tokens)

    encoder.embeddings.dropout.register_forward_pre_hook(shard)
    (encoder.final_norm or encoder.layers[-1]).register_forward_hook(gather)


def _sequence_parallel_parameters(model: nn.Module, tensor_sharded: Mapping[str, Any]) -> frozenset[str]:
    """List the parameters that are applied to sharded tokens: norms, and biases of row-parallel layers."""
    names = {name for name, _ in model.named_parameters() if name not in tensor_sharded}
    return frozenset(name for name in names if name.startswith(("encoder.layers.", "encoder.final_norm.")))


def _apply_fsdp(model: nn.Module, world: World, precision: str) -> dict[str, Any]:
    """Shard parameters over the fsdp axis in units of layers; FSDP casts to lower precision when it gathers."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = world.mesh["fsdp"] if world.fsdp_size == world.data_size else world.mesh["data", "fsdp"]
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    lower = MixedPrecisionPolicy(
        param_dtype=None if precision == "32" else DTYPES[precision], reduce_dtype=torch.float32
    )
    head: Any = model.get_submodule("head")
    if not head.uses_encoder_precision and any(True for _ in head.parameters()):
        fully_shard(head, mesh=mesh, mp_policy=exact)
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    for layers in _fsdp_units(encoder):
        fully_shard(layers, mesh=mesh, mp_policy=lower)
    # The root unit holds the rest: the word embedding together with the head that is tied to it.
    fully_shard(model, mesh=mesh, mp_policy=lower)
    return dict(model.named_parameters())


def _fsdp_units(encoder: Encoder) -> list[list[nn.Module]]:
    """Group layers into FSDP units of FSDP_UNIT_SIZE parameters: each all-gather costs host time."""
    units: list[list[nn.Module]] = [[]]
    size = 0
    for layer in encoder.layers:
        if size >= FSDP_UNIT_SIZE:
            units.append([])
            size = 0
        units[-1].append(layer)
        size += sum(parameter.numel() for parameter in layer.parameters())
    return units


def warm_up(device: torch.device) -> None:
    """Initialize a device in a thread, while data is read: it takes a second or two.

    The thread must not import anything: PyTorch's modules import each other in cycles, and two threads in one fail.
    """
    threading.Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, name="warm-up", daemon=True).start()


def compile_layers(model: nn.Module, *, fuse: bool = True) -> None:
    """Fuse the encoder's layers where kernels allow it, else compile them: alike, they use the first one's code.

    The embeddings are left out: a compiled gather accumulates its gradient by atomic additions, which are slow where
    thousands of tokens share the two rows of the segment embedding. `forward` is compiled and not the module's call,
    since FSDP's hooks around it contain collectives.
    """
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    if fuse and fuse_layers(encoder):
        return
    for layer in encoder.layers:
        layer.forward = torch.compile(layer.forward)


def apply_activation_checkpointing(model: nn.Module) -> None:
    """Keep only each layer's input; the backward pass recomputes the layer, with the same dropout masks."""
    for layer in model.get_submodule("encoder").layers:  # type: ignore[union-attr]
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    # Without gradients nothing is recomputed, and the random state, which cannot be read during capture of a CUDA
    # graph, need not be saved.
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
