"""Sequences of next-token pre-training: documents shuffled in each pass, concatenated, and divided to one length.

A sequence has `length` tokens and its targets are the tokens shifted by one, so neighbours share a token. A sequence
may contain the end of one document and the start of the next.
Source: Megatron-LM, megatron/data/gpt_dataset.py (doc_idx, sample_idx), with one index per epoch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..data.packing import NO_TARGET, Features
from .blend import SequenceCorpus, check_vocabulary
from .indexed_dataset import TokenDataset


@dataclass(frozen=True)
class SampleIndex:
    """Starts of a pass's sequences: in document `order[documents[n]]`, `offsets[n]` tokens from its start."""

    order: NDArray[np.int64]
    """The shuffled documents of the pass."""
    documents: NDArray[np.int64]
    offsets: NDArray[np.int64]


def index_samples(document_lengths: NDArray[np.int64], order: NDArray[np.int64], length: int) -> SampleIndex:
    """Divide documents, concatenated in `order`, into sequences of `length` + 1 tokens that overlap by one.

    A shorter rest at the end is dropped. Source: Megatron-LM, build_sample_idx in helpers.cpp.
    """
    ends = np.cumsum(document_lengths[order])
    num_sequences = max(int(ends[-1]) - 1, 0) // length if len(ends) else 0
    starts = np.arange(num_sequences + 1) * length
    documents = np.searchsorted(ends, starts, side="right")
    before = np.concatenate([[0], ends])
    return SampleIndex(order, documents, starts - before[documents])


def next_token_features(ids: NDArray[np.int64], no_loss_after: Sequence[int] = ()) -> Features:
    """Make a sequence of L tokens from L + 1, with the next token as target, NO_TARGET after `no_loss_after`."""
    targets = ids[1:].copy()
    targets[np.isin(ids[:-1], np.array(no_loss_after, dtype=np.int64))] = NO_TARGET
    num_asked = float((targets != NO_TARGET).sum())
    return Features(ids[:-1], np.zeros_like(targets), token_targets={"token": targets}, weight=num_asked)


class NextTokenCorpus(SequenceCorpus):
    """A corpus as sequences of one length; token_targets `token` is the next token at each position."""

    def __init__(
        self,
        tokens: TokenDataset,
        document_range: tuple[int, int],
        length: int,
        *,
        vocabulary_size: int,
        seed: int,
        source: str,
        no_loss_after: Sequence[int] = (),
    ) -> None:
        """Use documents [first, end); the tokens of `no_loss_after` have no target."""
        first, end = document_range
        bounds = np.asarray(tokens.documents[first : end + 1])
        sums = np.concatenate([[0], np.cumsum(tokens.lengths[bounds[0] : bounds[-1]], dtype=np.int64)])
        self._lengths = np.diff(sums[bounds - bounds[0]])
        self._tokens, self._first, self._length = tokens, first, length
        self._vocabulary_size, self._seed, self._source = vocabulary_size, seed, source
        self._unasked = no_loss_after
        self._num_sequences = max(int(self._lengths.sum()) - 1, 0) // length
        self._indices: dict[int, SampleIndex] = {}

    def __len__(self) -> int:
        """Count the sequences."""
        return self._num_sequences

    def lengths(self, number: int) -> NDArray[np.int64]:
        """Count the tokens of each sequence: all have the same number."""
        return np.full(len(self), self._length)

    def fingerprint(self) -> str:
        """Hash the tokens and how they are divided."""
        facts = f"{self._tokens.fingerprint()} {self._first} {len(self._lengths)} {self._length} {self._seed}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def sequence(self, index: int, number: int) -> Features:
        """Make a sequence of a pass."""
        return next_token_features(self._read(self._index(number), index), self._unasked)

    def _index(self, number: int) -> SampleIndex:
        if number not in self._indices:
            if len(self._indices) > 1:  # only this pass and the one before are used
                del self._indices[min(self._indices)]
            order = np.arange(len(self._lengths))
            np.random.RandomState((self._seed + number) % 2**32).shuffle(order)
            self._indices[number] = index_samples(self._lengths, order, self._length)
        return self._indices[number]

    def _read(self, samples: SampleIndex, index: int) -> NDArray[np.int64]:
        document, offset, rest = int(samples.documents[index]), int(samples.offsets[index]), self._length + 1
        parts = []
        while rest:
            first, end = self._tokens.documents[self._first + samples.order[document] :][:2].tolist()
            for sequence in range(first, end):
                length = int(self._tokens.lengths[sequence])
                if offset >= length:
                    offset -= length
                    continue
                stop = min(length, offset + rest)
                parts.append(self._tokens.read(sequence, offset, stop).astype(np.int64))
                rest -= stop - offset
                offset = 0
                if not rest:
                    break
            document += 1
        ids = np.concatenate(parts)
        check_vocabulary(ids, self._vocabulary_size, self._source)
        return ids
