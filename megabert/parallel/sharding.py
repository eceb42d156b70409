"""What is done to a network from outside: cut over the tensor axis, compilation, activation checkpointing, FSDP.

It is done in this order, and model code knows of none of it. The cut is a table, in Megatron-LM's words. Where a weight
lies is a Layout, by which it is put together again for a checkpoint: files hold whole tensors and no trace of the cut.
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
from ..model.precision import DTYPES
from ..planner.workload import UNIT
from .process_group import World

VOCABULARY_PARALLEL, COLUMN_PARALLEL, ROW_PARALLEL = "vocabulary", "column", "row"


# Module -> the cut over the tensor axis; modules that are not here are whole in every process.
SHARDING = {
    "encoder.embeddings.word": VOCABULARY_PARALLEL,  # rows
    "encoder.layers.*.attention.qkv": COLUMN_PARALLEL,  # rows: whole heads, since rows are [heads, 3, dim]
    "encoder.layers.*.attention.out": ROW_PARALLEL,  # columns; results are summed over the axis
    "encoder.layers.*.mlp.up": COLUMN_PARALLEL,
    "encoder.layers.*.mlp.down": ROW_PARALLEL,
}


# Those of heads: each is there or the whole head has no vocabulary.
HEAD_SHARDING = {
    "head.language_model.vocabulary": VOCABULARY_PARALLEL,  # tied to the word embedding
}


# The dim of a weight that is cut; a bias is cut with rows, never with columns.
DIMS = {VOCABULARY_PARALLEL: 0, COLUMN_PARALLEL: 0, ROW_PARALLEL: 1}


@dataclass(frozen=True)
class Sharding:
    """Where the parts of a network's parameters lie, by name; one that is cut nowhere is not listed."""

    world: World
    tensor_sharded: Mapping[str, tuple[int, torch.Size]] = field(default_factory=dict)
    """Over the tensor axis: the dim, and the shape of the whole."""
    fsdp_sharded: Mapping[str, Any] = field(default_factory=dict)
    """Over the fsdp axis: the parameter as FSDP has it, a DTensor."""
    sequence_parallel: frozenset[str] = frozenset()
    """Those whose gradient is a sum over the tensor axis although they are not cut: they see only some tokens."""
    is_capturable: bool = True
    """Whether a CUDA graph can hold a step."""

    @property
    def uses_fsdp(self) -> bool:
        """Whether FSDP reduces the gradients, and the backward pass must be PyTorch's plain one."""
        return bool(self.fsdp_sharded)

    def unshard(self, name: str, part: Tensor) -> Tensor:
        """Put a parameter, or what is shaped like it, together; all processes call this in the same order."""
        from torch.distributed.tensor import DTensor, Shard

        if name in self.fsdp_sharded:
            like = self.fsdp_sharded[name]
            part = DTensor.from_local(
                part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
            ).full_tensor()
        if name in self.tensor_sharded:
            dim, shape = self.tensor_sharded[name]
            stride = torch.empty(shape, device="meta").stride()
            mesh = self.world.mesh["tensor"]
            part = DTensor.from_local(part, mesh, [Shard(dim)], shape=shape, stride=stride).full_tensor()
        return part

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """Take this process' part of a whole parameter, or of what is shaped like it."""
        if name in self.tensor_sharded:
            whole = _own(whole, self.tensor_sharded[name][0], self.world)
        if name in self.fsdp_sharded:
            like = self.fsdp_sharded[name]
            mesh, size = like.device_mesh, self.world.fsdp_size
            whole = _chunk(whole, 0, size, mesh.get_local_rank("fsdp"))
        return whole

    def full_shape(self, name: str, part: Tensor) -> torch.Size:
        """Give the shape of the whole."""
        if name in self.tensor_sharded:
            return self.tensor_sharded[name][1]
        return self.fsdp_sharded[name].shape if name in self.fsdp_sharded else part.shape


