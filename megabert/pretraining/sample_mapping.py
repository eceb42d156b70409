"""Megatron-LM's sample mapping: runs of sentences of one document that fit a sequence; a function of the seed."""

import itertools
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .indexed_dataset import TokenDataset

# Separates sequence lengths from other random streams of the same seed.
LENGTH_STREAM = 7


@dataclass(frozen=True)
class SampleMapping:
    """Runs of sentences [firsts, ends), each of one document, with the number of tokens of each; all arrays are [N].

    A sentence that is too long is divided into several runs, which start `offsets` tokens from its start.
    """

    firsts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the runs."""
        return len(self.firsts)


def build_sample_mapping(
    tokens: TokenDataset, first_document: int, end_document: int, max_tokens: int, *, short_seq_prob: float, seed: int
) -> SampleMapping:
    """Divide documents [first_document, end_document) into runs of at most `max_tokens` tokens.

    With probability `short_seq_prob` a run is limited to a random number of tokens, 2 or more. No token is left out: a
    run ends before the first sentence that does not fit, and a longer sentence is divided.
    Source: Megatron-LM, megatron/data/helpers.cpp, build_mapping, which skips documents with longer sentences.
    """
    bounds = tokens.documents[first_document : end_document + 1]
    start, end = int(bounds[0]), int(bounds[-1])
    # ends[i]: number of tokens of sequences 0 to i.
    ends = np.cumsum(tokens.lengths[start:end], dtype=np.int64)
    random = np.random.default_rng([seed, LENGTH_STREAM])
    rows = array("q")  # of 32 bytes: a list of tuples takes 200 for each
    for first, last in itertools.pairwise((bounds - start).tolist()):
        sequence = first
        while sequence < last:
            target = max_tokens
            if short_seq_prob and random.random() < short_seq_prob:
                target = int(random.integers(2, max_tokens + 1))
            before = int(ends[sequence - 1]) if sequence else 0
            stop = min(int(np.searchsorted(ends, before + target, side="right")), last)
            if stop > sequence:
                rows.extend((sequence, stop, 0, int(ends[stop - 1]) - before))
                sequence = stop
                continue
            length = int(ends[sequence]) - before
            for offset in range(0, length, target):
                rows.extend((sequence, sequence + 1, offset, min(target, length - offset)))
            sequence += 1
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    table = table[table[:, 3] > 0]
    return SampleMapping(table[:, 0] + start, table[:, 1] + start, table[:, 2], table[:, 3])


def split_documents(num_documents: int, shares: tuple[float, ...]) -> list[tuple[int, int]]:
    """Split a corpus's documents by shares, such as 949, 50 and 1 for training, validation and test.

    Source: Megatron-LM, get_train_valid_test_split_: cumulative rounding; the excess is subtracted from each end.
    """
    total = sum(shares)
    ends = [0]
    for share in shares:
        ends.append(ends[-1] + round(share / total * num_documents))
    excess = ends[-1] - num_documents
    ends = [0, *(end - excess for end in ends[1:])]
    return list(itertools.pairwise(ends))
