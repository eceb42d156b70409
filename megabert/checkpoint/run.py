"""Our own checkpoints: a folder of safetensors and JSON with a manifest of SHA-256 sums, whole or not there at all.

A run folder holds `checkpoints/step-00000123/` and what people read (settings, metrics, plot). Each checkpoint is
complete in itself: weights, settings, vocabulary, and where training goes on from. Which one is last or best is
found by listing them; there is no pointer that could be wrong.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds: groups of tensors, JSON documents and text files, by file name without suffix."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, Any]
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A complete checkpoint in a run folder. `figure` is the validation figure that it is judged by, or None."""

    path: Path
    step: int
    figure: float | None
    is_end: bool


def write(run: Path, step: int, contents: Contents, *, figure: float | None, is_end: bool) -> Path:
    """Write a checkpoint as run/checkpoints/step-NNNNNNNN; it appears by a rename when all of it is on the disk.

    A checkpoint of the same step is replaced.
    """
    parent = run / CHECKPOINTS
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"step-{step:08d}"
    partial = parent / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        files = {f"{name}.safetensors": _tensor_bytes(tensors) for name, tensors in contents.tensors.items()}
        files |= {f"{name}.json": _json_bytes(document) for name, document in contents.documents.items()}
        files |= {name: text.encode() for name, text in contents.texts.items()}
        sums = {}
        for name, data in files.items():
            _write_synced(partial / name, data)
            sums[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "figure": figure,
            "is_end": is_end,
            "files": sums,
        }
        _write_synced(partial / MANIFEST, _json_bytes(manifest))
        _sync_folder(partial)
        replaced = _set_aside(final) if final.exists() else None
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(parent)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


def list_checkpoints(run: Path) -> list[Entry]:
    """List the complete checkpoints of a run, by step. Half-written ones have another name and do not count."""
    entries = []
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        if re.fullmatch(r"step-\d{8,}", folder.name) and (folder / MANIFEST).is_file():
            manifest = _read_manifest(folder)
            entries.append(Entry(folder, manifest["step"], manifest["figure"], manifest["is_end"]))
    return entries


def find_last(run: Path) -> Entry | None:
    """Find the checkpoint that training goes on from."""
    return max(list_checkpoints(run), key=lambda entry: entry.step, default=None)


def find_best(run: Path, mode: str) -> Entry | None:
    """Find the checkpoint to use: the best validated one (`mode` max or min), the last where none was validated."""
    return next(iter(_ranked(list_checkpoints(run), mode)), None) or find_last(run)


def _ranked(entries: list[Entry], mode: str) -> list[Entry]:
    judged = [entry for entry in entries if entry.figure is not None]
    sign = -1.0 if mode == "max" else 1.0
    # Of equal ones the earlier: it took less training to get there.
    return sorted(judged, key=lambda entry: (sign * (entry.figure or 0.0), entry.step))


def prune(run: Path, mode: str, keep_best: int) -> None:
    """Delete all but the `keep_best` best checkpoints and the last one, and what broken-off writes left."""
    entries = list_checkpoints(run)
    last = find_last(run)
    kept = {entry.path for entry in _ranked(entries, mode)[:keep_best]} | ({last.path} if last else set())
    for entry in entries:
        if entry.path not in kept:
            shutil.rmtree(_set_aside(entry.path))
    for leftover in (run / CHECKPOINTS).glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def find_checkpoint(path: Path, mode: str | None = None) -> Path:
    """Find the checkpoint that a path means: itself, or the best of a run folder.

    `mode` None takes the run's own (its settings say whether its figure is to be large or small).
    """
    if (path / MANIFEST).is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give the folder that `megabert train` wrote.")
    last = find_last(path) if path.is_dir() else None
    if last is None:
        raise CheckpointError(f"{path} holds no complete checkpoint of megabert. Give the folder that training wrote.")
    if mode is None:
        mode = json.loads((last.path / "run.json").read_text(encoding="utf-8")).get("mode", "max")
    best = find_best(path, mode)
    assert best is not None, "a run with a last checkpoint has a best one"
    return best.path


def read(folder: Path, *, groups: tuple[str, ...]) -> Contents:
    """Read a checkpoint's documents, texts and the named groups of tensors, each verified against the manifest.

    Raises CheckpointError if a file is missing, damaged or not in the manifest.
    """
    manifest = _read_manifest(folder)
    tensors, documents, texts = {}, {}, {}
    for name, record in manifest["files"].items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "safetensors":
            if stem in groups:
                tensors[stem] = _parse_tensors(_read_verified(folder / name, record), folder / name)
        elif suffix == "json":
            documents[stem] = json.loads(_read_verified(folder / name, record))
        else:
            texts[name] = _read_verified(folder / name, record).decode()
    missing = [group for group in groups if group not in tensors]
    if missing:
        raise CheckpointError(f"{folder} holds no {', '.join(missing)}. Is it a checkpoint of a training run?")
    return Contents(tensors, documents, texts)


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        names = list(manifest["files"])
        int(manifest["step"]), bool(manifest["is_end"]), manifest["figure"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}. Use another checkpoint of the run.") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file} is of format {version}; this version of megabert reads {FORMAT_VERSION}.")
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{file} names files outside its folder.")
    return dict(manifest)


def _read_verified(file: Path, record: Any) -> bytes:
    try:
        size, expected = record["size"], record["sha256"]
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; its manifest says {size}.")
        data = file.read_bytes()
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}. Use another checkpoint of the run.") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is {found[:16]}..., its manifest says {str(expected)[:16]}.... "
            "Use another checkpoint of the run."
        )
    return data


def _parse_tensors(data: bytes, file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}") from None


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _json_bytes(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint that goes, so that it is never seen half there."""
    aside = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    folder.rename(aside)
    return aside
