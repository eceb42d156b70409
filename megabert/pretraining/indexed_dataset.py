"""Megatron-LM's indexed dataset: PREFIX.bin has the concatenated tokens, PREFIX.idx indexes sequences and documents.

PREFIX.idx, little endian: 9 bytes MMIDIDX and two zeros; version, 8 bytes, 1; type of a token, 1 byte; S sequences, 8
bytes; D document boundaries, 8 bytes; S lengths, int32; S offsets in PREFIX.bin, in bytes, int64; D boundaries in
sequences, int64, the first 0, the last S. For BERT a sequence is a sentence, for GPT a document.
Source: Megatron-LM, megatron/data/indexed_dataset.py, MMapIndexedDataset.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
HEADER_SIZE = 34
# Code 7 is double in old files and float32 in megatron.core; tokens are neither.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES: dict[Any, int] = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
# A fingerprint digests so many samples of the tokens, of so many tokens each.
NUM_DIGESTED, DIGESTED_LENGTH = 256, 4096
_CHUNK = 2**22  # tokens read at a time
# Megatron-LM stores int32 from this vocabulary size on.
LARGE_VOCABULARY = 65500


def token_dtype(vocabulary_size: int) -> Any:
    """Choose the type of tokens as Megatron-LM does."""
    return np.dtype(np.uint16 if vocabulary_size < LARGE_VOCABULARY else np.int32)


def files_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of PREFIX.bin and PREFIX.idx."""
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


