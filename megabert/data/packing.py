"""Tokenized texts to batches: texts are laid end to end, nothing is padded, and their boundaries keep them apart.

On a device that wants static shapes a batch is filled up to a given number of tokens and documents.
Shape legend: T tokens of a batch, N documents, L tokens of one text.
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

# Targets of tokens and documents that only fill a batch up: cross_entropy leaves -100 out.
NO_TARGET = -100


@dataclass(frozen=True)
class Features:
    """One text (or one window of a long one) as the network takes it.

    `targets` holds what the task's loss compares with, one number or array of any shape for the document;
    `token_targets` one number a token, int64, NO_TARGET where a token has none.
    `weight` says how much the text counts in the mean loss: 1, or its number of labelled tokens.
    `notes` is the task's own: what `decode` needs to find the way back into the text.
    """

    token_ids: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    targets: dict[str, Any] = field(default_factory=dict)
    token_targets: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    weight: float = 1.0
    notes: Any = None

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.token_ids)


class ResampledFeatures(Sequence[Features], ABC):
    """Texts that are drawn anew each epoch, as a function of seed, epoch and index: nothing of them is kept."""

    @abstractmethod
    def sequence(self, index: int) -> Features:
        """Make one text, 0 to len."""

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: Any) -> Any:
        """Make a text, or those of a slice."""
        if isinstance(index, slice):
            return [self.sequence(place) for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.sequence(int(index))

    @abstractmethod
    def resampled(self, epoch: int) -> ResampledFeatures:
        """Give the texts of an epoch; their number is always the same."""

    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Count each text's tokens, without making the texts."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest what the texts are drawn from, to notice on resuming that it has changed."""


@dataclass(frozen=True)
class BatchSize:
    """How many tokens and documents a batch has room for."""

    num_tokens: int
    num_sequences: int


@dataclass(frozen=True)
class Batch:
    """Documents laid end to end, in the order of the features that were packed.

    Document n is the tokens [boundaries[n], boundaries[n + 1]), int32; `max_seqlen` bounds every batch's documents.
    targets are stacked over documents, [N, ...], token_targets laid end to end, [T]. Where the batch is filled up,
    further documents of padding tokens or of none follow; their targets are NO_TARGET, NaN in float targets.
    num_tokens, num_sequences and weight count the real ones.
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

    @property
    def size(self) -> BatchSize:
        """Count tokens and documents, those that fill up included."""
        return BatchSize(len(self.token_ids_T), len(self.cu_seqlens_N1) - 1)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Mapping[str, Tensor]]:
        """Give what a model's forward takes."""
        texts = (self.token_ids_T, self.position_ids_T, self.segment_ids_T, self.cu_seqlens_N1)
        return *texts, self.max_seqlen, self.token_targets

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
        """Make all of it padding, of the same size: it costs no loss and teaches nothing."""
        import torch

        return replace(
            self,
            token_ids_T=torch.full_like(self.token_ids_T, pad_id),
            segment_ids_T=torch.zeros_like(self.segment_ids_T),
            targets={name: torch.full_like(target, _filler(target)) for name, target in self.targets.items()},
            token_targets={name: torch.full_like(target, NO_TARGET) for name, target in self.token_targets.items()},
            num_tokens=0,
            num_sequences=0,
            weight=0.0,
        )

    def tensors(self) -> list[Tensor]:
        """List the tensors, always in the same order."""
        ids = [self.token_ids_T, self.position_ids_T, self.segment_ids_T, self.cu_seqlens_N1]
        return [*ids, *self.targets.values(), *self.token_targets.values()]

    def copy_from(self, other: Batch) -> None:
        """Take another batch's tensors over into the places of these; sizes must agree."""
        assert self.size == other.size, f"{other.size} does not fit {self.size}"
        for place, tensor in zip(self.tensors(), other.tensors(), strict=True):
            place.copy_(tensor, non_blocking=True)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device; from pinned memory the copy does not wait."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def by_sequence(self, values_T: Tensor, fill: float, max_seqlen: int) -> Tensor:
        """Take per-token values [T, ...] apart into documents: [N, longest, ...], `fill` behind each end."""
        import torch

        within_L = torch.arange(max_seqlen, device=values_T.device)
        is_inside_NL = within_L < self.cu_seqlens_N1.diff()[:, None]
        # index_select and not [...]: its gradient is a plain sum, where that of [...] sorts all places first. What is
        # outside may show any token; spread out, those do not wait for each other when gradients are summed.
        places_NL = (self.cu_seqlens_N1[:-1, None] + within_L).clamp(max=len(values_T) - 1)
        values_NL = values_T.index_select(0, places_NL.flatten()).unflatten(0, places_NL.shape)
        outside_NL = ~is_inside_NL.reshape(is_inside_NL.shape + (1,) * (values_NL.ndim - 2))
        return values_NL.masked_fill(outside_NL, fill)


def pack(features: Sequence[Features], max_seqlen: int, pad_id: int, size: BatchSize | None = None) -> Batch:
    """Lay texts end to end, each of at most `max_seqlen` tokens; with a size, fill up to it.

    What fills up are documents of `max_seqlen` padding tokens (the last may be shorter), then empty ones.
    Raises InputError if a text is longer than `max_seqlen`.
    """
    import torch

    assert features, "an empty batch has no tokens"
    lengths = np.array([len(item) for item in features])
    if lengths.max() > max_seqlen:
        raise InputError(
            f"a text of {lengths.max()} tokens is longer than {max_seqlen}. Raise model.dataset.max_seq_length."
        )
    num_tokens = int(lengths.sum())
    size = size or BatchSize(num_tokens, len(features))
    padding = size.num_tokens - num_tokens
    fillers = np.full(size.num_sequences - len(features), max_seqlen)
    fillers = np.diff(np.minimum(np.cumsum(fillers), padding), prepend=0)
    assert padding >= 0 and fillers.sum() == padding, "the texts do not fit the size"
    lengths = np.concatenate([lengths, fillers])
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])

    def lay(arrays: list[NDArray[np.int64]], fill: int) -> Tensor:
        return torch.from_numpy(np.concatenate([*arrays, np.full(padding, fill, dtype=np.int64)]))

    return Batch(
        token_ids_T=lay([item.token_ids for item in features], pad_id),
        position_ids_T=torch.from_numpy(np.arange(size.num_tokens) - np.repeat(cu_seqlens[:-1], lengths)),
        segment_ids_T=lay([item.segment_ids for item in features], 0),
        cu_seqlens_N1=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=max_seqlen,
        targets={name: _stack([item.targets[name] for item in features], len(fillers)) for name in features[0].targets},
        token_targets={
            name: lay([item.token_targets[name] for item in features], NO_TARGET) for name in features[0].token_targets
        },
        num_tokens=num_tokens,
        num_sequences=len(features),
        weight=float(sum(item.weight for item in features)),
    )


def _filler(target: Tensor) -> float:
    return float("nan") if target.is_floating_point() else NO_TARGET


def _stack(targets: list[Any], num_fillers: int) -> Tensor:
    import torch

    stacked = np.stack([np.asarray(target) for target in targets])
    filler = np.nan if stacked.dtype.kind == "f" else NO_TARGET
    return torch.from_numpy(
        np.concatenate([stacked, np.full((num_fillers, *stacked.shape[1:]), filler, dtype=stacked.dtype)])
    )
