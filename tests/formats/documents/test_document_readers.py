"""Reading of PubMed XML, JATS, tables, plain text and hostile files; recognition of formats and compression."""

import bz2
import gzip
import io
import json
import lzma
import sys

import pytest

from megabert.errors import InputError
from megabert.formats.corpus_documents import read_documents as read_corpus
from megabert.formats.documents import sources
from megabert.formats.documents.convert_documents import read_documents, write_documents
from megabert.formats.documents.document import Document, Entity, Passage
from megabert.formats.documents.losses import Losses
from megabert.formats.documents.sources import ReadOptions

CITATION = """<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article><Journal/>
<ArticleTitle>{title}</ArticleTitle><Abstract><AbstractText Label="AIM">To <i>see</i>
 H<sub>2</sub>O.</AbstractText><AbstractText>And more.</AbstractText></Abstract></Article>
<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Ver.</AbstractText></OtherAbstract></MedlineCitation>
<PubmedData><ArticleIdList><ArticleId IdType="doi">10.1/x</ArticleId></ArticleIdList></PubmedData></PubmedArticle>"""


def pubmed(*records):
    return f"<?xml version='1.0'?><PubmedArticleSet>{''.join(records)}</PubmedArticleSet>"


def citation(pmid, title, version=1):
    return CITATION.format(pmid=pmid, title=title, version=version)


def test_pubmed_abstracts_keep_labels_markup_text_and_other_languages(tmp_path, read_all):
    (tmp_path / "a.xml").write_text(pubmed(citation(1, "On <i>E. coli</i>")), encoding="utf-8")
    (document,), faults = read_all(tmp_path / "a.xml")
    assert faults == []
    assert [(item.text, item.infons) for item in document.passages] == [
        ("On E. coli", {"type": "title"}),
        ("AIM: To see H2O.", {"type": "abstract", "label": "AIM"}),
        ("And more.", {"type": "abstract"}),
        ("Ver.", {"type": "other abstract", "source": "Publisher", "language": "spa"}),
    ]
    assert document.infons == {"doi": "10.1/x"}
    assert list(read_corpus(tmp_path / "a.xml")) == ["On E. coli\nTo see H2O.\nAnd more."]


def test_the_last_version_of_a_pmid_wins_over_all_files_and_deleted_ones_go(tmp_path, read_all):
    (tmp_path / "1.xml").write_text(pubmed(citation(1, "old"), citation(2, "gone"), citation(3, "kept")), "utf-8")
    update = pubmed(
        citation(1, "second", version=2), citation(1, "first"), "<DeleteCitation><PMID>2</PMID></DeleteCitation>"
    )
    with gzip.open(tmp_path / "2.xml.gz", "wt", encoding="utf-8") as file:
        file.write(update)
    documents, _ = read_all(tmp_path)
    assert [(item.id, item.passages[0].text) for item in documents] == [("3", "kept"), ("1", "second")]


def test_real_pubmed_files_give_every_citation(dataset, read_all):
    folder = dataset("pubmed_xml")
    documents, faults = read_all(folder)
    xml = [document for document in documents if document.passages[0].infons]
    assert ["is PubMed's own text format" in fault for fault in faults] == [True, True]
    assert len(xml) == len(documents) == 82
    assert len({document.id for document in xml}) == 82
    assert sum(len(document.passages) > 1 for document in xml) >= 43


def test_real_jats_articles_have_titles_abstracts_sections_and_captions(dataset, read_all):
    for path in sorted(dataset("jats").glob("*.nxml")):
        (document,), faults = read_all(path)
        assert faults == []
        kinds = {passage.infons["type"] for passage in document.passages}
        assert {"title", "abstract", "paragraph", "title_1"} <= kinds, path
        assert len(document.text()) > 10_000
    (document,), _ = read_all(dataset("jats") / "PMC8885717.xml")
    assert document.id == "PMC8885717"
    # Auto-CORPus made this BioC of the same article: its longer paragraphs are ours, too.
    (other,), _ = read_all(dataset("jats") / "PMC8885717_bioc.json")
    ours = "".join(document.text().split())
    paragraphs = ["".join(item.text.split()) for item in other.passages if len(item.text) > 300]
    found = [text for text in paragraphs if text[:100] in ours]
    assert len(found) >= 0.8 * len(paragraphs)


