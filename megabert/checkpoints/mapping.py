"""Rename and reshape tensors by tables of rules, in both directions.

A table is a list of `Rule`s that reads like the format's specification. `read_tensors` turns the tensors of a foreign
file (of one or several tensor-parallel shards) into megabert's, `write_tensors` does the reverse. Both return lazy
tensors, so that a checkpoint larger than memory can be converted. Every tensor of a file must match one rule; a tensor
that matches none is an error.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files.lazy_tensor import Readable, check_finite, check_floating_point
from .other_formats import adapter_tensors


@dataclass(frozen=True)
class Op:
    """A conversion of foreign tensors into one of megabert's, and back. Both functions also take the head's width."""

    read: Callable[[Sequence[Tensor], int], Tensor]
    write: Callable[[Tensor, int], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """One row of a table: a foreign name (or several, whose tensors form one), megabert's name, and the conversion.

    `*` matches one dotted part and is copied. A `target` of None: the tensor is known and dropped. `cut` is the dim
    that tensor parallelism splits; None: every shard holds the whole tensor. `read_only` marks an alternative name that
    is never written. `copy_of` is the megabert tensor that this one must equal, where both are there.
    """

    source: str | tuple[str, ...]
    target: str | None
    op: Op | None = None
    cut: int | None = None
    read_only: bool = False
    copy_of: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The foreign names, always as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class JoinedTensor:
    """A lazy megabert tensor, joined from the shards when it is read. Raises CheckpointError for invalid numbers."""

    name: str
    rule: Rule
    sources: tuple[str, ...]
    shards: Sequence[Mapping[str, Readable]]
    head_dim: int
    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    copies: tuple[str, ...] = ()

    def read(self) -> Tensor:
        """Read and convert the parts of all shards, and join them."""
        parts = [
            _apply(self.rule, [shard[name].read() for name in self.sources], self.head_dim) for shard in self.shards
        ]
        if self.rule.cut is None and any(not torch.equal(parts[0], part) for part in parts[1:]):
            raise CheckpointError(f"{self.file}: {_list(self.sources)} should be equal in all shards and is not.")
        tensor = parts[0] if self.rule.cut is None or len(parts) == 1 else torch.cat(parts, dim=self.rule.cut)
        check_finite(tensor, self.file, _list(self.sources))
        for copy in self.copies:
            if not torch.equal(replace(self, sources=(copy,), copies=()).read(), tensor):
                raise CheckpointError(
                    f"{self.file}: {copy} is not the copy of {_list(self.sources)} that it should be. A network "
                    "whose output has weights of its own (untied embeddings) is not read. Save the encoder alone, "
                    "without the output, and give that."
                )
        return tensor


@dataclass(frozen=True)
class ForeignTensors:
    """One or several foreign tensors of equal shape, converted from one of megabert's when they are read."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rule: Rule
    tensor: Readable
    head_dim: int

    def read(self) -> list[Tensor]:
        """Read and convert the tensor; returns the results in the order of `names`."""
        tensor = self.tensor.read()
        return self.rule.op.write(tensor, self.head_dim) if self.rule.op else [tensor]


def read_tensors(
    shards: Sequence[Mapping[str, Readable]], rules: Sequence[Rule], head_dim: int, source: str
) -> tuple[dict[str, JoinedTensor], list[str]]:
    """Convert a file's tensors to megabert's names and layouts; `shards` are in tensor-parallel order.

    Returns lazy tensors, and the names of the tensors that are dropped.
    Raises CheckpointError that lists tensors that match no rule, lack a partner, or have inconsistent shapes.
    """
    groups, unknown = _match_rules(sorted({name for shard in shards for name in shard}), rules)
    if unknown:
        is_adapted = bool(adapter_tensors(unknown))
        remedy = (
            " They are of an adapter (LoRA); merge it into the model (peft: merge_and_unload)." if is_adapted else ""
        )
        raise CheckpointError(f"{source}: unknown tensors: {_list(unknown)}.{remedy}")
    tensors: dict[str, JoinedTensor] = {}
    for (rule, name), sources in groups.items():
        if name is None:
            continue
        missing = [source_name for source_name in sources if any(source_name not in shard for shard in shards)]
        if missing:
            raise CheckpointError(f"{source}: {name} needs {_list(missing)}, which is not in every shard.")
        if name in tensors:
            raise CheckpointError(f"{source}: {_list(tensors[name].sources)} and {_list(sources)} are the same tensor.")
        tensors[name] = _join(name, rule, sources, shards, head_dim, source)
    dropped = [(rule, names[0]) for (rule, name), names in groups.items() if name is None]
    for rule, name in dropped:
        if rule.copy_of in tensors and all(name in shard for shard in shards):
            original = tensors[rule.copy_of]
            if tuple(shards[0][name].shape) != tuple(shards[0][original.sources[0]].shape):
                raise CheckpointError(f"{source}: {name} is not of the shape of {original.sources[0]}, its original.")
            tensors[rule.copy_of] = replace(original, copies=(*original.copies, name))
    return tensors, sorted(name for rule, name in dropped if rule.copy_of is None)


def write_tensors(tensors: Mapping[str, Readable], rules: Sequence[Rule], head_dim: int) -> Iterator[ForeignTensors]:
    """Convert megabert's tensors to a format's names and layouts, unsharded. Every tensor needs a writing rule."""
    for name, tensor in tensors.items():
        rule, stars = _writing_rule(name, rules)
        names = tuple(_fill(source, stars) for source in rule.sources)
        shape = tuple(tensor.shape)
        if rule.op:
            shape = tuple(rule.op.write(torch.empty(shape, device="meta"), head_dim)[0].shape)
        yield ForeignTensors(names, shape, tensor.dtype, rule, tensor, head_dim)


