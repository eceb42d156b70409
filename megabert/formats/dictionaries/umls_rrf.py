"""The UMLS' MRCONSO.RRF: a name a line, 18 columns that end with bars; lines of a concept follow each other.

Source: UMLS Reference Manual, chapter 3, "Concept Names and Sources".
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions

COLUMNS = 18
_CUI, _LANGUAGE, _STATUS, _IS_PREFERRED, _SOURCE, _NAME, _SUPPRESS = 0, 1, 2, 6, 11, 14, 16
_SUPPRESSED = {"O": "obsolete names", "E": "suppressed names", "Y": "suppressed names"}


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the concepts; names of other sources and languages and suppressed names are dropped."""
    for cui, lines in groupby(_rows(path, file), key=lambda row: row[1][_CUI]):
        rows, preferred, names = list(lines), list[str](), list[str]()
        for _, cells in rows:
            reason = _reason(cells, options)
            if reason:
                options.dropped[reason] += 1
                continue
            is_preferred = cells[_STATUS] == "P" and cells[_IS_PREFERRED] == "Y" and not preferred
            (preferred if is_preferred else names).append(cells[_NAME])
        if names or preferred:
            yield Concept(f"umls:{cui}", (*preferred, *names), (), 0, rows[0][0])


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, list[str]]]:
    """Return the location and the cells of each line."""
    for number, line in text_lines(path, file):
        cells = line.rstrip("\r\n").split("|")
        if len(cells) != COLUMNS + 1:
            raise InputError(
                f"{path}:{number}: {len(cells) - 1} columns; MRCONSO.RRF has {COLUMNS}, each followed by a bar."
            )
        yield f"{path}:{number}", cells


def _reason(cells: list[str], options: DictionaryOptions) -> str:
    """Say why a line is left out; "" if it is read."""
    if options.languages and cells[_LANGUAGE] not in options.languages:
        return "names in other languages"
    if options.sources and cells[_SOURCE] not in options.sources:
        return "names of other sources"
    return _SUPPRESSED.get(cells[_SUPPRESS], "")
