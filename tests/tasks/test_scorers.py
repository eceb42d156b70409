"""Scorers of dialogues, questions and language models against their definitions, on 1,000 random cases each."""

import functools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from megabert.config.parser import compose
from megabert.data.packing import NO_TARGET
from megabert.metrics.bioasq import official
from megabert.metrics.classification import choice_scores, classification_scores
from megabert.metrics.dialogue_state import ALL, DialogueScorer
from megabert.model.config import HAS_TARGET, IS_CORRECT, LOSS
from megabert.tasks import registry
from megabert.tokenizers.wordpiece import Tokenizer
from tests.conftest import WORDS
from tests.metrics.test_dialogue_state import SERVICES, random_dialogue, random_state

CASES = 1000
TOKENIZER = Tokenizer(WORDS)


def mean(values):
    return sum(values) / len(values)


def f1(gold, found):
    """F1 of two lists, each of whose items is matched once."""
    left = list(found)
    right = sum(item in left and left.remove(item) is None for item in gold)
    precision, recall = (right / len(items) if items else 1.0 for items in (found, gold))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@functools.cache
def similarity(one, other):
    """Twice the longest common subsequence of the sorted words by both lengths, by the table of prefixes."""
    one, other = (" ".join(sorted(text.split())) for text in (one, other))
    row = [0] * (len(other) + 1)
    for letter in one:
        before = row
        row = [0]
        for place, own in enumerate(other):
            row.append(before[place] + 1 if own == letter else max(before[place + 1], row[place]))
    return round(200 * row[-1] / (len(one) + len(other))) / 100


def slot_score(slot, gold, found, *, fuzzy):
    if (slot["name"] in gold) != (slot["name"] in found):
        return 0.0
    if slot["name"] not in gold:
        return 1.0
    here, there = gold[slot["name"]], found[slot["name"]][0]
    if slot["is_categorical"]:
        return float(here[0] == there)
    return max(similarity(value, there) if fuzzy else float(value == there) for value in here)


def test_dialogue_states():
    draw = random.Random(2)
    for case in range(CASES):
        fuzzy, across = case % 2 == 0, case % 4 > 1
        gold = {"0": random_dialogue(draw, 0)}
        found = {"0": gold["0"] | {"turns": []}}
        pairs = []
        for turn in gold["0"]["turns"]:
            guesses = [{"service": item["service"], "state": random_state(draw, item["service"])}
                       if draw.random() < 0.5 else {**item} for item in turn["frames"]]  # fmt: skip
            guesses = [{name: item[name] for name in ("service", "state")} for item in guesses]
            found["0"]["turns"].append(turn | {"frames": guesses})
            if turn["speaker"] == "USER":
                pairs.append([(a["service"], a["state"], b["state"]) for a, b in
                              zip(turn["frames"], guesses, strict=True)])  # fmt: skip
        every = [pair for turn in pairs for pair in turn]
        products, active = [], []
        for turn in pairs:
            products.append([])
            for service, state, guess in turn:
                own = {slot["name"]: slot_score(slot, state["slot_values"], guess["slot_values"], fuzzy=fuzzy)
                       for slot in SERVICES[service]["slots"]}  # fmt: skip
                products[-1].append(math.prod(own.values()))
                if state["slot_values"]:
                    active.append(mean([own[name] for name in state["slot_values"]]))
        joint = [math.prod(turn) for turn in products] if across else [value for turn in products for value in turn]
        expected = {
            "joint_goal_accuracy": mean(joint),
            "active_intent_accuracy": mean([a["active_intent"] == b["active_intent"] for _, a, b in every]),
            "requested_slots_f1": mean([f1(a["requested_slots"], b["requested_slots"]) for _, a, b in every]),
        }
        if active:
            expected["average_goal_accuracy"] = mean(active)
        scores = DialogueScorer(SERVICES, use_fuzzy_match=fuzzy, joint_acc_across_turn=across).score(gold, found)[ALL]
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert ("average_goal_accuracy" in scores) == bool(active)


def macro_f1(pairs, labels):
    values = []
    for label in labels:
        right = sum(a == b == label for a, b in pairs)
        wrong = sum((a == label) != (b == label) for a, b in pairs)
        values.append(2 * right / (2 * right + wrong) if right else 0.0)
    return mean(values)


def test_yes_and_no():
    """Lists and factoids: tests/metrics/test_bioasq.py."""
    draw = random.Random(3)
    for _ in range(CASES):
        pairs = [
            (draw.choice(["yes", "no"]), draw.choice(["yes", "no", "Yes", "NO"])) for _ in range(draw.randint(1, 8))
        ]
        scores = official(["yesno"] * len(pairs), *zip(*pairs, strict=True))
        lower = [(a, b.lower()) for a, b in pairs]
        assert scores["yesno_f1"] == pytest.approx(macro_f1(lower, ["yes", "no"]))
        assert scores["yesno_accuracy"] == pytest.approx(mean([a == b for a, b in lower]))


