"""Content-addressed, memory-mapped cache of tokenized training features, so that a second run starts at once.

An entry is a folder of .npy files. Its name is a digest of everything that the features depend on (the data file's
content, the settings, the vocabulary, the code that makes them), so an entry is never stale: changed inputs have
another name. Entries are written atomically and verified by SHA-256 when they are opened; a damaged one is made again.
Only what training needs is stored, not the notes of the features. Neither writing nor reading holds all features in
memory: arrays grow block by block, and pages that were read are given back.
"""

import hashlib
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, CheckpointWarning
from ..json_documents import parse_sealed, sealed
from ..storage import TEMPORARY, GrowingArray, atomic_folder, file_sha256, remove_leftovers
from .fingerprint import hashed_bytes
from .packing import Features, LazyFeatures

# The least recently used entries beyond these are deleted.
MAX_ENTRIES = 20
META = "meta.json"
# Tokens of a block of features that is written at once.
BLOCK_TOKENS = 2**19
# Sequences after whose reading the mapped pages are given back: they would count as memory of this process.
GIVEN_BACK_AFTER = 2**12


class CachedFeatures(LazyFeatures):
    """Features read from a cache entry's memory-mapped arrays on access."""

    def __init__(self, folder: Path) -> None:
        """Open an entry and verify it; raises OSError or CheckpointError if it is missing or damaged."""
        document = parse_sealed((folder / META).read_bytes(), str(folder / META))
        self.meta: dict[str, Any] = document["meta"]
        self.kept_fingerprint = str(document["fingerprint"])
        self._arrays: dict[str, NDArray[Any]] = {}
        for number, (name, sha256) in enumerate(document["arrays"].items()):
            file = folder / f"{number}.npy"
            if file_sha256(file) != sha256:
                raise CheckpointError(f"{file} does not match its SHA-256.")
            self._arrays[name] = np.load(file, mmap_mode="r")
        self._num_read = 0

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._arrays["ends"])

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return np.diff(self._arrays["ends"], prepend=0)

    def counts(self) -> NDArray[np.int64]:
        """Count the sequences of each of the features."""
        ends = self._arrays.get("part_ends")
        return super().counts() if ends is None else np.diff(ends, prepend=0)

    def sequence(self, index: int) -> Features:
        """Read the features of one sequence."""
        self._num_read += 1
        if self._num_read % GIVEN_BACK_AFTER == 0:
            self._give_back()
        arrays = self._arrays
        tokens = _span(arrays["ends"], index)
        rows: int | slice = index  # of targets
        parts: tuple[int, ...] = ()
        if "parts" in arrays:
            span = _span(arrays["part_ends"], index)
            lengths = tuple(arrays["parts"][span].tolist())
            rows, parts = (span.start, ()) if len(lengths) == 1 else (span, lengths)
        targets: dict[str, dict[str, Any]] = {"targets": {}, "token_targets": {}}
        for name, array in arrays.items():
            group, _, key = name.partition("/")
            if group in targets:
                targets[group][key] = np.asarray(array[rows if group == "targets" else tokens])
        return Features(
            np.asarray(arrays["token_ids"][tokens], dtype=np.int64),
            np.asarray(arrays["segment_ids"][tokens], dtype=np.int64),
            weight=float(arrays["weights"][index]),
            parts=parts,
            targets=targets["targets"],
            token_targets=targets["token_targets"],
        )

    def _give_back(self) -> None:
        """Drop the pages from this process; they stay in the system's file cache while there is room for them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for array in self._arrays.values():
                base: Any = array.base
                if isinstance(base, mmap.mmap):
                    base.madvise(mmap.MADV_DONTNEED)


def _span(ends: NDArray[np.int64], index: int) -> slice:
    return slice(int(ends[index - 1]) if index else 0, int(ends[index]))


@dataclass(frozen=True)
class FeatureBlock:
    """Some features as the arrays of an entry, and what they add to their fingerprint."""

    arrays: dict[str, NDArray[Any]]
    hashed: bytes

    @classmethod
    def of(cls, features: Sequence[Features], *, with_parts: bool) -> "FeatureBlock":
        """Convert features."""
        return cls(_arrays(features, with_parts=with_parts), b"".join(chain.from_iterable(map(hashed_bytes, features))))


def digest(*parts: bytes) -> str:
    """Hash everything that the features depend on; the digest is the name of their cache entry."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(len(part).to_bytes(8, "little"))
        sha256.update(part)
    return sha256.hexdigest()


