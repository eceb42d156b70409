"""A folder of embeddings: shards [rows, D] of float32, float16 or int8, memory-mapped, with ids and a manifest.

Each shard is `shard-NNNNN.npy`, with `shard-NNNNN.ids` (an id a line) and for int8 `shard-NNNNN.scales.npy`, float32: a
row is its int8 numbers times its scale. manifest.json has the digest of the run, the type, and rows and SHA-256 of each
shard; it is written behind every shard, so that an interrupted embedding is resumed after the last one.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError, MegabertError
from ..storage import TEMPORARY, atomic_write, file_sha256, folder_lock

MANIFEST = "manifest.json"
TYPES = ("float32", "float16", "int8")
SHARD_SIZE = 65_536
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class StoreBlock:
    """Consecutive rows of a store: [rows, D], and for int8 their scales [rows]."""

    start: int
    values: NDArray[Any]
    scales: NDArray[np.float32] | None

    def vectors(self) -> NDArray[np.float32]:
        """Return the embeddings in float32."""
        values = self.values.astype(np.float32)
        return values if self.scales is None else values * self.scales[:, None]


class EmbeddingStore:
    """An embedding folder, opened; vectors stay on the disk until they are read."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises InputError where it is incomplete, or a shard is missing or cut short."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        if not self.manifest.get("complete"):
            raise InputError(f"{folder} is not complete: its embedding was interrupted. Resume it with --resume.")
        self._shards = [self._open(number, shard) for number, shard in enumerate(self.manifest["shards"])]
        self._ids: list[str] | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return sum(int(shard["rows"]) for shard in self.manifest["shards"])

    @property
    def dimensions(self) -> int:
        """Number of dimensions of an embedding."""
        return int(self.manifest["dimensions"])

    @property
    def digest(self) -> str:
        """The digest of the run that made the embeddings."""
        return str(self.manifest["run"])

    def ids(self) -> list[str]:
        """Read the ids of all rows."""
        if self._ids is None:
            names = (shard_file(self.folder, number, "ids") for number in range(len(self._shards)))
            self._ids = [line for name in names for line in name.read_text(encoding="utf-8").split("\n")[:-1]]
            if len(self._ids) != len(self):
                raise InputError(
                    f"{self.folder} has {len(self._ids)} ids for {len(self)} rows. Embed again, with --resume."
                )
        return self._ids

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the embeddings of some rows in float32, [rows, D]."""
        vectors = np.empty((len(numbers), self.dimensions), dtype=np.float32)
        first = 0
        for values, scales in self._shards:
            is_inside = (numbers >= first) & (numbers < first + len(values))
            inside = numbers[is_inside] - first
            own = values[inside].astype(np.float32)
            vectors[is_inside] = own if scales is None else own * scales[inside, None]
            first += len(values)
        return vectors

    def blocks(self, size: int) -> Iterator[StoreBlock]:
        """Iterate over the rows in blocks of at most `size`."""
        first = 0
        for values, scales in self._shards:
            for start in range(0, len(values), size):
                stop = start + size
                yield StoreBlock(first + start, values[start:stop], None if scales is None else scales[start:stop])
            first += len(values)

    def _open(self, number: int, shard: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        path = shard_file(self.folder, number, "npy")
        shape, kind = (shard["rows"], self.dimensions), self.manifest["type"]
        values = _map(path, shape, kind)
        return values, _map_scales(self.folder, number, shard, self.manifest)


def _map_scales(
    folder: Path, number: int, shard: Mapping[str, Any], manifest: Mapping[str, Any]
) -> NDArray[np.float32] | None:
    """Map the scales of a shard, where its type has them."""
    if manifest["type"] != "int8":
        return None
    return _map(shard_file(folder, number, "scales.npy"), (shard["rows"],), "float32")


def _map(path: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """Map an array of a known shape and type; raises InputError where the file is another or cut short."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing. Embed again, with --resume.") from None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"{path} is cut short or damaged: {error}. Remove it and embed again, with --resume."
        ) from None
    if array.shape != shape or array.dtype != kind:
        raise InputError(f"{path} is {array.dtype} {array.shape}; expected {kind} {shape}. Embed again, with --resume.")
    return array


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """Return the name of a shard's file."""
    return folder / f"shard-{number:05d}.{suffix}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a store's manifest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(manifest["shards"], list) and manifest["type"] in TYPES
    except FileNotFoundError:
        raise InputError(
            f"{folder} is no folder of embeddings: there is no {MANIFEST}. Make one by megabert embed."
        ) from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{path} is no manifest of embeddings. Embed again.") from None
    return manifest


@dataclass(frozen=True)
class StoreOptions:
    """How embeddings are stored."""

    type: str = "float16"
    dimensions: int | None = None
    """The first so many dimensions, normalized again; None: all."""
    shard_size: int = SHARD_SIZE


