"""Scores of dialogue states: the official scorer's figures to the digit, its definition, what it passes over."""

import copy
import json
import random

import pytest

from megabert.errors import InputError
from megabert.metrics.dialogue_state import DialogueScorer, hidden_facts, token_sort_ratio


def load(folder):
    return {
        item["dialogue_id"]: item
        for file in sorted(folder.glob("dialogues_*.json"))
        for item in json.loads(file.read_text())
    }


@pytest.fixture(scope="module")
def split(datasets):
    """The development set of 452 dialogues: golden ones, schema, names of the training schema's services."""
    folder = datasets("sgd_more")
    schemas = [json.loads((folder / name / "schema.json").read_text()) for name in ("dev", "train")]
    services = {item["service_name"]: item for item in schemas[0]}
    return load(folder / "dev"), services, frozenset(item["service_name"] for item in schemas[1])


@pytest.mark.parametrize(
    ("system", "similarity", "fuzzy", "across"),
    [("system_a", "levenshtein", True, False), ("system_b", "levenshtein", False, True),
     ("system_b", "difflib", True, False)],
)  # fmt: skip
def test_the_official_figures_to_the_digit(system, similarity, fuzzy, across, split, datasets):
    gold, services, seen = split
    official = json.loads((datasets("sgd_scorer") / f"official_metrics_{similarity}.json").read_text())
    scorer = DialogueScorer(services, seen, similarity, fuzzy, across)
    found = scorer.score(gold, load(datasets("sgd_scorer") / system))
    assert found == official[f"{system} use_fuzzy_match={fuzzy} joint_acc_across_turn={across}"]


def test_values_compare_as_in_rapidfuzz(split):
    fuzz = pytest.importorskip("rapidfuzz.fuzz")
    from rapidfuzz.utils import default_process

    values = sorted({
        value for dialogue in split[0].values() for turn in dialogue["turns"] for frame in turn["frames"]
        for values in frame.get("state", {}).get("slot_values", {}).values() for value in values
    })  # fmt: skip
    draw = random.Random(0)
    differ = 0
    for _ in range(60_000):
        pair = draw.choice(values), draw.choice(values)
        found = token_sort_ratio(*pair)
        assert found == round(fuzz.token_sort_ratio(*pair, processor=default_process)), pair
        differ += draw.random() < 0.05 and found != token_sort_ratio(*pair, "difflib")
    assert differ > 100


def test_values_by_hand():
    assert token_sort_ratio("half past 11", "11, PAST half!") == 100
    assert token_sort_ratio("ab", "abcd") == round(100 * 2 * 2 / 6)
    assert token_sort_ratio("caf\u00e9", "caf") == 100  # characters 128 to 255 are dropped
    assert token_sort_ratio("...", "-") == 100 and token_sort_ratio("...", "a") == 0
    # in common is aaa; difflib takes the longest block first, aa, beside which nothing agrees
    assert [token_sort_ratio("aaaa", "abaa", kind) for kind in ("levenshtein", "difflib")] == [75, 50]


SERVICES = {
    name: {"slots": [{"name": f"s{number}", "is_categorical": number % 2 == 0} for number in range(size)]}
    for name, size in (("A_1", 3), ("A_2", 1), ("B_1", 4))
}


def random_dialogue(draw, number):
    services = draw.sample(sorted(SERVICES), draw.randint(1, 2))
    turns = []
    for turn in range(draw.randint(1, 2)):
        speaker = "SYSTEM" if turn % 2 else "USER"
        frames = [{"service": name, "slots": [], "state": random_state(draw, name)} for name in services]
        turns.append({"speaker": speaker, "utterance": "a b c d", "frames": frames})
    return {"dialogue_id": str(number), "services": services, "turns": turns}


def random_state(draw, service):
    names = [slot["name"] for slot in SERVICES[service]["slots"]]
    words = ["a b", "b a", "abc", "dontcare", "abd"]
    return {
        "active_intent": draw.choice(["NONE", "X"]),
        "requested_slots": draw.sample(names, draw.randint(0, len(names))),
        "slot_values": {name: draw.sample(words, draw.randint(1, 2)) for name in names if draw.random() < 0.6},
    }


