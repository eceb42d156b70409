"""Tables of one's own: TSV or CSV with the columns identifier, name, and maybe further names, split at |.

A first row is a header if a cell is `id` or ends so (`DrugBank ID`), which is then the column of identifiers. One may
have several rows. A column `species` has NCBI's numbers of taxa; definitions and comments are no names.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell

IDENTIFIERS, SPECIES = ("id", "identifier", "curie"), "species"
NO_NAMES = (SPECIES, "definition", "description", "comment", "comments")


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the rows as concepts."""
    is_csv = ".csv" in (suffix.lower() for suffix in path.suffixes)
    lines = (line for _, line in text_lines(path, file))
    # Tabs cannot be quoted; a quotation mark in a TSV is part of the name.
    dialect: dict[str, Any] = {"delimiter": ","} if is_csv else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, strict=True, **dialect)
    place, others = 0, dict[int, str]()
    is_first = True
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if is_first:
                is_first = False
                header = [cell.lower().lstrip("\ufeff#") for cell in cells]
                is_id = [cell.replace("_", " ").split(" ")[-1] in IDENTIFIERS for cell in header]
                if any(is_id) and (is_id[0] or not any(":" in cell for cell in cells)):
                    place = is_id.index(True)
                    others = {n: cell for n, cell in enumerate(header) if cell in NO_NAMES}
                    continue
            yield _concept(cells, place, others, f"{path}:{reader.line_num}", options)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}.") from None


def _concept(
    cells: list[str], place: int, others: dict[int, str], location: str, options: DictionaryOptions
) -> Concept:
    if len(cells) < max(2, place + 1):
        raise InputError(f"{location}: one column. Give an identifier and its names, separated by tabs (or as .csv).")
    taxon = next((cells[n] for n, cell in others.items() if cell == SPECIES and n < len(cells)), "")
    if taxon and not taxon.isdecimal():
        raise InputError(f"{location}: species {taxon!r} is no number of NCBI's taxonomy.")
    named = [cell for index, cell in enumerate(cells) if index != place and index not in others]
    names = tuple(name for cell in named for name in split_cell(cell))
    return Concept(options.curie(cells[place], location), names, (), int(taxon or 0), location)