def write_store(
    folder: Path,
    texts: Iterable[tuple[str, str]],
    embed: Embed,
    *,
    about: Mapping[str, Any],
    options: StoreOptions = StoreOptions(),
    resume: bool = False,
    progress: Progress | None = None,
) -> EmbeddingStore:
    """Embed (id, text) pairs, a shard at a time.

    `about` is what the embeddings depend on, with the run's digest as "run"; a resumed call must have the same.
    Raises InputError where `folder` has other embeddings. Where nothing is embedded, nothing stays.
    """
    if options.type not in TYPES:
        raise ConfigError(f"{options.type} is no type of embeddings; give {', '.join(TYPES)}.")
    if options.shard_size < 1 or (options.dimensions or 1) < 1 or options.dimensions == 0:
        raise ConfigError(f"{options.shard_size} texts of {options.dimensions} dimensions: give 1 or more of each.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder) as is_free:
        if is_free is False:
            raise InputError(f"another process writes to {folder}. Wait for it, or name another folder.")
        job = {**about, "type": options.type, "shard_size": options.shard_size, "requested": options.dimensions}
        manifest = _claim(folder, job, resume=resume)
        try:
            _write_shards(folder, iter(texts), embed, manifest=manifest, options=options, progress=progress)
        except MegabertError:
            if not manifest["shards"]:
                (folder / MANIFEST).unlink()
                if is_new:
                    folder.rmdir()
            raise
        atomic_write(folder / MANIFEST, json.dumps(manifest | {"complete": True}, indent=1))
    return EmbeddingStore(folder)


def _write_shards(
    folder: Path,
    stream: Iterator[tuple[str, str]],
    embed: Embed,
    *,
    manifest: dict[str, Any],
    options: StoreOptions,
    progress: Progress | None,
) -> None:
    """Write the shards that the manifest lacks, and add them to it."""
    number = done = 0
    while chunk := list(islice(stream, options.shard_size)):
        done += len(chunk)
        is_new = number >= len(manifest["shards"])
        vectors = reduced(embed([text for _, text in chunk]), options.dimensions) if is_new else None
        ids, path = "".join(f"{name}\n" for name, _ in chunk), shard_file(folder, number, "ids")
        if not path.is_file() or path.read_bytes() != ids.encode():
            atomic_write(path, ids)
        if vectors is not None:
            manifest["dimensions"] = int(vectors.shape[1])
            manifest["shards"].append(_write_shard(folder, number, vectors, options.type))
            atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1))
        if progress is not None:
            progress(done)
        number += 1
    if not number:
        raise InputError("there is no text to embed.")


def _claim(folder: Path, job: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return the manifest to continue, or a new one."""
    is_there = (folder / MANIFEST).exists()
    if not is_there and any(TEMPORARY not in item.name for item in folder.iterdir()):
        raise InputError(f"{folder} is not empty, and has no embeddings. Name a new folder.")
    manifest = read_manifest(folder) if is_there else {"shards": []}
    if not manifest["shards"]:  # nor those of a command that was killed in its first shard
        manifest = {**job, "complete": False, "shards": []}
        atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1))  # before a shard, so that a kill leaves both
        return manifest
    if not resume:
        raise InputError(f"{folder} has embeddings. Add --resume to complete them, or name another folder.")
    if other := [name for name, value in job.items() if manifest.get(name, value) != value]:
        found, wanted = manifest.get(other[0]), job[other[0]]
        raise InputError(f"{folder} was begun with {other[0]} {found!r}, not {wanted!r}. Name another folder.")
    pairs = takewhile(lambda pair: _is_whole(folder, *pair, manifest), enumerate(manifest["shards"]))
    return manifest | {"shards": [shard for _, shard in pairs]}


def _is_whole(folder: Path, number: int, shard: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    path = shard_file(folder, number, "npy")
    if not path.is_file() or file_sha256(path) != shard["sha256"]:
        return False
    try:
        _map_scales(folder, number, shard, manifest)
    except InputError:
        return False
    return True


def _write_shard(folder: Path, number: int, vectors: NDArray[np.float32], kind: str) -> dict[str, Any]:
    values, scales = quantized(vectors, kind)
    if scales is not None:
        atomic_write(shard_file(folder, number, "scales.npy"), _npy(scales))
    content = _npy(values)
    atomic_write(shard_file(folder, number, "npy"), content)
    return {"rows": len(vectors), "sha256": hashlib.sha256(content).hexdigest()}


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def reduced(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """Keep the first dimensions, with the 2-norm that the whole vector had."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if not 0 < dimensions < vectors.shape[1]:
        raise ConfigError(f"embeddings have {vectors.shape[1]} dimensions; {dimensions} of them cannot be kept.")
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return (cut * (np.linalg.norm(vectors, axis=1, keepdims=True) / np.where(norms > 0, norms, 1.0))).astype(np.float32)


def quantized(vectors: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Convert embeddings to a type of TYPES; int8 has a scale for each row, that of its largest number."""
    if kind != "int8":
        return vectors.astype(kind), None
    scales = np.abs(vectors).max(axis=1) / 127
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales
