"""Score predictions against gold answers: plain values in, numbers out, no files and no tensors.

Each function reproduces the arithmetic of the scorer that it names, so that a score can stand beside
published ones. Where that scorer stops with an exception, or gives a number that no setting of the model
can reach, the docstring says so and says what is done here.

Question answering follows the two scripts of the SQuAD authors, `evaluate-v1.1.py` and `evaluate-v2.0.py`
(Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar et al. 2018, arXiv:1806.03822).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from megabert.errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower the case, drop ASCII punctuation, drop the articles a, an and the, and tidy white space.

    The order is that of both official scripts and matters: "a-b" becomes "ab", "A. b" becomes "b".
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
    and `unknown` say how many there were.
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
    its group. The mean that it was about to print is `exact_match * total / (total - missing)`, and the
    same for F1. A prediction for an unknown id changes nothing. `missing` and `unknown` say how many
    there were.
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
    of them, and so report a score out of reach. If it is best to answer nothing, the threshold is below
    all null scores, which the official 0 need not be. And "the" as the answer to a question that has none
    counts as "", as it does in the official score, while the official sweep takes it for a wrong answer.
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
    """Score each predicted question by the gold answer that suits it best, in the order of `gold`."""
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


def classification_scores(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Score one label a text: accuracy, macro and weighted F1, Matthews' correlation, and each class, in per cent.

    Macro averages count the classes that occur in gold or prediction. As scikit-learn's classification_report and
    matthews_corrcoef; a precision or recall without a denominator is 0.
    """
    _require_pairs(gold, predicted)
    scores = {"accuracy": 100.0 * sum(map(str.__eq__, gold, predicted)) / len(gold)}
    by_class = {label: _counts_of(gold, predicted, label) for label in labels}
    present = [counts for counts in by_class.values() if counts.num_gold or counts.num_predicted]
    for name in ("precision", "recall", "f1"):
        scores[f"macro_{name}"] = sum(getattr(counts, name) for counts in present) / max(len(present), 1)
    scores["weighted_f1"] = sum(counts.f1 * counts.num_gold for counts in present) / len(gold)
    scores["matthews"] = 100.0 * matthews(gold, predicted)
    for label, counts in by_class.items():
        scores |= {f"{label}/precision": counts.precision, f"{label}/recall": counts.recall, f"{label}/f1": counts.f1}
    return scores | {"total": len(gold)}


@dataclass(frozen=True)
class Confusion:
    """How often each gold label (rows) was answered with each label (columns)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion(pairs: Sequence[tuple[str, str]]) -> Confusion:
    """Count pairs of gold and predicted label; the most frequent gold labels come first."""
    counts = Counter(pairs)
    golds = Counter(gold for gold, _ in pairs)
    labels = sorted({label for pair in pairs for label in pair}, key=lambda label: (-golds[label], label))
    return Confusion(tuple(labels), tuple(tuple(counts[gold, found] for found in labels) for gold in labels))


def label_report(matrix: Confusion) -> str:
    """Write precision, recall, F1 and support of each label, and their averages, as a table for people.

    Micro averages over all labels together are the accuracy; macro and weighted ones count labels that are in gold, as
    NeMo 1.x's report does.
    """
    columns = [sum(column) for column in zip(*matrix.counts, strict=True)]
    counts = {
        label: _Counts(row[place], sum(row), columns[place])
        for place, (label, row) in enumerate(zip(matrix.labels, matrix.counts, strict=True))
    }
    in_gold = [own for own in counts.values() if own.num_gold]
    correct = sum(own.num_correct for own in in_gold)
    total = sum(own.num_gold for own in in_gold)
    rows = [(label, own.figures(), own.num_gold) for label, own in counts.items()]
    averages = [
        ("micro avg", _Counts(correct, total, total).figures(), total),
        ("macro avg", _mean_figures(in_gold, [1] * len(in_gold)), total),
        ("weighted avg", _mean_figures(in_gold, [own.num_gold for own in in_gold]), total),
    ]
    width = max(len(row[0]) for row in [*rows, *averages])
    lines = [
        f"{name:<{width}}  {precision:9.2f}  {recall:6.2f}  {f1:6.2f}  {support:7d}"
        for name, (precision, recall, f1), support in [*rows, *averages]
    ]
    header = f"{'label':<{width}}  precision  recall      f1  support"
    return "\n".join([header, "", *lines[: len(rows)], "", *lines[len(rows) :], ""])


def _mean_figures(counts: Sequence["_Counts"], weights: Sequence[int]) -> tuple[float, float, float]:
    figures = [own.figures() for own in counts]
    precision, recall, f1 = (
        sum(row[place] * weight for row, weight in zip(figures, weights, strict=True)) / max(sum(weights), 1)
        for place in range(3)
    )
    return precision, recall, f1


def multi_label_scores(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, float]:
    """Score sets of labels: micro and macro F1 in per cent, and the share of texts with exactly the right set."""
    _require_pairs(gold, predicted)
    labels = sorted(set().union(*gold, *predicted))
    by_class = [_Counts(*_overlaps(gold, predicted, {label})) for label in labels]
    total = _Counts(*_overlaps(gold, predicted, set(labels)))
    return {
        "exact_match": 100.0 * sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold),
        "f1": total.f1,
        "precision": total.precision,
        "recall": total.recall,
        "macro_f1": sum(counts.f1 for counts in by_class) / max(len(by_class), 1),
        "total": len(gold),
    }


def micro_f1(gold: Sequence[str], predicted: Sequence[str], without: Collection[str]) -> dict[str, float]:
    """Score one label a text, leaving out some: precision, recall and F1 over all others together, in per cent.

    For relations without "no relation": the measure of BioCreative VI's ChemProt track.
    """
    _require_pairs(gold, predicted)
    pairs = zip(gold, predicted, strict=True)
    counts = _Counts(
        sum(a == b and a not in without for a, b in pairs),
        sum(label not in without for label in gold),
        sum(label not in without for label in predicted),
    )
    return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}


def matthews(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Compute Matthews' correlation coefficient, -1 to 1, for any number of classes; 0 where it has no denominator.

    Source: Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006, as in scikit-learn.
    """
    total, correct = len(gold), sum(map(str.__eq__, gold, predicted))
    golds, founds = Counter(gold), Counter(predicted)
    covariance = correct * total - sum(golds[label] * founds[label] for label in golds)
    spread_gold = total**2 - sum(count**2 for count in golds.values())
    spread_found = total**2 - sum(count**2 for count in founds.values())
    return covariance / math.sqrt(spread_gold * spread_found) if spread_gold and spread_found else 0.0


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute Pearson's correlation, -1 to 1; 0 where one side does not vary."""
    _require_pairs(gold, predicted)
    mean_gold, mean_found = math.fsum(gold) / len(gold), math.fsum(predicted) / len(predicted)
    left, right = [value - mean_gold for value in gold], [value - mean_found for value in predicted]
    spread = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / spread if spread else 0.0


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute Spearman's rank correlation, -1 to 1; equal values share the mean of their ranks."""
    return pearson(_ranks(gold), _ranks(predicted))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for _, group in groupby(order, values.__getitem__):
        members = list(group)
        for member in members:
            ranks[member] = start + (len(members) + 1) / 2
        start += len(members)
    return ranks