def parallelize(
    model: nn.Module, world: World, settings: ParallelSettings, *, precision: str, is_compiled: bool
) -> Sharding:
    """Lay a network, whole and on the CPU, out over the processes and move it to its device.

    Raises ConfigError where it does not divide.
    """
    if precision == "fp8" and (world.tensor_size > 1 or world.fsdp_size > 1):
        raise ConfigError("trainer.precision=fp8 takes whole layers. With parallel.tensor or parallel.fsdp use bf16.")
    cuts: dict[str, tuple[int, torch.Size]] = {}
    seeing_some: frozenset[str] = frozenset()
    if world.tensor_size > 1:
        cuts = _cut(model, world, is_sequence=settings.sequence)
        if settings.sequence:
            seeing_some = _seeing_some_tokens(model, cuts)
    model.to(world.device)
    if is_compiled:
        compile_layers(model)
    if settings.activation_checkpointing:
        apply_activation_checkpointing(model)
    spread = _spread(model, world, precision) if world.fsdp_size > 1 else {}
    # FSDP's hooks allocate and wait as they like; who computes a layer again puts the state of random numbers back.
    is_capturable = not spread and not settings.activation_checkpointing
    return Sharding(world, cuts, spread, seeing_some, is_capturable)


def _cut(model: nn.Module, world: World, *, is_sequence: bool) -> dict[str, tuple[int, torch.Size]]:
    """Put modules in place that have this process' part of the weights; returns what was cut."""
    from ..parallel import tensor_parallel as tensor

    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    _check_divides(encoder, world)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tokens = tensor.SequenceShards(world) if is_sequence else None
    made: dict[nn.Parameter, nn.Parameter] = {}
    cuts: dict[str, tuple[int, torch.Size]] = {}

    def own(parameter: nn.Parameter | None, dim: int) -> Any:
        if parameter is None:
            return None
        if parameter not in made:  # the word embedding is that of the head, too
            part = _own(parameter.detach(), dim, world).clone()
            made[parameter] = nn.Parameter(part, requires_grad=parameter.requires_grad)
            cuts[names[id(parameter)]] = (dim, parameter.shape)
        return made[parameter]

    for name, cut in find_sharded_modules(model).items():
        module: Any = model.get_submodule(name)
        weight = own(module.weight, DIMS[cut])
        start = _chunk(torch.arange(module.weight.shape[0]), 0, world.tensor_size, world.tensor_rank)
        first = int(start[0]) if len(start) else module.weight.shape[0]
        put: nn.Module
        if cut == COLUMN_PARALLEL:
            put = tensor.ColumnParallelLinear(weight, own(module.bias, 0), world, tokens)
        elif cut == ROW_PARALLEL:
            put = tensor.RowParallelLinear(weight, module.bias, world, tokens)
        elif isinstance(module, nn.Embedding):
            put = tensor.VocabularyParallelEmbedding(weight, first, world)
        else:
            put = tensor.VocabularyParallelLinear(weight, own(module.bias, 0), first, module.out_features, world)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, put)
    _set_streams(encoder, world, is_sequence=is_sequence)
    if tokens is not None:
        _cut_tokens(encoder, tokens)
    return cuts


def find_sharded_modules(model: nn.Module) -> dict[str, str]:
    """Find the modules that the tables name. A pattern that names none is an error."""
    tables = SHARDING | (HEAD_SHARDING if _has(model, "head.language_model") else {})
    found: dict[str, str] = {}
    for pattern, cut in tables.items():
        expression = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if expression.fullmatch(name)]
        assert names, f"the sharding table's {pattern} names no module of the network"
        found |= dict.fromkeys(names, cut)
    return found


def _has(model: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in model.named_modules())


def _check_divides(encoder: Encoder, world: World) -> None:
    config, size = encoder.config, world.tensor_size
    for what, count in (("attention heads", config.num_heads), ("MLP width", config.ffn_size)):
        if count % size:
            raise ConfigError(
                f"parallel.tensor={size} does not divide the network's {what}, {count}. Any vocabulary can be shared, "
                "these cannot: choose another size."
            )


