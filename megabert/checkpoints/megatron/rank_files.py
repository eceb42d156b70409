"""Find and open the files of a Megatron-LM checkpoint, one for each (tensor-parallel, pipeline-parallel) rank."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..files.weight_files import WeightFile, looks_like_weights, open_files
from ..other_formats import name_other_folder

Rank = tuple[int, int]  # in the tensor-parallel and in the pipeline-parallel group


@dataclass(frozen=True)
class RankFile:
    """The open file of one rank, and its label for messages."""

    label: str
    opened: WeightFile

    @property
    def content(self) -> dict[str, Any]:
        """The top-level dictionary. Raises CheckpointError if there is none."""
        if not isinstance(self.opened.content, dict):
            kind = type(self.opened.content).__name__
            raise CheckpointError(f"{self.label} holds a {kind}, not a checkpoint's dictionary.")
        return self.opened.content


def find_iteration(path: Path) -> Path:
    """Return the folder of the iteration that the tracker names, else of the release or the last iteration."""
    if not path.is_dir():
        return path
    tracker = path / "latest_checkpointed_iteration.txt"
    if tracker.is_file():
        content = tracker.read_text(encoding="utf-8", errors="replace").strip()
        folder = path / (content if content == "release" else f"iter_{content:0>7}")
        if not (content == "release" or content.isdigit()) or not folder.is_dir():
            raise CheckpointError(
                f"{tracker} names {content[:40]!r}, but there is no folder {folder.name[:40]} beside it. "
                "Give the iteration's folder itself."
            )
        return folder
    if (path / "release").is_dir():
        return path / "release"
    iterations = [folder for folder in path.glob("iter_*") if re.fullmatch(r"iter_\d+", folder.name)]
    return max(iterations, key=lambda folder: int(folder.name[5:]), default=path)


def open_ranks(path: Path) -> dict[Rank, RankFile]:
    """Open the files of all ranks of a file or an iteration's folder. Raises CheckpointError if a rank is missing."""
    ranks = _open_files(path)
    shards, stages = {shard for shard, _ in ranks}, {stage for _, stage in ranks}
    missing = [
        f"mp_rank_{shard:02d}" + (f"_{stage:03d}" if max(stages) else "")
        for shard in range(max(shards) + 1)
        for stage in range(max(stages) + 1)
        if (shard, stage) not in ranks
    ]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: a checkpoint needs the files of all its ranks.")
    return ranks


_RANK = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?(?:_(\d{3}))?")


def _open_files(path: Path) -> dict[Rank, RankFile]:
    ranks: dict[Rank, RankFile] = {}
    for file in [path] if path.is_file() else _list_files(path):
        for member, opened in open_files(file).items():
            label = f"{file}: {member}" if member else str(file)
            rank = _rank_of(f"{file.parent.name}/{member}") if path.is_dir() or member else (0, 0)
            if rank in ranks:
                raise CheckpointError(f"{ranks[rank].label} and {label} are of one rank. Remove the wrong one.")
            ranks[rank] = RankFile(label, opened)
    if len(ranks) == 1:  # a file of one rank by itself; its arguments show whether others are missing
        return {(0, 0): next(iter(ranks.values()))}
    return ranks


def _list_files(path: Path) -> list[Path]:
    """List the weight files below an iteration's folder, without separate optimizer files and folders."""
    ranks = sorted(folder for folder in path.glob("mp_rank_*") if folder.is_dir() and _RANK.fullmatch(folder.name))
    files = [file for folder in ranks or [path] if (file := _weights_in(folder)) is not None]
    if not files:
        raise CheckpointError(
            name_other_folder(path)
            or f"{path} holds no checkpoint: expected model_optim_rng.pt, MegatronBERT.pt, mp_rank_* folders, "
            "latest_checkpointed_iteration.txt, config.json, or any single weight file."
        )
    return files


_WEIGHTS = ("model_optim_rng.pt", "model_rng.pt", "MegatronBERT.pt", "model_weights.ckpt")
_OPTIMIZER = ("optim.pt", "distrib_optim.pt")


def _weights_in(folder: Path) -> Path | None:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in _OPTIMIZER]
    files = [file for file in files if looks_like_weights(file)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:6])
        raise CheckpointError(f"{folder} holds {len(files)} weight files ({names}). Give one of them.")
    return files[0] if files else None


def _rank_of(label: str) -> Rank:
    match = _RANK.search(label)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)
