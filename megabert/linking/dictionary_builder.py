"""Build a dictionary from files of concepts: a part for each file, resumable, then one folder, atomically.

Parts are kept in OUT.parts until the dictionary is complete; one of the same file and settings is used again.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..formats.dictionaries.concept import Concept, DictionaryOptions
from ..formats.dictionaries.dictionary_formats import MENTIONS, ONE_RECORD_EACH, detect, read_concepts
from ..json_documents import sealed
from ..storage import atomic_folder, atomic_write, file_sha256, save_array
from .dictionary import META, SYNONYMS, VERSION, names_between
from .gram_index import BATCH_NAMES, write_gram_index
from .name_keys import key_hashes, lookup_keys, normalized, number_hashes, words_key
from .word_synonyms import MOST_NAMES, word_synonyms

MAX_NAME_BYTES = 1_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildOptions:
    """How files are read."""

    format: str | None = None
    prefix: str | None = None
    sources: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("ENG",)
    types: tuple[str, ...] = ()
    species: tuple[int, ...] = ()
    """Taxa of the concepts to read; (): all."""
    prefer: str | None = None
    """Prefix of the identifier by which a concept is named if it has one of it; None: the first."""


@dataclass
class _Rows:
    """Names of concepts as they are read: one after the other, with the number of their concept."""

    names: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    concepts: list[int] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    """Number of a concept by its identifier."""
    alternatives: dict[int, dict[str, None]] = field(default_factory=dict)
    species: dict[int, int] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, concept: Concept) -> None:
        """Add a concept, or further names of one that is there."""
        names = [" ".join(name.split()).encode(errors="replace") for name in concept.names]
        kept = [name for name in names if name and len(name) <= MAX_NAME_BYTES]
        if len(kept) < len(names):
            self.dropped["empty names, and names of more than 1,000 bytes"] += len(names) - len(kept)
        if not kept:
            self.dropped["concepts without a name"] += 1
            return
        number = self.numbers.setdefault(concept.id, len(self.numbers))
        if concept.alternatives:
            self.alternatives.setdefault(number, {}).update(dict.fromkeys(concept.alternatives))
        if concept.species:
            self.species[number] = concept.species
        for name in kept:
            self.names += name
            self.ends.append(len(self.names))
            self.concepts.append(number)


def build_dictionary(
    files: Sequence[Path], output: Path, options: BuildOptions, progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Build a dictionary of files in the new folder `output`; returns what dictionary.json has.

    Raises InputError with file and line for what cannot be read, and where no concept is left.
    """
    if output.exists():
        raise InputError(f"{output} exists. Remove it, or name another folder.")
    parts_folder = output.with_name(f"{output.name}.parts")
    parts = [_part(file, parts_folder, options) for file in files]
    with atomic_folder(output) as folder:
        meta = _merge(parts, folder, options.prefer)

        ends, blob = np.load(folder / "name_ends.npy"), np.memmap(folder / "names.bin", np.uint8, "r")

        def keys(start: int, end: int) -> list[str]:
            return list(map(normalized, names_between(ends, blob, start, end)))

        name_vectors = _write_hashes(folder, len(ends), keys)
        write_gram_index(folder, name_vectors, keys, progress)
        _write_synonyms(folder, keys)
        meta["files"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        atomic_write(folder / META, sealed(meta))
    shutil.rmtree(parts_folder)
    return meta


def _part(file: Path, folder: Path, options: BuildOptions) -> Path:
    """Read a file to a part, or find the part that an interrupted command left."""
    name = options.format or detect(file)
    described = {"sha256": file_sha256(file), "format": name, "options": repr(options), "version": VERSION}
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    part = folder / digest
    if part.exists():
        return part
    rows = _read(file, name, options)
    folder.mkdir(parents=True, exist_ok=True)  # not before: a file that cannot be read leaves nothing
    with atomic_folder(part) as temporary:
        (temporary / "names.bin").write_bytes(rows.names)
        save_array(temporary / "name_ends.npy", np.array(rows.ends, np.int64))
        save_array(temporary / "name_concepts.npy", np.array(rows.concepts, np.int32))
        identifiers = [
            "|".join((own, *(item for item in rows.alternatives.get(number, ()) if item != own)))
            for own, number in rows.numbers.items()
        ]
        (temporary / "ids.txt").write_text("".join(f"{item}\n" for item in identifiers), encoding="utf-8")
        save_array(
            temporary / "species.npy",
            np.array([rows.species.get(number, 0) for number in range(len(identifiers))], np.int32),
        )
        source = {"file": file.name, **described, "names": len(rows.ends), "concepts": len(rows.numbers)}
        del source["options"]
        source["dropped"] = dict(sorted(rows.dropped.items()))
        (temporary / "part.json").write_text(json.dumps(source), encoding="utf-8")
    return part


def _read(file: Path, name: str, options: BuildOptions) -> _Rows:
    rows = _Rows()
    reading = DictionaryOptions(
        options.prefix,
        frozenset(options.sources),
        frozenset(options.languages),
        frozenset(options.types),
        rows.dropped,
    )
    taxa = frozenset(options.species)
    for concept in read_concepts(file, name, reading):
        if name in ONE_RECORD_EACH:
            before = rows.places.setdefault(concept.id, concept.location)
            if before != concept.location:
                raise InputError(
                    f"{concept.location}: {concept.id} is that of {before} too. Remove one of the records, or give "
                    "them as a table, in which an identifier may have several lines."
                )
        if taxa and concept.species not in taxa:
            rows.dropped["concepts of other species"] += 1
        else:
            rows.add(concept)
    if not rows.ends:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in rows.dropped.items())
        raise InputError(f"{file} has no concept with a name{f' ({reasons})' if reasons else ''}, read as {name}.")
    return rows