def _chunk(whole: Tensor, dim: int, size: int, rank: int) -> Tensor:
    """Take a part as DTensor cuts: each has ceil(n / size) rows, the last ones fewer or none."""
    rows = -(-whole.shape[dim] // size)
    start = min(rank * rows, whole.shape[dim])
    return whole.narrow(dim, start, min(rows, whole.shape[dim] - start))


def _own(whole: Tensor, dim: int, world: World) -> Tensor:
    return _chunk(whole, dim, world.tensor_size, world.tensor_rank)


def _set_streams(encoder: Encoder, world: World, *, is_sequence: bool) -> None:
    """Let what is computed in parts drop differently in each; elsewhere all must drop alike."""
    stream = world.tensor_rank + 1
    for layer in encoder.layers:
        layer.attention.stream = stream  # type: ignore[union-attr]
        if is_sequence:
            layer.dropout.stream = stream  # type: ignore[union-attr]
    if is_sequence:
        encoder.embeddings.dropout.stream = stream


def _cut_tokens(encoder: Encoder, tokens: Any) -> None:
    """Share what is between the layers token by token: from the embeddings' dropout to the last norm."""
    from .tensor_parallel import cut_tokens, join_tokens

    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens.num_tokens = len(inputs[0])
        return (cut_tokens(inputs[0], tokens),)

    def join(module: nn.Module, inputs: Any, hidden_SD: Tensor) -> Tensor:
        return join_tokens(hidden_SD, tokens)

    encoder.embeddings.dropout.register_forward_pre_hook(cut)
    (encoder.final_norm or encoder.layers[-1]).register_forward_hook(join)


def _seeing_some_tokens(model: nn.Module, cuts: Mapping[str, Any]) -> frozenset[str]:
    """List the parameters that are applied to cut tokens: norms, and biases behind sums."""
    names = (name for name, _ in model.named_parameters())
    return frozenset(
        name for name in names if name.startswith(("encoder.layers.", "encoder.final_norm.")) if name not in cuts
    )


def _spread(model: nn.Module, world: World, precision: str) -> dict[str, Any]:
    """Spread parameters over the fsdp axis, layer by layer; what computes in lower precision is cast when gathered."""
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
    for layers in _units(encoder):
        fully_shard(layers, mesh=mesh, mp_policy=lower)
    # The rest: the word embedding is in here, together with the head that is tied to it.
    fully_shard(model, mesh=mesh, mp_policy=lower)
    return dict(model.named_parameters())


def _units(encoder: Encoder) -> list[list[nn.Module]]:
    """Join layers until they have UNIT weights: gathering takes the host time, for each unit anew."""
    units: list[list[nn.Module]] = [[]]
    filled = 0
    for layer in encoder.layers:
        if filled >= UNIT:
            units.append([])
            filled = 0
        units[-1].append(layer)
        filled += sum(parameter.numel() for parameter in layer.parameters())
    return units


def resolve_compile(asked: bool | None, device: torch.device) -> bool:
    """Settle whether layers are compiled; None: on a GPU."""
    return device.type == "cuda" if asked is None else asked


def warm_up(device: torch.device) -> None:
    """Start a device in a thread, beside the reading of data: it takes a second or two.

    The thread imports nothing: PyTorch's modules import each other in circles, and two threads in one circle fail.
    """
    threading.Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, name="warm-up", daemon=True).start()


def compile_layers(model: nn.Module) -> None:
    """Compile the encoder's layers: they are alike, so the first one's compilation serves them all.

    The embeddings are left out: a compiled gather adds up its gradient by atomic additions, which are slow where
    thousands of tokens share the two rows of the segment embedding. Compiled is what a layer computes and not its
    call: FSDP's hooks around it talk to other processes.
    """
    for layer in model.get_submodule("encoder").layers:  # type: ignore[union-attr]
        layer.forward = torch.compile(layer.forward)


def apply_activation_checkpointing(model: nn.Module) -> None:
    """Keep of each layer its input only; the backward pass computes the layer again, with the same dropout."""
    for layer in model.get_submodule("encoder").layers:  # type: ignore[union-attr]
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    # Without gradients there is nothing to compute again, and the state of random numbers, which a CUDA graph cannot
    # look at, need not be kept.
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
