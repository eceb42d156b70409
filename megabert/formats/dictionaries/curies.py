"""Identifiers as CURIEs, prefix:identifier, with the prefixes of the Bioregistry (bioregistry.io, release 0.15.6)."""

import re
from collections.abc import Iterable
from functools import lru_cache

from ..documents.document import NO_IDENTIFIERS

# The Bioregistry's prefix, and what others write in its place (lower case, without blanks, hyphens and underscores).
PREFIXES = {
    "bto": (),
    "cas": ("casid", "casrn"),
    "cellosaurus": ("cvcl",),
    "chebi": ("chebiid",),
    "cl": (),
    "dbsnp": ("rs",),
    "doid": ("do",),
    "drugbank": ("drugbankid",),
    "ensembl": (),
    "go": ("gobp", "gocc", "gomf"),
    "hgnc": (),
    "hp": ("hpo",),
    "icd10": (),
    "icd10cm": (),
    "icd9cm": (),
    "loinc": ("lnc",),
    "meddra": (),
    "mesh": ("msh", "meshd", "meshc"),
    "mondo": (),
    "mp": (),
    "ncbigene": ("gene", "geneid", "entrez", "entrezgene", "egid"),
    "ncbitaxon": ("ncbitaxonomy", "taxonomy", "taxid", "taxon", "taxonomyid", "species"),
    "ncit": ("nci", "ncithesaurus"),
    "omim": ("mim",),
    "orphanet.ordo": ("ordo", "orphanet", "orpha"),
    "pubchem.compound": ("pubchem", "pubchemcid"),
    "rxnorm": ("rxcui",),
    "snomedct": ("snomed", "snomedctus", "sctid"),
    "symp": (),
    "uberon": (),
    "umls": ("umlscui", "cui"),
    "uniprot": ("uniprotkb", "swissprot"),
}
_SPELLINGS = {name: prefix for prefix, names in PREFIXES.items() for name in (prefix, *names)}
# Identifiers that show their vocabulary without a prefix.
_BARE = (
    (re.compile(r"[CDQ]\d{6}(?:\d{3})?"), "mesh"),
    (re.compile(r"C\d{7}"), "umls"),
    (re.compile(r"DB\d{5}"), "drugbank"),
)


@lru_cache(maxsize=2**16)
def to_curie(identifier: str, prefix: str | None = None) -> str:
    """Write an identifier as a CURIE; `prefix` is for those that have none and do not show their vocabulary.

    An unknown prefix stays as it is. Returns "" for no identifier (-, -1), and where the vocabulary is unknown.
    """
    identifier = identifier.strip()
    if identifier in NO_IDENTIFIERS:
        return ""
    before, colon, local = identifier.partition(":")
    if colon and before and local:
        if known_prefix(local.partition(":")[0]) and ":" in local:  # DO:DOID:2841, as CTD writes it
            return to_curie(local)
        return f"{known_prefix(before) or before}:{local.strip()}"
    found = next((name for pattern, name in _BARE if pattern.fullmatch(identifier)), None)
    found = found or (known_prefix(prefix) or prefix if prefix else None)
    return f"{found}:{identifier}" if found else ""


def single_identifiers(identifiers: Iterable[str]) -> frozenset[str]:
    """Split identifiers of several concepts: those of a+b are a and b."""
    return frozenset(own for name in identifiers for own in name.split("+"))


def known_prefix(prefix: str) -> str | None:
    """Return the Bioregistry's prefix for any spelling of it, None for an unknown one."""
    return _SPELLINGS.get(re.sub(r"[\s_-]", "", prefix).lower())