class _Concepts:
    """The concepts of all parts, numbered in the order of their first name, each with all its identifiers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._further: dict[str, int] = {}
        self.identifiers: list[dict[str, None]] = []
        self.taxa: list[int] = []

    def add(self, part: Path) -> NDArray[np.int64]:
        """Add the concepts of a part; returns the number of each."""
        # A concept that an earlier part has under a further identifier is the same one.
        self._numbers = {**self._further, **self._numbers}
        numbers = []
        species = np.load(part / "species.npy").tolist()
        with (part / "ids.txt").open(encoding="utf-8") as lines:
            for line, taxon in zip(lines, species, strict=True):
                names = line.rstrip("\n").split("|")
                number = self._numbers.setdefault(names[0], len(self.identifiers))
                if number == len(self.identifiers):
                    self.identifiers.append({})
                    self.taxa.append(0)
                self.identifiers[number].update(dict.fromkeys(names))
                for name in names[1:]:
                    self._further.setdefault(name, number)
                self.taxa[number] = taxon or self.taxa[number]
                numbers.append(number)
        return np.array(numbers, np.int64)

    def write(self, folder: Path, prefer: str | None) -> list[str]:
        """Write identifiers and species; of a concept's identifiers those with the prefix `prefer` come first."""
        items: list[Iterable[str]] = list(self.identifiers)
        if prefer is not None:  # a stable sort
            items = [sorted(item, key=lambda name: not name.startswith(f"{prefer}:")) for item in self.identifiers]
        ids = ["|".join(item) for item in items]
        (folder / "ids.bin").write_bytes("".join(ids).encode())
        save_array(folder / "id_ends.npy", np.cumsum([len(item.encode()) for item in ids]))
        save_array(folder / "species.npy", np.array(self.taxa, np.int32))
        return ids


_DIGESTED = ("names.bin", "name_ends.npy", "name_mentions.npy", "name_is_listed.npy", "concept_ends.npy", "ids.bin",
             "id_ends.npy", "species.npy")  # fmt: skip


def _merge(parts: Sequence[Path], folder: Path, prefer: str | None) -> dict[str, Any]:
    """Write the names of all parts by concept, each once, and the concepts in the order of their first name."""
    merged = _Concepts()
    blobs, sources = list[bytes](), list[dict[str, Any]]()
    ends, concepts, counts = list[NDArray[Any]](), list[NDArray[Any]](), list[NDArray[Any]]()
    size = 0
    for part in parts:
        sources.append(json.loads((part / "part.json").read_text(encoding="utf-8")))
        blobs.append((part / "names.bin").read_bytes())
        ends.append(np.load(part / "name_ends.npy") + size)
        concepts.append(merged.add(part)[np.load(part / "name_concepts.npy")])
        counts.append(np.full(len(ends[-1]), sources[-1]["format"] == MENTIONS))
        size += len(blobs[-1])
    all_ends, all_concepts, is_mention = map(np.concatenate, (ends, concepts, counts))
    meta = _write_names(folder, b"".join(blobs), all_ends, all_concepts, is_mention, len(merged.identifiers))
    ids = merged.write(folder, prefer)
    prefixes = Counter(item.partition("|")[0].partition(":")[0] for item in ids)
    digest = hashlib.sha256()
    for name in _DIGESTED:
        digest.update(bytes.fromhex(file_sha256(folder / name)))
    return {
        "version": VERSION,
        "digest": digest.hexdigest(),
        "concepts": len(ids),
        **meta,
        "prefixes": dict(prefixes.most_common()),
        "species": dict(Counter(map(str, filter(None, merged.taxa))).most_common(20)),
        "sources": sources,
    }


