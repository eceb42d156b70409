"""MeSH XML: descriptors, supplementary concepts and qualifiers, each with concepts that have terms.

Source: NLM's nlmdescriptorrecordset and nlmsupplementalrecordset DTDs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.xml_records import flat_text, xml_records
from .concept import Concept, DictionaryOptions

RECORDS = {
    "DescriptorRecord": ("DescriptorUI", "DescriptorName/String"),
    "SupplementalRecord": ("SupplementalRecordUI", "SupplementalRecordName/String"),
    "QualifierRecord": ("QualifierUI", "QualifierName/String"),
}


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the records: the name of each, then the terms of all its concepts, narrower ones too, as MeSH indexes."""
    for record in xml_records(path, file, tuple(RECORDS)):
        identifier, name = RECORDS[record.element.tag]
        location = f"{path}:{record.line}"
        ui = flat_text(record.element.find(identifier))
        if not ui:
            raise InputError(f"{location}: the {record.element.tag} has no {identifier}. Get the file again.")
        terms = record.element.iterfind("ConceptList/Concept/TermList/Term/String")
        yield Concept(f"mesh:{ui}", (flat_text(record.element.find(name)), *map(flat_text, terms)), (), 0, location)