def _match_rules(
    names: Iterable[str], rules: Sequence[Rule]
) -> tuple[dict[tuple[Rule, str | None], tuple[str, ...]], list[str]]:
    """Find each name's rule: (rule, megabert's name) to foreign names in the rule's order; and the unmatched names."""
    groups: dict[tuple[Rule, str | None], tuple[str, ...]] = {}
    unknown = []
    for name in names:
        for rule in rules:
            stars = next((match for source in rule.sources if (match := _match(source, name)) is not None), None)
            if stars is not None:
                # A tensor that is dropped forms a group of its own.
                key = (replace(rule, source=name), None) if rule.target is None else (rule, _fill(rule.target, stars))
                groups.setdefault(key, tuple(_fill(source, stars) for source in rule.sources))
                break
        else:
            unknown.append(name)
    return groups, unknown


def _join(
    name: str,
    rule: Rule,
    sources: tuple[str, ...],
    shards: Sequence[Mapping[str, Readable]],
    head_dim: int,
    file: str,
) -> JoinedTensor:
    """Make the lazy tensor; its shape is computed on the meta device, without reading a number."""
    shapes = [tuple(tuple(shard[source].shape) for source in sources) for shard in shards]
    dtypes = {shard[source].dtype for shard in shards for source in sources}
    if len(set(shapes)) > 1 or len(dtypes) > 1:
        shown = ", ".join(
            f"{shape} {dtype}" for shape, dtype in sorted((str(s), str(d)) for s in shapes for d in dtypes)
        )
        raise CheckpointError(f"{file}: {_list(sources)} differs between shards in shape or dtype: {shown}.")
    dtype = dtypes.pop()
    check_floating_point(dtype, file, _list(sources))
    try:
        part = _apply(rule, [torch.empty(shape, device="meta") for shape in shapes[0]], head_dim)
        joined = part if rule.cut is None else torch.cat([part] * len(shards), dim=rule.cut)
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: {_list(sources)} of shape {shapes[0]} does not fit: {reason}") from None
    return JoinedTensor(name, rule, sources, shards, head_dim, file, tuple(joined.shape), dtype)


def _apply(rule: Rule, tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return rule.op.read(tensors, head_dim) if rule.op else tensors[0]


def _writing_rule(name: str, rules: Sequence[Rule]) -> tuple[Rule, tuple[str, ...]]:
    for rule in rules:
        if rule.target is not None and not rule.read_only:
            stars = _match(rule.target, name)
            if stars is not None:
                return rule, stars
    raise AssertionError(f"no rule writes {name}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"([^.]+)"))


def _match(template: str, name: str) -> tuple[str, ...] | None:
    match = _pattern(template).fullmatch(name)
    return match.groups() if match else None


def _fill(template: str, stars: tuple[str, ...]) -> str:
    parts = iter(stars)
    return re.sub(r"\*", lambda _: next(parts), template)


def _list(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# The rows of the fused query-key-value projection. megabert's are [heads, 3, dim]; each Op converts one shard's heads.
# Source: Megatron-LM's megatron/checkpointing.py, fix_query_key_value_ordering, and its history.


def _from_3_heads_dim(tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return tensors[0].unflatten(0, (3, -1, head_dim)).transpose(0, 1).flatten(0, 2)


def _to_3_heads_dim(tensor: Tensor, head_dim: int) -> list[Tensor]:
    return [tensor.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)]


def _from_heads_dim_3(tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return tensors[0].unflatten(0, (-1, head_dim, 3)).transpose(1, 2).flatten(0, 2)


def _to_heads_dim_3(tensor: Tensor, head_dim: int) -> list[Tensor]:
    return [tensor.unflatten(0, (-1, 3, head_dim)).transpose(1, 2).flatten(0, 2)]


def _from_separate(tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return torch.stack([tensor.unflatten(0, (-1, head_dim)) for tensor in tensors], dim=1).flatten(0, 2)


def _to_separate(tensor: Tensor, head_dim: int) -> list[Tensor]:
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (-1, 3, head_dim)).unbind(1)]


def _transposed(tensor: Tensor) -> Tensor:
    if tensor.ndim != 2:
        raise RuntimeError("a matrix is expected.")
    return tensor.T


def _from_conv1d_3_heads_dim(tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return _from_3_heads_dim([_transposed(tensors[0])], head_dim)


def _to_conv1d_3_heads_dim(tensor: Tensor, head_dim: int) -> list[Tensor]:
    return [_transposed(_to_3_heads_dim(tensor, head_dim)[0])]


QKV_LAYOUTS = {
    "3_heads_dim": Op(_from_3_heads_dim, _to_3_heads_dim),
    "heads_dim_3": Op(_from_heads_dim_3, _to_heads_dim_3),
    "heads_3_dim": Op(lambda tensors, _: tensors[0], lambda tensor, _: [tensor]),
}
SEPARATE_QKV = Op(_from_separate, _to_separate)
# transformers' GPT-2 stores the matrices of a Conv1D, [in, out].
TRANSPOSED = Op(lambda tensors, _: _transposed(tensors[0]), lambda tensor, _: [_transposed(tensor)])
CONV1D_QKV = Op(_from_conv1d_3_heads_dim, _to_conv1d_3_heads_dim)
