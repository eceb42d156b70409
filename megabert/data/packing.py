"""Packing without padding: tokenized sequences are concatenated, `cu_seqlens` marks where each one starts.

For a static size, filler sequences of padding tokens follow the real ones.
Shape legend: T tokens of a batch, N sequences, L tokens of one sequence.
"""

from __future__ import annotations  # the types of torch are named without importing it

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Target of tokens and sequences without one, such as fillers: cross_entropy's ignore_index.
NO_TARGET = -100
# Targets that a teacher made: its logits, its hidden states, and the weight of each of these.
TEACHER, STATES, STATE_WEIGHT = "teacher", "teacher_states", "teacher_state_weight"
TAUGHT = frozenset({TEACHER, STATES, STATE_WEIGHT})
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """One tokenized sequence with its targets.

    `parts` are the lengths of several sequences, concatenated in `token_ids`, which stay in one batch (a query and its
    passages); `targets` then have a row for each. Empty: there is one.
    `targets` are per sequence: a number or an array of any shape. `token_targets` are per token, [T, ...]: NO_TARGET,
    or NaN in floats, for a token without one.
    `weight` is the sequence's weight in the mean loss: 1, or its number of labelled tokens.
    `notes` are private to the task: what `decode` needs to map predictions back to the example.
    `num_cut` counts tokens of the example that no sequence shows; of an example with several the first has it.
    """

    token_ids: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    targets: dict[str, Any] = field(default_factory=dict)
    token_targets: dict[str, NDArray[Any]] = field(default_factory=dict)
    weight: float = 1.0
    notes: Any = None
    parts: tuple[int, ...] = ()
    num_cut: int = 0

    @property
    def num_sequences(self) -> int:
        """Count the sequences."""
        return len(self.parts) or 1

    def rows(self, name: str) -> Sequence[Any]:
        """Return the target of each sequence."""
        target: Sequence[Any] = self.targets[name] if self.parts else [self.targets[name]]
        return target

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.token_ids)


class LazyFeatures(Sequence[Features], ABC):
    """Sequences that are read or computed on access; their lengths are known without it."""

    kept_fingerprint = ""
    """Their `fingerprint` where it is stored beside them, so that it needs no pass over them; "": it is not."""

    @abstractmethod
    def sequence(self, index: int) -> Features:
        """Return the sequence of an index, 0 to len."""

    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence without reading or computing the sequences."""

    def counts(self) -> NDArray[np.int64]:
        """Count the sequences of each of the features."""
        return np.ones(len(self), dtype=np.int64)

    def take(self, indices: Integers) -> Sequence[Features]:
        """Return the sequences of some indices."""
        return [self.sequence(index) for index in indices.tolist()]

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: Any) -> Any:
        """Return a sequence, or those of a slice."""
        selected = range(len(self))[index]
        return [self.sequence(number) for number in selected] if isinstance(index, slice) else self.sequence(selected)


class PlainSequences(LazyFeatures):
    """Sequences without targets and segments, in one array: many texts are packed without an object for each.

    `notes` and `num_cut` are as in `Features`, a number for each sequence.
    """

    def __init__(self, token_ids: Integers, lengths: Integers, *, notes: Integers, num_cut: Integers) -> None:
        self.token_ids, self.notes, self.num_cut = token_ids, notes, num_cut
        self._lengths = lengths
        self._starts = np.cumsum(lengths) - lengths

    @classmethod
    def between(
        cls, edges: tuple[list[int], list[int]], ids: Integers, starts: Integers, lengths: Integers, **columns: Integers
    ) -> PlainSequences:
        """Make a sequence of each slice of `ids`, with the tokens of `edges` before and behind it ([CLS], [SEP])."""
        first, last = (np.array(edge, dtype=np.int64) for edge in edges)
        sizes = lengths + len(first) + len(last)
        ends = np.cumsum(sizes)
        padded = np.empty(int(sizes.sum()), dtype=np.int64)
        padded[(ends - sizes)[:, None] + np.arange(len(first))] = first
        padded[ends[:, None] - np.arange(len(last), 0, -1)] = last
        padded[_places(ends - sizes + len(first), lengths)] = ids[_places(starts, lengths)]
        return cls(padded, sizes, **columns)

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._lengths)

    def lengths(self) -> Integers:
        """Count the tokens of each sequence."""
        return self._lengths

    def sequence(self, index: int) -> Features:
        """Return a sequence as features."""
        start = int(self._starts[index])
        ids = self.token_ids[start : start + int(self._lengths[index])]
        return Features(ids, np.zeros_like(ids), notes=int(self.notes[index]), num_cut=int(self.num_cut[index]))

    def take(self, indices: Integers) -> PlainSequences:
        """Return the sequences of some indices."""
        lengths = self._lengths[indices]
        ids = self.token_ids[_places(self._starts[indices], lengths)]
        return PlainSequences(ids, lengths, notes=self.notes[indices], num_cut=self.num_cut[indices])


def _places(starts: Integers, lengths: Integers) -> Integers:
    """Concatenate the indices of slices: starts [0, 7] and lengths [2, 3] give [0, 1, 7, 8, 9]."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