def test_tables_name_their_columns(tmp_path, read_all):
    (tmp_path / "n.csv").write_text('note,TEXT,ward\n7,"Two\nlines, ""quoted""",A\n', encoding="utf-8")
    (document,), faults = read_all(tmp_path / "n.csv", id_column="note", text_column="TEXT")
    assert faults == []
    assert (document.id, document.text(), document.infons) == ("7", 'Two\nlines, "quoted"', {"ward": "A"})
    with pytest.raises(
        InputError, match=r"n\.csv:2: there is no column 'id'; there are note, TEXT, ward\. Name one: --id-"
    ):
        list(read_documents([tmp_path / "n.csv"]))
    (tmp_path / "n.tsv").write_text("id\ttext\n1\tA\n2\n", encoding="utf-8")
    documents, faults = read_all(tmp_path / "n.tsv")
    assert len(documents) == 1
    assert "n.tsv:3: not as many columns as the header's 2." in faults[0]
    (tmp_path / "n.jsonl").write_text('{"id": 5, "text": "x"}\n{"id": 6}\n', encoding="utf-8")
    documents, faults = read_all(tmp_path / "n.jsonl")
    assert [document.id for document in documents] == ["5"]
    assert "n.jsonl:2" in faults[0]


def test_parquet_is_read_and_written(tmp_path, read_all, written):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["a gene", ""], "n": [1.5, None]}), tmp_path / "n.parquet")
    documents, faults = read_all(tmp_path / "n.parquet")
    assert faults == []
    assert [(item.id, item.text(), item.infons) for item in documents] == [("1", "a gene", {"n": 1.5}), ("2", "", {})]
    entity = Entity("T1", ((2, 6),), "gene", "Gene", "7157", 0.5, "run")
    found = Document("1", documents[0].passages, (entity,))
    path, losses = written([found], "parquet", ".parquet")
    row = {"document": "1", "passage": "", "start": 2, "end": 6, "text": "gene", "type": "Gene", "identifier": "7157",
           "score": 0.5, "source": "run", "fragments": None, "name": None, "link_score": None}  # fmt: skip
    assert parquet.read_table(path).to_pylist() == [row]
    assert losses == {"texts of documents"}
    csv, _ = written([found], "csv", ".csv")
    assert csv.read_bytes().splitlines()[1] == b"1,,2,6,gene,Gene,7157,0.5,run,,,"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"Plain text.", "text"),
        ("a.txt", b"1|t|T\n1|a|A\n", "pubtator"),
        ("a.xml", b"<?xml version='1.0'?><collection><document><id>1</id></document></collection>", "bioc"),
        ("a.xml", pubmed(citation(1, "x")).encode(), "pubmed"),
        ("a.xml", b"<!-- x --><article><front/></article>", "jats"),
        ("a.json", b'{"documents": [{"id": "1", "passages": []}]}', "bioc-json"),
        ("a.json", b'[{"data": {"text": "x"}, "annotations": []}]', "label-studio"),
        ("a.jsonl", b'{"id": "1", "passages": []}', "jsonl"),
        ("a.jsonl", b'{"text": "x", "label": [[0, 1, "T"]]}', "jsonl"),
        ("a.csv", b"id,text\n1,x\n", "csv"),
    ],
)
def test_formats_are_recognized_and_named(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    notes = []
    assert len(list(read_documents([tmp_path / name], log=notes.append))) == 1
    assert notes[0].startswith(f"Reading 1 file as {expected}: ")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_recognized_by_content_and_standard_input_is_read(tmp_path, monkeypatch, compress):
    content = compress(b"1|t|T\n1|a|A\n")
    (tmp_path / "a.pubtator").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    documents = list(read_documents([tmp_path / "a.pubtator", "-"], format_name="pubtator"))
    assert [document.id for document in documents] == ["1", "1"]
    (tmp_path / "b.pubtator.gz").write_bytes(gzip.compress(b"1|t|T\n" * 100)[:25])
    with pytest.raises(InputError, match="damaged or truncated"):
        list(read_documents([tmp_path / "b.pubtator.gz"]))


LAUGHS = "<!DOCTYPE c [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><collection><document><id>&b;</id></document></collection>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "declares the entity &a;"),
        ("<!DOCTYPE c [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><collection/>", "declares the entity &x;"),
        ("<!DOCTYPE c SYSTEM 'c.dtd'><collection><document><id>&alpha;</id></document></collection>", "&alpha;"),
        ("<collection><document>" + "<x>" * 300, "nested more than 200 deep"),
        ("<collection><document></collection>", ":1: not XML: mismatched tag"),
        ("<collection>\n<document>", ":2: not XML: no element found"),
    ],
)
def test_hostile_xml_is_refused(tmp_path, content, message):
    (tmp_path / "a.bioc.xml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(read_documents([tmp_path / "a.bioc.xml"]))
    assert message in str(error.value)


def test_records_have_a_largest_size(tmp_path, monkeypatch):
    for module in ("xml_records", "sources"):
        monkeypatch.setattr(f"megabert.formats.documents.{module}.MAX_RECORD_BYTES", 100_000)
    text = "x" * 200_000
    (tmp_path / "a.bioc.xml").write_text(f"<collection><document><id>1</id><text>{text}", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.pubtator").write_text(f"1|t|{text}", encoding="utf-8")
    for name in ("a.bioc.xml", "b.txt.gz", "c.pubtator"):
        with pytest.raises(InputError, match=r"of more than|larger than"):
            list(read_documents([tmp_path / name]))


def test_names_of_files_cannot_leave_the_folder(tmp_path):
    documents = [Document("../../etc/x", (Passage(0, "a"),)), Document("a/b\nc", (Passage(0, "b"),))]
    write_documents(documents, tmp_path / "out", "brat", Losses())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["_.._etc_x.ann", "_.._etc_x.txt", "a_b_c.ann", "a_b_c.txt"]
    )
    with pytest.raises(InputError, match="second document has the file name"):
        write_documents([documents[0]] * 2, tmp_path / "twice", "brat", Losses())
    assert not (tmp_path / "twice").exists()
    with pytest.raises(InputError, match="exists and is not empty"):
        write_documents(documents, tmp_path / "out", "brat", Losses())


@pytest.mark.parametrize("name", ["bioc", "bioc-json", "pubtator", "jsonl", "doccano", "label-studio"])
def test_labels_with_markup_and_an_empty_document_survive(tmp_path, name):
    entity = Entity("T1", ((0, 1),), "a", 'A/B <"&> C')
    documents = [Document("1", (Passage(0, "a", {"type": "title"}),), (entity,)), Document("2", (Passage(0, ""),))]
    write_documents(documents, tmp_path / "x", name, Losses())
    again = list(read_documents([tmp_path / "x"], format_name=name))
    assert [item.type for item in again[0].entities] == ['A/B <"&> C']
    assert [item.id for item in again] == ["1", "2"]


def test_characters_that_xml_cannot_hold_are_counted(tmp_path):
    losses = Losses()
    write_documents([Document("1", (Passage(0, "a\x0bb\r\nc"),))], tmp_path / "x", "bioc", losses)
    (again,) = read_documents([tmp_path / "x"], format_name="bioc")
    assert again.text() == "a\ufffdb\r\nc"
    assert losses["control characters (U+FFFD is written)"] == 1


def test_text_that_is_no_text_is_named(tmp_path, read_all):
    (tmp_path / "a.pubtator").write_bytes("1|t|é\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.pubtator:1: not UTF-8 text: byte 0xe9"):
        list(read_documents([tmp_path / "a.pubtator"]))
    (tmp_path / "c.pubtator").write_text("1|t|a\n", encoding="utf-16")
    with pytest.raises(InputError, match=r"c\.pubtator:1: a NUL character. It is UTF-16 text"):
        list(read_documents([tmp_path / "c.pubtator"]))
    (tmp_path / "b.jsonl").write_text('{"id": "1", "text": "\\ud800"}\n{"id": "2", "text": "b"}\n', encoding="utf-8")
    documents, faults = read_all(tmp_path / "b.jsonl")
    assert [item.id for item in documents] == ["2"]
    assert "b.jsonl:1" in faults[0]


@pytest.mark.parametrize("places", ["0;4\t1;5", "-1\t3", "0.0\t1.0"])
def test_places_that_no_mention_has_make_no_relation(places, tmp_path, read_all):
    content = f"1|t|a b c\n1\t{places}\ta b\tT\tD1\n1\tCID\t4\t5\n"
    (tmp_path / "a.pubtator").write_text(content, encoding="utf-8")
    (document,), (fault,) = read_all(tmp_path / "a.pubtator")
    assert [relation.type for relation in document.relations] == ["CID"]
    assert f"a.pubtator:2: {content.splitlines()[1]!r} is no line of document 1" in fault


def test_a_byte_order_mark_before_annotations_of_brat_is_none_of_them(tmp_path, read_all):
    (tmp_path / "a.txt").write_text("a b", encoding="utf-8")
    (tmp_path / "a.ann").write_text("\ufeffT1\tT 0 1\ta\n", encoding="utf-8")
    (document,), faults = read_all(tmp_path / "a.ann")
    assert [entity.id for entity in document.entities] == ["T1"]
    assert faults == []


def label_studio_results(names, places):
    spans = [{"id": name, "type": "labels", "value": {"start": start, "end": start + 1, "labels": ["T"]}}
             for name, start in zip(names, places, strict=True)]  # fmt: skip
    return [{"type": "relation", "from_id": names[0], "to_id": names[1], "labels": ["r"]}, *spans]


@pytest.mark.parametrize("key", ["annotations", "completions"])
def test_what_two_annotators_agree_on_is_read_once(key, tmp_path, read_all, written):
    parts = [label_studio_results("ab", (0, 2)), label_studio_results("cd", (0, 2)), label_studio_results("ef", (2, 4))]
    task = {"id": 1, "data": {"text": "a b c"}, key: [{"result": part} for part in parts]}
    (tmp_path / "a.json").write_text(json.dumps([task]), encoding="utf-8")
    (document,), faults = read_all(tmp_path / "a.json")
    assert faults == []
    assert [(item.id, item.start) for item in document.entities] == [("a", 0), ("b", 2), ("f", 4)]
    assert [[end.entity for end in item.arguments] for item in document.relations] == [["a", "b"], ["b", "f"]]
    assert json.loads(written([document], "label-studio")[0].read_bytes()) == [task]


PAIRS = """<?xml version="1.0"?><{root}><document id="D1">
<sentence id="s0" text="aspirin and beta or gamma blockers">
<entity id="e0" charOffset="0-{ends[0]}" type="drug" text="aspirin"/>
<entity id="e1" charOffset="12-{ends[1]};26-{ends[2]}" type="group" text="beta blockers"/>
<pair id="p0" e1="e0" e2="e1" ddi="true" type="effect"/></sentence>
<sentence id="s1" text="A &lt; B"><entity id="e2" charOffset="0-{ends[3]}" text="A"/>
<entity id="e3" charOffset="4-{ends[4]}" text="B"/><pair id="p1" e1="e2" e2="e3" interaction="False"/></sentence>
</document></{root}>"""


@pytest.mark.parametrize("ends", [(6, 15, 33, 0, 4), (7, 16, 34, 1, 5)])  # inclusive, as in DDI, and exclusive
def test_sentences_with_pairs_in_xml(ends, tmp_path, read_all):
    (tmp_path / "a.xml").write_text(PAIRS.format(root="corpus", ends=ends), encoding="utf-8")
    (document,), faults = read_all(tmp_path / "a.xml")
    assert faults == []
    assert (document.id, document.text()) == ("D1", "aspirin and beta or gamma blockers\nA < B")
    assert [(item.text, item.type, item.fragments) for item in document.entities] == [
        ("aspirin", "drug", ((0, 7),)), ("beta blockers", "group", ((12, 16), (26, 34))),
        ("A", "entity", ((35, 36),)), ("B", "entity", ((39, 40),))]  # fmt: skip
    (relation,) = document.relations
    assert (relation.type, [item.entity for item in relation.arguments]) == ("effect", ["e0", "e1"])
    (tmp_path / "b.xml").write_text("<document id='x'><p/></document>", encoding="utf-8")
    assert (
        "no document of sentences with entities and pairs: it has no <sentence>" in read_all(tmp_path / "b.xml")[1][0]
    )


I2B2 = {
    "txt": "Admission Date :\nThe patient has  Chest pain\nand aspirin for it .\n",
    "con": 'c="chest pain" 2:3 2:4||t="problem"\nc="aspirin" 3:1 3:1||t="treatment"\nc="pain and" 2:4 3:0||t="x"\n',
    "ast": 'c="chest pain" 2:3 2:4||t="problem"||a="present"\n',
    "rel": 'c="aspirin" 3:1 3:1||r="TrAP"||c="chest pain" 2:3 2:4\n',
}


@pytest.mark.parametrize("layout", ["{0}/r1.{0}", "r1.{0}"])
def test_i2b2_s_files_in_one_folder_or_in_one_each(layout, tmp_path, read_all):
    for ending, content in I2B2.items():
        path = tmp_path / layout.format(ending)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    notes = []
    (document,) = read_documents([tmp_path], log=notes.append)
    assert [note.split(":")[0] for note in notes] == ["Reading 1 file as i2b2"]
    assert (document.id, document.text()) == ("r1", I2B2["txt"])
    assert [(item.text, item.type, item.infons) for item in document.entities] == [
        ("Chest pain", "problem", {"assertion": "present"}), ("aspirin", "treatment", {}),
        ("pain\nand", "x", {})]  # fmt: skip
    (relation,) = document.relations
    assert (relation.type, [item.entity for item in relation.arguments]) == ("TrAP", ["T2", "T1"])
    concepts = tmp_path / layout.format("con")
    concepts.write_text(I2B2["con"].replace("2:3 2:4", "2:2 2:4") + 'c="x" 9:0 9:0||t="y"\nc="x"\n', encoding="utf-8")
    (document,), faults = read_all(concepts)
    assert [item.text for item in document.entities] == ["aspirin", "pain\nand"]
    assert [fault.partition(": ")[0] for fault in faults] == [f"{concepts}:{n}" for n in (1, 4, 5)] + [
        str(tmp_path / layout.format("txt"))
    ]
    assert "has words that do not stand at their lines and tokens" in faults[0]
    (tmp_path / layout.format("txt")).unlink()
    with pytest.raises(InputError, match=r"r1\.con: there is no r1\.txt, its text"):
        list(read_documents([concepts]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<GateDocument/>", r"a\.xml is GATE's XML, which is not read .*Export BioC"),
        ("a.xmi", "<xmi:XMI xmlns:xmi='x'/>", "is a UIMA CAS, which is not read"),
        ("a.xml", "<b/>", r"shows its format neither by name nor by content \(<b>\).*--input-format"),
        ("a.spacy", "x", "is spaCy's DocBin, which is not read"),
        ("a.tsv", "#FORMAT=WebAnno TSV 3.3\n", "is WebAnno's and INCEpTION's TSV, which is not read"),
    ],
)
def test_documents_of_other_tools_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(read_documents([tmp_path / name]))


def test_what_a_folder_has_besides_documents_is_named(tmp_path):
    for name in ("a.txt", "a.xlsx", "b.xlsx", ".hidden.xlsx", "LICENSE", "visual.conf"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    notes = []
    assert len(list(read_documents([tmp_path], log=notes.append))) == 1
    assert notes[0] == f"Files of {tmp_path} with other endings are not read: 2 .xlsx, 1 LICENSE."


def test_five_thousand_documents_are_streamed(tmp_path):
    """No more than one document is held: the reader gives the first before the file's end is reached."""
    line = json.dumps({"id": "1", "passages": [{"offset": 0, "text": "word " * 200}]}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 5000, encoding="utf-8")
    reads = []
    with sources.open_binary(tmp_path / "a.jsonl") as file:
        from megabert.formats.documents.document_lines import read

        for document in read(tmp_path / "a.jsonl", file, ReadOptions()):
            reads.append(file.tell())
            del document
    assert len(reads) == 5000
    assert reads[0] < 2 * sources.PEEK_BYTES


def test_rows_of_texts_alone_are_named_by_file_and_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    (tmp_path / "x.csv").write_text("text\na\nb\n", encoding="utf-8")
    for name, ids in (("x.jsonl", ["x.jsonl:1", "x.jsonl:3"]), ("x.csv", ["x.csv:2", "x.csv:3"])):
        assert [document.id for document in read_documents([tmp_path / name])] == ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("PMID- 123\nTI  - Aspirin.\nAB  - It helps.\n", "is PubMed's own text format"),
        ("7\t0\t7\tAspirin\tChemical\tD1\n", "has mentions in PubTator's lines without their texts"),
    ],
)
def test_text_files_of_other_formats_are_no_documents(content, message, tmp_path):
    (tmp_path / "x.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(read_documents([tmp_path / "x.txt"]))
    (document,) = read_documents([tmp_path / "x.txt"], format_name="text")
    assert document.text() == content
