"""Tables of one's own: TSV or CSV with the columns identifier, name, and maybe further names, split at |.

A first row is a header if its first cell is `id` or ends so (`DrugBank ID`); an identifier may have several rows. A
column `species` has NCBI's numbers of taxa.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the rows as concepts."""
    is_csv = ".csv" in (suffix.lower() for suffix in path.suffixes)
    lines = (line for _, line in text_lines(path, file))
    # Tabs cannot be quoted; a quotation mark in a TSV is part of the name.
    dialect: dict[str, Any] = {"delimiter": ","} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, strict=True, **dialect)
    species = -1
    is_first = True
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if is_first:
                is_first = False
                header = [cell.lower().lstrip("\ufeff#") for cell in cells]
                if header[0].replace("_", " ").split(" ")[-1:] in (["id"], ["identifier"], ["curie"]):
                    species = header.index("species") if "species" in header else -1
                    continue
            yield _concept(cells, species, f"{path}:{reader.line_num}", options)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}.") from None


def _concept(cells: list[str], species: int, location: str, options: DictionaryOptions) -> Concept:
    if len(cells) < 2:
        raise InputError(f"{location}: one column. Give an identifier and its names, separated by tabs (or as .csv).")
    taxon = cells[species] if species > 0 else ""
    if taxon and not taxon.isdecimal():
        raise InputError(f"{location}: species {taxon!r} is no number of NCBI's taxonomy.")
    named = [cell for index, cell in enumerate(cells) if index and index != species]
    names = tuple(name for cell in named for name in split_cell(cell))
    return Concept(options.curie(cells[0], location), names, (), int(taxon or 0), location)
