"""Tokenized training texts kept in memory-mapped arrays, so that a second run starts at once.

A store is a folder of .npy files under a name that is a digest of everything the texts depend on (the data file's
content, the settings, the vocabulary, the code that makes them), so it is never stale: what changes has another name.
It appears by one rename, whole or not at all. Only what training needs is kept, not the notes of the features.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..storage import atomic_folder
from .packing import Features

# Stores that are kept; the ones that were used longest ago go first.
MOST_STORES = 20
META = "meta.json"


class CachedFeatures(Sequence[Features]):
    """Features read from a store's arrays as they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Open a store; raises OSError, ValueError or KeyError if it is none."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.meta: dict[str, Any] = meta["meta"]
        self._arrays: dict[str, NDArray[Any]] = {
            name: np.load(folder / f"{number}.npy", mmap_mode="r") for number, name in enumerate(meta["arrays"])
        }
        self._ends = self._arrays["ends"].tolist()

    def __len__(self) -> int:
        """Count the texts."""
        return len(self._ends)

    def lengths(self) -> NDArray[np.int64]:
        """Count each text's tokens."""
        return np.diff(self._arrays["ends"], prepend=0)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        """Read one text, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = slice(self._ends[index - 1] if index else 0, self._ends[index])
        found: dict[str, dict[str, Any]] = {"targets": {}, "token_targets": {}}
        for name, array in self._arrays.items():
            group, _, key = name.partition("/")
            if group in found:
                found[group][key] = np.asarray(array[index] if group == "targets" else array[part])
        return Features(
            np.asarray(self._arrays["token_ids"][part], dtype=np.int64),
            np.asarray(self._arrays["segment_ids"][part], dtype=np.int64),
            weight=float(self._arrays["weights"][index]),
            **found,
        )


def digest(*parts: bytes) -> str:
    """Name a store by all that its texts depend on."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def find(home: Path, name: str) -> CachedFeatures | None:
    """Open the store of that name, if there is one that can be read."""
    folder = home / name
    try:
        stored = CachedFeatures(folder)
        os.utime(folder)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return stored


def keep(home: Path, name: str, features: Sequence[Features], meta: Mapping[str, Any]) -> None:
    """Write a store, with `meta` as plain values.

    A disk that is full or not ours is no reason to fail: the texts are then made again next time.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with atomic_folder(home / name) as partial:  # in the place of one that could not be read
            _write(partial, features, meta)
        _prune(home)
    except OSError:
        return


def _write(folder: Path, features: Sequence[Features], meta: Mapping[str, Any]) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "ends": np.cumsum([len(item) for item in features]),
        "weights": np.array([item.weight for item in features]),
        "token_ids": _joined(item.token_ids for item in features),
        "segment_ids": _joined(item.segment_ids for item in features),
    }
    for name in features[0].targets:
        arrays[f"targets/{name}"] = np.stack([np.asarray(item.targets[name]) for item in features])
    for name in features[0].token_targets:
        arrays[f"token_targets/{name}"] = np.concatenate([item.token_targets[name] for item in features])
    for number, array in enumerate(arrays.values()):
        np.save(folder / f"{number}.npy", array)
    document = {"meta": dict(meta), "arrays": list(arrays)}
    (folder / META).write_text(json.dumps(document), encoding="utf-8")


def _joined(ids: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
    return np.concatenate(list(ids)).astype(np.int32)


def _prune(home: Path) -> None:
    stores = sorted(home.glob("*/" + META), key=lambda meta: meta.parent.stat().st_mtime)
    for meta in stores[:-MOST_STORES]:
        shutil.rmtree(meta.parent, ignore_errors=True)
