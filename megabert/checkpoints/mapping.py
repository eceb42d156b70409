"""Rename and reshape tensors by a table that reads like the format's specification, in both directions.

A table is a list of `Rule`s. `read_tensors` turns a foreign file's tensors (of one or several tensor-parallel
shards) into ours, `write_tensors` ours into theirs. Both give tensors that are not read yet, so that a checkpoint
larger than memory can be converted. Nothing is left over in silence: every tensor of a file is consumed by one rule,
and an unknown one is an error.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files.lazy_tensor import Readable, check_numbers, check_weights


@dataclass(frozen=True)
class Op:
    """How the numbers of their tensors become one of ours, and back. Both take the width of an attention head."""

    read: Callable[[Sequence[Tensor], int], Tensor]
    write: Callable[[Tensor, int], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """One row: their name (or names, where several tensors make one of ours), our name, and how the numbers move.

    `*` matches one dotted part and is carried across. `ours` None means: known, and not kept. `cut` is the dim
    along which tensor parallelism splits the tensor; None: every shard holds the whole. `read_only` marks an
    old spelling, read and never written. `copy_of` is the tensor of ours that this one must equal, if it is there.
    """

    theirs: str | tuple[str, ...]
    ours: str | None
    op: Op | None = None
    cut: int | None = None
    read_only: bool = False
    copy_of: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Their names, always as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Joined:
    """One of our tensors, made from theirs when it is read. Raises CheckpointError if its numbers cannot be right."""

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
        """Read its parts from all shards, in our order, and join them."""
        parts = [
            _apply(self.rule, [shard[name].read() for name in self.sources], self.head_dim) for shard in self.shards
        ]
        if self.rule.cut is None and any(not torch.equal(parts[0], part) for part in parts[1:]):
            raise CheckpointError(f"{self.file}: {_list(self.sources)} should be equal in all shards and is not.")
        tensor = parts[0] if self.rule.cut is None or len(parts) == 1 else torch.cat(parts, dim=self.rule.cut)
        check_numbers(tensor, self.file, _list(self.sources))
        for copy in self.copies:
            if not torch.equal(replace(self, sources=(copy,), copies=()).read(), tensor):
                raise CheckpointError(
                    f"{self.file}: {copy} is not the copy of {_list(self.sources)} that it should be. A network "
                    "whose output has weights of its own (untied embeddings) is not read."
                )
        return tensor


@dataclass(frozen=True)
class Written:
    """One or several of their tensors, made from one of ours. All of `read` is made at once."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rule: Rule
    ours: Readable
    head_dim: int

    def read(self) -> list[Tensor]:
        """Read our tensor and make theirs of it, in the order of `names`."""
        tensor = self.ours.read()
        return self.rule.op.write(tensor, self.head_dim) if self.rule.op else [tensor]


def read_tensors(
    shards: Sequence[Mapping[str, Readable]], rules: Sequence[Rule], head_dim: int, source: str
) -> tuple[dict[str, Joined], list[str]]:
    """Translate a file's tensors to our names and layouts; shards stand in tensor-parallel order.

    Returns ours, not read yet, and the names of those that are known and not kept.
    Raises CheckpointError that lists the tensors which no rule knows, those whose partners are missing, and those
    whose shapes do not fit together.
    """
    groups, unknown = _assign(sorted({name for shard in shards for name in shard}), rules)
    if unknown:
        raise CheckpointError(f"{source}: tensors of unknown meaning: {_list(unknown)}.")
    ours: dict[str, Joined] = {}
    for (rule, name), sources in groups.items():
        if name is None:
            continue
        missing = [their for their in sources if any(their not in shard for shard in shards)]
        if missing:
            raise CheckpointError(f"{source}: {name} needs {_list(missing)}, which is not in every shard.")
        if name in ours:
            raise CheckpointError(f"{source}: {_list(ours[name].sources)} and {_list(sources)} are the same tensor.")
        ours[name] = _join(name, rule, sources, shards, head_dim, source)
    dropped = [(rule, names[0]) for (rule, name), names in groups.items() if name is None]
    for rule, name in dropped:
        if rule.copy_of in ours and all(name in shard for shard in shards):
            original = ours[rule.copy_of]
            if _shape_of(name, shards) != _shape_of(original.sources[0], shards):
                raise CheckpointError(f"{source}: {name} is not of the shape of {original.sources[0]}, its original.")
            ours[rule.copy_of] = replace(original, copies=(*original.copies, name))
    return ours, sorted(name for rule, name in dropped if rule.copy_of is None)


