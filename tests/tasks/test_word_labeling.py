"""Runs on words: how they cut raw text, take tokens, and tag words that become no token."""

import io
import json

import numpy as np
import pytest

import megabert
from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry
from megabert.tasks.iob_tags import decode_tags
from tests.tasks.test_contract import Case, train

LABELS = ["O", "B-A", "I-A", "B-B", "I-B"]
# As BC5CDR: hyphens and slashes are words, and one word becomes no token.
SENTENCES = (
    "paris - born curie found radium", "marie / curie was in paris", "the seine - river is in paris - france",
    "born \u200b in warsaw",
)  # fmt: skip
TAGS = ("B-L O O B-P O O", "B-P I-P I-P O O B-L", "O B-L I-L I-L O O B-L I-L I-L", "B-X I-X I-X I-X")


def tagged(*words):
    kind = registry.find("token_classification")
    return kind(compose(kind.settings_type, words, owner="token_classification")[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocab_file):
    content = "\n".join(
        "".join(f"{word} {tag}\n" for word, tag in zip(words.split(" "), tags.split(" "), strict=True))
        for words, tags in zip(SENTENCES, TAGS, strict=True)
    )
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGABERT_HOME", str(folder / "home"))
        return train(Case("token_classification", "x.conll", content, (), "f1", ()), folder, vocab_file)


def test_an_entity_goes_on_over_a_word_that_becomes_no_token(run, capsys):
    assert main(["evaluate", str(run[0]), f"file={run[1]}", "accelerator=cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] == 100


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("B-A - I-A O", "B-A I-A I-A O"),
        ("B-A - - I-A O", "B-A I-A I-A I-A O"),
        ("B-A - O", "B-A O O"),
        ("- B-A I-A -", "O B-A I-A O"),
        ("O - B-B", "O O B-B"),
        ("- -", "O O"),
    ],
)
def test_words_without_tokens_continue_the_entity_around_them(tokens, expected, constrained):
    logits = np.array(
        [[np.nan] * 5 if tag == "-" else [9.0 * (tag == label) for label in LABELS] for tag in tokens.split()]
    )
    outside = np.array([[9.0, 0.0, 0.0, 0.0, 0.0]])
    for number, (tags, probabilities) in enumerate(
        decode_tags([outside, logits, outside[:0]], LABELS, constrained=constrained)
    ):
        assert " ".join(tags) == ("O", expected, "")[number]
        assert np.isfinite(probabilities).all()


def test_a_run_cuts_raw_text_as_its_training_words_are_cut(run, capsys):
    predictor = megabert.load(run[0], accelerator="cpu")
    assert len(predictor.predict(text="Paris-born Curie found radium").tags) == 6
    (span,) = [item for item in predictor.predict(text="Paris-born Curie found radium").spans if item.type == "L"]
    assert (span.text, span.start, span.end) == ("Paris", 0, 5)
    whole = [str(run[0]), "text=Paris-born Curie", "accelerator=cpu", "model.dataset.split_at=''"]
    assert main(["predict", *whole]) == 0
    assert len(json.loads(capsys.readouterr().out)["tags"]) == 2


def test_tokens_may_be_given_everywhere(run, tmp_path, monkeypatch, capsys):
    words = SENTENCES[0].split(" ")
    predictor = megabert.load(run[0], accelerator="cpu")
    expected = predictor.predict(tokens=words)
    assert expected.tags == tuple(TAGS[0].split(" "))
    row = json.dumps({"id": "a", "tokens": words}) + "\n"
    (tmp_path / "x.jsonl").write_text(row + '{"text": "marie was in paris"}\n')
    assert main(["predict", str(run[0]), f"file={tmp_path / 'x.jsonl'}", "accelerator=cpu"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(row.encode())))
    assert main(["predict", str(run[0]), "file=-", "accelerator=cpu"]) == 0
    assert main(["predict", str(run[0]), f"tokens={SENTENCES[0]}", "accelerator=cpu"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"')]
    assert [item["id"] for item in found[:3]] == ["a", "2", "a"]
    assert all(item["tags"] == list(expected.tags) for item in (found[0], found[2]))
    with pytest.raises(InputError, match="expected a list of strings"):
        predictor.predict(tokens=[1])
    with pytest.raises(InputError, match="unexpected field text beside tokens"):
        predictor.predict(tokens=words, text="x")


def test_a_lone_surrogate_is_an_error_with_its_line(run, tmp_path, capsys):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "ok \\ud83d\\ude00"}\n{"text": "Patients with \\ud83d asthma"}\n')
    assert main(["predict", str(run[0]), f"file={file}", "accelerator=cpu"]) == 65
    assert f"{file}:2: invalid Unicode: a lone surrogate" in capsys.readouterr().err
    assert main(["predict", str(run[0]), "text=a \udcff b", "accelerator=cpu"]) == 65
    assert "not valid Unicode" in capsys.readouterr().err


def test_words_with_blanks_are_one_field_of_conlleval_s_input(tmp_path):
    file = tmp_path / "x.conll"
    file.write_text("1 000\tO\nvitamin C\tB-Chemical\n")
    task = tagged()
    examples = task.read(file)
    predictions = [task.from_json(examples[0], row) for row in task.read_predictions(file)]
    assert task.write_predictions(examples, predictions) == {
        "predictions.txt": "1_000 O O\nvitamin_C B-Chemical B-Chemical\n"
    }
    assert main(["import", "iob", "--data_file", str(file)]) == 65


def test_training_on_raw_text_names_the_setting(tmp_path):
    (tmp_path / "x.txt").write_text("dose NOUN\nworked VERB\n")
    task = tagged()
    with pytest.raises(InputError, match=r"x.txt:1: the training data have no tags.*format=columns"):
        task.learn_labels(task.read(tmp_path / "x.txt"))
    (example,) = tagged("model.dataset.format=columns").read(tmp_path / "x.txt")
    assert example.tags == ("NOUN", "VERB")


def test_parts_of_speech_are_scored_word_by_word(tmp_path):
    for name, tag in (("gold", "NOUN"), ("found", "VERB")):
        (tmp_path / f"{name}.conll").write_text(f"dose NOUN\nworked VERB\nwell ADV\nnow {tag}\n")
    scores = registry.find("token_classification").score_files(tmp_path / "gold.conll", tmp_path / "found.conll")
    assert scores["f1"] == scores["word_accuracy"] == 75


def intents(file, *words):
    kind = registry.find("intent_slot")
    return kind(compose(kind.settings_type, words, owner="intent_slot")[0]).read(file)


def test_bilou_slots_are_converted_and_names_in_lists_are_whole(tmp_path):
    file = tmp_path / "x.jsonl"
    row = {"tokens": ["rain", "in", "new", "york", "at", "six"], "tags": ["O", "O", "B-city", "L-city", "O", "U-time"]}
    file.write_text(json.dumps(row | {"intents": ["learn_C#", "ask, politely"]}))
    (example,) = intents(file, "model.dataset.multi_label=true")
    assert example.tags == ("O", "O", "B-city", "I-city", "O", "B-time")
    assert example.intents == ("learn_C#", "ask, politely")
    file.write_text(json.dumps(row | {"intent": "a#b, c"}))
    assert intents(file, "model.dataset.multi_label=true")[0].intents == ("a", "b", "c")


def test_utterances_of_massive(tmp_path):
    row = {"id": "3", "locale": "en-US", "intent": "alarm_set", "utt": "wake me at five am [now]"}
    marked = "wake me [timeofday : at] [time : five am] now"
    (tmp_path / "x.jsonl").write_text(json.dumps(row | {"utt": "wake me at five am now", "annot_utt": marked}))
    (example,) = intents(tmp_path / "x.jsonl")
    assert example.text == "wake me at five am now"
    assert example.tags == ("O", "O", "B-timeofday", "B-time", "I-time", "O")
    assert (example.id, example.intents) == ("3", ("alarm_set",))
    (tmp_path / "x.jsonl").write_text(json.dumps(row | {"annot_utt": marked}))
    with pytest.raises(InputError, match=r"x\.jsonl:1: annot_utt without its slots is .*which utt is not"):
        intents(tmp_path / "x.jsonl")


@pytest.mark.parametrize("labels", ["OX", "ZU", "UO", ",", ",UU"])
def test_what_is_no_mark_or_no_case_is_no_label_of_punctuation(labels, tmp_path):
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "labels.txt").write_text(f"{labels}\n")
    kind = registry.find("punctuation_capitalization")
    task = kind(compose(kind.settings_type, [], owner="punctuation_capitalization")[0])
    with pytest.raises(InputError, match=rf"text\.txt:1: the label '{labels}'; expected two letters"):
        task.read_files([str(tmp_path / "text.txt"), str(tmp_path / "labels.txt")])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.csv", "intent_slot"), ("x.yml", "punctuation_capitalization"), ("x.tsv", "punctuation_capitalization"),
     ("x.html", "punctuation_capitalization"), ("x.xml", "text_classification"), ("x.ann", "text_classification")],
)  # fmt: skip
def test_tables_and_markup_are_not_read_as_lines_of_text(name, kind, tmp_path):
    (tmp_path / name).write_text("<a>some words</a>\nmore\n")
    with pytest.raises(InputError, match=r"is no ending of raw text"):
        task = registry.find(kind)
        task(compose(task.settings_type, [], owner=kind)[0]).read(tmp_path / name)


