"""The checkpoints of a training run: write, list, prune, and find the last and the best.

A run folder holds `checkpoints/step-00000123/` (each a `manifest_folder`) and files for people (settings, metrics,
plot). Each checkpoint is self-contained: weights, settings, vocabulary, and the state to resume training from.
The last and the best are found by listing; there is no pointer that could be wrong.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError
from ...storage import rename_aside
from ..files.lazy_tensor import Readable
from .manifest_folder import (
    MANIFEST,
    Contents,
    open_manifest_folder,
    read_manifest,
    write_manifest_folder,
    write_sharded_folder,
)

__all__ = ["CHECKPOINTS", "MANIFEST", "Contents", "Entry", "read", "write"]

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Entry:
    """A complete checkpoint in a run folder. `figure` is its validation metric, or None."""

    path: Path
    step: int
    figure: float | None
    is_end: bool


def write(run: Path, step: int, contents: Contents, *, figure: float | None, is_end: bool) -> Path:
    """Write a checkpoint atomically as run/checkpoints/step-NNNNNNNN, replacing one of the same step."""
    final = _folder_of(run, step)
    write_manifest_folder(final, contents, {"step": step, "figure": figure, "is_end": is_end})
    return final


def write_together(
    run: Path,
    step: int,
    own: Contents,
    *,
    figure: float | None,
    is_end: bool,
    part: int,
    num_parts: int,
    all_gather_text: Callable[[str], list[str]],
) -> Path:
    """Write a checkpoint from several processes, each with its own tensors (see write_sharded_folder)."""
    final, facts = _folder_of(run, step), {"step": step, "figure": figure, "is_end": is_end}
    write_sharded_folder(final, own, facts, part=part, num_parts=num_parts, all_gather_text=all_gather_text)
    return final


def _folder_of(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Entry]:
    """List the complete checkpoints of a run, by step. Incomplete ones have a temporary name and are skipped."""
    entries = []
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        if re.fullmatch(r"step-\d{8,}", folder.name) and (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            try:
                entries.append(Entry(folder, manifest["step"], manifest["figure"], manifest["is_end"]))
            except KeyError as error:
                raise CheckpointError(
                    f"{folder} is not a checkpoint of training: its manifest lacks {error}."
                ) from None
    return entries


def find_last(run: Path) -> Entry | None:
    """Find the checkpoint that training resumes from."""
    return max(list_checkpoints(run), key=lambda entry: entry.step, default=None)


def find_best(run: Path, mode: str) -> Entry | None:
    """Find the checkpoint with the best metric (`mode` max or min); the last if none was validated."""
    return next(iter(_ranked(list_checkpoints(run), mode)), None) or find_last(run)


def _ranked(entries: list[Entry], mode: str) -> list[Entry]:
    validated = [entry for entry in entries if entry.figure is not None]
    sign = -1.0 if mode == "max" else 1.0
    # Among equals the earliest, which took the least training.
    return sorted(validated, key=lambda entry: (sign * (entry.figure or 0.0), entry.step))


def prune(run: Path, mode: str, keep_best: int) -> None:
    """Delete all but the `keep_best` best checkpoints and the last one, and the remains of interrupted writes."""
    entries = list_checkpoints(run)
    last = find_last(run)
    kept = {entry.path for entry in _ranked(entries, mode)[:keep_best]} | ({last.path} if last else set())
    for entry in entries:
        if entry.path not in kept:
            shutil.rmtree(rename_aside(entry.path))
    for leftover in (run / CHECKPOINTS).glob("*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def find_checkpoint(path: Path, mode: str | None = None) -> Path:
    """Find the checkpoint that a path refers to: itself, or the best of a run folder.

    `mode` None takes the run's own mode (whether its metric is to be maximized or minimized).
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


def read(path: Path, *, groups: tuple[str, ...]) -> Contents:
    """Read a checkpoint's documents, text files and the named groups of tensors, verified by the manifest's sums.

    Raises CheckpointError if a file is missing or damaged.
    """
    opened = open_manifest_folder(path, groups=groups)
    tensors = {group: {name: item.read() for name, item in items.items()} for group, items in opened.tensors.items()}
    return Contents(tensors, opened.documents, opened.texts)


def open_lazily(path: Path, *, groups: tuple[str, ...]) -> Contents:
    """Open a checkpoint as `read` does, with lazy tensors, so that each can be read and sharded by itself."""
    opened = open_manifest_folder(path, groups=groups)
    return Contents(opened.tensors, opened.documents, opened.texts)


def read_whole(item: Readable | Tensor) -> Tensor:
    """Return a tensor, reading it if it is lazy."""
    return item if isinstance(item, Tensor) else item.read()
