"""Abbreviations of Schwartz and Hearst and others; on real abstracts, gold identifiers are the judge."""

import pytest

from megabert.formats.documents.abbreviations import find_abbreviations, with_abbreviations
from megabert.formats.documents.document import Document, Passage


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        # Schwartz and Hearst's own examples.
        ("“Heat-shock protein 40 (Hsp40) enables", {"Hsp40": "Heat-shock protein 40"}),
        (
            "Cbf1p, a basic region helix-loop-helix zipper protein (bHLHzip) that",
            {"bHLHzip": "basic region helix-loop-helix zipper protein"},
        ),
        ("a heat shock transcription factor (HSF) binds", {"HSF": "heat shock transcription factor"}),
        ("Gcn5-related N-acetyltransferase (GNAT) family", {"GNAT": "Gcn5-related N-acetyltransferase"}),
        ("TTF-1 (Thyroid transcription factor 1) is", {"TTF-1": "Thyroid transcription factor 1"}),
        ("cyclophilin seven suppressor (CNS1)", {}),  # their letters do not match
        ("pressure-sensitive (2) and (see above) fields", {}),
        # Further ones, from abstracts.
        ("We describe iodide transport defect (ITD), a disorder.", {"ITD": "iodide transport defect"}),
        ("sodium/iodide symporter (NIS).", {}),
        ("human tumor necrosis factor-alpha (TNF-alpha; 5 ng)", {"TNF-alpha": "tumor necrosis factor-alpha"}),
        ("(transforming growth factor beta (TGF-b))", {"TGF-b": "transforming growth factor beta"}),
        ("the magnetic resonance imaging [MRI] scan", {"MRI": "magnetic resonance imaging"}),
        ("by ACE (angiotensin converting enzyme).", {"ACE": "angiotensin converting enzyme"}),
        ("It ended. Then a polymerase (PCR) chain", {}),
        ("causes myotonic dystrophy (DM).", {"DM": "myotonic dystrophy"}),  # of the Latin name
        ("causes myotonic dystrophy (MX).", {}),
        ("no definition (n = 5) here (A)", {}),
        ("", {}),
    ],
)
def test_published_examples(text, pairs):
    found = find_abbreviations(text)
    assert {item.short: item.long for item in found} == pairs
    for item in found:
        assert text[item.short_start :].startswith(item.short)
        assert text[item.long_start :].startswith(item.long)


def test_they_are_infons_of_the_document():
    passages = (Passage(0, "Atrial fibrillation (AF)"), Passage(25, "Not AF (amniotic fluid)."))
    document = with_abbreviations(Document("1", passages))
    assert document.infons == {"abbreviations": {"AF": "Atrial fibrillation"}}
    plain = Document("2", (Passage(0, "none"),))
    assert with_abbreviations(plain) is plain


@pytest.mark.parametrize("name", ["entity_linking_bc5cdr", "biored"])
def test_annotated_short_forms_have_the_identifier_of_their_definition(dataset, read_all, name):
    """Of pairs of which both forms are annotated, nearly all have one concept: an independent judgement."""
    documents, _ = read_all(dataset(name) / {"biored": "Train.PubTator"}.get(name, "dev.pubtator.txt"))
    agree = total = 0
    for document in documents:
        identifiers = {entity.text: entity.identifier for entity in document.entities}
        for passage in document.passages:
            for item in find_abbreviations(passage.text):
                if item.short in identifiers and item.long in identifiers:
                    total += 1
                    agree += identifiers[item.short] == identifiers[item.long]
    assert total > 50
    assert agree >= 0.97 * total
