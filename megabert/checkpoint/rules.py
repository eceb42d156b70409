"""Rename and reshape tensors by a table that reads like the format's specification, in both directions.

A table is a list of `Rule`s. `read_tensors` turns a foreign file's tensors (of one or several tensor-parallel
shards) into ours, `write_tensors` ours into theirs. Nothing is left over in silence: every tensor of a file is
consumed by one rule, and an unknown one is an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError


class Readable(Protocol):
    """A tensor that still lies in its file."""

    @property
    def shape(self) -> Sequence[int]:
        """Its dims."""
        ...

    def read(self) -> Tensor:
        """Load it."""
        ...


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
    old spelling, read and never written.
    """

    theirs: str | tuple[str, ...]
    ours: str | None
    op: Op | None = None
    cut: int | None = None
    read_only: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Their names, always as a tuple."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def read_tensors(
    shards: Sequence[Mapping[str, Readable]], rules: Sequence[Rule], head_dim: int, source: str
) -> dict[str, Tensor]:
    """Translate a file's tensors to our names and layouts; shards stand in tensor-parallel order.

    Raises CheckpointError that lists the tensors which no rule knows, those whose partners are missing, and
    replicas that differ between shards.
    """
    groups, unknown = _assign(shards[0], rules)
    if unknown:
        raise CheckpointError(f"{source}: tensors of unknown meaning: {_list(unknown)}.")
    ours: dict[str, Tensor] = {}
    for (rule, name), sources in groups.items():
        if name is None:
            continue
        missing = [their for their in sources if any(their not in shard for shard in shards)]
        if missing:
            raise CheckpointError(f"{source}: {name} needs {_list(missing)}, which is not in every shard.")
        if name not in ours:  # first match wins
            ours[name] = _merge(rule, sources, shards, head_dim, source)
    return ours


def write_tensors(ours: Mapping[str, Tensor], rules: Sequence[Rule], head_dim: int) -> dict[str, Tensor]:
    """Translate our tensors to their names and layouts, unsharded. A tensor that no rule writes is a defect."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        rule, stars = _writing_rule(name, rules)
        parts = rule.op.write(tensor, head_dim) if rule.op else [tensor]
        theirs.update(zip((_fill(source, stars) for source in rule.sources), parts, strict=True))
    return theirs


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
                key = (rule, ours) if rule.ours is not None else (Rule(name, None), None)
                groups.setdefault(key, tuple(_fill(source, stars) for source in rule.sources))
                break
        else:
            unknown.append(name)
    return groups, unknown


def _merge(
    rule: Rule, sources: Sequence[str], shards: Sequence[Mapping[str, Readable]], head_dim: int, file: str
) -> Tensor:
    parts = []
    for shard in shards:
        tensors = [shard[source].read() for source in sources]
        try:
            parts.append(rule.op.read(tensors, head_dim) if rule.op else tensors[0])
        except RuntimeError as error:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise CheckpointError(f"{file}: {_list(sources)} of shape {shapes} does not fit: {error}") from None
        if rule.cut is None and len(parts) > 1:
            if not torch.equal(parts[0], parts[-1]):
                raise CheckpointError(f"{file}: {_list(sources)} should be equal in all shards and is not.")
            parts.pop()
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=rule.cut or 0)


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


QKV_LAYOUTS = {
    "3_heads_dim": Op(_from_3_heads_dim, _to_3_heads_dim),
    "heads_dim_3": Op(_from_heads_dim_3, _to_heads_dim_3),
    "heads_3_dim": Op(lambda tensors, _: tensors[0], lambda tensor, _: [tensor]),
}
SEPARATE_QKV = Op(_from_separate, _to_separate)
