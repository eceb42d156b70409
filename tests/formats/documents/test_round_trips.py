"""What was read is written back: byte for byte (PubTator, brat), with the same infoset (BioC), the same JSON."""

import dataclasses
import itertools
import json
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.document import Argument, Document, Entity, Passage, Relation, passages_of
from megabert.formats.documents.losses import Losses

PUBTATOR = (
    ("biored", "Dev.PubTator"),  # CRLF, relations with novelty, variants with bars
    ("entity_linking_bc5cdr", "dev.pubtator.txt"),  # composite mentions
    ("entity_linking_ncbi_disease", "dev.pubtator.txt"),
    ("pubtator_exports", "bioconcepts2pubtator_offsets.sample"),
    ("pubtator_exports", "pengyifan/cdr-sample1.txt"),  # no line end at the end
    ("bc5cdr_eval", "dev/CDR_DevelopmentSet.Dnorm+tmChemv2.PubTator"),  # a mention without identifier
    ("bc5cdr_eval", "sample/test/CDR_sample.test.CID.PubTator"),  # scores
    ("hunflair2_tmvar3", "goldstandard.txt"),
)


@pytest.mark.parametrize(("name", "file"), PUBTATOR)
def test_pubtator_files_are_written_back_byte_for_byte(dataset, read_all, written, name, file):
    path = dataset(name) / file
    documents, faults = read_all(path)
    assert faults == []
    assert documents
    assert written(documents, "pubtator")[0].read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "folder"), [("anatem", "devel"), ("bionlp_st_2013_cg", "train"), ("brat_examples", ".")]
)
def test_brat_files_are_written_back_byte_for_byte(dataset, read_all, written, name, folder):
    source = dataset(name) / folder
    documents, faults = read_all(source)
    documents = [document for document in documents if document.original.format == "brat"]
    assert faults == []
    output, _ = written(documents, "brat")
    files = sorted(output.iterdir())
    assert len(files) > len(documents) >= 60
    sources = {path.name: path for path in source.rglob("*.*")}
    for file in files:
        assert file.read_bytes() == sources[file.name].read_bytes(), file.name


def infoset(element):
    """Return an element as values; blanks between elements count as layout."""
    text = element.text or ""
    children = [(infoset(child), (child.tail or "").strip()) for child in element]
    return element.tag, dict(element.attrib), text if not children else text.strip(), children


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("biored", "Dev.BioC.XML"),
        ("pubtator_exports", "bioc_package/everything.xml"),
        ("pubtator_exports", "fulltext/gnorm2.BioC.xml"),
        ("pubtator_exports", "pengyifan/cdr-sample1.xml"),
    ],
)
def test_bioc_xml_is_written_back_with_the_same_infoset(dataset, read_all, written, name, file):
    path = dataset(name) / file
    documents, faults = read_all(path)
    assert faults == []
    output, losses = written(documents, "bioc")
    assert losses == set()
    assert infoset(ElementTree.parse(output).getroot()) == infoset(ElementTree.parse(path).getroot())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("biored", "Dev.BioC.JSON"),
        ("pubtator_exports", "bioc_package/everything.json"),
        ("jats", "PMC8885717_bioc.json"),
    ],
)
def test_bioc_json_is_written_back_with_the_same_values(dataset, read_all, written, name, file):
    path = dataset(name) / file
    documents, faults = read_all(path)
    assert faults == []
    assert json.loads(written(documents, "bioc-json")[0].read_bytes()) == json.loads(path.read_bytes())


def test_the_api_documents_of_pubtator_are_written_back_with_all_their_keys(dataset, read_all, written):
    files = sorted((dataset("pubtator_exports") / "biocjson").iterdir())
    for file in files:
        documents, faults = read_all(file)
        assert faults == []
        assert json.loads(written(documents, "bioc-json")[0].read_bytes())["documents"] == [
            json.loads(file.read_bytes())
        ]
    assert len(files) == 6


