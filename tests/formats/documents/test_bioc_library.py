"""The library bioc as an oracle of BioC and PubTator, on files whose annotations all have identifiers."""

import pytest

bioc = pytest.importorskip("bioc", reason="the library bioc is not installed")
from bioc import biocxml, pubtator  # noqa: E402


def spans(passages):
    """Return passages and annotations as the library has them."""
    return [
        (
            item.offset,
            item.text,
            sorted((a.id, a.text, [(p.offset, p.length) for p in a.locations]) for a in item.annotations),
        )
        for item in passages
    ]


def own_spans(document):
    found = []
    for passage in document.passages:
        inside = [item for item in document.entities if passage.offset <= item.start <= passage.end]
        places = [(item.id, item.text, [(start, end - start) for start, end in item.fragments]) for item in inside]
        found.append((passage.offset, passage.text, sorted(places)))
    return found


def test_bioc_files_are_read_as_the_library_reads_them(dataset, read_all):
    for name, file in (("biored", "Dev.BioC.XML"), ("pubtator_exports", "fulltext/gnorm2.BioC.xml")):
        path = dataset(name) / file
        documents, _ = read_all(path)
        with path.open(encoding="utf-8") as opened:
            collection = biocxml.load(opened)
        assert len(documents) == len(collection.documents) > 0
        for document, other in zip(documents, collection.documents, strict=True):
            assert (document.id, own_spans(document)) == (other.id, spans(other.passages))


def test_bioc_written_from_pubtator_is_read_by_the_library(dataset, read_all, written):
    documents, _ = read_all(dataset("entity_linking_bc5cdr") / "dev.pubtator.txt")
    path, losses = written(documents[:100], "bioc", ".bioc.xml")
    assert losses == set()
    with path.open(encoding="utf-8") as opened:
        collection = biocxml.load(opened)
    for document, other in zip(documents, collection.documents, strict=False):
        assert own_spans(document) == spans(other.passages)
        relations = [(item.infons["type"], item.infons["entity1"], item.infons["entity2"]) for item in other.relations]
        ours = [(item.type, *(end.identifier for end in item.arguments)) for item in document.relations]
        assert relations == ours


def test_pubtator_files_are_read_as_the_library_reads_them(dataset, read_all):
    path = dataset("entity_linking_bc5cdr") / "dev.pubtator.txt"
    documents, _ = read_all(path)
    with path.open(encoding="utf-8") as opened:
        others = pubtator.load(opened)
    assert len(documents) == len(others) == 500
    for document, other in zip(documents, others, strict=True):
        ours = [(item.start, item.end, item.text, item.type, item.identifier) for item in document.entities]
        assert ours == [(item.start, item.end, item.text, item.type, item.id) for item in other.annotations]
        assert [item.type for item in document.relations] == [item.type for item in other.relations]
