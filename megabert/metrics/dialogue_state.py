"""Scores of dialogue states in Schema-Guided Dialogue (SGD), to the last digit as the challenge's scorer computes them.

Dialogues are in the dataset's JSON: of each turn of the user the frames, one a service, each with its state. Sources:
Rastogi et al. 2020, arXiv:2002.01359; the definitions of google-research's schema_guided_dst (metrics.py, evaluate.py,
MultiWOZ's two options included) and of fuzzywuzzy's token_sort_ratio, of which values depend on whether python-
Levenshtein is installed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InputError

ALL, SEEN, UNSEEN = "#ALL_SERVICES", "#SEEN_SERVICES", "#UNSEEN_SERVICES"
JOINT = ("joint_goal_accuracy", "joint_cat_accuracy", "joint_noncat_accuracy")
SIMILARITIES = ("levenshtein", "difflib")

Dialogues = Mapping[str, Mapping[str, Any]]
"""By id, in the order of the files."""


@dataclass(frozen=True)
class DialogueScorer:
    """The scorer: `services` are the schema's, by name; `seen` the names of those in the training schema."""

    services: Mapping[str, Mapping[str, Any]]
    seen: frozenset[str] = frozenset()
    similarity: str = "levenshtein"
    """How values of non-categorical slots are compared: levenshtein (with python-Levenshtein) or difflib (without)."""
    use_fuzzy_match: bool = True
    """Whether similar values count in part; else only equal ones count."""
    joint_acc_across_turn: bool = False
    """Whether joint accuracies are products over all services of a turn, as for MultiWOZ."""
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Further groups of services, besides the official ones."""

    def score(self, gold: Dialogues, found: Dialogues) -> dict[str, dict[str, float]]:
        """Compute the official metrics, from 0 to 1, of each group: all, seen and unseen services, domains, services.

        Only dialogues that are found count. Raises InputError where the official scorer ends with an error.
        """
        rows: dict[str, list[dict[str, float]]] = {}
        for turn in frame_pairs(gold, found):
            products: dict[str, dict[str, float]] = {}
            for utterance, expected, frame in turn:
                metrics = self.frame_metrics(utterance, expected, frame)
                joint = {name: metrics.pop(name) for name in JOINT if self.joint_acc_across_turn and name in metrics}
                for group in self._groups_of(frame["service"]):
                    rows.setdefault(group, []).append(metrics)
                    product = products.setdefault(group, {})
                    product |= {name: product.get(name, 1.0) * value for name, value in joint.items()}
            for group, product in products.items():
                rows[group].append(product)
        return {group: _means(own) for group, own in rows.items()}

    def _groups_of(self, service: str) -> list[str]:
        own = [name for name, services in self.groups.items() if service in services]
        return [ALL, service, service.split("_")[0], SEEN if service in self.seen else UNSEEN, *own]

    def frame_metrics(self, utterance: str, gold: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, float]:
        """Compute the metrics of a frame; those that it has no value of are left out."""
        slots = self.services[gold["service"]]["slots"]
        state, guess = gold["state"], found["state"]
        metrics = {"active_intent_accuracy": float(state["active_intent"] == guess["active_intent"])}
        if "slots" in found:
            names = {slot["name"] for slot in slots if not slot["is_categorical"]}
            metrics |= _f1("slot_tagging", *(_marked(frame, utterance, names) for frame in (gold, found)))
        metrics |= _f1("requested_slots", state["requested_slots"], guess["requested_slots"])
        rows = [(self._slot_score(slot, state["slot_values"], guess["slot_values"]), slot["name"] in
                 state["slot_values"], slot["is_categorical"]) for slot in slots]  # fmt: skip
        for kind, is_kind in (("goal", (True, False)), ("cat", (True,)), ("noncat", (False,))):
            active = [score for score, is_active, is_categorical in rows if is_active and is_categorical in is_kind]
            every = [score for score, _, is_categorical in rows if is_categorical in is_kind]
            if active:
                metrics[f"average_{kind}_accuracy"] = float(np.add.reduce(active) / len(active))
            if every:
                metrics[f"joint_{kind}_accuracy"] = float(np.multiply.reduce(every))
        return metrics

    def _slot_score(self, slot: Mapping[str, Any], gold: Mapping[str, Any], found: Mapping[str, Any]) -> float:
        """Score a slot's value: of the found ones the first counts; of a categorical slot's golden ones, too."""
        name = slot["name"]
        if name not in gold or name not in found:
            return float(name not in gold and name not in found)
        if slot["is_categorical"]:
            return float(gold[name][0] == found[name][0])
        if not self.use_fuzzy_match:
            return float(found[name][0] in gold[name])
        return max(token_sort_ratio(value, found[name][0], self.similarity) for value in gold[name]) / 100.0


def frame_pairs(gold: Dialogues, found: Dialogues) -> Iterator[list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]]:
    """Pair golden with found frames: of each turn of the user the utterance and both frames, for each golden one.

    Turns are paired in order up to the shorter dialogue's end. Raises InputError where they do not belong together.
    """
    for name, dialogue in found.items():
        if name not in gold:
            raise InputError(f"the dialogue {name!r} is not in the golden data. Predict the dialogues of these files.")
        if set(gold[name]["services"]) != set(dialogue["services"]):
            raise InputError(f"the dialogue {name!r} has other services than the golden one. Do not change services.")
        for number, (expected, turn) in enumerate(zip(gold[name]["turns"], dialogue["turns"], strict=False)):
            place = f"the dialogue {name!r}, turn {number}"
            if expected["speaker"] != turn["speaker"]:
                raise InputError(f"{place}: the speaker is not the golden one. Keep the turns as they are.")
            if expected["speaker"] != "USER":
                continue
            if expected["utterance"] != turn["utterance"]:
                raise InputError(f"{place}: the utterance is not the golden one. Keep the utterances as they are.")
            frames = {frame["service"]: frame for frame in turn["frames"]}
            missing = [frame["service"] for frame in expected["frames"] if frame["service"] not in frames]
            if missing:
                raise InputError(f"{place}: there is no frame of {missing[0]}. Give one for each golden frame.")
            yield [(expected["utterance"], frame, frames[frame["service"]]) for frame in expected["frames"]]


def hidden_facts(scorer: DialogueScorer, gold: Dialogues, found: Dialogues) -> dict[str, float]:
    """Count what the official scorer passes over.

    Dialogues and frames without a prediction; states with more than one value of a slot, of which the first counts;
    slots that the schema does not have. `joint_goal_accuracy_of_all` counts frames without a prediction as wrong, and
    `exact_joint_goal_accuracy` is the share of frames of which every value is right, for which similar ones are not.
    """
    pairs = [(scorer.frame_metrics(*item), *item[1:]) for turn in frame_pairs(gold, found) for item in turn]
    states = [(frame["service"], frame["state"]["slot_values"]) for _, _, frame in pairs]
    names = {name: {slot["name"] for slot in service["slots"]} for name, service in scorer.services.items()}
    num_gold = sum(len(turn["frames"]) for item in gold.values() for turn in item["turns"] if turn["speaker"] == "USER")
    joint = [metrics["joint_goal_accuracy"] for metrics, *_ in pairs if "joint_goal_accuracy" in metrics]
    return {
        "dialogues": len(gold),
        "dialogues_missing": len(gold) - len(found),
        "frames": num_gold,
        "frames_missing": num_gold - len(pairs),
        "slots_of_several_values": sum(len(values) > 1 for _, state in states for values in state.values()),
        "slots_not_in_schema": sum(slot not in names[service] for service, state in states for slot in state),
        "joint_goal_accuracy_of_all": sum(joint) / num_gold if num_gold else 0.0,
        "exact_joint_goal_accuracy": sum(value == 1.0 for value in joint) / max(len(joint), 1),
    }


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the rows that have it, summed as numpy does it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def _marked(frame: Mapping[str, Any], utterance: str, names: set[str]) -> list[tuple[str, str]]:
    """Return the names and texts of a frame's marked spans, of non-categorical slots."""
    return [
        (span["slot"], utterance[span["start"] : span["exclusive_end"]])
        for span in frame["slots"]
        if span["slot"] in names
    ]