def _write_names(
    folder: Path,
    blob: bytes,
    ends: NDArray[np.int64],
    concepts: NDArray[np.int64],
    is_mention: NDArray[np.bool_],
    num_concepts: int,
) -> dict[str, int]:
    """Write names sorted by concept, each once, in lower case or not, how often each is a mention, and if only that."""
    starts = np.concatenate([[0], ends[:-1]])
    order = np.argsort(concepts, kind="stable")
    rows = (column[order].tolist() for column in (starts, ends, concepts, is_mention))
    seen: dict[bytes, int] = {}
    current, size = -1, 0
    kept_ends, mentions, is_listed = list[int](), list[int](), list[bool]()
    counts = np.zeros(num_concepts, np.int64)
    with (folder / "names.bin").open("wb") as file:
        for start, end, concept, is_one in zip(*rows, strict=True):
            if concept != current:
                current, seen = concept, {}
            name = blob[start:end]
            number = seen.setdefault(name.decode().lower().encode(), len(kept_ends))
            if number == len(kept_ends):
                file.write(name)
                size += len(name)
                kept_ends.append(size)
                mentions.append(0)
                is_listed.append(False)
                counts[concept] += 1
            mentions[number] += is_one
            is_listed[number] |= not is_one
    save_array(folder / "name_ends.npy", np.array(kept_ends, np.int64))
    save_array(folder / "name_mentions.npy", np.minimum(mentions, 2**16 - 1).astype(np.uint16))
    save_array(folder / "name_is_listed.npy", np.array(is_listed, bool))
    save_array(folder / "concept_ends.npy", np.cumsum(counts))
    return {"names": len(kept_ends), "repeated_names": len(ends) - len(kept_ends)}


def _write_hashes(folder: Path, num_names: int, keys: Callable[[int, int], Sequence[str]]) -> NDArray[np.uint32]:
    """Write the hashes of the keys of all names, sorted, with the name of each; of each name that of its number.

    Returns the number of each name's set of words, counted by their first names.
    """
    word_sets = [np.empty(0, np.uint64)]
    hashes, owners, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    for start in range(0, num_names, BATCH_NAMES):
        names = keys(start, min(start + BATCH_NAMES, num_names))
        rows = [(key, start + number) for number, name in enumerate(names) for key in sorted(lookup_keys(name))]
        hashes.append(key_hashes([key for key, _ in rows]))
        owners.append(np.array([number for _, number in rows], np.uint32))
        numbers.append(number_hashes(names))
        word_sets.append(key_hashes([words_key(name.split()) for name in names]))
    save_array(folder / "name_numbers.npy", np.concatenate(numbers))
    all_hashes = np.concatenate(hashes)
    order = np.argsort(all_hashes, kind="stable")
    save_array(folder / "key_hashes.npy", all_hashes[order])
    save_array(folder / "key_names.npy", np.concatenate(owners)[order])
    _, firsts, numbers_of = np.unique(np.concatenate(word_sets), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts)).astype(np.uint32)[numbers_of]


def _write_synonyms(folder: Path, keys: Callable[[int, int], Sequence[str]]) -> None:
    """Write which words may take the place of which, from names that are not mentions alone."""
    ends, is_listed = np.load(folder / "concept_ends.npy"), np.load(folder / "name_is_listed.npy")[:MOST_NAMES]
    concepts = np.searchsorted(ends, np.arange(len(is_listed)), side="right").tolist()
    names = zip(keys(0, len(is_listed)), concepts, is_listed.tolist(), strict=True)
    found = word_synonyms((name, concept) for name, concept, is_one in names if is_one)
    atomic_write(folder / SYNONYMS, json.dumps(found, ensure_ascii=False).encode())
