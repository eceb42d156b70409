"""Dictionary: concepts with identifiers and names in a folder of memory-mapped files, opened in milliseconds.

dictionary.json (sealed: version, counts, sources, digest), names.bin and ids.bin (UTF-8, one after the other) with
their ends, the ends of each concept's names, species, the hashes of the names' keys, sorted, and of their numbers,
the n-gram index, and words that stand for each other.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError
from ..json_documents import parse_sealed
from .candidates import NameCandidate
from .gram_index import GramIndex
from .name_keys import has_key, key_hashes, normalized, series, series_keys, words_key

VERSION = 5
META, SYNONYMS = "dictionary.json", "synonyms.json"
CACHED_SPECIES = 16
"""Sets of taxa whose names are remembered."""
CACHED_CANDIDATES = 100_000
CACHED_SERIES, MAX_MEMBERS = 10_000, 500
"""Series that are remembered, and members of a series that are looked at."""
ARRAYS = ("name_ends", "name_mentions", "name_is_listed", "name_numbers", "concept_ends", "id_ends", "species",
          "key_hashes", "key_names")  # fmt: skip


@dataclass(frozen=True)
class Dictionary:
    """Names are numbered in the order of their concepts; the preferred one first."""

    folder: Path
    meta: dict[str, Any]
    grams: GramIndex
    arrays: dict[str, NDArray[Any]]
    name_bytes: NDArray[np.uint8]
    id_bytes: NDArray[np.uint8]
    synonyms: dict[str, dict[str, float]]
    """Words that may take a word's place, with the share of pairs of names that are of one concept then."""

    @classmethod
    def open(cls, folder: str | Path) -> "Dictionary":
        """Open a dictionary. Raises InputError if the folder is none, CheckpointError if it is damaged."""
        folder = Path(folder)
        meta = read_meta(folder)
        try:
            arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
            blobs = [np.asarray(np.memmap(folder / f"{name}.bin", np.uint8, "r")) for name in ("names", "ids")]
            grams = GramIndex.open(folder)
            synonyms = json.loads((folder / SYNONYMS).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is damaged: {error}. Build the dictionary again.") from None
        found = (len(arrays["name_ends"]), len(arrays["concept_ends"]), len(blobs[0]), len(grams.name_vectors))
        expected = (meta["names"], meta["concepts"], int(arrays["name_ends"][-1]), meta["names"])
        if found != expected:
            raise CheckpointError(f"{folder} is damaged: sizes {found} for {expected}. Build the dictionary again.")
        return cls(folder, meta, grams, arrays, blobs[0], blobs[1], synonyms)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder's name: each process maps the files itself."""
        return Dictionary.open, (self.folder,)

    def __len__(self) -> int:
        """Count the names."""
        return int(self.meta["names"])

    @property
    def digest(self) -> str:
        """Identifies the content: concepts, names and their order."""
        return str(self.meta["digest"])

    def names(self, start: int, end: int) -> list[str]:
        """Return the names from one number to another."""
        return names_between(self.arrays["name_ends"], self.name_bytes, start, end)

    def name(self, number: int) -> str:
        """Return one name."""
        ends = self.arrays["name_ends"]
        start = int(ends[number - 1]) if number else 0
        return self.name_bytes[start : int(ends[number])].tobytes().decode()

    def preferred(self, concept: int) -> str:
        """Return the preferred name of a concept."""
        return self.name(self._names_of(concept)[0])

    def concepts_of(self, names: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the concept of each name."""
        return np.asarray(np.searchsorted(self.arrays["concept_ends"], names, side="right"))

    def identifiers(self, concept: int) -> tuple[str, ...]:
        """Return the identifiers of a concept, its own first."""
        ends = self.arrays["id_ends"]
        start = int(ends[concept - 1]) if concept else 0
        return tuple(self.id_bytes[start : int(ends[concept])].tobytes().decode().split("|"))

    def candidates(
        self,
        names: NDArray[np.int64],
        concepts: NDArray[np.int64],
        similarities: NDArray[np.float64],
        excess: NDArray[np.float64],
    ) -> list[NameCandidate]:
        """Return names of concepts as candidates."""
        numbers, known = names.tolist(), self._candidates
        if len(known) >= CACHED_CANDIDATES:
            known.clear()
        if any(is_new := [number not in known for number in numbers]):
            new, places = np.unique(names[is_new], return_index=True)
            columns = self.arrays["name_mentions"][new], self.arrays["name_is_listed"][new]
            texts = _pieces(self.arrays["name_ends"], self.name_bytes, new)
            ids = _pieces(self.arrays["id_ends"], self.id_bytes, concepts[is_new][places])
            for number, text, own, mentions, is_listed in zip(
                new.tolist(), texts, ids, *(column.tolist() for column in columns), strict=True
            ):
                known[number] = text, tuple(own.split("|")), int(mentions), bool(is_listed)
        return [
            NameCandidate(*known[number][:2], similarity, *known[number][2:], *further)
            for number, similarity, *further in zip(
                numbers, similarities.tolist(), concepts.tolist(), excess.tolist(), strict=True
            )
        ]

    @cached_property
    def _candidates(self) -> dict[int, tuple[str, tuple[str, ...], int, bool]]:
        return {}

    def equivalents(self) -> dict[str, frozenset[str]]:
        """Map each identifier to all of its concepts."""
        found: dict[str, frozenset[str]] = {}
        for concept in range(self.meta["concepts"]):
            own = frozenset(self.identifiers(concept))
            for item in own:
                found[item] = found.get(item, own) | own
        return found

    def require_any(self, identifiers: Iterable[str]) -> None:
        """Raise InputError if the dictionary has none of the identifiers: it is one of another type of entity."""
        wanted = set(identifiers)
        if wanted and not wanted & self.equivalents().keys():
            own = ", ".join(self.meta["prefixes"])
            raise InputError(
                f"{self.folder} has none of the {len(wanted)} gold identifiers, such as {min(wanted)}; its own are of "
                f"{own}. Give the dictionary of these entities (or --type, or --prefix for identifiers without one)."
            )

    def exact(self, key: str, most: int | None = None) -> list[int]:
        """Return the names that have a key, in their order, at most so many."""
        return self.exact_names([key], most)[0]

    def exact_names(self, keys: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Return the names that have each key, in their order, at most so many."""
        wanted, hashes = key_hashes(keys), self.arrays["key_hashes"]
        ends = (np.searchsorted(hashes, wanted, side="left"), np.searchsorted(hashes, wanted, side="right"))
        return [
            [name for name in sorted(self.arrays["key_names"][first:last].tolist())[:most]
             if has_key(normalized(self.name(name)), key)] if first < last else []
            for key, first, last in zip(keys, *(places.tolist() for places in ends), strict=True)
        ]  # fmt: skip

    def synonym_keys(self, key: str) -> dict[str, float]:
        """Return the keys of a normalized name's words with one replaced by a synonym, with its share."""
        found: dict[str, float] = {}
        words = set(key.split())
        for word in sorted(words) if len(words) > 1 else ():
            for other, share in self.synonyms.get(word, {}).items():
                changed = words_key(words - {word} | {other})
                found[changed] = max(found.get(changed, 0.0), share)
        return found

    def in_series(self, key: str) -> list[int]:
        """Return the names with the number of a normalized name in the same series or in one that runs parallel to it.

        Series are parallel where members of one number are names of one concept: "SPG 3" and "spastic paraplegia 3".
        The concept that most parallels name is meant. Where none is found for 2d it is the 2 of the same series.
        """
        if (own := series(key)) is None:
            return []
        words, number = own
        if found := self.exact(series_keys(words, number)[1]):
            return found
        votes = Counter[int]()
        for other, weight in self._parallel(words).items():
            names = self.exact(series_keys(other, number)[1])
            votes.update(dict.fromkeys(self.concepts_of(np.array(names, np.int64)).tolist(), weight))
        if not votes and number[:-1].isdigit() and number[-1].isalpha():
            return self.exact(series_keys(words, number[:-1])[1])
        most = max(votes.values(), default=0)
        return [name for concept in sorted(votes) if votes[concept] == most for name in self._names_of(concept)]

    def _parallel(self, words: str) -> Counter[str]:
        """Count the concepts in which another series has the number of this one."""
        counts = self._parallels.get(words)
        if counts is None:
            counts = Counter[str]()
            members = self.exact(series_keys(words)[0], MAX_MEMBERS)
            for concept in dict.fromkeys(self.concepts_of(np.array(members, np.int64)).tolist()):
                found = set(filter(None, (series(normalized(self.name(name))) for name in self._names_of(concept))))
                numbers = {number for other, number in found if other == words}
                counts.update({other for other, number in found if number in numbers and other != words})
            if len(self._parallels) >= CACHED_SERIES:
                self._parallels.clear()
            self._parallels[words] = counts
        return counts

    @cached_property
    def _parallels(self) -> dict[str, Counter[str]]:
        return {}

    def _names_of(self, concept: int) -> range:
        ends = self.arrays["concept_ends"]
        return range(int(ends[concept - 1]) if concept else 0, int(ends[concept]))

    @cached_property
    def taxa(self) -> frozenset[int]:
        """The taxa of all concepts."""
        return frozenset(np.unique(self.arrays["species"]).tolist()) - {0}

    def allowed(self, species: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return which names are those of given taxa, None without any. Raises InputError if there are none of them."""
        if not len(species):
            return None
        found = self._allowed.get(key := tuple(species))  # threads share it
        if found is None:
            found = self._names_of_taxa(key)
            if len(self._allowed) >= CACHED_SPECIES:
                self._allowed.clear()
            self._allowed[key] = found
        return found

    @cached_property
    def _allowed(self) -> dict[tuple[int, ...], NDArray[np.bool_]]:
        return {}

    def _names_of_taxa(self, species: Sequence[int]) -> NDArray[np.bool_]:
        wanted = np.isin(self.arrays["species"], np.array(species))
        if not wanted.any():
            raise InputError(
                f"{self.folder} has no concept of the species {', '.join(map(str, species))}. "
                "Give the number of a taxon that `megabert dictionary info` lists."
            )
        starts = np.diff(self.arrays["concept_ends"], prepend=0)
        return np.asarray(np.repeat(wanted, starts))


def read_meta(folder: Path) -> dict[str, Any]:
    """Read what a dictionary says about itself. Raises InputError where the folder is none."""
    file = folder / META
    if not file.is_file():
        hint = " It is a file: build a dictionary of it first" if folder.is_file() else " Build one"
        raise InputError(f"{folder} is no dictionary.{hint}: megabert dictionary build FILE... -o {folder.stem}.dict.")
    meta = parse_sealed(file.read_bytes(), str(file))
    if meta.get("version") != VERSION:
        raise InputError(
            f"{folder} is a dictionary of version {meta.get('version')}; {VERSION} is read. Build it again."
        )
    return meta


def _pieces(ends: NDArray[np.int64], blob: NDArray[np.uint8], numbers: NDArray[np.int64]) -> list[str]:
    """Read texts of any numbers, of the ends and bytes of all."""
    starts = np.where(numbers > 0, ends[numbers - 1], 0).tolist()
    view = blob.data
    return [view[start:end].tobytes().decode() for start, end in zip(starts, ends[numbers].tolist(), strict=True)]


def names_between(ends: NDArray[np.int64], blob: NDArray[np.uint8], start: int, end: int) -> list[str]:
    """Read the names from one number to another, of their ends and bytes."""
    if start >= end:
        return []
    first = int(ends[start - 1]) if start else 0
    content = blob[first : int(ends[end - 1])].tobytes()
    places = [0, *(ends[start:end] - first).tolist()]
    return [content[a:b].decode() for a, b in pairwise(places)]
