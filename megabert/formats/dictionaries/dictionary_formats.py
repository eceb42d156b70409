"""The formats of dictionaries: names, readers, and how a file's content shows which it is."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ...errors import ConfigError, InputError
from ..documents.document_formats import format_by_ending
from ..documents.sources import open_binary, peek
from . import biosyn, ctd, mesh_ascii, mesh_xml, name_table, ncbi_gene, ncbi_taxonomy, obo, umls_rrf
from .annotated_mentions import read_mentions
from .concept import Concept, DictionaryOptions

Reader = Callable[[Path, IO[bytes], DictionaryOptions], Iterator[Concept]]
READERS: dict[str, Reader] = {
    "obo": obo.read,
    "rrf": umls_rrf.read,
    "mesh-xml": mesh_xml.read,
    "mesh-ascii": mesh_ascii.read,
    "ctd": ctd.read,
    "gene": ncbi_gene.read,
    "taxonomy": ncbi_taxonomy.read,
    "biosyn": biosyn.read,
    "table": name_table.read,
}
MENTIONS = "mentions"
NAMES = (*READERS, MENTIONS)
# The first lines of each; a table is what remains.
_STARTS = {
    "obo": re.compile(rb"format-version:|(?:!.*\n)*\[Term\]"),
    "mesh-xml": re.compile(rb"\s*<(?:\?xml|!DOCTYPE|DescriptorRecord|SupplementalRecord|QualifierRecord)"),
    "mesh-ascii": re.compile(rb"\s*\*NEWRECORD"),
    "gene": re.compile(rb"#?tax_id\tGeneID\t"),
    "taxonomy": re.compile(rb"\d+\t\|\t[^\n]*\t\|\r?\n"),
    "rrf": re.compile(rb"C\d{7}\|[A-Z]{3}\|(?:[^|\n]*\|){16}\r?\n"),
    "ctd": re.compile(rb"(?:#[^\n]*\n)*# ?(?:DiseaseName|ChemicalName|GeneSymbol|AnatomyName)[\t,]"),
    "biosyn": re.compile(rb"[^\n]*?\|\|"),
}
# One identifier in two records of these is an error; elsewhere a concept has a line for each name.
ONE_RECORD_EACH = ("obo", "mesh-xml", "mesh-ascii", "ctd", "gene")


def detect(path: Path) -> str:
    """Return the name of a file's format, by its content and its ending. Raises InputError for an empty file."""
    found = format_by_ending(path)
    if found is not None and found.name in ("pubtator", "bioc", "bioc-json", "brat"):
        return MENTIONS
    with open_binary(path) as file:
        start = peek(file)
    start = start.removeprefix(b"\xef\xbb\xbf")
    if not start.strip():
        raise InputError(f"{path} is empty: it has no concept. Give a dictionary ({', '.join(NAMES)}).")
    if re.match(rb"[^|\n]+\|t\|", start):
        return MENTIONS
    if re.match(rb"\s*[{\[]", start) or re.search(rb"<rdf:RDF|<Ontology|@prefix |^Prefix\(", start):
        raise InputError(f"{path} is an ontology in OWL or JSON, or no dictionary. Give an ontology as OBO (.obo).")
    return next((name for name, pattern in _STARTS.items() if pattern.match(start)), "table")


def read_concepts(path: Path, name: str, options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the concepts of a file of a format."""
    if name == MENTIONS:
        yield from read_mentions(path, options)
        return
    if name not in READERS:
        raise ConfigError(f"{name!r} is no format of dictionaries: {', '.join(NAMES)}.")
    with open_binary(path) as file:
        yield from READERS[name](path, file, options)
