"""Content-addressed, memory-mapped cache of tokenized training features, so that a second run starts at once.

An entry is a folder of .npy files. Its name is a digest of everything that the features depend on (the data file's
content, the settings, the vocabulary, the code that makes them), so an entry is never stale: changed inputs have
another name. Entries are written atomically and verified by SHA-256 when they are opened; a damaged one is made again.
Only what training needs is stored, not the notes of the features.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, CheckpointWarning
from ..json_documents import parse_sealed, sealed
from ..storage import TEMPORARY, atomic_folder, file_sha256, remove_leftovers, save_array
from .packing import Features, LazyFeatures

# The least recently used entries beyond these are deleted.
MAX_ENTRIES = 20
META = "meta.json"


class CachedFeatures(LazyFeatures):
    """Features read from a cache entry's memory-mapped arrays on access."""

    def __init__(self, folder: Path) -> None:
        """Open an entry and verify it; raises OSError or CheckpointError if it is missing or damaged."""
        document = parse_sealed((folder / META).read_bytes(), str(folder / META))
        self.meta: dict[str, Any] = document["meta"]
        self._arrays: dict[str, NDArray[Any]] = {}
        for number, (name, sha256) in enumerate(document["arrays"].items()):
            file = folder / f"{number}.npy"
            if file_sha256(file) != sha256:
                raise CheckpointError(f"{file} does not match its SHA-256.")
            self._arrays[name] = np.load(file, mmap_mode="r")
        self._ends = self._arrays["ends"].tolist()

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._ends)

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return np.diff(self._arrays["ends"], prepend=0)

    def counts(self) -> NDArray[np.int64]:
        """Count the sequences of each of the features."""
        ends = self._arrays.get("part_ends")
        return super().counts() if ends is None else np.diff(ends, prepend=0)

    def sequence(self, index: int) -> Features:
        """Read the features of one sequence."""
        tokens = slice(self._ends[index - 1] if index else 0, self._ends[index])
        rows: int | slice = index  # of targets
        parts: tuple[int, ...] = ()
        if "parts" in self._arrays:
            ends = self._arrays["part_ends"]
            span = slice(int(ends[index - 1]) if index else 0, int(ends[index]))
            lengths = tuple(self._arrays["parts"][span].tolist())
            rows, parts = (span.start, ()) if len(lengths) == 1 else (span, lengths)
        targets: dict[str, dict[str, Any]] = {"targets": {}, "token_targets": {}}
        for name, array in self._arrays.items():
            group, _, key = name.partition("/")
            if group in targets:
                targets[group][key] = np.asarray(array[rows if group == "targets" else tokens])
        return Features(
            np.asarray(self._arrays["token_ids"][tokens], dtype=np.int64),
            np.asarray(self._arrays["segment_ids"][tokens], dtype=np.int64),
            weight=float(self._arrays["weights"][index]),
            parts=parts,
            targets=targets["targets"],
            token_targets=targets["token_targets"],
        )


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


def save(cache: Path, name: str, features: Sequence[Features], meta: Mapping[str, Any]) -> None:
    """Write a cache entry, replacing a damaged one; `meta` holds plain values.

    A full or read-only disk is no error: the next run then tokenizes again.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_leftovers(cache, f"*{TEMPORARY}*")
        with atomic_folder(cache / name) as folder:
            _write(folder, features, meta)
        entries = sorted(cache.glob("*/" + META), key=lambda path: path.parent.stat().st_mtime)
        for entry in entries[:-MAX_ENTRIES]:
            shutil.rmtree(entry.parent, ignore_errors=True)
    except OSError:
        return


def _write(folder: Path, features: Sequence[Features], meta: Mapping[str, Any]) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "ends": np.cumsum([len(item.token_ids) for item in features]),
        "weights": np.array([item.weight for item in features]),
        "token_ids": np.concatenate([item.token_ids for item in features]).astype(np.int32),
        "segment_ids": np.concatenate([item.segment_ids for item in features]).astype(np.int32),
    }
    if any(item.parts for item in features):
        arrays["part_ends"] = np.cumsum([item.num_sequences for item in features])
        arrays["parts"] = np.array([length for item in features for length in item.parts or (len(item),)])
    for name in features[0].targets:
        arrays[f"targets/{name}"] = np.stack([np.asarray(row) for item in features for row in item.rows(name)])
    for name in features[0].token_targets:
        arrays[f"token_targets/{name}"] = np.concatenate([item.token_targets[name] for item in features])
    sums = {}
    for number, (name, array) in enumerate(arrays.items()):
        save_array(folder / f"{number}.npy", array)
        sums[name] = file_sha256(folder / f"{number}.npy")
    (folder / META).write_bytes(sealed({"meta": dict(meta), "arrays": sums}))
