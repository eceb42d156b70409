"""Texts with spans as other programs export them; no annotation is lost, whatever its form."""

import json

import pytest

from megabert.errors import InputError
from megabert.formats.documents.convert_documents import read_documents
from megabert.formats.documents.document import text_at
from megabert.formats.documents.sources import ReadOptions

TEXT = "breast cancer and BRCA1"
SPAN, GENE = {"start": 0, "end": 13, "label": "Disease"}, {"start": 18, "end": 23, "label": "Gene"}
MENTIONS = [("breast cancer", "Disease"), ("BRCA1", "Gene")]
DENOTATION = {"id": "T1", "span": {"begin": 0, "end": 13}, "obj": "Disease"}
BIGBIO = {
    "id": "0", "document_id": "12", "passages": [
        {"id": "1", "type": "title", "text": ["breast cancer"], "offsets": [[0, 13]]},
        {"id": "2", "type": "abstract", "text": ["and BRCA1"], "offsets": [[14, 23]]}],
    "entities": [
        {"id": "3", "type": "Disease", "text": ["breast", "cancer"], "offsets": [[0, 6], [7, 13]], "normalized": [
            {"db_name": "MESH", "db_id": "D1"}]},
        {"id": "4", "type": "Gene", "text": ["BRCA1"], "offsets": [[18, 23]], "normalized": []}],
    "events": [{"id": "E1", "type": "Has", "trigger": {"text": ["and"], "offsets": [[14, 17]]}, "arguments": [
        {"role": "Theme", "ref_id": "4"}]}],
    "coreferences": [{"id": "C1", "entity_ids": ["3", "4"]}],
    "relations": [{"id": "R1", "type": "assoc", "arg1_id": "4", "arg2_id": "3", "normalized": []}],
}  # fmt: skip


def write(tmp_path, name, *objects, indent=None):
    (tmp_path / name).write_text("\n".join(json.dumps(item, indent=indent) for item in objects), encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "item",
    [
        {"text": TEXT, "label": [[0, 13, "Disease"], [18, 23, "Gene"]]},
        {"text": TEXT, "entities": [(0, 13, "Disease"), (18, 23, "Gene")]},
        [TEXT, {"entities": [[0, 13, "Disease"], [18, 23, "Gene"]], "cats": {}}],
        {"text": TEXT, "spans": [{**SPAN, "token_start": 0}, GENE], "tokens": [{"text": "breast"}], "answer": "accept"},
        {"text": TEXT, "ents": [SPAN, GENE], "spans": []},
        {"text": TEXT, "label": [{"start": 0, "end": 13, "labels": ["Disease"]}, {**GENE, "text": "BRCA1"}]},
        {"id": 1, "text": TEXT, "entities": [{"type": "Disease", "text": "breast cancer", "start": 0, "end": 13,
                                              "score": 0.5}, {"type": "Gene", "start": 18, "end": 23}]},
        {"sourceid": "12", "divid": 3, "text": TEXT, "denotations": [
            DENOTATION, {"id": "T2", "span": {"begin": 18, "end": 23}, "obj": "Gene"}]},
    ],
)  # fmt: skip
def test_spans_of_every_form_are_mentions(item, indent, tmp_path):
    is_line = indent is None and isinstance(item, dict)
    content = [item] if is_line else [[item]]  # on several lines as well as in a list
    for name in ("a.json", "a.documents.jsonl") if is_line else ("a.json",):
        (document,) = read_documents([write(tmp_path, name, *content, indent=indent)])
        assert [(text_at(TEXT, entity.fragments), entity.type) for entity in document.entities] == MENTIONS
        assert document.id == ("12-3" if "sourceid" in item else "1")


