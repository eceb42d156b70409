"""Megatron-LM's token files: PREFIX.bin with all tokens end to end, PREFIX.idx with where sequences and documents are.

PREFIX.idx, little endian: 9 bytes MMIDIDX and two zeros; version, 8 bytes, 1; type of a token, 1 byte; S sequences, 8
bytes; D document boundaries, 8 bytes; S lengths, int32; S places in PREFIX.bin, in bytes, int64; D boundaries in
sequences, int64, the first 0, the last S. For BERT a sequence is a sentence, for GPT a document.
Source: Megatron-LM, megatron/data/indexed_dataset.py, MMapIndexedDataset.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

MAGIC = b"MMIDIDX\x00\x00"
HEADER_SIZE = 34
# Code 7 is double in old files and float32 in megatron.core; tokens are neither.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES: dict[Any, int] = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
# Where a fingerprint looks into the tokens, and how many of them it reads there.
DIGESTED_PLACES, DIGESTED = 256, 4096
# From so many tokens on Megatron-LM stores int32.
LARGE_VOCABULARY = 65500


def token_dtype(vocabulary_size: int) -> Any:
    """Choose the type of tokens as Megatron-LM does."""
    return np.dtype(np.uint16 if vocabulary_size < LARGE_VOCABULARY else np.int32)


def files_of(prefix: Path) -> tuple[Path, Path]:
    """Give PREFIX.bin and PREFIX.idx."""
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


class TokenDataset(Protocol):
    """Documents as sequences of tokens: `documents` [D] are boundaries in sequences, `lengths` [S]."""

    lengths: NDArray[np.int32]
    documents: NDArray[np.int64]

    def part(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""

    def fingerprint(self) -> str:
        """Digest what is held, to notice that it has changed."""


class InMemoryTokens:
    """Documents that are held in memory, each a list of sequences."""

    def __init__(self, documents: Sequence[Sequence[NDArray[np.int64]]]) -> None:
        self._sequences = [sequence for document in documents for sequence in document]
        self.lengths = np.array([len(sequence) for sequence in self._sequences], dtype=np.int32)
        self.documents = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)

    def part(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""
        return self._sequences[index][start:end]

    def fingerprint(self) -> str:
        """Digest lengths and tokens."""
        digest = hashlib.sha256(self.lengths.tobytes() + self.documents.tobytes())
        for sequence in self._sequences:
            digest.update(sequence.tobytes())
        return digest.hexdigest()


class IndexedDataset:
    """Sequences of tokens in memory-mapped files; `documents` [D] are boundaries in sequences, `lengths` [S]."""

    def __init__(self, prefix: Path) -> None:
        """Open a pair of files. Raises InputError where they are missing, of another format, or do not fit."""
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
            raise InputError(f"{idx_file} is of Megatron-LM's old format lazy or cached. Preprocess it again as mmap.")
        version, code = int.from_bytes(header[9:17], "little"), header[17] if len(header) == HEADER_SIZE else 0
        if header[:9] != MAGIC or version != 1 or code not in DTYPES:
            raise InputError(f"{idx_file} is no index of Megatron-LM's token files (version {version}, type {code}).")
        num_sequences, num_bounds = (int.from_bytes(header[place : place + 8], "little") for place in (18, 26))
        expected = HEADER_SIZE + 12 * num_sequences + 8 * num_bounds
        # Multimodal files have one byte a sequence more.
        if num_sequences < 1 or num_bounds < 2 or size not in (expected, expected + num_sequences):
            raise InputError(f"{idx_file} is {size} bytes long; its header says {expected}. Is it cut off?")
        index = np.memmap(idx_file, mode="r", dtype=np.uint8)
        ends = np.cumsum([HEADER_SIZE, 4 * num_sequences, 8 * num_sequences, 8 * num_bounds])
        self.lengths: NDArray[np.int32] = index[ends[0] : ends[1]].view("<i4")
        self._places: NDArray[np.int64] = index[ends[1] : ends[2]].view("<i8")
        self.documents: NDArray[np.int64] = index[ends[2] : ends[3]].view("<i8")
        self.dtype = np.dtype(DTYPES[code])
        is_whole = (
            self.documents[0] == 0 and self.documents[-1] == num_sequences and (np.diff(self.documents) >= 0).all()
        )
        last = int((self._places + self.lengths.astype(np.int64) * self.dtype.itemsize).max())
        if not is_whole or self.lengths.min() < 0 or self._places.min() < 0 or last > num_bytes:
            raise InputError(f"{idx_file} and {bin_file} do not fit each other. Are both whole and of one build?")
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
        return self.part(index, 0, int(self.lengths[index]))

    def part(self, index: int, start: int, end: int) -> NDArray[Any]:
        """Read tokens [start, end) of a sequence."""
        first = int(self._places[index]) // self.dtype.itemsize
        return self._tokens[first + start : first + end]

    def fingerprint(self) -> str:
        """Digest the whole index and, of the tokens, places all over the file: they may be hundreds of gigabytes."""
        digest = hashlib.sha256(self.lengths.tobytes() + self.documents.tobytes())
        for start in np.linspace(0, max(len(self._tokens) - DIGESTED, 0), num=DIGESTED_PLACES, dtype=np.int64):
            digest.update(self._tokens[start : start + DIGESTED].tobytes())
        return digest.hexdigest()

    def document(self, number: int) -> list[NDArray[Any]]:
        """Read a document's sequences."""
        return [self[index] for index in range(*self.documents[number : number + 2].tolist())]


