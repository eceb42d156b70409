"""Dialogues and schemas of SGD: genuine files, SGD-X's wordings, and malformed files, each with place and remedy."""

import copy
import json

import pytest

from megabert.errors import InputError
from megabert.formats.dialogues import dialogue_rows, read_dialogues, read_schema, to_dialogues

SCHEMA = [
    {"service_name": "Banks_1", "description": "accounts", "slots": [
        {"name": "account", "description": "type", "is_categorical": True, "possible_values": ["checking", "savings"]},
        {"name": "amount", "description": "money", "is_categorical": False, "possible_values": []}],
     "intents": [{"name": "Check", "description": "see it", "required_slots": ["account"], "optional_slots": {}}]},
    {"service_name": "Music_1", "description": "songs", "slots": [
        {"name": "song", "description": "title", "is_categorical": False, "possible_values": []}],
     "intents": [{"name": "Play", "description": "play it", "required_slots": ["song"], "optional_slots": {}}]},
]  # fmt: skip
STATE = {"active_intent": "Check", "requested_slots": ["amount"], "slot_values": {"account": ["checking"]}}
DIALOGUES = [
    {"dialogue_id": str(number), "services": ["Banks_1"], "turns": [
        {"speaker": "USER", "utterance": "my checking account", "frames": [
            {"service": "Banks_1", "slots": [{"slot": "amount", "start": 3, "exclusive_end": 11}], "state": STATE,
             "actions": [{"act": "INFORM", "slot": "account", "values": ["checking"]}]}]},
        {"speaker": "SYSTEM", "utterance": "It has $5.", "frames": []}]}
    for number in range(2)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "dialogues_001.json").write_text(to_dialogues(DIALOGUES))
    return tmp_path


def test_genuine_files_are_written_as_they_were_read(datasets):
    folder = datasets("sgd") / "dev"
    dialogues = read_dialogues(folder)
    assert len(dialogues) == 128 and all(item.is_labelled for item in dialogues)
    assert {item.file for item in dialogues} == {"dialogues_005.json"}
    written = json.loads(to_dialogues(item.to_json() for item in dialogues))
    assert written == json.loads((folder / "dialogues_005.json").read_text())


@pytest.mark.parametrize("variant", ["v1", "v5"])
def test_other_wordings_of_a_schema(variant, datasets):
    other = datasets("sgd_more") / "sgd_x" / variant / "dev" / "schema.json"
    (first, *_) = read_dialogues(datasets("sgd_more") / "dev" / "dialogues_003.json", schema_file=other)
    for service in first.services:
        assert first.shown[service]["service_name"] == service + variant[1]
        for kind in ("slots", "intents"):
            assert len(first.schema[service][kind]) == len(first.shown[service][kind])
    with pytest.raises(InputError, match="the other schema has 26 services for 17"):
        read_dialogues(
            datasets("sgd_more") / "dev" / "dialogues_003.json",
            schema_file=datasets("sgd_more") / "sgd_x" / variant / "train" / "schema.json",
        )


def test_a_dialogue_may_have_its_own_schema_and_files_be_lines(folder):
    (folder / "schema.json").unlink()
    row = DIALOGUES[0] | {"schema": SCHEMA[:1], "more": 1}
    (folder / "x.jsonl").write_text(json.dumps(row) + "\n")
    (dialogue,) = read_dialogues(folder / "x.jsonl")
    assert dialogue.schema == {"Banks_1": SCHEMA[0]} and dialogue.given == {"more": 1}
    (folder / "by_id.json").write_text(json.dumps({"0": DIALOGUES[0]}))
    assert [row.values for row in dialogue_rows(folder / "by_id.json")] == [DIALOGUES[0]]


def turn(dialogues):
    return dialogues[1]["turns"][0]


def frame(dialogues):
    return turn(dialogues)["frames"][0]


def span(dialogues):
    return frame(dialogues)["slots"][0]


def state(dialogues):
    return frame(dialogues)["state"]