@pytest.mark.parametrize(
    ("item", "roles"),
    [
        ({"entities": [{**SPAN, "id": 7}, {**GENE, "id": 8}], "relations": [
            {"id": 1, "from_id": 8, "to_id": 7, "type": "assoc"}]}, ("from", "to")),
        ({"denotations": [{**DENOTATION, "id": "7"}, {"id": "8", "span": [{"begin": 18, "end": 23}], "obj": "Gene"}],
          "relations": [{"subj": "8", "pred": "assoc", "obj": "7"}]}, ("subj", "obj")),
        ({"spans": [{**SPAN, "id": "7"}, {**GENE, "id": "8"}], "relations": [
            {"head": 3, "child": 1, "head_span": GENE, "child_span": SPAN, "label": "assoc"}]}, ("head", "child")),
    ],
)  # fmt: skip
def test_relations_refer_to_spans(item, roles, tmp_path):
    (document,) = read_documents([write(tmp_path, "a.json", {"text": TEXT, **item})])
    (relation,) = document.relations
    assert relation.type == "assoc"
    assert [(argument.role, argument.entity) for argument in relation.arguments] == list(zip(roles, "87", strict=True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.documents.jsonl", "a.json"])
def test_documents_of_bigbio(name, tmp_path):
    (document,) = read_documents([write(tmp_path, name, BIGBIO)])
    assert (document.id, document.text()) == ("12", "breast cancer\nand BRCA1")
    assert [(item.fragments, item.identifier) for item in document.entities] == [
        (((0, 6), (7, 13)), "MESH:D1"), (((18, 23),), ""), (((14, 17),), "")]  # fmt: skip
    ends = {item.id: [argument.entity for argument in item.arguments] for item in document.relations}
    assert ends == {"R1": ["4", "3"], "E1": ["E1.trigger", "4"], "C1": ["3", "4"]}


def test_our_own_documents_may_have_empty_lists(tmp_path):
    passages = [{"offset": 0, "text": TEXT}]
    path = write(tmp_path, "a.jsonl", {"id": "d", "passages": passages, "entities": [], "relations": []})
    (document,) = read_documents([path])
    assert (document.id, document.text(), document.entities) == ("d", TEXT, ())


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"text": TEXT, "entities": {"Disease": [{"indices": [0]}]}}, "'entities' has annotations that are not read"),
        ({"text": TEXT, "label": [["0", "3", "T"]]}, "'label' has annotations that are not read"),
        ({"text": TEXT, "spans": [SPAN], "entities": [GENE]}, "'spans' has annotations that are not read"),
        ({"text": TEXT, "annotations": [{"start": 1}]}, "'annotations' has annotations that are not read"),
        ({"text": TEXT, "spans": [SPAN], "answer": "reject"}, "the answer is reject: its spans were not accepted"),
        ({"text": TEXT, "spans": [{"start": "0", "end": 3, "label": "T"}]}, "the offset '0' is no whole number"),
        ({"text": TEXT, "spans": [SPAN], "relations": [{"a": 1}]}, "names no spans: from_id, subj or head_span"),
        ({"text": TEXT, "denotations": [DENOTATION], "relations": [{"subj": "T1", "pred": "p", "obj": "T9"}]},
         "refers to T9, which is no annotation that is read"),
    ],
)  # fmt: skip
def test_annotations_that_cannot_be_read_are_named(item, message, tmp_path):
    for path in (write(tmp_path, "a.jsonl", {"id": 1, **item}), write(tmp_path, "a.json", [{"id": 1, **item}])):
        with pytest.raises(InputError, match=message) as error:
            list(read_documents([path]))
        assert str(error.value).startswith((f"{path}:1: ", f"{path}, object 1: "))


def test_spans_in_a_column_of_a_table_are_entities(tmp_path):
    spans = json.dumps([{**SPAN, "label": None, "labels": ["Disease"], "text": "breast cancer"}, GENE])
    cell = f'"{spans.replace(chr(34), chr(34) * 2)}"'
    (tmp_path / "studio.csv").write_text(f"text,id,label,annotator\n{TEXT},7,{cell},1\n{TEXT},8,,1\n", encoding="utf-8")
    first, second = read_documents([tmp_path / "studio.csv"])
    assert [(item.text, item.type) for item in first.entities] == MENTIONS
    assert (first.id, second.id, second.entities) == ("7", "8", ())
    (tmp_path / "pmid.csv").write_text(f"text,pmid,label\n{TEXT},7,{cell}\n{TEXT},8,\n", encoding="utf-8")
    first, second = read_documents([tmp_path / "pmid.csv"], ReadOptions(id_column="pmid"))
    assert (first.id, first.infons, len(first.entities), second.id) == ("7", {}, 2, "8")
    (tmp_path / "a.csv").write_text('text,id,label\nx,7,"[1, 2]"\n', encoding="utf-8")
    (document,) = read_documents([tmp_path / "a.csv"])
    assert document.infons == {"label": "[1, 2]"}
    (tmp_path / "a.csv").write_text('text,id,label\nx,7,"[[""0"", 1]]"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.csv:2: 'label' has annotations that are not read"):
        list(read_documents([tmp_path / "a.csv"]))


def test_spans_in_parquet_are_entities(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": ["7"], "text": [TEXT], "spans": [[SPAN, GENE]]}), tmp_path / "a.parquet")
    (document,) = read_documents([tmp_path / "a.parquet"])
    assert [(item.text, item.type) for item in document.entities] == MENTIONS