def load(cache: Path, name: str) -> CachedFeatures | None:
    """Open the cache entry of a name and mark it as recently used; None if it is missing or damaged."""
    try:
        features = CachedFeatures(cache / name)
        os.utime(cache / name)
    except FileNotFoundError:
        return None
    except (OSError, CheckpointError) as error:
        warnings.warn(f"tokenizing again, since the cache is damaged: {error}", CheckpointWarning, stacklevel=2)
        return None
    return features


def save(cache: Path, name: str, blocks: Iterable[FeatureBlock], meta: Callable[[], Mapping[str, Any]]) -> None:
    """Write a cache entry, replacing a damaged one; `meta` is called at the end and returns plain values.

    Blocks are taken one by one and not kept; without any there is no entry. A full or read-only disk is no error:
    then there is no entry, either.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cache, f"*{TEMPORARY}*")
        digest = hashlib.sha256()
        remaining = iter(blocks)
        if (first := next(remaining, None)) is None:
            return
        with atomic_folder(cache / name) as folder:
            sums = _write(folder, chain([first], remaining), digest)
            facts = {"meta": dict(meta()), "fingerprint": digest.hexdigest(), "arrays": sums}
            (folder / META).write_bytes(sealed(facts))
        entries = sorted(cache.glob("*/" + META), key=lambda path: path.parent.stat().st_mtime)
        for entry in entries[:-MAX_ENTRIES]:
            shutil.rmtree(entry.parent, ignore_errors=True)
    except OSError:
        return


def feature_blocks(features: Iterable[Features]) -> Iterator[FeatureBlock]:
    """Make blocks of about `BLOCK_TOKENS` tokens of features."""
    block: list[Features] = []
    num_tokens, with_parts = 0, False
    for item in features:
        block.append(item)
        num_tokens += len(item)
        with_parts = with_parts or bool(item.parts)
        if num_tokens >= BLOCK_TOKENS:
            yield FeatureBlock.of(block, with_parts=with_parts)
            block, num_tokens = [], 0
    if block:
        yield FeatureBlock.of(block, with_parts=with_parts)


def _write(folder: Path, blocks: Iterable[FeatureBlock], digest: "hashlib._Hash") -> dict[str, str]:
    """Append the arrays of blocks to files, and add the blocks to the fingerprint; returns the files' SHA-256."""
    files: dict[str, GrowingArray] = {}
    ends = {"ends": 0, "part_ends": 0}
    with ExitStack() as opened:
        for block in blocks:
            arrays = block.arrays
            digest.update(block.hashed)
            if not files:
                for number, (name, array) in enumerate(arrays.items()):
                    file = GrowingArray(folder / f"{number}.npy", array.dtype, array.shape[1:])
                    files[name] = opened.enter_context(file)
            assert files.keys() == arrays.keys(), "all features have the same targets"
            for name, array in arrays.items():
                files[name].append(array + ends[name] if name in ends else array)
            ends = {name: ends[name] + int(arrays[name][-1]) for name in ends if name in arrays}
    return {name: file_sha256(file.path) for name, file in files.items()}


def _arrays(features: Sequence[Features], *, with_parts: bool) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "ends": np.cumsum([len(item.token_ids) for item in features]),
        "weights": np.array([item.weight for item in features], dtype=np.float64),
        "token_ids": np.concatenate([item.token_ids for item in features]).astype(np.int32),
        "segment_ids": np.concatenate([item.segment_ids for item in features]).astype(np.int8),
    }
    if with_parts:
        arrays["part_ends"] = np.cumsum([item.num_sequences for item in features])
        arrays["parts"] = np.array([length for item in features for length in item.parts or (len(item),)])
    for name in features[0].targets:
        arrays[f"targets/{name}"] = np.stack([np.asarray(row) for item in features for row in item.rows(name)])
    for name in features[0].token_targets:
        arrays[f"token_targets/{name}"] = np.concatenate([item.token_targets[name] for item in features])
    return arrays
