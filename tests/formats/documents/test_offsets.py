"""Mentions decide: offsets in other units are recognized and named, wrong ones are named with their place."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.errors import InputError
from megabert.formats.documents.convert_documents import read_documents
from megabert.formats.documents.document import Document, Entity, Passage, split_identifier
from megabert.formats.documents.offsets import check_offsets, convert_offsets

TEXT = "TNF-α 🧬 causes\nfever; naïve IL-2"


def encoded_length(text, unit):
    return {
        "bytes": len(text.encode()),
        "utf-16": len(text.encode("utf-16-le")) // 2,
        "crlf": len(text.replace("\n", "\r\n")),
        "lf": len(text.replace("\r\n", "\n")),
        "code-points": len(text),
    }[unit]


def document_in(unit, text, words):
    """Build a document whose offsets count another unit, computed by Python's own encodings."""
    entities = []
    for number, word in enumerate(words):
        before = text[: text.index(word)]
        start = encoded_length(before, unit)
        end = encoded_length(before + word, unit)
        entities.append(Entity(str(number), ((start, end),), word, "Gene"))
    return Document("d", (Passage(0, text),), tuple(entities), location="f:1")


@pytest.mark.parametrize(
    ("unit", "text"),
    [("bytes", TEXT), ("utf-16", TEXT), ("crlf", TEXT), ("lf", TEXT.replace("\n", "\r\n"))],
)
def test_a_unit_is_named_and_converts_when_asked_for(unit, text):
    document = document_in(unit, text, ["TNF-α", "fever", "IL-2"])
    faults = []
    check_offsets(document, faults.append)
    assert faults
    assert all(unit in fault.split("--offsets ")[1] for fault in faults), faults
    converted = check_offsets(document, pytest.fail, unit)
    assert [text[item.start : item.end] for item in converted.entities] == ["TNF-α", "fever", "IL-2"]


@settings(max_examples=100, deadline=None)
@given(
    st.text("aé🧬\u0301 \n", min_size=1, max_size=20),
    st.integers(0, 19),
    st.integers(1, 8),
    st.sampled_from(("bytes", "utf-16", "crlf", "code-points")),
)
def test_conversion_inverts_every_encoding(text, start, length, unit):
    start = min(start, len(text) - 1)
    end = min(start + length, len(text))
    places = tuple(encoded_length(text[:position], unit) for position in (start, end))
    document = Document("d", (Passage(0, text),), (Entity("1", (places,), text[start:end], "T"),))
    assert convert_offsets(document, unit).entities[0].fragments == ((start, end),)


def test_passages_of_bytes_are_moved_too():
    passages = (Passage(0, "αβ"), Passage(5, "γδ"))  # 4 bytes and one between
    document = Document("d", passages, (Entity("1", ((7, 9),), "δ", "T"),))
    converted = check_offsets(document, pytest.fail, "bytes")
    assert [passage.offset for passage in converted.passages] == [0, 3]
    assert converted.entities[0].fragments == ((4, 5),)