class IndexedDatasetBuilder:
    """Writes a pair of files document by document. A context manager; they appear when it is left without an error."""

    def __init__(self, prefix: Path, dtype: Any) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        self._lengths: list[NDArray[np.int32]] = []
        self._documents: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
        self._num_sequences = 0
        self._partial = [file.with_name(f".{file.name}.tmp-{os.getpid()}") for file in files_of(prefix)]

    def __enter__(self) -> Self:
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        self._bin = self._partial[0].open("wb")
        return self

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int32], sequences: NDArray[np.int64]) -> None:
        """Add documents: tokens end to end, the lengths of sequences, the number of sequences of each document."""
        self._bin.write(np.ascontiguousarray(tokens, dtype=self.dtype.newbyteorder("<")).tobytes())
        self._lengths.append(np.asarray(lengths, dtype="<i4"))
        self._documents.append(self._num_sequences + np.cumsum(sequences, dtype=np.int64))
        self._num_sequences += len(lengths)

    def add_document(self, sequences: Sequence[NDArray[Any]]) -> None:
        """Add one document."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
        self.add(np.concatenate(sequences), lengths, np.array([len(sequences)]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with self._bin:
                if kind is None:
                    self._write_index()
                    os.fsync(self._bin.fileno())
            if kind is None:
                # The index last: where it is, both are whole.
                for partial, file in zip(self._partial, files_of(self.prefix), strict=True):
                    partial.replace(file)
        finally:
            for partial in self._partial:
                partial.unlink(missing_ok=True)

    def _write_index(self) -> None:
        if not self._num_sequences:
            raise InputError(f"There is nothing to write to {self.prefix}: no document has any text.")
        self._bin.flush()
        lengths = np.concatenate(self._lengths)
        places = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        places = np.concatenate([np.zeros(1, dtype=np.int64), places[:-1]])
        documents = np.concatenate(self._documents)
        with self._partial[1].open("wb") as file:
            file.write(MAGIC + (1).to_bytes(8, "little") + CODES[self.dtype].to_bytes(1, "little"))
            file.write(len(lengths).to_bytes(8, "little") + len(documents).to_bytes(8, "little"))
            for array, kind in ((lengths, "<i4"), (places, "<i8"), (documents, "<i8")):
                file.write(array.astype(kind).tobytes())
            file.flush()
            os.fsync(file.fileno())
