"""Placeholder until the reader is in place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .lazy import Readable


@dataclass(frozen=True)
class Distributed:
    """A distributed checkpoint."""

    common: dict[str, Any]
    tensors: dict[str, Readable]
    unknown_globals: frozenset[str]


def is_torch_dist(folder: Path) -> bool:
    """Tell."""
    return (folder / ".metadata").is_file()


def open_torch_dist(folder: Path) -> Distributed:
    """Open."""
    raise NotImplementedError
