"""MeSH ASCII: records that begin with *NEWRECORD, lines `KEY = value`. Source: NLM, "MeSH ASCII data elements"."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions

START = "*NEWRECORD"
_NAMES = ("MH", "NM", "SH")  # of descriptors, supplementary concepts and qualifiers
_TERMS = ("ENTRY", "PRINT ENTRY", "SY")  # the term, then its attributes behind bars


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the records: the heading of each, then its entry terms."""
    record: list[tuple[str, str]] = []
    start = 0
    for number, line in text_lines(path, file):
        line = line.strip()
        if line == START:
            if start:
                yield _concept(f"{path}:{start}", record)
            record, start = [], number
        elif line:
            key, equals, value = line.partition(" = ")
            if not start or not (equals or line.endswith("=")):
                raise InputError(f"{path}:{number}: {line[:60]!r} is no line KEY = value of a record. Get it again.")
            record.append((key, value))
    if start:
        yield _concept(f"{path}:{start}", record)


def _concept(location: str, record: list[tuple[str, str]]) -> Concept:
    values: dict[str, list[str]] = {}
    for key, value in record:
        values.setdefault(key, []).append(value)
    if not values.get("UI"):
        raise InputError(f"{location}: the record has no line UI = identifier. Get the file again.")
    names = [value for key in _NAMES for value in values.get(key, ())]
    names += [value.split("|")[0] for key in _TERMS for value in values.get(key, ())]
    return Concept(f"mesh:{values['UI'][0].strip()}", tuple(names), (), 0, location)
