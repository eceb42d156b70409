"""Utterances with an intent and a slot for each word, in the formats that they are passed around in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .columns import sentence_of
from .json_lines import JSON_SUFFIXES, read_json_lines
from .rows import Row
from .tables import split_rows
from .text_lines import blank_split, read_lines

SEQUENCE_FILES = ("seq.in", "seq.out", "label")
DICTIONARIES = ("dict.intents.csv", "dict.slots.csv")


@dataclass(frozen=True)
class Utterance:
    """Words (or a text that is not cut into words) with slots and intents, None where the data have none."""

    words: tuple[str, ...] | str
    tags: tuple[str, ...] | None
    intents: tuple[str, ...] | None
    place: str
    id: str = ""


def utterance_files(path: Path) -> list[str]:
    """List the files that belong together: of a folder, of NeMo's PREFIX.tsv or PREFIX, or the one file itself."""
    if path.is_dir():
        return [str(path / name) for name in SEQUENCE_FILES]
    if path.is_file() and path.suffix != ".tsv":
        return [str(path)]
    table = path if path.suffix == ".tsv" else path.with_name(f"{path.name}.tsv")
    slots = table.with_name(f"{table.stem}_slots.tsv")
    return [str(table), str(slots), *(str(table.with_name(name)) for name in DICTIONARIES)]


def read_utterances(paths: Sequence[Path]) -> list[Utterance]:
    """Read the files that `utterance_files` listed. Raises InputError with the place of what does not fit."""
    if len(paths) == 1:
        return _read_one(paths[0])
    if len(paths) == len(SEQUENCE_FILES):
        return _read_folder(paths)
    return _read_nemo(*paths)


def _read_one(path: Path) -> list[Utterance]:
    if path.suffix in JSON_SUFFIXES:
        return [_of_json(row) for row in read_json_lines(path)]
    lines = enumerate(read_lines(path), start=1)
    return [Utterance(line, None, None, f"{path}:{number}") for number, line in lines if line.strip()]


def _of_json(row: Row) -> Utterance:
    name = str(row.values.get("id", ""))
    if "tokens" not in row.values:
        return Utterance(row.text("text"), None, None, row.place, name)
    sentence = sentence_of(row)
    intents = None
    if "intents" in row.values:
        intents = row.texts("intents")
    elif "intent" in row.values:
        intents = (row.text("intent"),)
    return Utterance(sentence.words, sentence.tags, intents, row.place, name)


def _read_folder(paths: Sequence[Path]) -> list[Utterance]:
    texts, tags, labels = (read_lines(path) for path in paths)
    if not len(texts) == len(tags) == len(labels):
        raise InputError(
            f"{paths[0].parent}: seq.in has {len(texts)} lines, seq.out {len(tags)}, label {len(labels)}. Each "
            "utterance needs its line in all three."
        )
    found = []
    for number, (text, own, label) in enumerate(zip(texts, tags, labels, strict=True), start=1):
        if not text.strip() or not label.strip():
            empty = paths[2] if text.strip() else paths[0]
            raise InputError(f"{empty}:{number}: the line is empty. Fill it, or remove it from all three files.")
        found.append(
            Utterance(tuple(blank_split(text)), tuple(blank_split(own)), (label.strip(),), f"{paths[0]}:{number}")
        )
    return found


def _read_nemo(texts: Path, slots: Path, intents_file: Path, slots_file: Path) -> list[Utterance]:
    rows = split_rows(texts)[1:]
    tags = [(line, number) for number, line in enumerate(read_lines(slots), start=1) if line.strip()]
    intents, names = ([line.strip() for line in read_lines(file)] for file in (intents_file, slots_file))
    if len(rows) != len(tags):
        raise InputError(f"{texts} has {len(rows)} utterances below its header, {slots} has {len(tags)} lines.")
    found = []
    for (columns, place), (line, number) in zip(rows, tags, strict=True):
        if len(columns) != 2 or not columns[0].strip():
            raise InputError(f"{place}: expected a sentence, a tab and the number of its intent.")
        own = tuple(_named(intents, item, place, intents_file) for item in columns[1].split(","))
        filled = tuple(_named(names, item, f"{slots}:{number}", slots_file) for item in blank_split(line))
        found.append(Utterance(tuple(blank_split(columns[0])), filled, own, place))
    return found


def _named(names: Sequence[str], item: str, place: str, source: Path) -> str:
    if not item.strip().isdecimal() or int(item) >= len(names):
        raise InputError(f"{place}: {item.strip()!r} is no number of the {len(names)} lines of {source}, from 0 on.")
    return names[int(item)]
