"""Concept: an identifier with its names, as every reader of dictionaries returns it; what readers may need besides."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...errors import InputError
from .curies import to_curie


@dataclass(frozen=True)
class Concept:
    """One concept of a dictionary; `location` is its file and line."""

    id: str
    """A CURIE."""
    names: tuple[str, ...]
    """The preferred name first."""
    alternatives: tuple[str, ...] = ()
    """Further CURIEs of the same concept."""
    species: int = 0
    """NCBI's number of the taxon to which a gene belongs; 0: of none."""
    location: str = ""


@dataclass(frozen=True)
class DictionaryOptions:
    """What a reader may need besides the file, and what it left out."""

    prefix: str | None = None
    """Prefix of identifiers that have none."""
    sources: frozenset[str] = frozenset()
    """Vocabularies of the UMLS (SAB) to read; empty: all."""
    languages: frozenset[str] = frozenset(("ENG",))
    """Languages of the UMLS (LAT) to read; empty: all."""
    types: frozenset[str] = frozenset()
    """Types of mentions to read from annotated documents; empty: all."""
    dropped: Counter[str] = field(default_factory=Counter)
    """What was left out: reason to number."""

    def curie(self, identifier: str, location: str) -> str:
        """Return the CURIE of a required identifier. Raises InputError where the vocabulary is unknown."""
        found = to_curie(identifier, self.prefix)
        if not found:
            shown = f"{identifier!r} shows no vocabulary" if identifier.strip() else "the identifier is missing"
            raise InputError(
                f"{location}: {shown}. Write identifiers as prefix:identifier (such as mesh:D003924), or give --prefix."
            )
        return found

    def curies(self, identifiers: Iterable[str]) -> tuple[str, ...]:
        """Return the CURIEs of further identifiers; those of unknown vocabularies are dropped."""
        found = [to_curie(item, self.prefix) for item in identifiers if item.strip()]
        if "" in found:
            self.dropped["further identifiers of unknown vocabularies"] += found.count("")
        return tuple(item for item in found if item)


def split_cell(cell: str, separator: str = "|") -> list[str]:
    """Split a cell that lists names; blanks around them and empty ones are dropped."""
    return [name for item in cell.split(separator) if (name := item.strip()) and name != "-"]