def _shape_of(name: str, shards: Sequence[Mapping[str, Readable]]) -> tuple[int, ...]:
    return tuple(shards[0][name].shape)


def write_tensors(ours: Mapping[str, Readable], rules: Sequence[Rule], head_dim: int) -> Iterator[Written]:
    """Translate our tensors to their names and layouts, unsharded, in our order. One that no rule writes is a defect.

    Their shapes are equal where one of ours becomes several.
    """
    for name, tensor in ours.items():
        rule, stars = _writing_rule(name, rules)
        names = tuple(_fill(source, stars) for source in rule.sources)
        shape = tuple(tensor.shape)
        if rule.op:
            shape = tuple(rule.op.write(torch.empty(shape, device="meta"), head_dim)[0].shape)
        yield Written(names, shape, tensor.dtype, rule, tensor, head_dim)


def _assign(
    names: Iterable[str], rules: Sequence[Rule]
) -> tuple[dict[tuple[Rule, str | None], tuple[str, ...]], list[str]]:
    """Find each name's rule: (rule, our name) -> their names in the rule's order; and the names without one."""
    groups: dict[tuple[Rule, str | None], tuple[str, ...]] = {}
    unknown = []
    for name in names:
        for rule in rules:
            stars = next((found for source in rule.sources if (found := _match(source, name)) is not None), None)
            if stars is not None:
                ours = name if rule.ours is None else _fill(rule.ours, stars)
                # A tensor that is not kept forms a group of its own under its own name.
                key = (rule, ours) if rule.ours is not None else (replace(rule, theirs=name), None)
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
) -> Joined:
    """Say what one of our tensors will be: its shape is computed without reading a number."""
    shapes = [tuple(tuple(shard[source].shape) for source in sources) for shard in shards]
    dtypes = {shard[source].dtype for shard in shards for source in sources}
    if len(set(shapes)) > 1 or len(dtypes) > 1:
        found = ", ".join(
            f"{shape} {dtype}" for shape, dtype in sorted((str(s), str(d)) for s in shapes for d in dtypes)
        )
        raise CheckpointError(f"{file}: {_list(sources)} differs between shards in shape or dtype: {found}.")
    dtype = dtypes.pop()
    check_weights(dtype, file, _list(sources))
    try:
        part = _apply(rule, [torch.empty(shape, device="meta") for shape in shapes[0]], head_dim)
        whole = part if rule.cut is None else torch.cat([part] * len(shards), dim=rule.cut)
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: {_list(sources)} of shape {shapes[0]} does not fit: {reason}") from None
    return Joined(name, rule, sources, shards, head_dim, file, tuple(whole.shape), dtype)


def _apply(rule: Rule, tensors: Sequence[Tensor], head_dim: int) -> Tensor:
    return rule.op.read(tensors, head_dim) if rule.op else tensors[0]


def _writing_rule(name: str, rules: Sequence[Rule]) -> tuple[Rule, tuple[str, ...]]:
    for rule in rules:
        if rule.ours is not None and not rule.read_only:
            stars = _match(rule.ours, name)
            if stars is not None:
                return rule, stars
    raise AssertionError(f"no rule writes {name}")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"([^.]+)"))


def _match(template: str, name: str) -> tuple[str, ...] | None:
    found = _pattern(template).fullmatch(name)
    return found.groups() if found else None


def _fill(template: str, stars: tuple[str, ...]) -> str:
    parts = iter(stars)
    return re.sub(r"\*", lambda _: next(parts), template)


def _list(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# The fused query-key-value rows. Ours are [heads, 3, dim]; each Op works on the heads of one shard.
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
# transformers' GPT-2 has the matrices of a Conv1D, [in, out].
TRANSPOSED = Op(lambda tensors, _: _transposed(tensors[0]), lambda tensor, _: [_transposed(tensor)])
CONV1D_QKV = Op(_from_conv1d_3_heads_dim, _to_conv1d_3_heads_dim)