def _f1(name: str, gold: Sequence[Any], found: Sequence[Any]) -> dict[str, float]:
    """Compute F1 of two multisets; precision is 1 where nothing is found, recall where nothing is to be found."""
    num_right = sum((Counter(gold) & Counter(found)).values())
    precision = num_right / len(found) if found else 1.0
    recall = num_right / len(gold) if gold else 1.0
    total = precision + recall
    f1 = 2.0 * precision * recall / total if total else 0.0
    return {f"{name}_f1": f1, f"{name}_precision": precision, f"{name}_recall": recall}


@lru_cache(maxsize=2**16)
def token_sort_ratio(first: str, second: str, similarity: str = "levenshtein") -> int:
    """Compare the sorted words of two strings, from 0 to 100: twice the characters in common by those of both.

    Characters 128 to 255 are dropped, others that are no letters or digits split words. Source: fuzzywuzzy 0.18.
    """
    a, b = (" ".join(sorted(_words(text))) for text in (first, second))
    return 100 if a == b else round(100 * _RATIOS[similarity](a, b))


def _words(text: str) -> list[str]:
    return re.sub(r"\W", " ", re.sub("[\x80-\xff]", "", text)).lower().strip().split()


def _levenshtein_ratio(first: str, second: str) -> float:
    """Return twice the longest common subsequence by the sum of lengths: edits without substitutions.

    Source of the bit-parallel recurrence: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
    """
    masks: dict[str, int] = {}
    for place, letter in enumerate(first):
        masks[letter] = masks.get(letter, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for letter in second:
        match = row & masks.get(letter, 0)
        row = (row + match | row - match) & every
    return 2 * (len(first) - row.bit_count()) / (len(first) + len(second))


def _difflib_ratio(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second).ratio()


_RATIOS: Mapping[str, Callable[[str, str], float]] = {"levenshtein": _levenshtein_ratio, "difflib": _difflib_ratio}
