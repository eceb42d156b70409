"""BioASQ's questions: golden files, targets of all occurrences, answers of each kind, files of answers."""

import json

import numpy as np
import pytest

from megabert.cli import main
from megabert.config.parser import compose
from megabert.errors import InputError
from megabert.tasks import registry
from megabert.tasks.answer_spans import Candidate
from megabert.tasks.bioasq_answers import answer_places, distinct_answers, named_number, without_crossings
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS

TOKENIZER = Tokenizer(WORDS)
KIND = registry.find("bioasq")


def task_of(*words):
    return KIND(compose(KIND.settings_type, words, owner="bioasq")[0])


def test_golden_files_score_themselves(datasets, capsys):
    gold = datasets("bioasq_golden") / "7B1_golden.json"
    task = task_of()
    examples = task.read(gold)
    assert {item.kind for item in examples} == {"yesno", "factoid", "list"}
    task.learn_labels(examples)
    assert 2 <= task.list_count <= 5
    found = sum(bool(answer_places(item)) for item in examples if item.kind != "yesno")
    assert found / sum(item.kind != "yesno" for item in examples) > 0.7
    assert main(["score", "bioasq", str(gold), str(gold)]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {name: value for name, value in scores.items() if not name.endswith("total")} == dict.fromkeys(
        (name for name in scores if not name.endswith("total")), pytest.approx(100)
    )
    system = datasets("bioasq_eval") / "systems" / "7B1_system.json"
    assert main(["score", "bioasq", str(gold), str(system)]) == 0
    assert json.loads(capsys.readouterr().out)["factoid_mrr"] == pytest.approx(24.871794871794875)


def test_each_occurrence_of_each_synonym_is_a_target():
    task = task_of("model.dataset.max_seq_length=48", "model.dataset.max_query_length=8", "model.dataset.doc_stride=16")
    example = task.example(question="what", context="Paris and the seine, not parisian. The SEINE", type="list")
    example = example.__class__(**{**vars(example), "answers": (("paris",), ("the seine", "seine"))})
    assert [example.context[start:end] for start, end in answer_places(example)] == ["Paris", "the seine", "The SEINE"]
    (feature,) = task.features([example], TOKENIZER, with_targets=True)
    offsets, place = feature.notes.offsets, feature.notes.context_start
    for name, column, expected in (("start", 0, [0, 10, 35]), ("end", 1, [5, 19, 44])):
        found = np.flatnonzero(feature.token_targets[name]) - place
        assert [offsets[index, column] for index in found] == expected
    assert feature.weight == 1
    lost = example.__class__(**{**vars(example), "answers": (("radium",),)})
    with pytest.warns(UserWarning, match="the answers of 1 of 1 questions are not in their snippets"):
        (feature,) = task.features([lost], TOKENIZER, with_targets=True)
    assert feature.weight == 0 and feature.token_targets["start"].tolist()[0] == 1


def test_the_loss_is_that_of_its_kind():
    import torch

    from megabert.data.packing import pack

    task = task_of("model.dataset.max_seq_length=48", "model.dataset.max_query_length=8", "model.dataset.doc_stride=16")
    items = [task.example(id=str(n), question="what", context="paris and the seine", type=kind)
             for n, kind in enumerate(("list", "yesno"))]  # fmt: skip
    answers = [(("paris",), ("seine",)), (("yes",),)]
    examples = [
        item.__class__(**{**vars(item), "answers": answer}) for item, answer in zip(items, answers, strict=True)
    ]
    features = task.features(examples, TOKENIZER, with_targets=True)
    batch = pack(features, 48, 0)
    logits = torch.randn(batch.num_tokens, 4)
    first, second = logits.split([len(item) for item in features])
    expected = -torch.log_softmax(second[0, 2:], 0)[1]
    for column, name in ((0, "start"), (1, "end")):
        places = torch.from_numpy(np.flatnonzero(features[0].token_targets[name]))
        expected = expected - torch.log_softmax(first[:, column], 0)[places].mean() / 2
    assert task.loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.loss(logits, batch.emptied(0)).item() == 0


def test_a_span_over_two_answers_of_a_list_is_none():
    text = "paris and the seine"
    spans = {"paris": 5.0, "paris and the seine": 5.2, "the seine": 4.8, "and": 1.0}
    n_best = [
        Candidate(name, text.index(name), text.index(name) + len(name), score, 0.1) for name, score in spans.items()
    ]
    assert [item.text for item in without_crossings(n_best)] == ["paris", "the seine", "and"]
    assert len(without_crossings([*n_best[:2], n_best[3]])) == 3


def test_answers_are_joined_and_limited():
    n_best = [Candidate(text, 0, 1, 0.0, probability) for text, probability in
              (("Paris", 0.4), ("paris.", 0.3), ("the seine", 0.2), ("x" * 101, 0.1))]  # fmt: skip
    found = distinct_answers(n_best)
    assert [text for text, _ in found] == ["Paris", "the seine"] and found[0][1] == pytest.approx(0.7)
    threshold = task_of("model.dataset.list_answers=threshold", "model.dataset.list_threshold=0.3")
    example = threshold.example(question="what", context="a", type="list")
    assert len(threshold._choose(example, found)) == 1
    counted = task_of()
    assert len(counted._choose(example, found * 3)) == 3
    assert named_number("Which three genes are ...") == 3 and named_number("List 4 drugs") == 4
    assert named_number("Which 1 gene") is None and named_number("Which genes in 2 species") is None


def test_squad_is_read_as_factoids(tmp_path):
    from tests.conftest import squad_document

    (tmp_path / "x.json").write_text(json.dumps(squad_document()))
    examples = task_of().read(tmp_path / "x.json")
    assert {item.kind for item in examples} == {"factoid"} and examples[0].answers == (("Warsaw",),)


def test_refusals(tmp_path):
    task = task_of()
    with pytest.raises(InputError, match="type=essay is none of yesno"):
        task.example(question="a", context="b", type="essay")
    content = {"id": "1", "type": "yesno", "body": "a", "snippets": [{"text": "b"}]}
    (tmp_path / "a.json").write_text(json.dumps({"questions": [content]}))
    (tmp_path / "b.json").write_text(json.dumps({"questions": [content | {"id": "2"}]}))
    with pytest.raises(InputError, match="has no answer to question '1'"):
        KIND.score_files(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(InputError, match="no exact answer to score against"):
        KIND.score_files(tmp_path / "a.json", tmp_path / "a.json")
    with pytest.raises(InputError, match="no exact answer to train on"):
        task.features(task.read(tmp_path / "a.json"), TOKENIZER, with_targets=True)
