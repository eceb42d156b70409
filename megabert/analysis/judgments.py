"""Judge the rows of predictions.jsonl against their gold labels, whatever their task.

A row is what `Task.to_row` returns: the prediction's fields, and the gold labels of the same names under "gold".
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..formats.json_lines import read_json_lines
from ..metrics.squad import squad_exact_match, squad_f1

PREDICTIONS = "predictions.jsonl"
TEXT_WORDS = (10, 20, 40, 80, 160)
"""The last length of each group of texts."""
JsonRow = Mapping[str, Any]


@dataclass(frozen=True)
class Judgment:
    """One example's part of a score 100 * sum(numerators) / sum(denominators), and whether it is right as a whole."""

    numerator: float
    denominator: float
    is_correct: bool


def read_judged(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a predictions.jsonl; raises InputError if there is none, or one without gold labels."""
    if not path.is_file():
        raise InputError(f"{path} does not exist. Write it: megabert evaluate RUN file=FILE output_dir={path.parent}.")
    rows = read_json_lines(path)
    for row in rows:
        if not isinstance(row.values.get("gold"), dict):
            raise InputError(f"{row.location}: there are no gold labels. Predict data with labels: megabert evaluate.")
    return [row.values for row in rows]


def judge(row: JsonRow) -> dict[str, Judgment]:
    """Judge a row: score name -> judgment. Scores of unknown fields are the accuracy of each."""
    gold = row["gold"]
    judgments: dict[str, Judgment] = {}
    for name, judged in _KINDS.items():
        if (name in gold and name in row) or (name == "answers" and name in gold):
            judgments |= judged(row, gold)
    if not judgments:
        judgments = {f"{name} accuracy": _equal(row.get(name), gold[name]) for name in gold if name != "value"}
    return judgments


def columns(rows: Iterable[JsonRow]) -> dict[str, list[Judgment]]:
    """Judge all rows: score name -> a judgment for each; scores that no row has a denominator for are left out."""
    judged = [judge(row) for row in rows]
    names = dict.fromkeys(name for judgments in judged for name in judgments)
    table = {name: [judgments.get(name, Judgment(0, 0, True)) for judgments in judged] for name in names}
    return {name: found for name, found in table.items() if any(item.denominator for item in found)}


def confidences(row: JsonRow) -> list[tuple[float, bool]]:
    """List a row's predictions as pairs: probability, if there is one, and whether it is correct."""
    gold = row["gold"]
    for name in ("entities", "slots"):
        if name in gold and name in row:
            right = {mention_key(item) for item in gold[name]}
            return [(float(item["score"]), mention_key(item) in right) for item in row[name]]
    if isinstance(gold.get("labels"), list) and isinstance(row.get("probabilities"), dict):
        return [(float(value), label in gold["labels"]) for label, value in row["probabilities"].items()]
    if isinstance(row.get("probability"), float | int):
        return [(float(row["probability"]), all(item.is_correct for item in judge(row).values()))]
    return []


def num_words(row: JsonRow) -> int:
    """Count the words of a row's text, or of its context."""
    texts = [row.get(name) for name in ("context", "text", "text_b")]
    return sum(len(text.split()) for text in texts if isinstance(text, str))


def by_length(rows: Sequence[JsonRow]) -> dict[str, dict[str, tuple[float, int]]]:
    """Group the examples by the words of their texts: score name -> group -> score in per cent, number of examples."""
    lengths = [num_words(row) for row in rows]
    table: dict[str, dict[str, tuple[float, int]]] = {}
    for name, judged in columns(rows).items():
        members: dict[str, list[Judgment]] = {}
        for length, item in zip(lengths, judged, strict=True):
            members.setdefault(group(length, TEXT_WORDS), []).append(item)
        table[name] = {
            label: (100 * sum(i.numerator for i in items) / (sum(i.denominator for i in items) or 1), len(items))
            for label in dict.fromkeys(group(end, TEXT_WORDS) for end in (*TEXT_WORDS, TEXT_WORDS[-1] + 1))
            if (items := members.get(label))
        }
    return table


def group(number: int, ends: Sequence[int]) -> str:
    """Name the group of a number: "1", "4-5", "6+", by the last number of each group."""
    first = 1
    for end in ends:
        if number <= end:
            return str(end) if first >= end else f"{first}-{end}"
        first = end + 1
    return f"{first}+"


def mention_key(mention: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what must agree for an entity to be correct: type, start and end."""
    return mention["type"], mention["start"], mention["end"]


def gold_answers(gold: Mapping[str, Any]) -> list[str]:
    """List the texts of a question's gold answers; one that is empty where the question has none."""
    return [answer["text"] for answer in gold["answers"]] or [""]


def _equal(predicted: Any, gold: Any) -> Judgment:
    return Judgment(float(predicted == gold), 1, predicted == gold)


def _sets(gold: Sequence[Any], predicted: Sequence[Any]) -> Judgment:
    """Judge items by F1."""
    wanted, found = set(gold), set(predicted)
    return Judgment(2.0 * len(wanted & found), len(wanted) + len(found), wanted == found)


def _mentions(gold: Sequence[Any], predicted: Sequence[Any]) -> Judgment:
    return _sets(list(map(mention_key, gold)), list(map(mention_key, predicted)))


def _tags(row: JsonRow, gold: Mapping[str, Any]) -> dict[str, Judgment]:
    """Judge words."""
    return {"word_accuracy": _words(row["tags"], gold["tags"])}


def _words(predicted: Sequence[str], gold: Sequence[str]) -> Judgment:
    num_right = sum(a == b for a, b in zip(predicted, gold, strict=False))
    return Judgment(num_right, len(gold), list(predicted) == list(gold))


def _labels(row: JsonRow, gold: Mapping[str, Any]) -> dict[str, Judgment]:
    """Judge labels, a list of those of a text, or a string with those of its words."""
    if isinstance(gold["labels"], str):
        return {"word_accuracy": _words(row["labels"].split(), gold["labels"].split())}
    return {"micro_f1": _sets(gold["labels"], row["labels"])}


def _answers(row: JsonRow, gold: Mapping[str, Any]) -> dict[str, Judgment]:
    answers, answer = gold_answers(gold), row["answer"]
    exact = max(squad_exact_match(answer, text) for text in answers)
    f1 = max(squad_f1(answer, text) for text in answers)
    return {"f1": Judgment(f1, 1, exact == 1), "exact_match": Judgment(exact, 1, exact == 1)}


# Field of the gold labels -> its judgments
_KINDS: Mapping[str, Callable[[JsonRow, Mapping[str, Any]], dict[str, Judgment]]] = {
    "entities": lambda row, gold: {"f1": _mentions(gold["entities"], row["entities"])},
    "slots": lambda row, gold: {"slot_f1": _mentions(gold["slots"], row["slots"])},
    "intent": lambda row, gold: {"intent_accuracy": _equal(row["intent"], gold["intent"])},
    "label": lambda row, gold: {"accuracy": _equal(row["label"], gold["label"])},
    "tags": _tags,
    "labels": _labels,
    "answers": _answers,
}
