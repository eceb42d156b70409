"""The published checkpoints: names, addresses, sizes and licences, as published.toml lists them with their sources."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Role = Literal["vocabulary", "merges", "config", "weights"]
ROLES: tuple[Role, ...] = (
    "vocabulary",
    "merges",
    "config",
    "weights",
)  # small ones first


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes of an encoder, named as in the JSON configurations of Megatron-LM and NeMo."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    num_tokentypes: int = 2


@dataclass(frozen=True)
class Vocabulary:
    """A model's vocabulary. `size` is the number of tokens without padding; None where it is unknown."""

    name: str
    size: int | None
    is_cased: bool
    num_rows: int | None = None
    """Rows of the word embedding where they are known and more, for padding."""


@dataclass(frozen=True)
class File:
    """One file of a published model. `size` (bytes) and `sha256` are None where no source gives them."""

    role: Role
    name: str
    format: Literal["torch", "zip", "nemo", "vocabulary", "json", "merges"]
    url: str
    mirrors: tuple[str, ...] = ()  # of the same bytes, verified by the SHA-256
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """A published name. Several files of one role are alternatives, of which the first is downloaded."""

    name: str
    summary: str
    vocabulary: Vocabulary
    licence: str
    files: tuple[File, ...]
    page: str
    note: str = ""
    architecture: NetworkSizes | None = None
    aliases: tuple[str, ...] = ()
    size: int | None = None  # approximate bytes of the weights; `note` gives the source
    is_shipped: bool = False  # included in the package, in encoders/<name>

    @property
    def num_parameters(self) -> int | None:
        """Count the encoder's parameters: embeddings, layers and final norm, but neither pooler nor heads."""
        if self.architecture is None or self.vocabulary.size is None:
            return None
        shape, hidden = self.architecture, self.architecture.hidden_size
        rows = self.vocabulary.size + shape.max_position_embeddings + shape.num_tokentypes
        # A layer: qkv and out 4 h^2 + 4 h, an MLP of four times the width 8 h^2 + 5 h, two norms 4 h.
        return rows * hidden + shape.num_layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden


@cache
def published_checkpoints() -> Mapping[str, Published]:
    """Read the table, published.toml, by name."""
    with Path(__file__).with_name("published.toml").open("rb") as file:
        rows = tomllib.load(file)
    return {name: _row(name, row) for name, row in rows.items()}


def _row(name: str, row: Mapping[str, Any]) -> Published:
    vocabulary, architecture = {"size": None, **row["vocabulary"]}, row.get("architecture")
    typed = {
        "vocabulary": Vocabulary(**vocabulary),
        "architecture": None if architecture is None else NetworkSizes(**architecture),
        "files": tuple(File(**{**file, "mirrors": tuple(file.get("mirrors", ()))}) for file in row.get("files", ())),
        "aliases": tuple(row.get("aliases", ())),
    }
    return Published(**{**row, **typed, "name": name})
