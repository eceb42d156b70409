"""The checkpoints of a training run: write, list, prune, and find the last and the best.

A run folder holds `checkpoints/step-00000123/` (each a `manifest_folder`) and files for people (settings, metrics,
plot). Each checkpoint is self-contained: weights, settings, vocabulary, and the state to resume training from.
The last and the best are found by listing; there is no pointer that could be wrong. A damaged one is skipped with a
CheckpointWarning.
"""

import math
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ...errors import CheckpointError, CheckpointWarning
from ...storage import TEMPORARY, fsync_folder, rename_aside
from ..files.lazy_tensor import Readable
from .manifest import MANIFEST, read_manifest, verify_manifest_folder
from .manifest_folder import (
    Contents,
    OpenFolder,
    open_manifest_folder,
    write_manifest_folder,
    write_sharded_folder,
)

__all__ = ["CHECKPOINTS", "MANIFEST", "Contents", "Entry", "read", "write"]

CHECKPOINTS = "checkpoints"
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Entry:
    """A complete checkpoint in a run folder, with its validation's metric and loss, None where there was none."""

    path: Path
    step: int
    figure: float | None
    is_end: bool
    loss: float | None = None


def write(run: Path, step: int, contents: Contents, **facts: Any) -> Path:
    """Write a checkpoint atomically as run/checkpoints/step-NNNNNNNN, replacing one of the same step.

    `facts` are the fields of its Entry: figure, loss and is_end.
    """
    final = _folder_of(run, step)
    write_manifest_folder(final, contents, {"step": step, **facts})
    return final


def write_together(
    run: Path,
    step: int,
    own: Contents,
    *,
    part: int,
    num_parts: int,
    all_gather_text: Callable[[str], list[str]],
    **facts: Any,
) -> Path:
    """Write a checkpoint from several processes, each with its own tensors (see write_sharded_folder)."""
    final, facts = _folder_of(run, step), {"step": step, **facts}
    write_sharded_folder(final, own, facts, part=part, num_parts=num_parts, all_gather_text=all_gather_text)
    return final


