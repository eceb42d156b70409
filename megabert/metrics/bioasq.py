"""Scores of exact answers in BioASQ's task B, phase B: yes/no, factoid and list questions.

As BioASQ's own evaluator computes them since its fifth challenge (EvaluatorTask1b -phaseB -e 5): lower-cased answers
equal to one of the golden synonyms; of a submitted answer only the first synonym counts. `corrected` differs where
the evaluator departs from the challenge's rules. Source: Malakasiotis et al. 2018, "Evaluation Measures for Task B".
"""

from collections.abc import Sequence

# "yes" or "no", or answers best first, each a list of synonyms; None: no answer.
ExactAnswer = str | Sequence[Sequence[str]] | None
KINDS = ("yesno", "factoid", "list")
MAIN_SCORES = {"yesno": "yesno_f1", "factoid": "factoid_mrr", "list": "list_f1"}


def official(kinds: Sequence[str], gold: Sequence[ExactAnswer], found: Sequence[ExactAnswer]) -> dict[str, float]:
    """Score answers as the evaluator does, from 0 to 1; a kind of which there is no question has 0.

    A question without an answer scores 0, where the evaluator ends with an error.
    """
    return _scores(kinds, gold, found, is_official=True)


def corrected(kinds: Sequence[str], gold: Sequence[ExactAnswer], found: Sequence[ExactAnswer]) -> dict[str, float]:
    """Score answers by the challenge's rules, where the evaluator does otherwise.

    A yes/no answer is exactly yes or no (the evaluator takes "unknown" for no); of a factoid's answers the first five
    count; a golden answer of a list that no answer has matched is missed, also if an answer that has matched another
    one is its synonym, too.
    """
    return _scores(kinds, gold, found, is_official=False)


def bioasq_scores(kinds: Sequence[str], gold: Sequence[ExactAnswer], found: Sequence[ExactAnswer]) -> dict[str, float]:
    """Score answers in per cent: the official metrics, `corrected_` ones where they differ, and counts.

    `bioasq` is the mean over the kinds of their main metrics: macro-F1 of yes/no, mean reciprocal rank of factoids, F1
    of lists.
    """
    numbers = {name: kinds.count(name) for name in KINDS}
    scores, right = official(kinds, gold, found), corrected(kinds, gold, found)
    present = [MAIN_SCORES[name] for name in KINDS if numbers[name]]
    shown = {"bioasq": sum(scores[name] for name in present) / max(len(present), 1)}
    for kind in KINDS:
        if numbers[kind]:
            shown |= {name: value for name, value in scores.items() if name.startswith(kind)}
    shown |= {f"corrected_{name}": right[name] for name in scores if right[name] != scores[name]}
    in_per_cent = {name: 100 * value for name, value in shown.items()}
    return in_per_cent | {f"{name}_total": count for name, count in numbers.items() if count} | {"total": len(kinds)}


def _scores(
    kinds: Sequence[str], gold: Sequence[ExactAnswer], found: Sequence[ExactAnswer], *, is_official: bool
) -> dict[str, float]:
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in KINDS}
    pairs: list[tuple[str, str]] = []
    for kind, expected, answer in zip(kinds, gold, found, strict=True):
        if kind == "yesno":
            pairs.append((yes_or_no(expected), yes_or_no(answer) if is_official else _exactly(answer)))
        elif kind == "factoid":
            rows[kind].append(_factoid(_lists(expected), _first_names(answer), None if is_official else 5))
        else:
            rows[kind].append(_list(_lists(expected), _first_names(answer), is_official=is_official))
    means = {kind: [_mean([row[place] for row in rows[kind]]) for place in range(3)] for kind in ("factoid", "list")}
    by_answer = {name: _f1(pairs, name) for name in ("yes", "no")}
    return {
        "yesno_accuracy": _mean([float(a == b) for a, b in pairs]),
        "yesno_f1": (by_answer["yes"] + by_answer["no"]) / 2,
        "yesno_f1_yes": by_answer["yes"],
        "yesno_f1_no": by_answer["no"],
        **dict(zip(("factoid_strict", "factoid_lenient", "factoid_mrr"), means["factoid"], strict=True)),
        **dict(zip(("list_precision", "list_recall", "list_f1"), means["list"], strict=True)),
    }


def yes_or_no(answer: ExactAnswer) -> str:
    """Read a yes/no answer as the evaluator does: what contains yes is yes, else what contains no is no."""
    text = answer.lower() if isinstance(answer, str) else ""
    return next((name for name in ("yes", "no") if name in text), "none")


def _exactly(answer: ExactAnswer) -> str:
    return answer.strip().lower() if isinstance(answer, str) else "none"


def _f1(pairs: Sequence[tuple[str, str]], name: str) -> float:
    """Compute F1 of one answer from pairs of golden and found answer; any other answer than the golden one is wrong."""
    right = sum(a == b == name for a, b in pairs)
    missed = sum(a == name != b for a, b in pairs)
    wrong = sum(name != a != b for a, b in pairs)
    total = 2 * right + missed + wrong
    return 2 * right / total if total else 0.0


def _lists(answer: ExactAnswer) -> list[list[str]]:
    return [] if answer is None or isinstance(answer, str) else [[name.lower() for name in names] for names in answer]


def _first_names(answer: ExactAnswer) -> list[str | None]:
    return [names[0] if names else None for names in _lists(answer)]


def _factoid(gold: Sequence[Sequence[str]], found: Sequence[str | None], most: int | None) -> tuple[float, ...]:
    """Return strict and lenient accuracy and reciprocal rank."""
    names = {name for synonyms in gold for name in synonyms}
    rank = next((place for place, name in enumerate(found[:most], start=1) if name in names), 0)
    return float(rank == 1), float(rank > 0), 1 / rank if rank else 0.0


def _list(gold: Sequence[Sequence[str]], found: Sequence[str | None], *, is_official: bool) -> tuple[float, ...]:
    """Return precision, recall and F1; each golden answer is matched once, the first that has the name."""
    if not found:
        return 0.0, 0.0, 0.0
    left, num_right = list(gold), 0
    for name in found:
        match = next((number for number, synonyms in enumerate(left) if name in synonyms), None)
        if match is not None:
            num_right += 1
            del left[match]
    unused, num_missed = list(found), 0
    for synonyms in left:
        match = next((number for number, name in enumerate(unused) if name in synonyms), None) if is_official else None
        if match is None:
            num_missed += 1
        else:
            del unused[match]
    precision, recall = num_right / len(found), num_right / (num_right + num_missed) if num_right else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if num_right else 0.0


def _mean(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:  # in order, as the evaluator adds
        total += value
    return total / len(values) if values else 0.0