def defined_joint(gold, found):
    """Joint goal accuracy of all services by its definition: the mean over frames of the product over slots."""
    frames = []
    for name, dialogue in found.items():
        for a, b in zip(gold[name]["turns"], dialogue["turns"], strict=True):
            if a["speaker"] == "SYSTEM":
                continue
            for x, y in zip(a["frames"], b["frames"], strict=True):
                product = 1.0
                for slot in SERVICES[x["service"]]["slots"]:
                    here, there = (item["state"]["slot_values"].get(slot["name"]) for item in (x, y))
                    if here is None or there is None:
                        product *= here is there
                    elif slot["is_categorical"]:
                        product *= here[0] == there[0]
                    else:
                        product *= max(token_sort_ratio(value, there[0]) / 100 for value in here)
                frames.append(product)
    return sum(frames) / len(frames)


def test_random_dialogues_by_the_definition():
    draw = random.Random(1)
    for case in range(1000):
        gold = {str(number): random_dialogue(draw, number) for number in range(1 + (case % 4 == 0))}
        found = json.loads(json.dumps(gold))
        for dialogue in found.values():
            for turn in dialogue["turns"]:
                for frame in turn["frames"]:
                    if draw.random() < 0.5:
                        frame["state"] = random_state(draw, frame["service"])
        if case % 8 == 0:
            del found["0"]
        scorer = DialogueScorer(SERVICES, frozenset({"A_1"}))
        scores = scorer.score(gold, found)["#ALL_SERVICES"]
        assert scores["joint_goal_accuracy"] == pytest.approx(defined_joint(gold, found), abs=1e-12)
        if case % 4:
            continue
        hidden = hidden_facts(scorer, gold, found)
        assert hidden["dialogues_missing"] == (case % 8 == 0)
        share = (hidden["frames"] - hidden["frames_missing"]) / hidden["frames"]
        assert hidden["joint_goal_accuracy_of_all"] == pytest.approx(share * scores["joint_goal_accuracy"])


def test_what_the_official_scorer_passes_over():
    gold = {"1": random_dialogue(random.Random(0), 1), "2": random_dialogue(random.Random(3), 2)}
    found = copy.deepcopy({"1": gold["1"]})
    state = found["1"]["turns"][0]["frames"][0]["state"]
    state["slot_values"] = {"s0": ["x", "y"], "unheard": ["z"]}
    hidden = hidden_facts(DialogueScorer(SERVICES), gold, found)
    assert (hidden["dialogues"], hidden["dialogues_missing"]) == (2, 1)
    assert hidden["slots_of_several_values"] >= 1 and hidden["slots_not_in_schema"] == 1
    assert hidden["frames_missing"] == sum(
        len(turn["frames"]) for turn in gold["2"]["turns"] if turn["speaker"] == "USER"
    )
    # nothing requested and nothing predicted counts as 1, contrary to the scorer's own description
    metrics = DialogueScorer(SERVICES).frame_metrics(
        "", *[{"service": "A_2", "state": {"active_intent": "NONE", "requested_slots": [], "slot_values": {}}}] * 2
    )
    assert metrics["requested_slots_f1"] == 1 and "average_goal_accuracy" not in metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: item.update(services=["A_1", "A_2", "B_1"]), "other services"),
        (lambda item: item["turns"][0].update(speaker="SYSTEM"), "turn 0: the speaker"),
        (lambda item: item["turns"][0].update(utterance="x"), "turn 0: the utterance"),
        (lambda item: item["turns"][0].update(frames=[]), "there is no frame of"),
    ],
)
def test_dialogues_that_do_not_belong_together(change, message):
    gold = {"1": random_dialogue(random.Random(0), 1)}
    found = copy.deepcopy(gold)
    change(found["1"])
    with pytest.raises(InputError, match=message):
        DialogueScorer(SERVICES).score(gold, found)
    with pytest.raises(InputError, match="'2' is not in the golden data"):
        DialogueScorer(SERVICES).score(gold, {"2": gold["1"]})
