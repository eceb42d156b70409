"""Dictionaries of BioSyn and SapBERT: `id|further ids||name|name|...`; an identifier may have several lines.

Source: github.com/dmis-lab/BioSyn, preprocess/resources/medic_06Jul2012.txt.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions, split_cell

SEPARATOR = "||"


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the lines as concepts. Numbers are identifiers of OMIM, as in MEDIC, unless options have a prefix."""
    prefix = options.prefix or "omim"
    for number, line in text_lines(path, file):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        identifiers, found, names = line.partition(SEPARATOR)
        if not found:
            raise InputError(f"{path}:{number}: no || between identifiers and names: id|id||name|name.")
        # MEDIC's root has the letter of its tree alone: C||Diseases.
        own = [
            f"{prefix}:{item}" if item.isdecimal() else "mesh:C" if item == "C" else item
            for item in split_cell(identifiers)
        ] or [""]
        location = f"{path}:{number}"
        # MEDIC has some names as they stand in web pages: Down&apos;s Syndrome.
        listed = tuple(map(html.unescape, split_cell(names)))
        yield Concept(options.curie(own[0], location), listed, options.curies(own[1:]), 0, location)