IN_FRAME = r"dialogues_001.json: \[1\] \(dialogue_id '1'\), turn 0, frame of Banks_1"
IN_TURN = r"\[1\] \(dialogue_id '1'\), turn 0"
MALFORMED = {
    "no id": (lambda items: items[1].pop("dialogue_id"), r"\[1\] .*there is no 'dialogue_id'"),
    "a number as id": (lambda items: items[1].update(dialogue_id=1), "expected a string that is not blank"),
    "an id twice": (lambda items: items[1].update(dialogue_id="0"), r"the dialogue_id is that of .*\[0\].*its own"),
    "no services": (lambda items: items[1].update(services=[]), "expected a list of strings"),
    "an unknown service": (lambda items: items[1].update(services=["Bank_1"]), "'Bank_1' is not in the schema"),
    "no turns": (lambda items: items[1].update(turns=[]), "'turns' is .*not empty"),
    "turns by number": (lambda items: items[1].update(turns={"0": {}}), "'turns' is"),
    "a turn that is text": (lambda items: items[1].update(turns=["hello"]), "turn 0 is a JSON str; expected an object"),
    "another speaker": (lambda items: turn(items).update(speaker="user"), f"{IN_TURN}: the speaker is 'user'"),
    "no utterance": (lambda items: turn(items).update(utterance=None), f"{IN_TURN}: the utterance is None"),
    "no frames": (lambda items: turn(items).pop("frames"), f"{IN_TURN}: 'frames' is 'None'"),
    "a frame that is text": (lambda items: turn(items).update(frames=["x"]), "expected a list of objects"),
    "a frame of no service": (lambda items: frame(items).update(service="Music_1"), "expected one of Banks_1"),
    "two frames": (lambda items: turn(items)["frames"].append(frame(items)), "two frames of Banks_1. Leave one"),
    "spans by name": (lambda items: frame(items).update(slots={}), f"{IN_FRAME}: 'slots' is"),
    "a span of no slot": (lambda items: span(items).update(slot="amounts"), "slot is 'amounts'; .*account, amount"),
    "a span beyond the end": (lambda items: span(items).update(exclusive_end=20), "the utterance's 19 characters"),
    "an empty span": (lambda items: span(items).update(exclusive_end=3), "the span of amount is 3 to 3"),
    "a span of text": (lambda items: span(items).update(start="3"), "the span of amount is '3' to 11"),
    "a span from true": (lambda items: span(items).update(start=True), "the span of amount is True"),
    "values of an action": (lambda items: frame(items)["actions"][0].update(values="x"), "an action's values is 'x'"),
    "no state": (lambda items: frame(items).update(state=None), f"{IN_FRAME}: the state is 'None'"),
    "no slot_values": (lambda items: state(items).pop("slot_values"), "an object with slot_values"),
    "an unknown intent": (lambda items: state(items).update(active_intent="Pay"), "active_intent is 'Pay'; .*Check"),
    "no intent": (lambda items: state(items).pop("active_intent"), "active_intent is None"),
    "requested text": (lambda items: state(items).update(requested_slots="amount"), "requested_slots is 'amount'"),
    "requested unknown": (lambda items: state(items).update(requested_slots=["x"]), "a requested slot is 'x'"),
    "an unknown slot": (lambda items: state(items)["slot_values"].update(x=["y"]), "a slot of slot_values is 'x'"),
    "a value as text": (lambda items: state(items)["slot_values"].update(account="x"), "the values of account is 'x'"),
    "no value": (lambda items: state(items)["slot_values"].update(account=[]), "account has no value. Give it one"),
}
FILES = {
    "[": r"dialogues_001.json:1:2: not JSON",
    "[]": "holds no dialogues",
    "7": "holds a JSON int; expected a list of dialogues",
    '["x"]': r"\[0\] is a JSON str; expected a dialogue",
    '[{"dialogue_id": "\\ud800"}]': "a lone surrogate",
    "[" * 100_000: "nested too deeply",
}
SCHEMAS = {
    "no list": (lambda items: {"a": 1}, "schema.json is .*expected a list of objects"),
    "empty": (lambda items: [], "holds no services"),
    "no name": (lambda items: items[1].pop("service_name") and items, r"\[1\].*there is no 'service_name'"),
    "a name twice": (lambda items: [items[0], items[0]], "the service_name is that of"),
    "no description": (lambda items: items[0]["slots"][1].pop("description") and items, r"slots\[1\]: there is no"),
    "a slot twice": (lambda items: items[0]["slots"].append(items[0]["slots"][0]) or items, r"slots\[2\]: the name is"),
    "is_categorical": (lambda items: items[0]["slots"][0].update(is_categorical="yes") or items, "expected a boolean"),
    "no values": (lambda items: items[0]["slots"][0].update(possible_values=[]) or items, "without possible_values"),
    "required": (lambda items: items[0]["intents"][0].update(required_slots=["x"]) or items, "a slot is 'x'"),
    "optional": (lambda items: items[0]["intents"][0].update(optional_slots="x") or items, "expected an object"),
    "intents": (lambda items: items[0].pop("intents") and items, "intents is 'None'"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_dialogues(name, folder):
    change, message = MALFORMED[name]
    items = copy.deepcopy(DIALOGUES)
    change(items)
    (folder / "dialogues_001.json").write_text(json.dumps(items))
    with pytest.raises(InputError, match=message):
        read_dialogues(folder)


@pytest.mark.parametrize("content", FILES)
def test_malformed_files(content, folder):
    (folder / "dialogues_001.json").write_text(content)
    with pytest.raises(InputError, match=FILES[content]):
        read_dialogues(folder)


@pytest.mark.parametrize("name", SCHEMAS)
def test_malformed_schemas(name, folder):
    change, message = SCHEMAS[name]
    (folder / "schema.json").write_text(json.dumps(change(copy.deepcopy(SCHEMA))))
    with pytest.raises(InputError, match=message):
        read_schema(folder / "schema.json")


def test_schemas_that_do_not_match(folder):
    other = copy.deepcopy(SCHEMA)
    other[0]["service_name"] = "Banks_11"
    other[0]["slots"].reverse()
    (folder / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="Banks_11 of the other schema has not the slots of Banks_1 in their order"):
        read_dialogues(folder, schema_file=folder / "other.json")
    with pytest.raises(InputError, match=r"is a folder without files dialogues_\*.json"):
        (folder / "empty").mkdir()
        read_dialogues(folder / "empty")
