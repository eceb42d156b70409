"""Scores of BioASQ's answers: the official evaluator's output to the digit, its definition, its quirks."""

import json
import random
import re

import pytest

from megabert.metrics.bioasq import corrected, official

ORDER = ("yesno_accuracy", "factoid_strict", "factoid_lenient", "factoid_mrr", "list_precision", "list_recall",
         "list_f1", "yesno_f1", "yesno_f1_yes", "yesno_f1_no")  # fmt: skip


def columns(gold, system):
    found = {item["id"]: item.get("exact_answer") for item in system["questions"]}
    rows = [item for item in gold["questions"] if item["type"] != "summary"]
    return (
        [item["type"] for item in rows],
        [item["exact_answer"] for item in rows],
        [found[item["id"]] for item in rows],
    )


@pytest.mark.parametrize("name", ["7B1", "8B3", "9B2"])
def test_the_evaluators_output_to_the_digit(name, datasets):
    printed = (datasets("bioasq_eval") / "official_scores.txt").read_text()
    line = re.search(rf"## golden bioasq_golden/{name}_golden.json.*\n(.*)\n", printed)[1]
    gold, system = (
        json.loads(path.read_text())
        for path in (datasets("bioasq_golden") / f"{name}_golden.json",
                     datasets("bioasq_eval") / "systems" / f"{name}_system.json")
    )  # fmt: skip
    scores = official(*columns(gold, system))
    assert [scores[key] for key in ORDER] == list(map(float, line.split()))


def test_the_evaluators_example_of_its_own():
    gold = [["A", "B", "C"], ["D", "E"], ["F", "G"], ["I", "J", "K"]]
    scores = official(["list"], [gold], [[["K", "L"], ["K", "B"]]])
    assert [scores[f"list_{name}"] for name in ("precision", "recall", "f1")] == [0.5, 0.25, 0.3333333333333333]


def evaluator_list(gold, found):
    """The evaluator's counts of a list question, written from its definition with its removals."""
    gold, found = [[name.lower() for name in item] for item in gold], [[item[0].lower()] for item in found if item]

    def contains(lists, names):
        for number, item in enumerate(lists):
            if any(name in names for name in item):
                del lists[number]
                return True
        return False

    size = len(found)
    right = sum(contains(gold, names) for names in list(found))
    missed = sum(not contains(found, names) for names in gold)
    precision, recall = right / size if size else 0.0, right / (right + missed) if right + missed and size else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if precision and recall else 0.0


def test_a_thousand_random_answers_against_the_definition():
    chance = random.Random(0)
    words = [*"abcdef", "A", "B"]
    for _ in range(1000):
        gold = [[chance.choice(words) for _ in range(chance.randint(1, 3))] for _ in range(chance.randint(1, 5))]
        found = [[chance.choice(words) for _ in range(chance.randint(1, 2))] for _ in range(chance.randint(0, 6))]
        scores = official(["list", "factoid"], [gold, gold], [found, found])
        names = [f"list_{name}" for name in ("precision", "recall", "f1")]
        assert [scores[name] for name in names] == pytest.approx(evaluator_list(gold, found))
        golden = {name.lower() for item in gold for name in item}
        hits = [place for place, item in enumerate(found, start=1) if item[0].lower() in golden]
        assert scores["factoid_mrr"] == (1 / hits[0] if hits else 0)
        assert scores["factoid_strict"] == float(hits[:1] == [1]) and scores["factoid_lenient"] == float(bool(hits))
        right = corrected(["list"], [gold], [found])
        assert right["list_precision"] == scores["list_precision"] and right["list_recall"] <= scores["list_recall"]


def test_where_the_corrected_scores_differ():
    kinds, gold = ["yesno", "yesno", "factoid", "list"], ["no", "yes", [["x"]], [["a", "b"], ["b", "c"]]]
    found = ["unknown", "Yes, it is", [["1"], ["2"], ["3"], ["4"], ["5"], ["x"]], [["b"]]]
    theirs, ours = official(kinds, gold, found), corrected(kinds, gold, found)
    assert theirs["yesno_accuracy"] == 1 and ours["yesno_accuracy"] == 0
    assert theirs["factoid_mrr"] == 1 / 6 and ours["factoid_mrr"] == ours["factoid_lenient"] == 0
    assert theirs["list_recall"] == 1 and ours["list_recall"] == 0.5
    assert official(kinds, gold, [None] * 4) == dict.fromkeys(theirs, 0)