Entity = tuple[str, int, int]
"""Type, first word, and the word behind the last."""


def entities(tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """List the entities of a sentence's tags, in IOB1, IOB2 or IOBES.

    As conlleval: an I- that cannot continue what stands before it opens an entity. Strict: only a B- does (or S-).
    Source: Sang and Buchholz 2000, conlleval's startOfChunk and endOfChunk; seqeval's default is the same.
    """
    found: list[Entity] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        own = own or "_"  # tags without a type, as seqeval has it
        opens = prefix in ("B", "S") or (prefix in ("I", "E") and own != kind)
        if kind and (opens or prefix not in ("I", "E")):
            found.append((kind, start, place))
            kind = ""
        if opens and (not strict or prefix in ("B", "S")):
            start, kind = place, own
        if kind and prefix in ("E", "S"):
            found.append((kind, start, place + 1))
            kind = ""
    return found


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score entities by type and words: precision, recall and F1 of all together and of each type, in per cent.

    An entity counts if its type and all its words agree, as conlleval counts; strict_ figures count on both sides
    only entities that a B- opens. macro_f1 is the mean over types.
    """
    _require_pairs(gold, predicted)
    scores: dict[str, float] = {}
    for prefix, strict in (("", False), ("strict_", True)):
        golds = [set(entities(tags, strict=strict)) for tags in gold]
        founds = [set(entities(tags, strict=strict)) for tags in predicted]
        total = _Counts(*_overlaps(golds, founds, None))
        scores |= {f"{prefix}{name}": getattr(total, name) for name in ("precision", "recall", "f1")}
        if strict:
            continue
        kinds = sorted({kind for items in (*golds, *founds) for kind, _, _ in items})
        of_kind = {
            kind: _Counts(
                *_overlaps(
                    [{item for item in items if item[0] == kind} for items in golds],
                    [{item for item in items if item[0] == kind} for items in founds],
                    None,
                )
            )
            for kind in kinds
        }
        scores["macro_f1"] = sum(counts.f1 for counts in of_kind.values()) / max(len(of_kind), 1)
        for kind, counts in of_kind.items():
            scores |= {f"{kind}/precision": counts.precision, f"{kind}/recall": counts.recall, f"{kind}/f1": counts.f1}
    return scores


@dataclass(frozen=True)
class _Counts:
    """What precision and recall are made of; the figures are per cent."""

    num_correct: int
    num_gold: int
    num_predicted: int

    @property
    def precision(self) -> float:
        return 100.0 * self.num_correct / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        return 100.0 * self.num_correct / self.num_gold if self.num_gold else 0.0

    @property
    def f1(self) -> float:
        both = self.num_gold + self.num_predicted
        return 200.0 * self.num_correct / both if both else 0.0

    def figures(self) -> tuple[float, float, float]:
        return self.precision, self.recall, self.f1


def _counts_of(gold: Sequence[str], predicted: Sequence[str], label: str) -> _Counts:
    pairs = zip(gold, predicted, strict=True)
    return _Counts(
        sum(a == b == label for a, b in pairs), sum(a == label for a in gold), sum(b == label for b in predicted)
    )


def _overlaps(gold: Sequence[set[Any]], predicted: Sequence[set[Any]], of: set[Any] | None) -> tuple[int, int, int]:
    """Count what is in both, in gold, and in the prediction, of some items or (None) of all."""
    golds = gold if of is None else [items & of for items in gold]
    founds = predicted if of is None else [items & of for items in predicted]
    common = sum(len(a & b) for a, b in zip(golds, founds, strict=True))
    return common, sum(map(len, golds)), sum(map(len, founds))


def _require_pairs(gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    if not gold:
        raise InputError("There is nothing to score.")
    if len(gold) != len(predicted):
        raise InputError(f"{len(predicted)} predictions for {len(gold)} gold answers. Give one for each.")
