import json
import re

import pytest
from sklearn.metrics import f1_score

from megabert.config.parser import compose
from megabert.errors import ConfigError, InputError, InputWarning
from megabert.formats.rows import Row
from megabert.tasks.relation_extraction import (
    MarkedEntity,
    RelationExtraction,
    RelationExtractionSettings,
    mark_entities,
)
from megabert.tasks.sequence_classification import Example, Prediction
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TEXT = "Aspirin inhibits COX-2 well."
DRUG, GENE = MarkedEntity(0, 7, "chemical"), MarkedEntity(17, 22, "GENE")


@pytest.mark.parametrize(
    ("marking", "head", "tail", "expected"),
    [
        ("anonymize", DRUG, GENE, "@CHEMICAL$ inhibits @GENE$ well."),
        ("anonymize", GENE, DRUG, "@CHEMICAL$ inhibits @GENE$ well."),
        ("anonymize", DRUG, MarkedEntity(3, 16, "GENE"), "@CHEMICAL-GENE$ COX-2 well."),
        ("anonymize", MarkedEntity(0, 16, "a"), MarkedEntity(3, 5, "b"), "@A-B$ COX-2 well."),
        ("markers", DRUG, GENE, "<< Aspirin >> inhibits [[ COX-2 ]] well."),
        ("markers", GENE, DRUG, "[[ Aspirin ]] inhibits << COX-2 >> well."),
        ("typed_markers", DRUG, GENE, "@ * chemical * Aspirin @ inhibits # ^ gene ^ COX-2 # well."),
        ("markers", MarkedEntity(0, 7, "a"), MarkedEntity(7, 8, "b"), "<< Aspirin >>[[   ]]inhibits COX-2 well."),
    ],
)
def test_entities_are_marked(marking, head, tail, expected):
    assert mark_entities(TEXT, head, tail, marking) == expected


def task(*words):
    return RelationExtraction(compose(RelationExtractionSettings, words, owner="relation_extraction")[0])


def test_entities_may_be_given_as_words_of_the_text():
    example = task().example(text=TEXT, head="Aspirin", head_type="CHEMICAL", tail="COX-2", tail_type="GENE")
    assert example.text == "@CHEMICAL$ inhibits @GENE$ well."
    with pytest.raises(InputError, match="occurs 2 times in the text"):
        task().example(text="a b a", head="a", tail="b")
    with pytest.raises(InputError, match="occurs 0 times"):
        task().example(text="a b", head="a")


def test_the_published_measure_leaves_pairs_without_a_relation_out(tmp_path):
    gold = ["false", "CPR:3", "CPR:4", "false", "CPR:3"]
    predicted = ["CPR:3", "CPR:3", "false", "false", "CPR:4"]
    (tmp_path / "gold.tsv").write_text("".join(f"text\t{label}\n" for label in gold))
    (tmp_path / "predictions.txt").write_text("".join(f"{label}\n" for label in predicted))
    scores = RelationExtraction.score_files(tmp_path / "gold.tsv", tmp_path / "predictions.txt")
    expected = f1_score(gold, predicted, labels=["CPR:3", "CPR:4"], average="micro")
    assert scores["f1"] == pytest.approx(100 * expected)
    assert scores["accuracy"] == pytest.approx(40)


def test_a_row_of_predictions_has_the_text_and_entities_as_given():
    own = task()
    head, tail = {"start": 0, "end": 5, "type": "drug"}, {"start": 18, "end": 23, "type": "gene"}
    text = "marie was born in paris"
    row = Row({"text": text, "head": head, "tail": tail, "label": "CPR:3", "pmid": 5}, "x:1")
    example = own.example_of(row, 1)
    found = own.to_row(example, Prediction(example.id, example.text, ("false",), {"false": 0.75, "CPR:3": 0.25}))
    assert found.pop("windows") == 1
    assert found == {
        "id": "1", "text": text, "head": head, "tail": tail, "marked": "@DRUG$ was born in @GENE$", "pmid": 5,
        "label": "false", "probability": 0.75, "probabilities": {"false": 0.75, "CPR:3": 0.25},
        "gold": {"label": "CPR:3"},
    }  # fmt: skip
    asked = own.example(text=text, head="marie", tail="paris", tail_type="city")
    assert asked.given["tail"] == {"start": 18, "end": 23, "type": "city"}


NESTED = "insulin receptor substrate binds"


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ((0, 7, "chemical"), (0, 26, "gene"), "# ^ gene ^ @ * chemical * insulin @ receptor substrate # binds"),
        ((0, 26, "gene"), (0, 7, "chemical"), "@ * gene * # ^ chemical ^ insulin # receptor substrate @ binds"),
        ((17, 26, "a"), (0, 26, "b"), "# ^ b ^ insulin receptor @ * a * substrate @ # binds"),
        ((0, 26, "a"), (17, 26, "b"), "@ * a * insulin receptor # ^ b ^ substrate # @ binds"),
        ((0, 7, "a"), (0, 7, "b"), "@ * a * # ^ b ^ insulin # @ receptor substrate binds"),
    ],
)
def test_marks_of_nested_entities_do_not_cross(head, tail, expected):
    assert mark_entities(NESTED, MarkedEntity(*head), MarkedEntity(*tail), "typed_markers") == expected


