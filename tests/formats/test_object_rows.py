"""Rows as other libraries write them: lists of objects, integer tags with names elsewhere, Parquet and Arrow."""

import json
from pathlib import Path

import pytest

from megabert.config.parser import compose
from megabert.errors import InputError, InputWarning
from megabert.tasks import registry

ROW = {"id": "7", "tokens": ["breast", "cancer", "is"], "ner_tags": [1, 2, 0], "label": 1, "text": "x y"}
TAGS = ("B-D", "I-D", "O")
# The schema's metadata, as datasets 2 and 4 write them.
FEATURES = {"ner_tags": {"feature": {"names": ["O", "B-D", "I-D"], "_type": "ClassLabel"}, "_type": "Sequence"},
            "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "tokens": {"_type": "List", "feature": {}},
            "text": {"dtype": "string", "_type": "Value"}}  # fmt: skip


def read(name, path, *words):
    kind = registry.find(name)
    return list(kind(compose(kind.settings_type, list(words), owner=name)[0]).read(Path(path)))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_read_as_lines_are(indent, tmp_path):
    rows = [{"text": "a", "label": "pos"}, {"text": "b\n", "label": "neg"}]
    (tmp_path / "a.json").write_text("\ufeff\n" + json.dumps(rows, indent=indent), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    listed, lines = (read("text_classification", tmp_path / name) for name in ("a.json", "a.jsonl"))
    assert [(item.id, item.text, item.labels) for item in listed] == [(e.id, e.text, e.labels) for e in lines]
    assert listed[1].location == f"{tmp_path / 'a.json'}, object 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "holds no objects"), ("[1]", "object 1: a JSON int"), ('[{"text": "a"},', ":1:16: not JSON"),
     ('[{"text": "a"}]\n]', ":2:1: not JSON: Extra data")],
)  # fmt: skip
def test_what_is_no_list_of_objects_is_named(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read("text_classification", tmp_path / "a.json")


def test_tags_that_are_numbers_need_names(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    (example,) = read("token_classification", tmp_path / "a.jsonl", "model.dataset.tag_names=[O,B-D,I-D]")
    assert example.tags == TAGS
    for word, message in (
        ("model.dataset.tag_names=[]", r"a\.jsonl:1: the tags are numbers, \[1, 2, 0\].*model.dataset.tag_names="),
        ("model.dataset.tag_names=[O,B-D]", r"a\.jsonl:1: the tag 2 is none of the 2 model.dataset.tag_names"),
    ):
        with pytest.raises(InputError, match=message):
            read("token_classification", tmp_path / "a.jsonl", word)


def test_rows_without_words_and_tags_are_left_out_and_counted(tmp_path):
    rows = [ROW | {"ner_tags": TAGS}, {"id": "8", "tokens": [], "ner_tags": []}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.warns(InputWarning, match=r"a\.jsonl: 1 rows without words and tags are left out"):
        assert [item.id for item in read("token_classification", tmp_path / "a.jsonl")] == ["7"]
    (tmp_path / "b.jsonl").write_text('{"tokens": [], "tags": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"b\.jsonl: none of 1 rows has words"):
        read("token_classification", tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_text('{"tokens": []}', encoding="utf-8")  # a prediction would be missing
    with pytest.raises(InputError, match=r"b\.jsonl:1: 'tokens' is '\[\]'"):
        read("token_classification", tmp_path / "b.jsonl")


def test_files_of_the_library_datasets_have_the_names_of_their_labels(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    table = pyarrow.Table.from_pylist([ROW, ROW | {"id": "8", "label": -1}]).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "a.parquet")
    for name, writer in (("stream.arrow", ipc.new_stream), ("file.arrow", ipc.new_file)):
        with pyarrow.OSFile(str(tmp_path / name), "wb") as file, writer(file, table.schema) as output:
            output.write_table(table)
    for path in tmp_path.iterdir():
        assert [(item.id, item.tags) for item in read("token_classification", path)] == [("7", TAGS), ("8", TAGS)]
        assert [item.labels for item in read("text_classification", path)] == [("pos",), ("-1",)]


def test_strings_that_are_not_marked_as_text_are_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"text": ["zu ä".encode(), b"b"], "label": [0, 1], "image": [b"\xff\xd8", b""]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [item.text for item in read("text_classification", tmp_path / "a.parquet")] == ["zu ä", "b"]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_tables_are_named(name, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"ARROW1\0\0PAR1")
    with pytest.raises(InputError, match=f"{name} cannot be read as"):
        read("text_classification", tmp_path / name)
