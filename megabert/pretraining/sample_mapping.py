"""Which parts of a corpus make the texts of masked-language-model training.

A text is a run of a document's sentences, as many as fit. What is drawn is a function of the seed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .indexed_dataset import TokenDataset

# What keeps the numbers drawn for lengths apart from others that come from the same seed.
LENGTH_STREAM = 7


@dataclass(frozen=True)
class SampleMapping:
    """Texts as runs of sequences, of one document each: `firsts` [N], `ends` [N], and the tokens to keep of each [N].

    A sentence that is longer than a text is cut into several, `offsets` [N] tokens from its start.
    """

    firsts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.firsts)


def build_sample_mapping(
    tokens: TokenDataset, first_document: int, end_document: int, room: int, *, short_seq_prob: float, seed: int
) -> SampleMapping:
    """Cut documents [first_document, end_document) into runs of at most `room` tokens.

    A share of the texts is short, of a random length from 2 on, as Megatron-LM's --short-seq-prob. No token is left
    out: a run ends where the next sentence would not fit, and a longer sentence is cut.
    Source: Megatron-LM, megatron/data/helpers.cpp, build_mapping, which skips documents with longer sentences.
    """
    bounds = tokens.documents[first_document : end_document + 1]
    start, end = int(bounds[0]), int(bounds[-1])
    # ends[i]: tokens up to and with sequence i, from the first one's start.
    ends = np.cumsum(tokens.lengths[start:end], dtype=np.int64)
    random = np.random.default_rng([seed, LENGTH_STREAM])
    rows: list[tuple[int, int, int, int]] = []
    for first, last in itertools.pairwise((bounds - start).tolist()):
        sequence = first
        while sequence < last:
            target = room
            if short_seq_prob and random.random() < short_seq_prob:
                target = int(random.integers(2, room + 1))
            before = int(ends[sequence - 1]) if sequence else 0
            stop = min(int(np.searchsorted(ends, before + target, side="right")), last)
            if stop > sequence:
                rows.append((sequence, stop, 0, int(ends[stop - 1]) - before))
                sequence = stop
                continue
            length = int(ends[sequence]) - before
            rows += [
                (sequence, sequence + 1, offset, min(target, length - offset)) for offset in range(0, length, target)
            ]
            sequence += 1
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    table = table[table[:, 3] > 0]
    return SampleMapping(table[:, 0] + start, table[:, 1] + start, table[:, 2], table[:, 3])


def split_documents(num_documents: int, shares: tuple[float, ...]) -> list[tuple[int, int]]:
    """Cut a corpus's documents into parts, such as 949, 50 and 1 for training, validation and test.

    Source: Megatron-LM, get_train_valid_test_split_: cumulative rounding, and what is over is taken off each end.
    """
    total = sum(shares)
    ends = [0]
    for share in shares:
        ends.append(ends[-1] + round(share / total * num_documents))
    over = ends[-1] - num_documents
    ends = [0, *(end - over for end in ends[1:])]
    return list(itertools.pairwise(ends))