@pytest.mark.parametrize(
    "kind", ["intent_slot", "punctuation_capitalization", "text_classification", "token_classification"]
)
def test_json_objects_are_not_read_as_lines_of_text(kind, tmp_path):
    (tmp_path / "x.txt").write_text('\n{"text": "a b"}\n{"text": "c"}\n')
    task = registry.find(kind)
    reader = task(compose(task.settings_type, [], owner=kind)[0])
    with pytest.raises(InputError, match=r"x.txt has JSON objects, no lines of text. Name it x.jsonl"):
        reader.read(tmp_path / "x.txt")
    for first in ('{"text": 1}', '{"braces" are no JSON}'):
        (tmp_path / "x.txt").write_text(f"{first}\nis an object in a text\n")
        assert [item.text for item in reader.read(tmp_path / "x.txt")] == [first, "is an object in a text"]


@pytest.mark.parametrize(
    ("tags", "expected"), [("NULL B-city I-city", "NULL B-city I-city"), ("NULL city city", "NULL B-city I-city")]
)
def test_another_outside_tag_than_o(tags, expected, tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"tokens": ["in", "new", "york"], "tags": tags.split(), "intent": "x"}))
    (example,) = intents(file, "model.dataset.pad_label='NULL'")
    assert " ".join(example.tags) == expected


def test_text_that_ends_with_a_number_keeps_it(tmp_path):
    kind = registry.find("text_classification")
    task = kind(compose(kind.settings_type, [], owner="text_classification")[0])
    (tmp_path / "x.txt").write_text("aspirin 100\nibuprofen 200\n")
    assert [example.text for example in task.read(tmp_path / "x.txt")] == ["aspirin", "ibuprofen"]
    task.labels = ["bad", "good"]
    assert [example.text for example in task.read(tmp_path / "x.txt")] == ["aspirin 100", "ibuprofen 200"]