class TokenDataset(Protocol):
    """Documents as sequences of tokens: `documents` [D] are boundaries in sequences, `lengths` [S] are in tokens."""

    lengths: NDArray[np.int32]
    documents: NDArray[np.int64]

    def read(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""

    def fingerprint(self) -> str:
        """Hash the tokens, to detect a change."""


class InMemoryTokens:
    """Documents in memory, each a list of sequences."""

    def __init__(self, documents: Sequence[Sequence[NDArray[np.int64]]]) -> None:
        self._sequences = [sequence for document in documents for sequence in document]
        self.lengths = np.array([len(sequence) for sequence in self._sequences], dtype=np.int32)
        self.documents = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)

    def read(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""
        return self._sequences[index][start:end]

    def fingerprint(self) -> str:
        """Hash lengths and tokens."""
        digest = hashlib.sha256(self.lengths.tobytes() + self.documents.tobytes())
        for sequence in self._sequences:
            digest.update(sequence.tobytes())
        return digest.hexdigest()


class IndexedDataset:
    """A TokenDataset in memory-mapped files."""

    def __init__(self, prefix: Path) -> None:
        """Open a pair of files. Raises InputError if they are missing, of another format, or inconsistent."""
        self.prefix = prefix
        bin_file, idx_file = files_of(prefix)
        try:
            size, num_bytes = idx_file.stat().st_size, bin_file.stat().st_size
            with idx_file.open("rb") as file:
                header = file.read(HEADER_SIZE)
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read: {error.strerror}. Give the prefix of a .bin and .idx file."
            ) from None
        if header[:6] == b"TNTIDX":
            raise InputError(f"{idx_file} has Megatron-LM's old lazy or cached format. Preprocess it again as mmap.")
        version, code = int.from_bytes(header[9:17], "little"), header[17] if len(header) == HEADER_SIZE else 0
        if header[:9] != MAGIC or version != 1 or code not in DTYPES:
            raise InputError(f"{idx_file} is no index of Megatron-LM's token files (version {version}, type {code}).")
        num_sequences, num_bounds = (int.from_bytes(header[start : start + 8], "little") for start in (18, 26))
        expected = HEADER_SIZE + 12 * num_sequences + 8 * num_bounds
        # Multimodal files have one more byte per sequence.
        if num_sequences < 1 or num_bounds < 2 or size not in (expected, expected + num_sequences):
            raise InputError(f"{idx_file} is {size} bytes long; its header implies {expected}. Is it truncated?")
        index = np.memmap(idx_file, mode="r", dtype=np.uint8)
        ends = np.cumsum([HEADER_SIZE, 4 * num_sequences, 8 * num_sequences, 8 * num_bounds])
        self.lengths: NDArray[np.int32] = index[ends[0] : ends[1]].view("<i4")
        self._offsets: NDArray[np.int64] = index[ends[1] : ends[2]].view("<i8")
        self.documents: NDArray[np.int64] = index[ends[2] : ends[3]].view("<i8")
        self.dtype = np.dtype(DTYPES[code])
        bounds, itemsize = self.documents, self.dtype.itemsize
        # Ranges come first: sums and differences of hostile numbers overflow.
        is_consistent = (
            bounds[0] == bounds.min() == 0
            and bounds[-1] == bounds.max() == num_sequences
            and (np.diff(bounds) >= 0).all()
            and self.lengths.min() >= 0
            and 0 <= self._offsets.min() <= self._offsets.max() <= num_bytes
            and not (self._offsets % itemsize).any()
            and (self._offsets + self.lengths.astype(np.int64) * itemsize).max() <= num_bytes
        )
        if not is_consistent:
            raise InputError(f"{idx_file} and {bin_file} do not fit each other. Are both complete and from one build?")
        self._tokens: NDArray[Any] = (
            np.memmap(bin_file, mode="r", dtype=self.dtype.newbyteorder("<"), shape=num_bytes // self.dtype.itemsize)
            if num_bytes
            else np.zeros(0, dtype=self.dtype)
        )

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Count the documents."""
        return len(self.documents) - 1

    @property
    def num_tokens(self) -> int:
        """Count the tokens."""
        return int(self.lengths.sum(dtype=np.int64))

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Read one sequence."""
        return self.read(index, 0, int(self.lengths[index]))

    def read(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""
        first = int(self._offsets[index]) // self.dtype.itemsize
        return self._tokens[first + start : first + end]

    def check_tokens(self, num_tokens: int | None = None) -> int:
        """Read all tokens and return the largest id.

        Raises InputError, with the place, if one is negative or not below `num_tokens`.
        """
        largest = 0
        for start in range(0, len(self._tokens), _CHUNK):
            tokens = self._tokens[start : start + _CHUNK]
            is_wrong = tokens < 0 if num_tokens is None else (tokens < 0) | (tokens >= num_tokens)
            if is_wrong.any():
                at = start + int(is_wrong.argmax())
                limit = "from 0 on" if num_tokens is None else f"from 0 to {num_tokens - 1}, those of the vocabulary,"
                raise InputError(
                    f"{self.prefix}.bin: token {at:,}, at byte {at * self.dtype.itemsize:,}, is {self._tokens[at]}; "
                    f"ids {limit} are expected. Give the vocabulary that it was built with, or build it again."
                )
            largest = max(largest, int(tokens.max()))
        return largest

    def fingerprint(self) -> str:
        """Hash the whole index and samples of the tokens, which may be hundreds of gigabytes."""
        digest = hashlib.sha256(self.lengths.tobytes() + self.documents.tobytes())
        for start in np.linspace(0, max(len(self._tokens) - DIGESTED_LENGTH, 0), num=NUM_DIGESTED, dtype=np.int64):
            digest.update(self._tokens[start : start + DIGESTED_LENGTH].tobytes())
        return digest.hexdigest()

    def document(self, number: int) -> list[NDArray[Any]]:
        """Read a document's sequences."""
        return [self[index] for index in range(*self.documents[number : number + 2].tolist())]


class IndexedDatasetBuilder:
    """Write a pair of files document by document; a context manager that renames them to their names on success."""

    def __init__(self, prefix: Path, dtype: Any) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        self._lengths: list[NDArray[np.int32]] = []
        self._documents: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        self._num_sequences = 0
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        bin_file, idx_file = files_of(self.prefix)
        # The stack renames the index last: where it exists, both are complete.
        self._idx = self._files.enter_context(atomic_file(idx_file))
        self._bin = self._files.enter_context(atomic_file(bin_file))
        return self

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int32], sequences: NDArray[np.int64]) -> None:
        """Add documents: concatenated tokens, the sequences' lengths, and each document's number of sequences."""
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype.newbyteorder("<")).tobytes())
        self._lengths.append(np.asarray(lengths, dtype="<i4"))
        self._documents.append(self._num_sequences + np.cumsum(sequences, dtype=np.int64))
        self._num_sequences += len(lengths)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._files:
            if error is not None:
                raise error
            self._write_index()

    def _write_index(self) -> None:
        if not self._num_sequences:
            raise InputError(f"There is nothing to write to {self.prefix}: no document has a token.")
        lengths = np.concatenate(self._lengths)
        offsets = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), offsets[:-1]])
        documents = np.concatenate(self._documents)
        self._idx.write(MAGIC + (1).to_bytes(8, "little") + CODES[self.dtype].to_bytes(1, "little"))
        self._idx.write(len(lengths).to_bytes(8, "little") + len(documents).to_bytes(8, "little"))
        for array, kind in ((lengths, "<i4"), (offsets, "<i8"), (documents, "<i8")):
            self._idx.write(array.astype(kind).tobytes())