def test_a_wrong_offset_is_named_with_document_offset_expected_and_found_text(tmp_path):
    file = tmp_path / "a.pubtator"
    file.write_text("7|t|A drug.\n7|a|Aspirin helps.\n7\t9\t16\tAspirin\tChemical\tD1\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(read_documents([file]))
    assert str(error.value).startswith(
        f"{file}:3: document 7, Chemical T3: 'Aspirin' is expected at 9 to 16, where 'spirin ' stands. The nearest one "
        "is at 8 (-1)."
    )


def test_the_five_documents_with_shifted_offsets_are_named(dataset, read_all):
    """57 contiguous mentions of five documents, and a discontinuous one of a sixth and of one of these."""
    documents, faults = read_all(dataset("bc5cdr_eval") / "sample/gold/CDR_sample.gold.BioC.xml")
    named = {fault.split("document ")[1].split(",")[0] for fault in faults}
    assert named == {"2224762", "17466854", "8649546", "4027862", "19803309", "11587867"}
    assert sum(" to " in fault.split("expected at")[1].split(", where")[0] for fault in faults) == 59
    assert len(documents) == 50
    assert sum(len(document.entities) for document in documents) == 945 - 59


@pytest.mark.parametrize(
    ("name", "file", "place", "text"),
    [
        ("pubtator_exports", "fulltext/tmvar3.PubTator", "34460882, RefSeq", "'NM_000244.3' is expected at 31370"),
        ("pubtator_exports", "bioc_package/tmVar.Normalization.txt", ":626:", "is no line of document 21615796"),
        ("entity_linking_ncbi_disease", "train.pubtator.txt", "10923035, SpecificDisease", "is expected at 711 to 761"),
    ],
)
def test_real_mistakes_are_named(dataset, read_all, name, file, place, text):
    _, faults = read_all(dataset(name) / file)
    assert len(faults) == 1
    assert place in faults[0]
    assert text in faults[0]


def test_relations_of_a_skipped_mention_are_reported_with_it(tmp_path, read_all):
    file = tmp_path / "d.jsonl"
    entities = [{"id": "a", "fragments": [[0, 1]], "text": "x", "type": "T"},
                {"id": "b", "fragments": [[2, 3]], "text": "y", "type": "T"}]  # fmt: skip
    relation = {"id": "R", "type": "r", "arguments": [{"role": "1", "entity": "a"}, {"role": "2", "entity": "b"}]}
    values = {"id": "d", "passages": [{"offset": 0, "text": "x z"}], "entities": entities, "relations": [relation]}
    file.write_text(json.dumps(values), encoding="utf-8")
    (document,), faults = read_all(file)
    assert [entity.id for entity in document.entities] == ["a"]
    assert document.relations == ()
    assert len(faults) == 2
    assert "relation R refers to b" in faults[1]


BIOC_JSON = """{"documents": [{"id": "d", "passages": [{"offset": 0, "text": "a b", "annotations": [
{"id": "T1", "text": "a", "infons": {"type": "T"}, "locations": [{"offset": 0, "length": 1}]}]}], "relations": [
{"id": "E1", "infons": {"type": "r"}, "nodes": [{"refid": "T1", "role": "1"}]},
{"id": "E2", "infons": {"type": "r"}, "nodes": [{"refid": "T1", "role": "1"}, {"refid": "E1", "role": "2"}]},
{"id": "E3", "infons": {"type": "r"}, "nodes": [{"refid": "T1", "role": "1"}, {"refid": "T9", "role": "2"}]}]}]}"""
BIOC_XML = """<collection><document><id>d</id><passage><offset>0</offset><text>a b</text><annotation id="T1"><infon
key="type">T</infon><location offset="0" length="1"/><text>a</text></annotation></passage><relation id="E1"><infon
key="type">r</infon><node refid="T1" role="1"/></relation><relation id="E2"><infon key="type">r</infon><node refid="T1"
role="1"/><node refid="E1" role="2"/></relation><relation id="E3"><infon key="type">r</infon><node refid="T1" role="1"
/><node refid="T9" role="2"/></relation></document></collection>"""
DOCCANO = """{"text": "a b", "entities": [{"id": "T1", "label": "T", "start_offset": 0, "end_offset": 1}],
"relations": [{"id": "E3", "type": "r", "from_id": "T1", "to_id": "T9"}]}"""
BRAT = "T1\tT 0 1\ta\nE1\tr:T1\nE2\tr:T1 x:E1\nE3\tr:T1 x:T9\n"


@pytest.mark.parametrize(
    ("name", "content", "num_relations"),
    [("a.bioc.json", BIOC_JSON, 2), ("a.bioc.xml", BIOC_XML, 2), ("a.doccano.jsonl", DOCCANO, 0), ("a.ann", BRAT, 2)],
)
def test_relations_to_nothing_are_faults_and_those_to_relations_are_none(
    name, content, num_relations, tmp_path, read_all
):
    (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "a.txt").write_text("a b", encoding="utf-8")
    (document,), faults = read_all(tmp_path / name)
    assert len(document.relations) == num_relations
    assert all(len(item.arguments) == number for number, item in enumerate(document.relations, 1))
    (fault,) = faults
    assert "refers to T9, which is no annotation that is read" in fault


@pytest.mark.parametrize(
    ("identifier", "parts"),
    [
        ("D1", ("D1",)),
        ("D014786|D006311", ("D014786", "D006311")),
        ("D1+D2", ("D1", "D2")),
        ("7157,7158;7159", ("7157", "7158", "7159")),
        ("", ()),
        ("-", ()),
        ("-1", ()),
        ("D1|-1", ("D1",)),
        ("c|DEL|1314_1328|", ("c|DEL|1314_1328|",)),
        ("p|SUB|M|327|V", ("p|SUB|M|327|V",)),
        ("c|DEL888|C", ("c|DEL888|C",)),  # so in BioRED
        ("NCBI Gene:11,dbSNP:c|SUB|G|8+1|A", ("NCBI Gene:11", "dbSNP:c|SUB|G|8+1|A")),
        ("tmVar:p|SUB|M|327|V;HGVS:p.M327V", ("tmVar:p|SUB|M|327|V;HGVS:p.M327V",)),
    ],
)
def test_composite_identifiers_are_split_and_variants_are_not(identifier, parts):
    assert split_identifier(identifier) == parts