def test_label_studio_is_written_back_with_the_same_values(dataset, read_all, written):
    for file in sorted((dataset("annotation_exports") / "label_studio").iterdir()):
        documents, faults = read_all(file, text_column="title" if file.name == "csv_test2.json" else None)
        assert faults == []
        assert json.loads(written(documents, "label-studio")[0].read_bytes()) == json.loads(file.read_bytes())


def test_doccano_relations_are_read_and_written(dataset, read_all, written):
    folder = dataset("annotation_exports") / "doccano"
    (document,), faults = read_all(folder / "data_export__pipeline__examples__relation_extraction__example.jsonl")
    assert faults == []
    assert [(entity.text, entity.type) for entity in document.entities] == [
        ("Google", "ORG"),
        ("September 4, 1998", "DATE"),
        ("Larry Page", "PERSON"),
        ("Sergey Brin", "PERSON"),
    ]
    assert [relation.type for relation in document.relations] == ["foundedAt", "foundedBy", "foundedBy"]
    (again,), _ = read_all(written([document], "doccano", ".jsonl")[0])
    assert [item.arguments for item in again.relations] == [item.arguments for item in document.relations]


def test_relations_of_mentions_without_identifiers_survive_pubtator(read_all, written):
    texts = ((0, "A title"), (9, "p53 binds MDM2"))  # two characters between them: places move by one
    spans = {"a": (9, 12), "b": (19, 23)}
    entities = tuple(
        Entity(name, (span,), texts[1][1][span[0] - 9 : span[1] - 9], "Gene") for name, span in spans.items()
    )
    relation = Relation("R", "", (Argument("1", entity="a"), Argument("2", entity="b")))
    passages = (Passage(0, texts[0][1], {"type": "title"}), Passage(9, texts[1][1]))
    path = written([Document("d", passages, entities, (relation,))], "pubtator")[0]
    (again,), faults = read_all(path)
    assert faults == []
    assert [item.entity for item in again.relations[0].arguments] == [item.id for item in again.entities]
    assert [item.text for item in again.entities] == ["p53", "MDM2"]
    assert written([again], "pubtator")[0].read_bytes() == path.read_bytes()


def test_pubtator_bioc_xml_and_json_of_biored_mean_the_same(dataset, read_all):
    meanings = []
    for name in ("Dev.PubTator", "Dev.BioC.XML", "Dev.BioC.JSON"):
        documents, _ = read_all(dataset("biored") / name)
        meanings.append([meaning(document) for document in documents])
    assert meanings[0] == meanings[1] == meanings[2]
    assert sum(len(relations) for _, _, _, relations in meanings[0]) == 981


def test_bioc_of_biored_becomes_its_pubtator(dataset, read_all, written):
    documents, _ = read_all(dataset("biored") / "Dev.BioC.XML")
    path, losses = written(documents, "pubtator")
    assert losses == set()
    assert path.read_bytes() == (dataset("biored") / "Dev.PubTator").read_bytes().replace(b"\r\n", b"\n")


def meaning(document):
    entities = [(item.fragments, item.text, item.type, item.identifier) for item in document.entities]
    relations = sorted(
        (item.type, *(argument.identifier for argument in item.arguments), item.infons["novel"])
        for item in document.relations
    )
    return document.id, document.text(), sorted(entities), relations


BOTH_WAYS = ("pubtator", "bioc", "bioc-json", "brat", "jsonl", "doccano", "label-studio")
ENDINGS = {"brat": "", "bioc": ".bioc.xml", "bioc-json": ".bioc.json", "pubtator": ".pubtator", "jsonl": ".jsonl",
           "doccano": ".doccano.jsonl", "label-studio": ".label-studio.json"}  # fmt: skip
# Emoji beyond the basic plane, a combining mark, right-to-left, line ends, tab, markup.
ALPHABET = 'ab Z.é\U0001f9ećאµ\r\n\t<&"|'