OFFSETS = "Cação 🧪 extract: aspirin inhibits COX-2 in mice."


def entity(start, end, text=None):
    return {"start": start, "end": end, "type": "x"} | ({} if text is None else {"text": text})


@pytest.mark.parametrize(
    ("start", "end", "words", "message"),
    [
        (18, 25, "aspirin", "where 'spirin ' is; it is at 17 to 24. The positions count UTF-16"),
        (22, 29, "aspirin", "it is at 17 to 24. The positions count bytes."),
        (17, 23, "aspirin", "it is at 17 to 24. The positions count an end that is the last character."),
        (17, 24, "Aspirin", "where 'aspirin' is; nor is it elsewhere. Give characters"),
        (0, 1, "i", "it is at 20 to 21 and 22 to 23 and 25 to 26."),
    ],
)  # fmt: skip
def test_an_entity_that_is_not_at_its_offset_is_an_error(start, end, words, message, tmp_path):
    row = {"text": OFFSETS, "head": entity(start, end, words), "tail": entity(34, 39, "COX-2"), "label": "false"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"x.jsonl:1: the head .*{re.escape(message)}"):
        task().read(tmp_path / "x.jsonl")
    row["head"] = entity(17, 24, "aspirin")
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    assert task().read(tmp_path / "x.jsonl")[0].text == "Cação 🧪 extract: @X$ inhibits @X$ in mice."


def test_positions_that_cut_words_are_reported(tmp_path, recwarn):
    rows = [{"text": OFFSETS, "head": entity(17 + shift, 24 + shift), "tail": entity(34, 39)} for shift in (1, 0)]
    for row, number in ((rows[0], 1), (rows[1], 0)):
        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        task().read(tmp_path / "x.jsonl")
        found = [str(item.message) for item in recwarn]
        assert len(found) == number and all("1 of 2 entities begin or end inside a word" in item for item in found)
        recwarn.clear()


def relations(*labels):
    return [Example(str(number), "@A$ of @B$", None, (label,), f"x:{number}") for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "proposed"),
    [(("a", "no_relation", "Other"), "no_relation"), (("0", "1"), "0"), (("NA", "x"), "NA"), (("None", "x"), "None"),
     (("DDI-false", "DDI-effect"), "DDI-false"), (("a", "b"), None), (("No-Relation", "b"), "No-Relation")],
)  # fmt: skip
def test_a_negative_label_that_is_none_of_the_labels_is_an_error(labels, proposed, tmp_path):
    hint = "null" if proposed is None else re.escape(proposed) + ", or"
    message = rf"negative_label=false is none of the labels .*Set model.dataset.negative_label={hint}"
    with pytest.raises(ConfigError, match=message):
        task().learn_labels(relations(*labels))
    (tmp_path / "gold.tsv").write_text("".join(f"{label} text\t{label}\n" for label in labels))
    (tmp_path / "found.txt").write_text("".join(f"{labels[-1]}\n" for _ in labels))
    files = tmp_path / "gold.tsv", tmp_path / "found.txt"
    with pytest.raises(ConfigError, match=message):
        RelationExtraction.score_files(*files)
    word = f"model.dataset.negative_label={proposed or 'null'}"
    task(word).learn_labels(relations(*labels))
    assert RelationExtraction.score_files(*files, [word])["total"] == len(labels)


def test_a_system_that_finds_nothing_has_f1_0(tmp_path):
    labels = ["no_relation"] * 8 + ["inhibits", "activates"]
    (tmp_path / "gold.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": "a", "label": label}) + "\n" for n, label in enumerate(labels))
    )
    found = [{"id": str(number), "label": "no_relation"} for number in reversed(range(10))]
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    files, word = (tmp_path / "gold.jsonl", tmp_path / "found.jsonl"), "model.dataset.negative_label=no_relation"
    assert RelationExtraction.score_files(*files, [word])["f1"] == 0
    found[0] |= {"label": "activates"}  # of id 9: rows are matched by id
    (tmp_path / "found.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert RelationExtraction.score_files(*files, [word])["f1"] == pytest.approx(100 * 2 / 3)
    assert RelationExtraction.score_files(*files, ["model.dataset.negative_label=null"])["f1"] == 90


def test_texts_without_the_marks_of_the_training_data_are_reported(recwarn):
    reader, tokenizer = task(), Tokenizer(WORDS)
    reader.learn_labels(relations("false", "a"))
    assert reader.marks == ["@TYPE$"]
    restored = task()
    restored.restore_state(reader.state())
    restored.features(relations("a"), tokenizer, with_targets=False)
    assert not recwarn
    unmarked = Example("1", "aspirin inhibits it", None, None, "x:7")
    with pytest.warns(InputWarning, match=r"x:7: 1 of 2 texts lack marked entities, .* have .@TYPE"):
        restored.features([*relations("a"), unmarked], tokenizer, with_targets=False)
    restored.restore_state({"labels": ["a"], "weights": [1.0], "problem": "single_label"})  # a run of the first version
    assert restored.marks == []
