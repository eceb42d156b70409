"""Batch sampler: a deterministic, length-balanced function of seed and step, so that resuming needs one integer.

A step has the same sequences for any number of data-parallel shards and micro-batches (gradient accumulation) of the
same total. Each epoch sorts the sequences by length, longest first, and assigns them in rounds: one to each step, the
steps in random order. Every step gets a random sequence of each length, so all steps have nearly as many tokens and
one static size fits all. Within a step, micro-batches are balanced by serpentine order.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import Settings
from ..errors import InputError
from .packing import Batch, BatchSize, Features, LazyFeatures, ResampledFeatures, pack

# A static size is rounded up to a multiple of so many tokens.
SIZE_MULTIPLE = 64
SEQUENCE_MULTIPLE = 32
# Epochs searched for the largest micro-batch; it hardly varies between epochs.
MAX_EPOCHS_SEARCHED = 20
# How often a later epoch is shuffled again until its micro-batches fit the static size.
MAX_ATTEMPTS = 100

Indices = NDArray[np.int64]


class BatchSampler:
    """The training's steps by number; step len(self) is the first of the second epoch.

    A step has `accumulate` micro-batches of at most `batch_size` sequences on each of `data_size` data-parallel
    processes; this one packs those of its `data_rank`. With `static_epochs`, all micro-batches are filled up to the
    size of the largest of so many epochs; otherwise each has the size of its sequences.
    """

    def __init__(
        self,
        features: Sequence[Features],
        batch_size: int,
        max_seqlen: int,
        pad_id: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        accumulate: int = 1,
        static_epochs: int = 0,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        self.features = features
        self.max_seqlen = max_seqlen
        self.pad_id = pad_id
        self.accumulate = accumulate
        self.num_tokens = int(sequence_lengths(features).sum())
        self.micro_batches_per_step = accumulate * data_size
        """Of all processes."""
        self.sequences_per_step = batch_size * self.micro_batches_per_step
        self._data_rank, self._data_size = data_rank, data_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._epoch = -1
        self._steps: _EpochSteps | None = None
        self._lengths: Indices = np.zeros(0, dtype=np.int64)
        self.size: BatchSize | None = None
        """The size of every micro-batch, if it is static."""
        if static_epochs:
            counts = [self._count(n, self._sample(n)) for n in range(min(static_epochs, MAX_EPOCHS_SEARCHED))]
            self.size = _static_size(np.concatenate(counts), max_seqlen)

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        full, rest = divmod(len(self.features), self.sequences_per_step)
        return full + (1 if rest and not (self._drop_last and full) else 0)

    def indices(self, step: int) -> list[Indices]:
        """List the feature indices of each micro-batch of a step, of all processes; a small step may have fewer."""
        epoch, number = divmod(step, len(self))
        if self._steps is None or self._epoch != epoch:
            self._steps = None  # the order of the epoch before is not held beside the new one
            self._steps, self._epoch = self._sample_to_fit(epoch), epoch
            self._lengths = sequence_lengths(self._resampled(epoch))
        return self._steps[number]

    def step(self, step: int) -> list[Batch]:
        """Pack this process's micro-batches of a step; every process has the same number, the last may be empty."""
        groups, features = self.indices(step), self._resampled(step // len(self))
        shard = groups[self._data_rank :: self._data_size]
        batches = [pack(take(features, group), self.max_seqlen, self.pad_id, self.size) for group in shard]
        if len(shard) < -(-len(groups) // self._data_size):
            filler = pack([features[groups[-1][-1]]], self.max_seqlen, self.pad_id, self.size)
            batches.append(filler.emptied(self.pad_id))
        return batches

    def count_tokens(self, step: int) -> int:
        """Count the tokens of a step, of all processes."""
        groups = self.indices(step)
        return int(sum(self._lengths[group].sum() for group in groups))

    def _resampled(self, epoch: int) -> Sequence[Features]:
        return self.features.resampled(epoch) if isinstance(self.features, ResampledFeatures) else self.features

    def _count(self, epoch: int, steps: "_EpochSteps") -> Indices:
        return _count_groups((group for step in steps for group in step), self._resampled(epoch))

    def _sample_to_fit(self, epoch: int) -> "_EpochSteps":
        """Sample an epoch; one that was not searched is sampled again while a micro-batch exceeds the static size."""
        for attempt in range(MAX_ATTEMPTS):
            steps = self._sample(epoch, attempt)
            if (
                self.size is None
                or epoch < MAX_EPOCHS_SEARCHED
                or _fits(self._count(epoch, steps), self.max_seqlen, self.size)
            ):
                return steps
        raise InputError(f"epoch {epoch + 1} has larger steps than those before. Set trainer.cuda_graph=false.")

    def _sample(self, epoch: int, attempt: int = 0) -> "_EpochSteps":
        """Assign the sequences of an epoch to steps and micro-batches."""
        num_sequences, num_steps = len(self._resampled(epoch)), len(self)
        count = min(num_sequences, num_steps * self.sequences_per_step)
        if not self._shuffle:
            sizes = count // num_steps + (np.arange(num_steps) < count % num_steps)
            return _EpochSteps(np.arange(count), np.cumsum(sizes), self.micro_batches_per_step, _split_evenly)
        return self._shuffled(epoch, attempt, num_sequences, count)

    def _shuffled(self, epoch: int, attempt: int, num_sequences: int, count: int) -> "_EpochSteps":
        """Give each step a random sequence of each length, so that steps have nearly as many tokens."""
        num_steps = len(self)
        # Seeded by both numbers, so an epoch's order can be made without those before it.
        random = np.random.default_rng([self._seed, epoch, attempt] if attempt else [self._seed, epoch])
        # Arrays of all sequences are small numbers where that is enough, and not held longer than they are needed.
        small = np.int32 if num_sequences < 2**31 else np.int64
        chosen = random.permutation(num_sequences)[:count].astype(small)
        shortest_last = np.argsort(-sequence_lengths(self._resampled(epoch)).astype(np.int32)[chosen], kind="stable")
        descending = chosen[shortest_last]
        del chosen, shortest_last
        # Each row is a random order of the steps; the last round, of the shortest sequences, may not reach all.
        num_rounds = -(-count // num_steps)
        step_of = np.argsort(random.random((num_rounds, num_steps)), axis=1).astype(small).ravel()[:count]
        ends = np.cumsum(np.bincount(step_of, minlength=num_steps))
        by_step = descending[np.argsort(step_of, kind="stable")]
        return _EpochSteps(by_step, ends, self.micro_batches_per_step, _split_serpentine)


@dataclass(frozen=True)
class _EpochSteps:
    """The steps of an epoch: one array of sequences, split into steps at `ends` and into micro-batches on access."""

    sequences: NDArray[Any]
    ends: Indices
    num_groups: int
    split: Callable[[Indices, int], list[Indices]]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[Indices]:
        start = self.ends[number - 1] if number else 0
        return self.split(self.sequences[start : self.ends[number]], self.num_groups)

    def __iter__(self) -> Iterator[list[Indices]]:
        return map(self.__getitem__, range(len(self)))


def sequence_lengths(features: Sequence[Features]) -> Indices:
    """Count the tokens of each sequence, without reading the sequences where possible."""
    return features.lengths() if isinstance(features, LazyFeatures) else np.array([len(item) for item in features])


def sequence_counts(features: Sequence[Features]) -> Indices:
    """Count the sequences of each of the features, without reading the sequences where possible."""
    if isinstance(features, LazyFeatures):
        return features.counts()
    return np.array([item.num_sequences for item in features])


def take(features: Sequence[Features], indices: Indices) -> Sequence[Features]:
    """Return the features of some indices."""
    return features.take(indices) if isinstance(features, LazyFeatures) else [features[index] for index in indices]


def _group_by(items: Indices, groups: Indices, num_groups: int) -> list[Indices]:
    """Split items by the group number of each, in stable order."""
    ends = np.cumsum(np.bincount(groups, minlength=num_groups))
    return np.split(items[np.argsort(groups, kind="stable")], ends[:-1])


def _split_evenly(sequences: Indices, num_groups: int) -> list[Indices]:
    """Split sequences into groups in their order; empty ones are left out."""
    return [group for group in np.array_split(sequences, num_groups) if len(group)]


def _split_serpentine(descending: Indices, num_groups: int) -> list[Indices]:
    """Split sequences, longest first, into groups of nearly as many tokens by serpentine order: 0 1 2 2 1 0 0 1 ...

    Empty groups are left out.
    """
    turn = np.arange(len(descending)) % (2 * num_groups)
    groups = np.minimum(turn, 2 * num_groups - 1 - turn)
    return [group for group in _group_by(descending, groups, num_groups) if len(group)]


def _count_groups(groups: Iterable[Indices], features: Sequence[Features]) -> Indices:
    """Count the tokens and sequences of each group, [G, 2]."""
    lengths, counts = sequence_lengths(features), sequence_counts(features)
    return np.array([(lengths[group].sum(), counts[group].sum()) for group in groups])


def _static_size(counts_G2: Indices, max_seqlen: int, multiple: int = SIZE_MULTIPLE) -> BatchSize:
    """Find the smallest size that fits every group with its fillers of `max_seqlen` tokens."""
    num_tokens = int(-(-counts_G2[:, 0].max() // multiple) * multiple)
    num_fillers = -(-(num_tokens - counts_G2[:, 0]) // max_seqlen)
    return BatchSize(num_tokens, int((counts_G2[:, 1] + num_fillers).max()))


def _fits(counts_G2: Indices, max_seqlen: int, size: BatchSize) -> bool:
    padding = size.num_tokens - counts_G2[:, 0]
    return bool((padding >= 0).all() and (counts_G2[:, 1] + -(-padding // max_seqlen) <= size.num_sequences).all())


class EvaluationBatches:
    """Length-balanced batches of an evaluation set; iterating packs them, each with the indices of its features.

    A batch has at most `batch_size` * `max_seqlen` tokens, and some `max_tokens`. With `static_size`, all are filled up
    to one size; with `size_multiple`, each up to a multiple of so many tokens and of SEQUENCE_MULTIPLE sequences. Each
    of `data_size` data-parallel processes gets the same number of batches; the last may be empty.
    """

    def __init__(
        self,
        features: Sequence[Features],
        batch_size: int,
        max_seqlen: int,
        pad_id: int,
        *,
        static_size: bool = False,
        size_multiple: int = 0,
        max_tokens: int | None = None,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        self._features = features
        self._max_seqlen = max_seqlen
        self._pad_id = pad_id
        lengths = sequence_lengths(features)
        descending = np.argsort(-lengths, kind="stable")
        # Serpentine groups differ by less than one sequence, which must fit the token budget, too.
        budget = max(min((batch_size - 1) * max_seqlen, max_tokens or sys.maxsize), 1)
        count = min(-(-int(lengths.sum()) // budget), len(lengths))
        self._groups = _split_serpentine(descending, count) if count else []
        self._size_multiple = size_multiple
        self._size = _static_size(_count_groups(self._groups, features), max_seqlen) if static_size and count else None
        self._data_rank, self._data_size = data_rank, data_size

    def __len__(self) -> int:
        """Count the batches of each process."""
        return (len(self._groups) + self._data_size - 1) // self._data_size

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        """Pack the batches of this process."""
        shard = self._groups[self._data_rank :: self._data_size]
        for group in shard:
            yield group.tolist(), self._pack(group)
        if len(shard) < len(self):
            yield [], self._pack(self._groups[-1]).emptied(self._pad_id)

    def _pack(self, group: Indices) -> Batch:
        size = self._size
        if self._size_multiple:
            size = _static_size(_count_groups([group], self._features), self._max_seqlen, self._size_multiple)
            size = replace(size, num_sequences=-(-size.num_sequences // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE)
        return pack(take(self._features, group), self._max_seqlen, self._pad_id, size)


def training_sampler(
    features: Sequence[Features],
    settings: Settings,
    row_length: int,
    pad_id: int,
    *,
    static_epochs: int,
    data_rank: int,
    data_size: int,
) -> BatchSampler:
    """Make the batch sampler of a training from its settings."""
    train_ds = settings.model.train_ds
    return BatchSampler(
        features,
        train_ds.batch_size,
        row_length,
        pad_id,
        seed=settings.seed,
        shuffle=train_ds.shuffle,
        drop_last=train_ds.drop_last,
        accumulate=settings.trainer.accumulate_grad_batches,
        static_epochs=static_epochs,
        data_rank=data_rank,
        data_size=data_size,
    )
