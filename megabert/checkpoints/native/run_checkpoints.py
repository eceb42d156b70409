"""The checkpoints of a training run: which there are, which is last, which is best.

A run folder holds `checkpoints/step-00000123/` (each a `folder` of our format) and what people read (settings,
metrics, plot). Each checkpoint is complete in itself: weights, settings, vocabulary, and where training goes on from.
Which one is last or best is found by listing them; there is no pointer that could be wrong.
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
from ..native import manifest_folder as folders
from .manifest_folder import MANIFEST, Contents, OpenFolder

__all__ = ["CHECKPOINTS", "MANIFEST", "Contents", "Entry", "read", "write"]

CHECKPOINTS = "checkpoints"


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
    final, facts = _place(run, step), {"step": step, "figure": figure, "is_end": is_end}
    folders.write(final, contents.tensors, contents.documents, contents.texts, facts)
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
    """Write a checkpoint as `write` does, with other processes: each the tensors of its own (folder.write_together)."""
    final, facts = _place(run, step), {"step": step, "figure": figure, "is_end": is_end}
    folders.write_together(
        final,
        own.tensors,
        own.documents,
        own.texts,
        facts,
        part=part,
        num_parts=num_parts,
        all_gather_text=all_gather_text,
    )
    return final


def _place(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def list_checkpoints(run: Path) -> list[Entry]:
    """List the complete checkpoints of a run, by step. Half-written ones have another name and do not count."""
    entries = []
    for folder in sorted((run / CHECKPOINTS).glob("step-*")):
        if re.fullmatch(r"step-\d{8,}", folder.name) and (folder / MANIFEST).is_file():
            manifest = folders.read_manifest(folder)
            try:
                entries.append(Entry(folder, manifest["step"], manifest["figure"], manifest["is_end"]))
            except KeyError as error:
                raise CheckpointError(
                    f"{folder} is not a checkpoint of training: its manifest lacks {error}."
                ) from None
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
            shutil.rmtree(rename_aside(entry.path))
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


def read(path: Path, *, groups: tuple[str, ...]) -> Contents:
    """Read a checkpoint's documents, texts and the named groups of tensors, each verified against the manifest.

    Raises CheckpointError if a file is missing, damaged or not in the manifest.
    """
    opened = open_lazily(path, groups=groups)
    tensors = {
        group: {name: read_whole(item) for name, item in items.items()} for group, items in opened.tensors.items()
    }
    return Contents(tensors, opened.documents, opened.texts)


def open_lazily(path: Path, *, groups: tuple[str, ...]) -> Contents:
    """Do as `read`, but leave the tensors in the files: who has a part of each reads one after another."""
    opened: OpenFolder = folders.open_folder(path, groups=groups)
    return Contents(opened.tensors, opened.documents, opened.texts)


def read_whole(item: Readable | Tensor) -> Tensor:
    """Give a tensor, from its file where it still is there."""
    return item if isinstance(item, Tensor) else item.read()
