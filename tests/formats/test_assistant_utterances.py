"""Snips' and Rasa's files: the same utterances in each of their forms, and what is none of them."""

import json

import pytest

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry

DATA = [
    {"text": "fly  to "},
    {"text": "New York", "entity": "city"},
    {"text": " on "},
    {"text": "9 May", "entity": "day"},
]
SNIPS = {"flight": [{"data": DATA}], "thanks": [{"data": [{"text": "thank you"}]}]}
NAMED = [piece | ({"slot_name": piece["entity"], "entity": "snips/x"} if "entity" in piece else {}) for piece in DATA]
SNIPS_NLU = {
    "language": "en", "entities": {},
    "intents": {"flight": {"utterances": [{"data": NAMED}]}, "thanks": {"utterances": SNIPS["thanks"]}},
}  # fmt: skip
ENTITIES = [{"start": 20, "end": 25, "entity": "day", "value": "x"}, {"start": 8, "end": 16, "entity": "city"}]
RASA = {"rasa_nlu_data": {"regex_features": [], "common_examples": [
    {"text": "fly  to New York on 9 May", "intent": "flight", "entities": ENTITIES},
    {"text": "thank you", "intent": "thanks", "entities": []},
]}}  # fmt: skip
YAML = """version: "3.1"
nlu:
- intent: flight
  examples: |
    - fly to [New York](city) on [9 May]{"entity": "day", "role": "departure"}
- synonym: New York
  examples: |
    - NYC
- intent: thanks
  examples:
  - text: |
      thank you
    metadata: {x: 1}
"""
MARKDOWN = """<!-- by hand -->
## intent:flight
- fly to [New York](city:NYC) on [9 May](day)

## synonym:NYC
- big apple

## intent: thanks
- thank you
"""
EXPECTED = [
    (("flight",), "fly to New York on 9 May", ("O", "O", "B-city", "I-city", "O", "B-day", "I-day")),
    (("thanks",), "thank you", ("O", "O")),
]


def read(path):
    kind = registry.find("intent_slot")
    return list(kind(compose(kind.settings_type, [], owner="intent_slot")[0]).read(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, json.dumps(document, indent=indent)) for name, document, indent in (
            ("snips.json", SNIPS, None), ("snips.json", SNIPS, 1), ("nlu.json", SNIPS_NLU, None),
            ("rasa.json", RASA, None), ("rasa.json", RASA, 2))),
        ("nlu.yml", YAML),
        ("nlu.md", MARKDOWN),
    ],
)  # fmt: skip
def test_an_utterance_is_the_same_in_each_form(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [(item.intents, item.text, item.tags) for item in read(tmp_path / name)] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"utterance": {}}', r"a.json: utterance has no utterances; expected"),
        ("a.json", '{"train": [["a", "b"]]}', r"train\[0\]: expected an object with data"),
        ("a.json", '{"x": [{"data": [{"text": 1}]}]}', r"x\[0\]: a piece is .*expected text"),
        ("a.json", '{"x": []}', r"holds no utterances of an intent"),
        (
            "a.json",
            json.dumps(RASA).replace('"end": 16', '"end": 36'),
            r"common_examples\[0\]: the (city|day) .*no char",
        ),
        (
            "a.json",
            json.dumps(RASA).replace('"end": 16', '"end": 21'),
            r"common_examples\[0\]: the (city|day) .*no char",
        ),
        ("a.json", '{"text": "a",\n', r"a.json:1:14: not JSON"),
        ("a.json", '{"rasa_nlu_data": {"common_examples": [3]}}', r"common_examples\[0\]: a JSON int"),
        ("a.json", json.dumps(RASA).replace('"end": 16', '"end": "16"'), r"entities are .*expected objects with start"),
        ("a.yml", "nlu: [", r"a.yml: not YAML"),
        ("a.yml", "rules: []", r"a.yml has no list `nlu`"),
        ("a.md", '## intent:x\n- a [b]{"type": "c"}', r"""a.md:2: \[b\]\{"type": "c"\} has no"""),
    ],
)
def test_what_is_none_of_their_forms_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_markdown_without_intents_is_text(tmp_path):
    (tmp_path / "a.md").write_text("fly to boston\n")
    (example,) = read(tmp_path / "a.md")
    assert (example.text, example.tags, example.intents) == ("fly to boston", None, None)


def test_objects_of_other_names_are_refused_as_json_lines(tmp_path):
    (tmp_path / "x.json").write_text('{"sentence": "fly", "intent": "x"}\n{"sentence": "go", "intent": "y"}\n')
    task = registry.find("intent_slot")
    with pytest.raises(InputError, match=r"x\.json:1: there is no 'text'; found 'sentence', 'intent'"):
        task(compose(task.settings_type, [], owner="intent_slot")[0]).read(tmp_path / "x.json")
