"""Placeholder until the reader is in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .lazy import Readable


@dataclass(frozen=True)
class NemoFile:
    """A NeMo archive."""

    config: dict[str, Any]
    shards: Sequence[Mapping[str, Readable]]
    heads: Mapping[str, Readable]
    tokenizer_files: Mapping[str, bytes]
    checkpoint_version: float | None
    unknown_globals: frozenset[str]
    num_stages: int = 1
    notes: tuple[str, ...] = field(default=())


def is_nemo(path: Path) -> bool:
    """Tell."""
    return False


def open_nemo(path: Path) -> NemoFile:
    """Open."""
    raise NotImplementedError


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate."""
    raise NotImplementedError