@st.composite
def documents(draw):
    texts = draw(st.lists(st.text(ALPHABET, max_size=25), min_size=1, max_size=3))
    kinds = [{"type": "title"}, {"type": "abstract"}, {"type": "paragraph"}]
    passages = passages_of(iter(zip(texts, kinds, strict=False)))
    entities = []
    for passage in passages:
        places = draw(st.lists(st.tuples(st.integers(0, 24), st.integers(1, 6)), max_size=2))
        for start, length in places:
            text = passage.text[start : start + length]
            if text and text == text.strip() and not set("\r\n\t") & set(text):
                span = (passage.offset + start, passage.offset + start + len(text))
                kind = draw(st.sampled_from(("Gene", "Disease")))
                entities.append(Entity(f"T{len(entities) + 1}", (span,), text, kind, draw(st.sampled_from(("", "D1")))))
    ends = tuple(Argument(role, entity=item.id) for role, item in zip(("Arg1", "Arg2"), entities, strict=False))
    relations = (Relation("R1", "binds", ends),) if len(ends) == 2 else ()
    return Document(draw(st.sampled_from(("1", "doc-2", "é"))), passages, tuple(entities), relations)


@settings(max_examples=10, deadline=None)
@given(documents())
def test_mentions_survive_every_pair_of_formats(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("pairs")
    first = {name: converted([document], folder, name, 0) for name in BOTH_WAYS}
    for number, (name, other) in enumerate(itertools.permutations(BOTH_WAYS, 2), start=1):
        again = converted(first[name], folder, other, number)
        assert mentions(again) == mentions([document]), (name, other)


def converted(items, folder, name, number):
    path = folder / f"{name}{number}{ENDINGS[name]}"
    write_documents(items, path, name, Losses())
    # Reading checks that each mention stands at its offset.
    return list(read_documents([path], format_name=name))


def mentions(items):
    return [(item.id, sorted((entity.text, entity.type) for entity in item.entities)) for item in items]


@settings(max_examples=30, deadline=None)
@given(documents())
def test_our_own_lines_keep_everything(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("lines") / "d.jsonl"
    write_documents([document], path, "jsonl", Losses())
    (again,) = read_documents([path])
    assert dataclasses.replace(again, location="") == document


@pytest.mark.parametrize("name", ["pubtator", "bioc", "bioc-json", "brat"])
def test_what_is_added_and_removed_changes_nothing_else(dataset, read_all, written, name):
    file = {"pubtator": "Dev.PubTator", "bioc": "Dev.BioC.XML", "bioc-json": "Dev.BioC.JSON"}.get(name)
    path = dataset("biored") / file if file else dataset("brat_examples") / "NCBI-disease"
    before, _ = read_all(path)
    first = before[0]
    word = first.passages[0].text.split()[1]
    start = first.passages[0].text.index(word)
    new = Entity("new", ((start, start + len(word)),), word, "Added", "X1", 0.5, "run")
    changed = dataclasses.replace(first, entities=(*first.entities[1:], new), relations=())
    output, _ = written([changed, *before[1:]], name, ENDINGS[name])
    after, faults = read_all(output)
    assert faults == []
    by_id = {document.id: document for document in after}
    assert entity_values(by_id[first.id]) == entity_values(changed)
    assert by_id[first.id].relations == ()
    assert [mentions([by_id[item.id]]) for item in before[1:]] == [mentions([item]) for item in before[1:]]


def entity_values(document):
    return sorted(
        (item.fragments, item.text, item.type, item.identifier.removeprefix("ID:")) for item in document.entities
    )


def test_lossy_directions_report_what_they_drop(dataset, read_all, written):
    documents, _ = read_all(dataset("biored") / "Dev.BioC.XML")
    _, losses = written(documents[:5], "csv")
    assert "relations" in losses
    _, losses = written(documents[:5], "brat")
    assert {
        "relations between identifiers instead of mentions",
        "borders of passages (a line end is written)",
    } <= losses
