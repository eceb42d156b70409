import pytest
from sklearn.metrics import f1_score

from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.formats.rows import Row
from megabert.tasks.relation_extraction import (
    MarkedEntity,
    RelationExtraction,
    RelationExtractionSettings,
    mark_entities,
)
from megabert.tasks.sequence_classification import Prediction

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
    assert found == {
        "id": "1", "text": text, "head": head, "tail": tail, "marked": "@DRUG$ was born in @GENE$", "pmid": 5,
        "label": "false", "probability": 0.75, "probabilities": {"false": 0.75, "CPR:3": 0.25},
        "gold": {"label": "CPR:3"},
    }  # fmt: skip
    asked = own.example(text=text, head="marie", tail="paris", tail_type="city")
    assert asked.given["tail"] == {"start": 18, "end": 23, "type": "city"}