class ResampledFeatures(LazyFeatures):
    """Sequences resampled each epoch, computed on access as a function of seed, epoch and index."""

    @abstractmethod
    def resampled(self, epoch: int) -> ResampledFeatures:
        """Return the sequences of an epoch; every epoch has the same number."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the data and settings that determine the sequences, to detect a change on resuming."""


@dataclass(frozen=True)
class BatchSize:
    """Number of tokens and sequences of a batch, fillers included."""

    num_tokens: int
    num_sequences: int


@dataclass(frozen=True)
class Batch:
    """Packed sequences, in the order of the features.

    Sequence n is the tokens [cu_seqlens[n], cu_seqlens[n + 1]), int32; none is longer than `max_seqlen`, which is the
    same for every batch. `targets` are stacked over sequences, [N, ...]; `token_targets` are concatenated, [T].
    Filler sequences come last; their targets are NO_TARGET, or NaN in float targets. `num_tokens`, `num_sequences` and
    `weight` leave the fillers out.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    segment_ids_T: Tensor
    cu_seqlens_N1: Tensor
    max_seqlen: int
    targets: dict[str, Tensor]
    token_targets: dict[str, Tensor]
    num_tokens: int
    num_sequences: int
    weight: float
    parts: tuple[int, ...] = ()
    """Number of sequences of each of the features."""

    @property
    def size(self) -> BatchSize:
        """Count tokens and sequences, fillers included."""
        return BatchSize(len(self.token_ids_T), len(self.cu_seqlens_N1) - 1)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Mapping[str, Tensor]]:
        """Return the arguments of a model's forward."""
        ids = (self.token_ids_T, self.position_ids_T, self.segment_ids_T, self.cu_seqlens_N1)
        return *ids, self.max_seqlen, self.token_targets

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to each tensor."""
        return replace(
            self,
            token_ids_T=function(self.token_ids_T),
            position_ids_T=function(self.position_ids_T),
            segment_ids_T=function(self.segment_ids_T),
            cu_seqlens_N1=function(self.cu_seqlens_N1),
            targets={name: function(target) for name, target in self.targets.items()},
            token_targets={name: function(target) for name, target in self.token_targets.items()},
        )

    def emptied(self, pad_id: int) -> Batch:
        """Replace all tokens by padding, at the same size: the batch adds no loss and no gradient."""
        import torch

        def empty(target: Tensor) -> Tensor:
            return torch.full_like(target, float("nan") if target.is_floating_point() else NO_TARGET)

        return replace(
            self,
            token_ids_T=torch.full_like(self.token_ids_T, pad_id),
            segment_ids_T=torch.zeros_like(self.segment_ids_T),
            targets={name: empty(target) for name, target in self.targets.items()},
            token_targets={name: empty(target) for name, target in self.token_targets.items()},
            num_tokens=0,
            num_sequences=0,
            weight=0.0,
            parts=(),
        )

    def tensors(self) -> list[Tensor]:
        """List the tensors, always in the same order."""
        ids = [self.token_ids_T, self.position_ids_T, self.segment_ids_T, self.cu_seqlens_N1]
        return [*ids, *self.targets.values(), *self.token_targets.values()]

    def copy_from(self, other: Batch) -> None:
        """Copy another batch of the same size into this one's tensors, in place."""
        assert self.size == other.size, f"{other.size} does not fit {self.size}"
        for destination, source in zip(self.tensors(), other.tensors(), strict=True):
            destination.copy_(source, non_blocking=True)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device, asynchronously from pinned memory."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def by_sequence(self, values_T: Tensor, fill: float, max_seqlen: int) -> Tensor:
        """Unpack per-token values [T, ...] to [N, max_seqlen, ...], with `fill` after the end of each sequence."""
        import torch

        within_L = torch.arange(max_seqlen, device=values_T.device)
        is_inside_NL = within_L < self.cu_seqlens_N1.diff()[:, None]
        # index_select and not [...]: its gradient is a plain sum, where that of [...] sorts all indices first.
        # Outside a sequence any token will do; different ones, so that the gradient's atomic sums do not contend.
        indices_NL = (self.cu_seqlens_N1[:-1, None] + within_L).clamp(max=len(values_T) - 1)
        values_NL = values_T.index_select(0, indices_NL.flatten()).unflatten(0, indices_NL.shape)
        outside_NL = ~is_inside_NL.reshape(is_inside_NL.shape + (1,) * (values_NL.ndim - 2))
        return values_NL.masked_fill(outside_NL, fill)


