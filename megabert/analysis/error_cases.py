"""Sort predictions into kinds of errors: a case for each entity, label or answer, with the facts to group it by.

Entities are paired as MUC's evaluation does: equal, else overlapping ones (the larger overlap and the same type first).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..metrics.squad import squad_f1
from .judgments import TEXT_WORDS, JsonRow, gold_answers, group, judge, num_words

CORRECT = "correct"
MENTION_WORDS = (1, 2, 3, 5)
"""The last length of each group of mentions and answers."""
_SMALLEST = 1e-9
Mention = Mapping[str, Any]
"""An entity of a row: type, text, start, end, and the score of a predicted one."""


@dataclass(frozen=True)
class Case:
    """One decision: what is right, what was predicted, which kind of error it is and what it costs."""

    example: str
    kind: str
    gold: str
    predicted: str
    cost: float
    text: str
    spans: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    """Characters of the gold and of the predicted entity; equal ends where there is none."""
    facts: Mapping[str, str] = field(default_factory=dict)


def cases(rows: Sequence[JsonRow], seen: Collection[str] | None = None) -> list[Case]:
    """Sort the rows of predictions.jsonl into cases.

    `seen` are the mentions of the training data, in lower case, where they are known. The cost of an entity is 1 if it
    is missed, and the probability of each wrong one, or where a row has `losses` of its words the smallest of those
    whose tags differ; that of a label -ln of the gold label's probability; that of an answer 1 - F1, times its
    probability. Raises InputError for numbers (regression), which have no kinds of errors.
    """
    return [case for row in rows for case in _row_cases(row, seen)]


def _row_cases(row: JsonRow, seen: Collection[str] | None) -> Iterator[Case]:
    gold = row["gold"]
    if "value" in gold:
        raise InputError("Predictions of numbers have no kinds of errors. See the scores of `megabert evaluate`.")
    for name in ("entities", "slots"):
        if name in gold and (gold[name] or row[name]):
            yield from _mention_cases(row, gold[name], row[name], seen)
            return
    if "answers" in gold:
        yield _answer_case(row)
    elif "entities" not in gold and "slots" not in gold:
        yield _label_case(row)


def _mention_cases(
    row: JsonRow, gold: Sequence[Mention], predicted: Sequence[Mention], seen: Collection[str] | None
) -> Iterator[Case]:
    for right, found in pair_mentions(gold, predicted):
        kind = _mention_kind(right, found)
        one = right or found
        assert one is not None
        facts = {
            "type": str(one["type"]),
            **({} if seen is None else {"training data": "seen" if one["text"].lower() in seen else "unseen"}),
            "words": group(len(one["text"].split()), MENTION_WORDS),
            "abbreviation": "yes" if is_abbreviation(one["text"]) else "no",
        }
        cost = 0.0 if kind == CORRECT else (right is not None) + (float(found["score"]) if found else 0.0)
        if kind != CORRECT and "losses" in row:
            cost = _smallest_loss(row, right, found)
        spans = (_span(right) if right else (0, 0), _span(found) if found else (0, 0))
        yield Case(str(row.get("id")), kind, _shown(right), _shown(found), cost, row["text"], spans, facts)


def _smallest_loss(row: JsonRow, right: Mention | None, found: Mention | None) -> float:
    """Return the smallest loss of the words that two mentions tag differently; 0 where they contain none."""
    tags = []
    for mention in (right, found):
        start, end = _span(mention) if mention else (0, 0)
        inside = [number for number, (first, last) in enumerate(row["words"]) if first < end and start < last]
        tags.append({number: (number == inside[0], mention and mention["type"]) for number in inside})
    differ = [number for number in tags[0].keys() | tags[1].keys() if tags[0].get(number) != tags[1].get(number)]
    return min((row["losses"][number] for number in differ), default=0.0)


def pair_mentions(gold: Sequence[Mention], predicted: Sequence[Mention]) -> list[tuple[Mention | None, Mention | None]]:
    """Pair each gold entity with at most one predicted, in the order of the text; what has no partner is alone."""
    overlaps = sorted(
        (
            (_span(a) == _span(b), overlap, a["type"] == b["type"], -i, -j)
            for i, a in enumerate(gold)
            for j, b in enumerate(predicted)
            if (overlap := min(a["end"], b["end"]) - max(a["start"], b["start"])) > 0
        ),
        reverse=True,
    )
    partners: dict[int, int] = {}
    for *_, i, j in overlaps:
        if -i not in partners and -j not in partners.values():
            partners[-i] = -j
    pairs: list[tuple[Mention | None, Mention | None]] = [
        (item, predicted[partners[i]] if i in partners else None) for i, item in enumerate(gold)
    ]
    pairs += [(None, item) for j, item in enumerate(predicted) if j not in partners.values()]
    return sorted(pairs, key=lambda pair: _span(pair[0] or pair[1] or {}))


def _span(mention: Mention) -> tuple[int, int]:
    return mention["start"], mention["end"]


def _mention_kind(right: Mention | None, found: Mention | None) -> str:
    if right is None:
        return "spurious"
    if found is None:
        return "missed"
    wrong = [name for name, same in (("boundary", _span(right) == _span(found)),
                                     ("type", right["type"] == found["type"])) if not same]  # fmt: skip
    return " and ".join(wrong) or CORRECT


def _shown(mention: Mention | None) -> str:
    return "" if mention is None else f"{mention['text']} [{mention['type']}]"


def is_abbreviation(mention: str) -> bool:
    """Whether a mention looks like one: a word of 2 to 10 characters, half of its letters, or two, in upper case."""
    letters = [character for character in mention if character.isalpha()]
    upper = sum(character.isupper() for character in letters)
    return 2 <= len(mention) <= 10 and len(mention.split()) == 1 and upper >= 2 and 2 * upper >= len(letters)


def _label_case(row: JsonRow) -> Case:
    gold = row["gold"]
    name = next(iter(gold))
    right, found = _words(gold[name]), _words(row.get(name))
    probabilities = row.get("probabilities")
    is_correct = all(item.is_correct for item in judge(row).values())
    cost = 0.0 if is_correct else 1.0
    if not is_correct and isinstance(probabilities, dict) and isinstance(gold[name], str):
        cost = -math.log(max(float(probabilities.get(gold[name], 0.0)), _SMALLEST))
    texts = [row[key] for key in ("text", "text_b") if isinstance(row.get(key), str)]
    facts = {"gold": right, "words of the text": group(num_words(row), TEXT_WORDS)}
    if isinstance(gold[name], str) and len(right.split()) > 2:  # labels of words
        del facts["gold"]
    kind = CORRECT if is_correct else f"{right} -> {found}" if "gold" in facts else "words"
    return Case(str(row.get("id")), kind, right, found, cost, " | ".join(texts), facts=facts)


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _answer_case(row: JsonRow) -> Case:
    answers, answer = gold_answers(row["gold"]), row["answer"]
    f1 = max(squad_f1(answer, text) for text in answers)
    is_correct = judge(row)["exact_match"].is_correct
    kinds = ("answered, has none", not any(answers)), ("no answer", not answer), ("other words", f1 == 0)
    kind = CORRECT if is_correct else next((name for name, holds in kinds if holds), "boundary")
    words = row["question"].split()
    facts = {"question": words[0].lower() if words else "", "words": group(len(answers[0].split()), MENTION_WORDS)}
    start = int(row.get("start") or 0) if answer else 0
    first = row["gold"]["answers"][:1]
    right = (first[0]["start"], first[0]["start"] + len(first[0]["text"])) if first and "start" in first[0] else (0, 0)
    spans = (right, (start, start + len(answer)))
    text = row.get("context", row["question"])
    cost = (1 - f1) * float(row.get("probability") or 1.0)
    return Case(str(row.get("id")), kind, answers[0], answer, 0.0 if is_correct else cost, text, spans, facts)
