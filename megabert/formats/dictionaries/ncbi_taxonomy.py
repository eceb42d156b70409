"""NCBI Taxonomy's names.dmp: a name a line, `tax_id | name | unique name | class |`, in the order of the taxa.

Source: ftp.ncbi.nlm.nih.gov/pub/taxonomy, taxdump_readme.txt.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions

SEPARATOR = "\t|\t"
_DROPPED = ("authority", "type material", "in-part")


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the taxa, their scientific name first; authorities and type material are no names of the taxon."""
    taxon, location, names = "", "", list[str]()
    for number, line in text_lines(path, file):
        cells = line.rstrip("\r\n").removesuffix("\t|").split(SEPARATOR)
        if len(cells) != 4 or not cells[0].isdecimal():
            raise InputError(
                f"{path}:{number}: {line.strip()[:60]!r} is no line of names.dmp: tax_id, name, unique name, class."
            )
        if cells[0] != taxon:
            if names:
                yield Concept(f"ncbitaxon:{taxon}", tuple(names), (), int(taxon), location)
            taxon, location, names = cells[0], f"{path}:{number}", []
        if cells[3] in _DROPPED:
            options.dropped[f"names of class {cells[3]}"] += 1
        elif cells[3] == "scientific name":
            names.insert(0, cells[1])
        else:
            names.append(cells[1])
    if names:
        yield Concept(f"ncbitaxon:{taxon}", tuple(names), (), int(taxon), location)