def pack(features: Sequence[Features], max_seqlen: int, pad_id: int, size: BatchSize | None = None) -> Batch:
    """Concatenate sequences of at most `max_seqlen` tokens; with a size, add filler sequences up to it.

    Fillers have `max_seqlen` padding tokens each (the last may be shorter); empty ones follow up to the size's number.
    Raises InputError if a sequence is longer than `max_seqlen`.
    """
    import torch

    assert features, "an empty batch has no tokens"
    plain = features if isinstance(features, PlainSequences) else None
    parts = (1,) * len(plain) if plain else tuple(item.num_sequences for item in features)
    lengths = plain.lengths() if plain else np.array([n for item in features for n in item.parts or (len(item),)])
    if lengths.max() > max_seqlen:
        raise InputError(
            f"a sequence of {lengths.max()} tokens is longer than {max_seqlen}. Raise model.dataset.max_seq_length."
        )
    num_tokens, num_sequences = int(lengths.sum()), len(lengths)
    size = size or BatchSize(num_tokens, num_sequences)
    padding = size.num_tokens - num_tokens
    fillers = _filler_lengths(padding, size.num_sequences - num_sequences, max_seqlen)
    lengths = np.concatenate([lengths, fillers])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])

    def concatenate(arrays: list[NDArray[Any]], fill: float) -> Tensor:
        filler = np.full((padding, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
        return torch.from_numpy(np.concatenate([*arrays, filler]))

    return Batch(
        token_ids_T=concatenate([plain.token_ids] if plain else [item.token_ids for item in features], pad_id),
        position_ids_T=torch.from_numpy(np.arange(size.num_tokens) - np.repeat(cu_seqlens[:-1], lengths)),
        segment_ids_T=concatenate([plain.token_ids * 0] if plain else [item.segment_ids for item in features], 0),
        cu_seqlens_N1=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=max_seqlen,
        targets={
            name: torch.from_numpy(_stack([row for item in features for row in item.rows(name)], len(fillers)))
            for name in features[0].targets
        },
        token_targets={
            name: concatenate([item.token_targets[name] for item in features], no_target(target))
            for name, target in features[0].token_targets.items()
        },
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        weight=float(len(plain) if plain else sum(item.weight for item in features)),
        parts=parts,
    )


def _filler_lengths(padding: int, num_fillers: int, max_seqlen: int) -> Integers:
    """Divide padding tokens among filler sequences: the first have `max_seqlen`, one the rest, the others none."""
    ends = np.minimum(np.cumsum(np.full(num_fillers, max_seqlen)), padding)
    lengths = np.diff(ends, prepend=0)
    assert padding >= 0 and lengths.sum() == padding, "the sequences do not fit the size"
    return lengths


def no_target(target: Any) -> float:
    """Return the target of a token or sequence that has none: NaN among floats, else NO_TARGET."""
    return float("nan") if np.asarray(target).dtype.kind == "f" else NO_TARGET


def _stack(targets: list[Any], num_fillers: int) -> NDArray[Any]:
    stacked = np.stack([np.asarray(target) for target in targets])
    filler = np.full((num_fillers, *stacked.shape[1:]), no_target(stacked), dtype=stacked.dtype)
    return np.concatenate([stacked, filler])