def test_pubmedqa_s_accuracy_and_macro_f1():
    """Labels that neither golden nor found answers have do not count; scikit-learn: tests/formats/test_pubmedqa.py."""
    draw = random.Random(4)
    labels = ["yes", "no", "maybe"]
    for case in range(CASES):
        gold, found = ([draw.choice(labels[: 1 + case % 3]) for _ in range(1 + case % 7)] for _ in range(2))
        scores = classification_scores(gold, found, labels)
        present = sorted({*gold, *found})
        assert scores["macro_f1"] == pytest.approx(100 * macro_f1(list(zip(gold, found, strict=True)), present))
        assert scores["accuracy"] == pytest.approx(100 * mean([a == b for a, b in zip(gold, found, strict=True)]))


def test_choices_of_middle_and_high_school():
    draw = random.Random(5)
    for _ in range(CASES):
        rows = [(draw.choice(["middle", "high", None]), size := draw.randint(2, 5), draw.randrange(size),
                 draw.randrange(size)) for _ in range(draw.randint(1, 9))]  # fmt: skip
        groups, sizes, gold, found = zip(*rows, strict=True)
        expected = {"accuracy": 100 * mean([a == b for _, _, a, b in rows]), "total": len(rows),
                    "chance": 100 * mean([1 / size for _, size, *_ in rows])}  # fmt: skip
        for name in {"middle", "high"} & {*groups}:
            own = [a == b for group, _, a, b in rows if group == name]
            expected |= {f"{name}_accuracy": 100 * mean(own), f"{name}_total": len(own)}
        assert choice_scores(gold, found, sizes, groups) == pytest.approx(expected)


def language_model(**dataset):
    kind = registry.find("causal_language_model")
    task = kind(compose(kind.settings_type, ["model.dataset.max_seq_length=8"], owner=kind.name())[0])
    for name, value in dataset.items():
        setattr(task.settings.model.dataset, name, value)
    return task


def columns_of(features, losses, hits):
    """The network's outputs for sequences: losses and hits, by sequence and place, of tokens with a target."""
    rows = []
    for number, feature in enumerate(features):
        asked = feature.token_targets["token"] != NO_TARGET
        own = np.zeros((len(asked), 6), dtype=np.float32)
        own[:, HAS_TARGET] = asked
        own[:, LOSS], own[:, IS_CORRECT] = (item[number, : len(asked)] * asked for item in (losses, hits))
        rows.append(own)
    return rows


@pytest.mark.parametrize("cloze", ["loose", "strict"])
def test_lambada_s_cloze_accuracy(cloze):
    draw, chance = random.Random(6), np.random.default_rng(6)
    task = language_model(cloze=cloze)
    words = ["marie", "curie", "paris", "warsaws", "seine", "radiumed"]
    for _ in range(CASES // 2):
        texts = [" ".join(draw.choices(words, k=draw.randint(2, 6))) for _ in range(draw.randint(1, 4))]
        examples = [SimpleNamespace(id=str(n), text=text) for n, text in enumerate(texts)]
        hits = chance.random((4, 8)) < 0.7
        features = task.document_features(examples, TOKENIZER)
        rows = columns_of(features, hits, hits)
        right = []
        for number, text in enumerate(texts):  # Megatron-LM: all tokens of the last word, or the last token
            ids = TOKENIZER.encode_ids([text])[0]
            asked = len(TOKENIZER.encode_ids([text.split()[-1]])[0]) if cloze == "strict" else 1
            length = min(len(ids) - 1, 8)
            right.append(all(hits[number, length - 1 - back] for back in range(asked)))
        scores = task.score(examples, task.decode(examples, features, rows))
        assert scores == {"cloze_accuracy": pytest.approx(100 * mean(right)), "total": len(texts)}


def test_wikitext_s_perplexity_of_words_with_overlapping_windows():
    """Windows and masks as Megatron-LM's _LMDataset has them; words between blanks, the first one left out."""
    draw, chance = random.Random(7), np.random.default_rng(7)
    task = language_model()
    for _ in range(CASES):
        length = draw.randint(2, 8)
        stride = draw.randint(-(-length // 2), length) if draw.random() < 0.9 else 1
        task.settings.model.dataset.max_seq_length, task.settings.model.dataset.overlapping_eval = length, stride
        text = " ".join(draw.choices(["marie", "curie", "paris", "seine"], k=draw.randint(2, 14)))
        ids, losses = TOKENIZER.encode_ids([text])[0], chance.random((24, 8))
        num_targets, total, seen = len(ids) - 1, 0.0, 0
        for number in range(max(math.ceil(max(num_targets - stride, 0) / stride) + 1, 1)):
            window = ids[number * stride : number * stride + length + 1]
            mask = np.zeros(length)
            mask[: len(window) - 1] = 1
            if stride != length and number:
                mask[:-stride] = 0
            total += float((losses[number, :length] * mask).sum())
            seen += int(mask.sum())
        example = SimpleNamespace(id="1", text=text)
        features = task.document_features([example], TOKENIZER)
        (measured,) = task.decode([example], features, columns_of(features, losses, losses))
        scores = task.score([example], [measured])
        assert scores["total"] == seen == num_targets
        assert scores["word_perplexity"] == pytest.approx(math.exp(total / max(len(text.split(" ")) - 1, 1)), rel=1e-5)