def _folder_of(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def checkpoint_folders(run: Path) -> list[Path]:
    """List the folders of a run's checkpoints by step, damaged ones included, those under another name not."""
    folders = (run / CHECKPOINTS).glob("step-*")
    return sorted((folder for folder in folders if re.fullmatch(r"step-\d{8,}", folder.name)), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-").partition(".")[0])


def list_checkpoints(run: Path) -> list[Entry]:
    """List the checkpoints of a run that have a sound manifest, by step; warns of the others."""
    entries = []
    for folder in checkpoint_folders(run):
        try:
            entries.append(read_entry(folder))
        except CheckpointError as error:
            _warn_skipped(error)
    return entries


def read_entry(folder: Path) -> Entry:
    """Read a checkpoint's manifest. Raises CheckpointError if it is damaged or not that of a training."""
    match manifest := read_manifest(folder):
        case {"step": int() as step, "figure": int() | float() | None as figure, "is_end": bool() as is_end}:
            return Entry(folder, step, figure, is_end, manifest.get("loss"))
    raise CheckpointError(f"{folder} is not a checkpoint of training: its manifest lacks step, figure or is_end.")


def _warn_skipped(error: CheckpointError) -> None:
    warnings.warn(f"skipping a checkpoint: {error}", CheckpointWarning, stacklevel=3)


def find_last(run: Path) -> Entry | None:
    """Find the checkpoint that training resumes from."""
    return max(list_checkpoints(run), key=lambda entry: entry.step, default=None)


def find_best(run: Path, mode: str) -> Entry | None:
    """Find the checkpoint with the best metric (`mode` max or min); the last if none was validated."""
    return next(iter(_ranked(list_checkpoints(run), mode)), None) or find_last(run)


def _ranked(entries: list[Entry], mode: str) -> list[Entry]:
    """Sort validated checkpoints, the best first: by metric, among equals by the lower loss, then the later step."""
    validated = [entry for entry in entries if entry.figure is not None]
    sign = -1.0 if mode == "max" else 1.0

    def rank(entry: Entry) -> tuple[float, float, int]:
        return sign * (entry.figure or 0.0), math.inf if entry.loss is None else entry.loss, -entry.step

    return sorted(validated, key=rank)


def prune(run: Path, mode: str, keep_best: int) -> None:
    """Delete all but the `keep_best` best checkpoints and the last one, and the remains of interrupted writes.

    A `keep_best` of -1 keeps all. Damaged checkpoints stay. Call this with the run's lock when the last checkpoint is
    sound: it has been written, or read to resume from it.
    """
    entries = [] if keep_best < 0 else list_checkpoints(run)
    last = entries[-1:]
    kept = {entry.path for entry in [*_ranked(entries, mode)[:keep_best], *last]}
    for entry in entries:
        if entry.path not in kept:
            shutil.rmtree(rename_aside(entry.path))
    for leftover in list_leftovers(run):
        shutil.rmtree(leftover, ignore_errors=True)


def list_leftovers(run: Path) -> list[Path]:
    """List the folders that interrupted writes and deletions left under a temporary name."""
    return sorted((run / CHECKPOINTS).glob(f"step-*{TEMPORARY}*"))


def restore_leftovers(run: Path) -> list[Path]:
    """Rename complete checkpoints under a temporary name to their own where no sound one is; returns their new paths.

    A process that was killed before the rename that ends a write leaves them. Call this only with the run's lock.
    """
    restored = []
    complete = [folder for folder in list_leftovers(run) if (folder / MANIFEST).is_file() and _is_sound(folder)]
    for leftover in sorted(complete, key=lambda folder: (folder / MANIFEST).stat().st_mtime_ns, reverse=True):
        final = leftover.with_name(leftover.name.partition(TEMPORARY)[0])
        if final.exists():
            if _is_sound(final):
                continue
            set_aside(final, "damaged")
        leftover.rename(final)
        fsync_folder(final.parent)
        restored.append(final)
    return restored


def _is_sound(folder: Path) -> bool:
    try:
        verify_manifest_folder(folder)
    except CheckpointError:
        return False
    return True


def set_aside(folder: Path, reason: str) -> Path:
    """Rename a checkpoint, so that it no longer counts but is kept; returns its new path."""
    aside = folder.with_name(f"{folder.name}.{reason}-{uuid.uuid4().hex[:8]}")
    folder.rename(aside)
    return aside


def set_aside_after(run: Path, step: int, reason: str) -> list[Path]:
    """Set the checkpoints of later steps aside: a run that resumes from `step` makes those steps again."""
    return [set_aside(folder, reason) for folder in checkpoint_folders(run) if _step_of(folder) > step]


def _candidates(path: Path) -> list[Path]:
    """List the checkpoints that a path may refer to: itself, or those of a run folder, the best first."""
    if (path / MANIFEST).is_file():
        return [path]
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Give the folder that `megabert train` wrote.")
    newest_first = list_checkpoints(path)[::-1] if path.is_dir() else []
    if not newest_first:
        inner = sorted({str(file.parent.parent) for file in path.glob(f"*/**/{CHECKPOINTS}/step-*")})
        found = f" There are runs in it: {', '.join(inner[:3])}." if inner else ""
        remedy = f"Give the folder that training wrote.{found}"
        raise CheckpointError(f"{path} holds no complete checkpoint of megabert. {remedy}")
    facts = first_sound((entry.path for entry in newest_first), lambda folder: open_manifest_folder(folder, groups=()))
    ranked = _ranked(newest_first, facts.documents.get("run", {}).get("mode", "max"))
    return [entry.path for entry in [*ranked, *(entry for entry in newest_first if entry not in ranked)]]


def first_sound(folders: Iterable[Path], open_folder: Callable[[Path], Opened]) -> Opened:
    """Open the first folder that is not damaged, and warn of those before it.

    Raises the CheckpointError of the first one if all are damaged.
    """
    errors: list[CheckpointError] = []
    for folder in folders:
        try:
            opened = open_folder(folder)
        except CheckpointError as error:
            errors.append(error)
        else:
            for damage in errors:
                _warn_skipped(damage)
            return opened
    raise errors[0]


def open_best(path: Path, *, groups: tuple[str, ...]) -> tuple[Path, OpenFolder]:
    """Open a checkpoint, or the best of a run folder that is not damaged; returns its path, too."""
    return first_sound(_candidates(path), lambda folder: (folder, open_manifest_folder(folder, groups=groups)))


def read_best(path: Path, *, groups: tuple[str, ...]) -> tuple[Path, Contents]:
    """Read a checkpoint, or the best of a run folder that is not damaged; returns its path, too."""
    return first_sound(_candidates(path), lambda folder: (folder, read(folder, groups=groups)))


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


def encoder_of_run(documents: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the encoder's configuration in a run's documents, as plain values."""
    if not isinstance(documents.get("encoder"), dict):
        raise CheckpointError(f"{source} lacks encoder.json. Is it a checkpoint of a training run?")
    return dict(documents["encoder"])
