"""Content-addressed, memory-mapped cache of tokenized training features, so that a second run starts at once.

An entry is a folder of .npy files. Its name is a digest of everything that the features depend on (the data file's
content, the settings, the vocabulary, the code that makes them), so an entry is never stale: changed inputs have
another name. Entries are written atomically. Only what training needs is stored, not the notes of the features.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import TEMPORARY, atomic_folder, remove_leftovers
from .packing import Features, LazyFeatures

# The least recently used entries beyond these are deleted.
MAX_ENTRIES = 20
META = "meta.json"


class CachedFeatures(LazyFeatures):
    """Features read from a cache entry's memory-mapped arrays on access."""

    def __init__(self, folder: Path) -> None:
        """Open an entry; raises OSError, ValueError or KeyError if it is missing or damaged."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.meta: dict[str, Any] = meta["meta"]
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.load(folder / f"{number}.npy", mmap_mode="r") for number, name in enumerate(meta["arrays"])
        }
        self._ends = self._arrays["ends"].tolist()

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._ends)

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each sequence."""
        return np.diff(self._arrays["ends"], prepend=0)

    def sequence(self, index: int) -> Features:
        """Read the features of one sequence."""
        tokens = slice(self._ends[index - 1] if index else 0, self._ends[index])
        targets: dict[str, dict[str, Any]] = {"targets": {}, "token_targets": {}}
        for name, array in self._arrays.items():
            group, _, key = name.partition("/")
            if group in targets:
                targets[group][key] = np.asarray(array[index] if group == "targets" else array[tokens])
        return Features(
            np.asarray(self._arrays["token_ids"][tokens], dtype=np.int64),
            np.asarray(self._arrays["segment_ids"][tokens], dtype=np.int64),
            weight=float(self._arrays["weights"][index]),
            **targets,
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
    except (OSError, ValueError, KeyError, EOFError):
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
    for name in features[0].targets:
        arrays[f"targets/{name}"] = np.stack([np.asarray(item.targets[name]) for item in features])
    for name in features[0].token_targets:
        arrays[f"token_targets/{name}"] = np.concatenate([item.token_targets[name] for item in features])
    for number, array in enumerate(arrays.values()):
        np.save(folder / f"{number}.npy", array)
    document = {"meta": dict(meta), "arrays": list(arrays)}
    (folder / META).write_text(json.dumps(document), encoding="utf-8")
