"""Utterances with an intent and a slot tag for each word.

Formats: a folder with the seq.in, seq.out and label of ATIS and SNIPS; NeMo's PREFIX.tsv and PREFIX_slots.tsv with
the dictionaries of intents and slots beside them; JSON lines, also MASSIVE's; Snips' and Rasa's own files; lines of
plain text. Recognized by `utterance_files`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .assistant_utterances import is_assistant, read_assistant, words_and_tags
from .json_lines import has_objects, object_rows
from .record_streams import derived, numbered
from .rows import Row
from .tables import split_rows
from .tagged_words import sentence_of
from .text_lines import blank_split, data_lines, read_lines, require_raw_text

_SLOT = re.compile(r"([^\[\]]+)|\[\s*([^:\]]+?)\s*:\s*([^\]]*)\]")
SEQUENCE_FILES = ("seq.in", "seq.out", "label")
DICTIONARIES = ("dict.intents.csv", "dict.slots.csv")


@dataclass(frozen=True)
class Utterance:
    """Words (or a string not yet split into words) with slot tags and intents, None where the data have none.

    Intents in a string may be several, joined; those in a tuple are whole names.
    """

    words: tuple[str, ...] | str
    tags: tuple[str, ...] | None
    intents: tuple[str, ...] | str | None
    location: str
    id: str = ""


def utterance_files(path: Path) -> list[str]:
    """List the files that make up a set: those of a folder, of NeMo's PREFIX.tsv or PREFIX, or the one file itself."""
    if path.is_dir():
        return [str(path / name) for name in SEQUENCE_FILES]
    if path.is_file() and path.suffix != ".tsv":
        return [str(path)]
    table = path if path.suffix == ".tsv" else path.with_name(f"{path.name}.tsv")
    slots = table.with_name(f"{table.stem}_slots.tsv")
    return [str(table), str(slots), *(str(table.with_name(name)) for name in DICTIONARIES)]


def read_utterances(paths: Sequence[Path]) -> Sequence[Utterance]:
    """Read the files that `utterance_files` listed. Raises InputError with the location of an error."""
    if len(paths) == 1:
        return _read_file(paths[0])
    if len(paths) == len(SEQUENCE_FILES):
        return _read_folder(paths)
    return _read_nemo(*paths)


def _read_file(path: Path) -> Sequence[Utterance]:
    if is_assistant(path):
        return [Utterance(*item.words_and_tags(), (item.intent,), item.location) for item in read_assistant(path)]
    if has_objects(path):
        return derived(object_rows(path), lambda rows: map(_from_json, rows))
    lines = data_lines(path)
    require_raw_text(path, lines)
    return derived(
        lines,
        lambda lines: (Utterance(line, None, None, f"{path}:{n}") for n, line in numbered(lines) if line.strip()),
    )


def _from_json(row: Row) -> Utterance:
    name = str(row.values.get("id", ""))
    if "annot_utt" in row.values:
        return _massive(row, name)
    if "tokens" not in row.values and "words" not in row.values:
        return Utterance(row.string("text"), None, None, row.location, name)
    sentence = sentence_of(row)
    intents: tuple[str, ...] | str | None = None
    if "intents" in row.values:
        intents = row.strings("intents")
    elif "intent" in row.values:
        intents = row.string("intent")
    return Utterance(sentence.words, sentence.tags, intents, row.location, name)


def _massive(row: Row, name: str) -> Utterance:
    """Read a line of MASSIVE, whose slots are marked: wake me at [time : five am]."""
    pieces = _SLOT.findall(row.string("annot_utt"))
    words, tags = words_and_tags((filler if slot else plain, slot) for plain, slot, filler in pieces)
    if "".join(words) != "".join(blank_split(str(row.values.get("utt", " ".join(words))))):
        raise InputError(f"{row.location}: annot_utt without its slots is {' '.join(words)[:80]!r}, which utt is not.")
    return Utterance(words, tags, row.string("intent"), row.location, name)


def _read_folder(paths: Sequence[Path]) -> Sequence[Utterance]:
    sentences, slots, labels = (data_lines(path) for path in paths)
    if not len(sentences) == len(slots) == len(labels):
        raise InputError(
            f"{paths[0].parent}: seq.in has {len(sentences)} lines, seq.out {len(slots)}, label {len(labels)}. Each "
            "utterance needs its line in all three."
        )
    return derived(sentences, lambda sentences: _utterances(paths, sentences, slots, labels), "file")


def _utterances(
    paths: Sequence[Path], sentences: Iterable[str], slots: Iterable[str], labels: Iterable[str]
) -> Iterator[Utterance]:
    for number, (sentence, tags, label) in enumerate(zip(sentences, slots, labels, strict=True), start=1):
        if not sentence.strip() or not label.strip():
            empty = paths[2] if sentence.strip() else paths[0]
            raise InputError(f"{empty}:{number}: the line is empty. Fill it, or remove it from all three files.")
        words = tuple(blank_split(sentence))
        yield Utterance(words, tuple(blank_split(tags)), label.strip(), f"{paths[0]}:{number}")


def _read_nemo(table: Path, slots: Path, intents_file: Path, slots_file: Path) -> list[Utterance]:
    rows = split_rows(table)[1:]
    tag_lines = [(line, number) for number, line in enumerate(read_lines(slots), start=1) if line.strip()]
    intents, names = ([line.strip() for line in read_lines(file)] for file in (intents_file, slots_file))
    if len(rows) != len(tag_lines):
        raise InputError(f"{table} has {len(rows)} utterances below its header, {slots} has {len(tag_lines)} lines.")
    utterances = []
    for (columns, location), (line, number) in zip(rows, tag_lines, strict=True):
        if len(columns) != 2 or not columns[0].strip():
            raise InputError(f"{location}: expected a sentence, a tab and the number of its intent.")
        labels = tuple(_look_up(intents, item, location, intents_file) for item in columns[1].split(","))
        tags = tuple(_look_up(names, item, f"{slots}:{number}", slots_file) for item in blank_split(line))
        utterances.append(Utterance(tuple(blank_split(columns[0])), tags, labels, location))
    return utterances


def _look_up(names: Sequence[str], item: str, location: str, source: Path) -> str:
    if not item.strip().isdecimal() or int(item) >= len(names):
        raise InputError(f"{location}: {item.strip()!r} is no number of the {len(names)} lines of {source}, from 0 on.")
    return names[int(item)]
