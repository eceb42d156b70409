"""Tables of one's own: TSV or CSV with the columns identifier, name, and maybe further names, split at |.

A first row is a header if a cell is `id` or ends so (`DrugBank ID`), which is then the column of identifiers. One may
have several rows. A column `species` has NCBI's numbers of taxa. Where headers have words such as name, symbol, synonym
(HGNC's table), only these columns are names, and if all are further names, the first of the others; else all but
definitions and comments.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell

IDENTIFIERS, SPECIES = ("id", "identifier", "curie"), "species"
NO_NAMES = (SPECIES, "definition", "description", "comment", "comments")
_WORD = r"(?:^|[\W_])(?:{})(?:s|es)?(?:$|[\W_])"
_NAMES = re.compile(_WORD.format("name|symbol|label|term|title|mention|heading"))
_FURTHER_NAMES = re.compile(
    _WORD.format("synonym|alias|abbreviation|acronym|alternative|alt|variant|entry|other|further")
)


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
                header = [cell.lstrip("\ufeff#") for cell in cells]
                is_id = [cell.lower().replace("_", " ").split(" ")[-1] in IDENTIFIERS for cell in header]
                if any(is_id) and (is_id[0] or not any(":" in cell for cell in cells)):
                    place = is_id.index(True)
                    others = _no_names(header, place, options)
                    continue
            yield _concept(cells, place, others, f"{path}:{reader.line_num}", options)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}.") from None


def _no_names(header: Sequence[str], place: int, options: DictionaryOptions) -> dict[int, str]:
    """Return the columns besides the identifier's that have no names; those that are not known are reported."""
    others = {n: cell.lower() for n, cell in enumerate(header) if cell.lower() in NO_NAMES}
    words = {n: re.sub("(?<=[a-z])(?=[A-Z])", "_", cell).lower() for n, cell in enumerate(header) if n not in others}
    further = {n for n, cell in words.items() if n != place and _FURTHER_NAMES.search(cell)}
    unnamed = [n for n in words if n != place and n not in further]
    names = {n for n in unnamed if _NAMES.search(words[n])} or (set(unnamed[:1]) if further else set(unnamed))
    unknown = {n: header[n].lower() for n in unnamed if n not in names}
    if unknown:
        options.dropped[f"columns that are no names ({', '.join(unknown.values())[:80]})"] += len(unknown)
    return others | unknown


def _concept(
    cells: list[str], place: int, others: dict[int, str], location: str, options: DictionaryOptions
) -> Concept:
    if len(cells) < max(2, place + 1):
        raise InputError(f"{location}: one column. Give an identifier and its names, separated by tabs (or as .csv).")
    taxon = next((cells[n] for n, cell in others.items() if cell == SPECIES and n < len(cells)), "")
    if taxon and not taxon.isdecimal():
        raise InputError(f"{location}: species {taxon!r} is no number of NCBI's taxonomy.")
    named = [cell for index, cell in enumerate(cells) if index != place and index not in others]
    names = tuple(name for cell in named for name in split_cell(_unquoted(cell)))
    return Concept(options.curie(cells[place], location), names, (), int(taxon or 0), location)


def _unquoted(cell: str) -> str:
    """Remove the quotes around a list of names, which stands in them in HGNC's TSV, too."""
    is_quoted = "|" in cell and cell.count('"') == 2 and cell.startswith('"') and cell.endswith('"')
    return cell[1:-1] if is_quoted else cell
