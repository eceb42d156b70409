"""CTD's vocabularies as TSV or CSV: comments, among them the names of the columns, then a concept a line.

Source: ctdbase.org/downloads, CTD_diseases, CTD_chemicals, CTD_genes, CTD_anatomy.
"""

import csv
import html
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell

# Of each vocabulary the columns of name, identifier, further names and further identifiers; the prefix of numbers.
COLUMNS = {
    "DiseaseName": ("DiseaseID", ("Synonyms",), "AltDiseaseIDs", "omim"),
    "ChemicalName": ("ChemicalID", ("Synonyms",), "CasRN", "cas"),
    "GeneSymbol": ("GeneID", ("GeneName", "Synonyms"), "AltGeneIDs", "ncbigene"),
    "AnatomyName": ("AnatomyID", ("Synonyms",), "AltAnatomyIDs", "mesh"),
}


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the concepts."""
    header: dict[str, int] = {}
    is_csv = ".csv" in (suffix.lower() for suffix in path.suffixes)
    for number, line in text_lines(path, file):
        line = line.rstrip("\r\n")
        cells = next(csv.reader([line]), []) if is_csv else line.split("\t")
        if line.startswith("#"):
            names = [cell.strip() for cell in cells]
            names[0] = names[0].lstrip("# ")
            header = {name: index for index, name in enumerate(names)} if names[0] in COLUMNS else header
        elif line.strip():
            if not header:
                raise InputError(f"{path}:{number}: no line before it names the columns, as # {', # '.join(COLUMNS)}.")
            if len(cells) < len(header):
                raise InputError(f"{path}:{number}: {len(cells)} columns; the file has {len(header)}.")
            yield _concept({name: cells[index] for name, index in header.items()}, f"{path}:{number}", options)


def _concept(row: dict[str, str], location: str, options: DictionaryOptions) -> Concept:
    name = next(iter(row))
    identifier, others, alternatives, prefix = COLUMNS[name]
    own = row.get(identifier, "")
    own = f"{prefix}:{own}" if own.isdecimal() else own
    further = [
        item if ":" in item or not item[:1].isdecimal() else f"{prefix}:{item}"
        for item in split_cell(row.get(alternatives, ""))
    ]
    names = [html.unescape(row[name]), *(html.unescape(n) for key in others for n in split_cell(row.get(key, "")))]
    return Concept(options.curie(own, location), tuple(names), options.curies(further), 0, location)
