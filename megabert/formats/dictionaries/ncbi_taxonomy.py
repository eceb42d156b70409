"""NCBI Taxonomy's names.dmp: a name a line, `tax_id | name | unique name | class |`, in the order of the taxa.

Source: ftp.ncbi.nlm.nih.gov/pub/taxonomy, taxdump_readme.txt.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions

SEPARATOR = "\t|\t"
_DROPPED = ("authority", "type material", "in-part")


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the taxa, their scientific name first; authorities and type material are no names of the taxon."""
    for taxon, lines in groupby(_lines(path, file), key=lambda line: line[1]):
        rows, names = list(lines), list[str]()
        for _, _, name, kind in rows:
            if kind in _DROPPED:
                options.dropped[f"names of class {kind}"] += 1
            elif kind == "scientific name":
                names.insert(0, name)
            else:
                names.append(name)
        if names:
            yield Concept(f"ncbitaxon:{taxon}", tuple(names), (), int(taxon), rows[0][0])


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, str, str, str]]:
    """Return the location of each line, its taxon, name and class of name."""
    for number, line in text_lines(path, file):
        cells = line.rstrip("\r\n").removesuffix("\t|").split(SEPARATOR)
        if len(cells) != 4 or not cells[0].isdecimal():
            raise InputError(
                f"{path}:{number}: {line.strip()[:60]!r} is no line of names.dmp: tax_id, name, unique name, class."
            )
        yield f"{path}:{number}", cells[0], cells[1], cells[3]
