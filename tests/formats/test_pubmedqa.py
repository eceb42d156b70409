"""PubMedQA: its JSON as pairs, and its authors' evaluation."""

import json

import pytest
from sklearn.metrics import accuracy_score, f1_score

from megabert.errors import InputError
from megabert.tasks import registry

KIND = registry.find("text_classification")


def test_answers_are_scored_as_its_authors_do(datasets, tmp_path):
    file = datasets("pubmedqa") / "dev.json"
    content = json.loads(file.read_text())
    gold = {name: item["final_decision"] for name, item in content.items()}
    found = {name: ("yes", "no")[number % 2] for number, name in enumerate(sorted(gold))}
    (tmp_path / "answers.json").write_text(json.dumps(found, indent=1))
    scores = KIND.score_files(file, tmp_path / "answers.json")
    pairs = [gold[name] for name in gold], [found[name] for name in gold]
    assert scores["accuracy"] == pytest.approx(100 * accuracy_score(*pairs))
    assert scores["macro_f1"] == pytest.approx(100 * f1_score(*pairs, average="macro"))
    for change, message in (({"1": "yes"}, "has unknown id '1'"), ({}, "has no prediction for id")):
        changed = found | change if change else dict(list(found.items())[1:])
        (tmp_path / "answers.json").write_text(json.dumps(changed, indent=1))
        with pytest.raises(InputError, match=message):
            KIND.score_files(file, tmp_path / "answers.json")


def test_the_pair_is_question_and_contexts_without_the_long_answer(datasets):
    file = datasets("pubmedqa") / "dev.json"
    content = json.loads(file.read_text())
    task = KIND(KIND.settings_type())
    examples = task.read(file)
    assert len(examples) == len(content) == 50
    for item in examples:
        source = content[item.id]
        assert (item.text, item.pair) == (source["QUESTION"], " ".join(source["CONTEXTS"]))
        assert item.labels == (source["final_decision"],)
        assert "LONG_ANSWER" not in item.given
    from megabert.tasks.sequence_classification import Prediction

    predictions = [Prediction(item.id, item.text, ("yes",), {"yes": 1.0}) for item in examples]
    written = task.write_predictions(examples, predictions)
    assert json.loads(written["pubmedqa.json"]) == dict.fromkeys(content, "yes")
