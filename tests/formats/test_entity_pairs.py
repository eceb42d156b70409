"""TACRED's and OpenNRE's objects: the entities that their numbers of words and characters stand for."""

import json

import pytest

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry

WORDS = ["At", "the", "same", "time", ",", "Chief", "Financial", "Officer", "Douglas", "Flint", "will", "leave"]
TACRED = {
    "id": "e7798", "docid": "APW", "relation": "per:title", "token": WORDS, "subj_start": 8, "subj_end": 9,
    "obj_start": 5, "obj_end": 7, "subj_type": "PERSON", "obj_type": "TITLE", "stanford_pos": ["IN"] * 12,
}  # fmt: skip
MARKED = "At the same time , # ^ title ^ Chief Financial Officer # @ * person * Douglas Flint @ will leave"
OPENNRE = {
    "token": WORDS, "h": {"name": "douglas flint", "id": "Q1", "pos": [8, 10], "type": "PERSON"},
    "t": {"name": "chief", "id": "Q2", "pos": [5, 8], "type": "TITLE"}, "relation": "per:title",
}  # fmt: skip
TEXT = {
    "text": "A. b inhibits c.", "h": {"name": "A. b", "pos": [0, 4]}, "t": {"name": "c", "pos": [14, 15]},
    "relation": "x",
}  # fmt: skip


def read(tmp_path, *rows, name="x.json"):
    kind = registry.find("relation_extraction")
    words = ["model.dataset.entity_marking=typed_markers"]
    (tmp_path / name).write_text(json.dumps(rows) if name == "x.json" else "\n".join(map(json.dumps, rows)))
    return kind(compose(kind.settings_type, words, owner="relation_extraction")[0]).read(tmp_path / name)


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    ("row", "marked", "label"),
    [
        (TACRED, MARKED, "per:title"),
        (OPENNRE, MARKED, "per:title"),
        (TEXT, "@ * head * A. b @ inhibits # ^ tail ^ c #.", "x"),
    ],
)
def test_entities_are_marked_where_their_words_are(row, marked, label, name, tmp_path):
    (example,) = read(tmp_path, row, name=name)
    assert (example.text, example.labels, example.id) == (marked, (label,), row.get("id", "1"))
    assert not {"token", "subj_start", "stanford_pos", "h"} & example.given.keys()


def test_a_pair_without_a_relation_is_unlabelled(tmp_path):
    (example,) = read(tmp_path, {key: value for key, value in TACRED.items() if key != "relation"})
    assert example.labels is None and example.given["docid"] == "APW"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (TACRED | {"subj_end": 12}, r"object 1: subj_start and subj_end are no words of the 12 of token"),
        (TACRED | {"obj_start": 8}, r"obj_start and obj_end are no words"),
        (TACRED | {"token": "At the"}, r"'token' is 'At the'; expected a list of strings"),
        (OPENNRE | {"h": "douglas"}, r"h is douglas; expected an object with pos, start and end"),
        (TEXT | {"t": {"name": "c", "pos": [13, 14]}}, r"the tail 'c' is not at characters 13 to 14"),
    ],
)
def test_entities_that_are_not_there_are_errors(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, row)


@pytest.mark.parametrize("columns", [{"h": "A", "t": "B"}, {"subj_start": 0, "obj_start": 9}])
def test_columns_beside_a_marked_text_are_no_places_of_entities(columns, tmp_path):
    (example,) = read(tmp_path, {"text": "@A$ hits @B$", "label": "x", **columns})
    assert (example.text, example.labels, example.given) == ("@A$ hits @B$", ("x",), columns)
