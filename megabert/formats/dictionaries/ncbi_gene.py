"""NCBI Gene's gene_info: a gene a line, with its taxon, symbols, synonyms and full names.

Source: ftp.ncbi.nlm.nih.gov/gene/DATA, README.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell

_SINGLE = (
    "Symbol",
    "Symbol_from_nomenclature_authority",
    "Full_name_from_nomenclature_authority",
    "description",
    "LocusTag",
)
_LISTS = ("Synonyms", "Other_designations")
_REQUIRED = ("tax_id", "GeneID", "Symbol")


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the genes; NEWENTRY, which stands for what has no name yet, is dropped."""
    for location, row in _rows(path, file):
        if row["Symbol"] == "NEWENTRY":
            options.dropped["genes without a name (NEWENTRY)"] += 1
            continue
        names = [row[name] for name in _SINGLE if row.get(name, "-") != "-"]
        names += [name for column in _LISTS for name in split_cell(row.get(column, ""))]
        yield Concept(f"ncbigene:{row['GeneID']}", tuple(names), (), int(row["tax_id"]), location)


def _rows(path: Path, file: IO[bytes]) -> Iterator[tuple[str, dict[str, str]]]:
    """Return the location and the cells, by the names of their columns, of each line after the header."""
    header: dict[str, int] = {}
    for number, line in text_lines(path, file):
        cells = line.rstrip("\r\n").split("\t")
        if not header:
            header = {name.lstrip("#"): index for index, name in enumerate(cells)}
            missing = [name for name in _REQUIRED if name not in header]
            if missing:
                raise InputError(f"{path}:{number}: no column {missing[0]}; gene_info begins with #tax_id, GeneID.")
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}:{number}: {len(cells)} columns; the file has {len(header)}.")
        row = {name: cells[index] for name, index in header.items()}
        if not row["tax_id"].isdecimal() or not row["GeneID"].isdecimal():
            raise InputError(f"{path}:{number}: tax_id {row['tax_id']!r} and GeneID {row['GeneID']!r} must be numbers.")
        yield f"{path}:{number}", row
