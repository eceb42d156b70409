"""Which texts make up which step: a pure function of seed and step, so resuming needs one integer.

It does not depend on processes, workers or how a step is cut into micro-batches of the same total. An epoch's texts
are dealt like cards, from the longest to the shortest, one to each step in a random order, then the next round: every
step gets a random text of each length, so that all steps have nearly as many tokens and one static size serves all.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .feature_cache import CachedFeatures
from .packing import Batch, BatchSize, Features, ResampledFeatures, pack

# Tokens to which a static size is rounded up.
GRAIN = 64
# Epochs that are looked through for the largest step; it hardly varies between epochs.
EPOCHS_LOOKED_THROUGH = 20
# How often a later epoch is dealt until its steps are no larger.
MOST_ATTEMPTS = 100

Indices = NDArray[np.int64]


class BatchSampler:
    """The steps of a training, addressed by number; step len(self) is the first of the second epoch.

    A step has `accumulate` micro-batches of at most `batch_size` texts. With `static_epochs` all are filled up to one
    size, that of the largest in so many epochs; otherwise each is as large as its texts. Of `data_size` processes each
    has so many micro-batches a step, dealt in turn, and packs those of its `data_rank` only.
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
        """Micro-batches of a step, of all processes."""
        self._data_rank, self._data_size = data_rank, data_size
        self.sequences_per_step = batch_size * self.micro_batches_per_step
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._dealt: tuple[int, list[list[Indices]]] = (-1, [])
        self._lengths: Indices = np.zeros(0, dtype=np.int64)
        self.size: BatchSize | None = None
        """The size of every micro-batch, if it is static."""
        if static_epochs:
            self.size = self._find_size(min(static_epochs, EPOCHS_LOOKED_THROUGH))

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        whole, rest = divmod(len(self.features), self.sequences_per_step)
        return whole + (1 if rest and not (self._drop_last and whole) else 0)

    def indices(self, step: int) -> list[Indices]:
        """List which features make up each micro-batch of a step; a small step may have fewer of them."""
        epoch, place = divmod(step, len(self))
        if self._dealt[0] != epoch:
            self._dealt = (epoch, self._deal_fitting(epoch))
            self._lengths = sequence_lengths(self._texts(epoch))
        return self._dealt[1][place]

    def step(self, step: int) -> list[Batch]:
        """Pack the own micro-batches of a step; all processes have as many, empty ones if there are no texts left."""
        groups, texts = self.indices(step), self._texts(step // len(self))
        own = groups[self._data_rank :: self._data_size]
        batches = [pack([texts[index] for index in group], self.max_seqlen, self.pad_id, self.size) for group in own]
        if len(own) < -(-len(groups) // self._data_size):
            batches.append(pack([texts[groups[-1][-1]]], self.max_seqlen, self.pad_id, self.size).emptied(self.pad_id))
        return batches

    def count_tokens(self, step: int) -> int:
        """Count the tokens of a step, of all processes."""
        groups = self.indices(step)
        return int(sum(self._lengths[group].sum() for group in groups))

    def _texts(self, epoch: int) -> Sequence[Features]:
        return self.features.resampled(epoch) if isinstance(self.features, ResampledFeatures) else self.features

    def _find_size(self, num_epochs: int) -> BatchSize:
        return common_size(
            np.concatenate([self._counts(epoch, self._deal(epoch)) for epoch in range(num_epochs)]), self.max_seqlen
        )

    def _counts(self, epoch: int, dealt: list[list[Indices]]) -> Indices:
        return count_groups((group for step in dealt for group in step), sequence_lengths(self._texts(epoch)))

    def _deal_fitting(self, epoch: int) -> list[list[Indices]]:
        """Deal an epoch; one that was not looked through is dealt again where a step is beyond the size."""
        for attempt in range(MOST_ATTEMPTS):
            dealt = self._deal(epoch, attempt)
            if (
                self.size is None
                or epoch < EPOCHS_LOOKED_THROUGH
                or fits(self._counts(epoch, dealt), self.max_seqlen, self.size)
            ):
                return dealt
        raise InputError(f"epoch {epoch + 1} has larger steps than those before. Set trainer.cuda_graph=false.")

    def _deal(self, epoch: int, attempt: int = 0) -> list[list[Indices]]:
        """List the micro-batches of each step of an epoch."""
        lengths = sequence_lengths(self._texts(epoch))
        num_steps = len(self)
        count = min(len(lengths), num_steps * self.sequences_per_step)
        if not self._shuffle:
            steps = np.array_split(np.arange(count), num_steps)
            return [[part for part in np.array_split(step, self.micro_batches_per_step) if len(part)] for step in steps]
        # Seeded by both numbers, so an epoch's order can be made without those before it.
        random = np.random.default_rng([self._seed, epoch, attempt] if attempt else [self._seed, epoch])
        chosen = random.permutation(len(lengths))[:count]
        falling = chosen[np.argsort(-lengths[chosen], kind="stable")]
        # Each row is a random order of the steps; the last round, of the shortest texts, may not reach all.
        rounds = -(-count // num_steps)
        step_of = np.argsort(random.random((rounds, num_steps)), axis=1).ravel()[:count]
        dealt = falling[np.argsort(step_of, kind="stable")]
        ends = np.cumsum(np.bincount(step_of, minlength=num_steps))
        return [deal_evenly(step, self.micro_batches_per_step) for step in np.split(dealt, ends[:-1])]


def sequence_lengths(features: Sequence[Features]) -> Indices:
    """Count each text's tokens; some know them without reading the texts."""
    if isinstance(features, CachedFeatures | ResampledFeatures):
        return features.lengths()
    return np.array([len(item) for item in features])


def deal_evenly(falling: Indices, count: int) -> list[Indices]:
    """Deal texts, longest first, to `count` groups of like size: there and back, as teams are chosen.

    Groups that get none are left out.
    """
    turn = np.arange(len(falling)) % (2 * count)
    chosen = np.minimum(turn, 2 * count - 1 - turn)
    ends = np.cumsum(np.bincount(chosen, minlength=count))
    groups = np.split(falling[np.argsort(chosen, kind="stable")], ends[:-1])
    return [group for group in groups if len(group)]


def count_groups(groups: Iterable[Indices], lengths: Indices) -> Indices:
    """Count each group's tokens and texts, [G, 2]."""
    return np.array([(lengths[group].sum(), len(group)) for group in groups])


def common_size(counts_G2: Indices, max_seqlen: int) -> BatchSize:
    """Find the smallest size that every group fits; padding makes documents of `max_seqlen` tokens."""
    num_tokens = int(-(-counts_G2[:, 0].max() // GRAIN) * GRAIN)
    fillers = -(-(num_tokens - counts_G2[:, 0]) // max_seqlen)
    return BatchSize(num_tokens, int((counts_G2[:, 1] + fillers).max()))


def fits(counts_G2: Indices, max_seqlen: int, size: BatchSize) -> bool:
    """Whether every group can be filled up to a size."""
    padding = size.num_tokens - counts_G2[:, 0]
    return bool((padding >= 0).all() and (counts_G2[:, 1] + -(-padding // max_seqlen) <= size.num_sequences).all())


class EvaluationBatches:
    """A set cut into batches of like size for evaluation; iterating packs them, each with its features' numbers.

    A batch has at most as many tokens as `batch_size` texts of `max_seqlen` tokens. `static_size` fills all up to one
    size. Of `data_size` processes each gets those of its `data_rank`; all get as many, the last one may be empty.
    """

    def __init__(
        self,
        features: Sequence[Features],
        batch_size: int,
        max_seqlen: int,
        pad_id: int,
        *,
        static_size: bool = False,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        self._features = features
        self._longest = max_seqlen
        self._pad_id = pad_id
        lengths = sequence_lengths(features)
        falling = np.argsort(-lengths, kind="stable")
        # Groups that are dealt there and back differ by less than one text, and that one must fit too.
        room = max((batch_size - 1) * max_seqlen, 1)
        count = min(-(-int(lengths.sum()) // room), len(lengths))
        self._groups = deal_evenly(falling, count) if count else []
        self._size = common_size(count_groups(self._groups, lengths), max_seqlen) if static_size and count else None
        self._data_rank, self._data_size = data_rank, data_size

    def __len__(self) -> int:
        """Count the batches."""
        return (len(self._groups) + self._data_size - 1) // self._data_size

    def __iter__(self) -> Iterator[tuple[list[int], Batch]]:
        """Pack batch after batch."""
        own = self._groups[self._data_rank :: self._data_size]
        for group in own:
            yield group.tolist(), self._pack(group)
        if len(own) < len(self):
            yield [], self._pack(self._groups[-1]).emptied(self._pad_id)

    def _pack(self, group: Indices) -> Batch:
        return pack([self._features[index] for index in group], self._longest, self._pad_id, self._size)
