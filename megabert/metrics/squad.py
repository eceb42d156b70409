"""Exact match and F1 of SQuAD 1.1 and 2.0, and the best no-answer threshold.

As the authors' scripts `evaluate-v1.1.py` and `evaluate-v2.0.py` compute them (Rajpurkar et al. 2016, arXiv:1606.05250;
Rajpurkar et al. 2018, arXiv:1806.03822).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby

from ..errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case, drop ASCII punctuation, drop the articles a, an and the, and collapse white space.

    The order is that of both official scripts, and it matters: "a-b" becomes "ab", "A. b" becomes "b".
    Punctuation outside ASCII stays; white space and word boundaries are those of Unicode.
    """
    without_punctuation = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", without_punctuation).split())


def squad_exact_match(prediction: str, gold: str) -> float:
    """Return 1 if both are the same once normalised, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def squad_f1(prediction: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over normalised words, repeated words counted.

    Two answers that are both empty once normalised agree and get 1, as in `evaluate-v2.0.py`.
    `evaluate-v1.1.py` gives them 0, and so does `squad_v1`. In all other cases both scripts are the same.
    """
    prediction_words = normalize_answer(prediction).split()
    gold_words = normalize_answer(gold).split()
    if not prediction_words and not gold_words:
        return 1.0
    num_common = (Counter(prediction_words) & Counter(gold_words)).total()
    if num_common == 0:
        return 0.0
    precision = num_common / len(prediction_words)
    recall = num_common / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def squad_v1(gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """Score SQuAD 1.1: exact match and F1 in per cent, each question by its best gold answer.

    Both arguments map question ids: to all gold answers, and to the predicted text. A question without a
    prediction counts as 0 and stays in `total`; a prediction for an unknown id changes nothing. `missing`
    and `unknown` are their numbers.
    Raises InputError if there is no question, or one without gold answers; the official script fails
    there too.
    Source: evaluate-v1.1.py.
    """
    _require_questions(gold)
    for question_id, answers in gold.items():
        if not answers:
            raise InputError(
                f"Question {question_id!r} has no gold answer. In SQuAD 1.1 every question has one: "
                "score this file as SQuAD 2.0."
            )
    exact = _best_scores(gold, predictions, squad_exact_match)
    f1 = _best_scores(gold, predictions, _squad_v1_f1)
    return _mean_scores(exact, f1, gold) | _coverage(gold, predictions)


def squad_v2(
    gold: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    *,
    null_scores: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Score SQuAD 2.0: exact match and F1 in per cent, over all questions and over each of two groups.

    A question with gold answers is in the group `HasAns_`, one without (an empty list) in `NoAns_` and
    its answer is "". Gold answers that normalise to nothing are left out. The keys of a group without
    questions are absent. `null_scores`, a probability or a score difference that is higher for "no
    answer", turns a prediction into "" where it is above `threshold`: 1 is the official default, for
    probabilities; 0 is usual for differences.

    A question without a prediction counts as 0, in its group and over all. The official script has no
    result for such a file: it leaves the question out of the mean over all, then stops with a KeyError in
    its group. The mean that it would have printed is `exact_match * total / (total - missing)`, and the
    same for F1. A prediction for an unknown id changes nothing. `missing` and `unknown` are their
    numbers.
    Raises InputError if there is no question, or if `null_scores` lacks one that was predicted.
    Source: evaluate-v2.0.py.
    """
    _require_questions(gold)
    exact, f1 = _squad_v2_scores(gold, predictions)
    if null_scores is not None:
        _require_null_scores(exact, null_scores)
        unanswered = [question_id for question_id in exact if null_scores[question_id] > threshold]
        exact, f1 = exact | _no_answer_scores(gold, unanswered), f1 | _no_answer_scores(gold, unanswered)
    groups = {
        "": list(gold),
        "HasAns_": [question_id for question_id, answers in gold.items() if answers],
        "NoAns_": [question_id for question_id, answers in gold.items() if not answers],
    }
    result: dict[str, float] = {}
    for prefix, question_ids in groups.items():
        if question_ids:
            scores = _mean_scores(exact, f1, question_ids)
            result |= {prefix + name: score for name, score in scores.items()}
    return result | _coverage(gold, predictions)


def squad_best_threshold(
    gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str], null_scores: Mapping[str, float]
) -> dict[str, float]:
    """Find the thresholds at which `squad_v2` gives its highest exact match and its highest F1.

    Returns both scores in per cent, each with the lowest threshold that reaches it. `predictions` holds
    the best answer to each question before any threshold.

    It differs from the sweep of the official script in three cases, to report what a threshold can really
    reach. Questions with equal null scores are answered together; the official sweep may stop between two
    of them, and so report a score out of reach. If it is best to answer no question, the threshold is below
    all null scores, which the official 0 need not be. And "the" as the answer to a question that has none
    counts as "", as in the official score, while the official sweep counts it as a wrong answer.
    Raises InputError as `squad_v2` does, and for null scores that are not finite.
    Source: evaluate-v2.0.py, find_best_thresh.
    """
    _require_questions(gold)
    exact, f1 = _squad_v2_scores(gold, predictions)
    _require_null_scores(exact, null_scores)
    for question_id in exact:
        if not math.isfinite(null_scores[question_id]):
            raise InputError(
                f"The null score of question {question_id!r} is {null_scores[question_id]}. "
                "A threshold can only be chosen among finite numbers."
            )
    best_exact, exact_threshold = _best_threshold(exact, gold, null_scores)
    best_f1, f1_threshold = _best_threshold(f1, gold, null_scores)
    return {
        "best_exact": best_exact,
        "best_exact_threshold": exact_threshold,
        "best_f1": best_f1,
        "best_f1_threshold": f1_threshold,
    }


def _squad_v1_f1(prediction: str, gold: str) -> float:
    return squad_f1(prediction, gold) if normalize_answer(gold) else 0.0


def _squad_v2_scores(
    gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return exact match and F1 of each predicted question, before any threshold."""
    answers_or_none = {
        question_id: [answer for answer in answers if normalize_answer(answer)] or [""]
        for question_id, answers in gold.items()
    }
    exact = _best_scores(answers_or_none, predictions, squad_exact_match)
    return exact, _best_scores(answers_or_none, predictions, squad_f1)


def _best_scores(
    gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str], score: Callable[[str, str], float]
) -> dict[str, float]:
    """Score each predicted question by its best gold answer, in the order of `gold`."""
    return {
        question_id: max(score(predictions[question_id], answer) for answer in answers)
        for question_id, answers in gold.items()
        if question_id in predictions
    }


def _no_answer_scores(gold: Mapping[str, Sequence[str]], question_ids: Iterable[str]) -> dict[str, float]:
    """Return what the prediction "" scores: 1 for a question that has no gold answers, else 0."""
    return {question_id: float(not gold[question_id]) for question_id in question_ids}


def _best_threshold(
    scores: Mapping[str, float], gold: Mapping[str, Sequence[str]], null_scores: Mapping[str, float]
) -> tuple[float, float]:
    """Raise the threshold from below all null scores to each distinct one in turn; the first best wins."""
    no_answer = _no_answer_scores(gold, scores)
    total = best_total = sum(no_answer.values())
    # 0, as in the official script, where that is below all null scores; else the next number below them.
    best_threshold = min(0.0, math.nextafter(min(map(null_scores.__getitem__, scores), default=1.0), -math.inf))
    ascending = sorted(scores, key=null_scores.__getitem__)
    for threshold, question_ids in groupby(ascending, null_scores.__getitem__):
        total += sum(scores[question_id] - no_answer[question_id] for question_id in question_ids)
        if total > best_total:
            best_total, best_threshold = total, threshold
    return 100.0 * best_total / len(gold), best_threshold


def _mean_scores(
    exact: Mapping[str, float], f1: Mapping[str, float], question_ids: Collection[str]
) -> dict[str, float]:
    total = len(question_ids)
    return {
        "exact_match": 100.0 * sum(exact.get(question_id, 0.0) for question_id in question_ids) / total,
        "f1": 100.0 * sum(f1.get(question_id, 0.0) for question_id in question_ids) / total,
        "total": total,
    }


def _coverage(gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    return {
        "missing": len(gold.keys() - predictions.keys()),
        "unknown": len(predictions.keys() - gold.keys()),
    }


def _require_questions(gold: Mapping[str, Sequence[str]]) -> None:
    if not gold:
        raise InputError("The gold file holds no question, so there is nothing to score.")


def _require_null_scores(question_ids: Iterable[str], null_scores: Mapping[str, float]) -> None:
    lacking = [question_id for question_id in question_ids if question_id not in null_scores]
    if lacking:
        raise InputError(
            f"{len(lacking)} predicted questions have no null score; the first is {lacking[0]!r}. "
            "Give one for every prediction, or score without null scores."
        )
