"""Accuracy, F1, Matthews' correlation and confusion matrices of labels; correlations of numbers.

As in scikit-learn and SciPy, in per cent where not stated otherwise.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from .counts import MatchCounts, require_pairs, scores_by_label


def classification_scores(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Score one label per example: accuracy, macro and weighted F1, Matthews' correlation, and each class, in per cent.

    Macro averages count the classes that occur in gold or prediction. As scikit-learn's classification_report and
    matthews_corrcoef; a precision or recall without a denominator is 0.
    """
    require_pairs(gold, predicted)
    confused = Counter(zip(gold, predicted, strict=True))
    num_gold, num_predicted = Counter(gold), Counter(predicted)
    by_class = {label: MatchCounts(confused[label, label], num_gold[label], num_predicted[label]) for label in labels}
    present = [counts for counts in by_class.values() if counts.num_gold or counts.num_predicted]
    scores = {"accuracy": 100.0 * sum(map(str.__eq__, gold, predicted)) / len(gold)}
    for name in ("precision", "recall", "f1"):
        scores[f"macro_{name}"] = sum(getattr(counts, name) for counts in present) / max(len(present), 1)
    scores["weighted_f1"] = sum(counts.f1 * counts.num_gold for counts in present) / len(gold)
    scores["matthews"] = 100.0 * matthews(gold, predicted)
    return scores | scores_by_label(by_class) | {"total": len(gold)}


def choice_scores(
    gold: Sequence[int], predicted: Sequence[int], num_choices: Sequence[int], groups: Sequence[str | None]
) -> dict[str, float]:
    """Score chosen indices of multiple-choice questions, all and of each group (RACE: middle, high), in per cent.

    `chance` is the expected accuracy of a uniform guess.
    """
    require_pairs(gold, predicted)
    is_correct = [a == b for a, b in zip(gold, predicted, strict=True)]
    scores = {"accuracy": 100.0 * sum(is_correct) / len(gold)}
    for group in sorted({group for group in groups if group is not None}):
        own = [correct for correct, name in zip(is_correct, groups, strict=True) if name == group]
        scores |= {f"{group}_accuracy": 100.0 * sum(own) / len(own), f"{group}_total": len(own)}
    chance = 100.0 * sum(1 / count for count in num_choices) / len(gold)
    return scores | {"chance": chance, "total": len(gold)}


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix: how often each gold label (rows) was predicted as each label (columns)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


def confusion(pairs: Sequence[tuple[str, str]]) -> Confusion:
    """Count pairs of gold and predicted label; the most frequent gold labels come first."""
    counts = Counter(pairs)
    golds = Counter(gold for gold, _ in pairs)
    labels = sorted({label for pair in pairs for label in pair}, key=lambda label: (-golds[label], label))
    return Confusion(tuple(labels), tuple(tuple(counts[gold, predicted] for predicted in labels) for gold in labels))


def label_report(matrix: Confusion) -> str:
    """Format precision, recall, F1 and support of each label, and their averages, as a table.

    The micro average over all labels is the accuracy; macro and weighted averages count labels that occur in gold, as
    NeMo 1.x's report does.
    """
    columns = [sum(column) for column in zip(*matrix.counts, strict=True)]
    counts = {
        label: MatchCounts(row[number], sum(row), columns[number])
        for number, (label, row) in enumerate(zip(matrix.labels, matrix.counts, strict=True))
    }
    in_gold = [item for item in counts.values() if item.num_gold]
    correct = sum(item.num_correct for item in in_gold)
    total = sum(item.num_gold for item in in_gold)
    rows = [(label, list(item.scores().values()), item.num_gold) for label, item in counts.items()]
    averages = [
        ("micro avg", list(MatchCounts(correct, total, total).scores().values()), total),
        ("macro avg", _mean_scores(in_gold, [1] * len(in_gold)), total),
        ("weighted avg", _mean_scores(in_gold, [item.num_gold for item in in_gold]), total),
    ]
    width = max(len(row[0]) for row in [*rows, *averages])
    lines = [
        f"{name:<{width}}  {precision:9.2f}  {recall:6.2f}  {f1:6.2f}  {support:7d}"
        for name, (precision, recall, f1), support in [*rows, *averages]
    ]
    header = f"{'label':<{width}}  precision  recall      f1  support"
    return "\n".join([header, "", *lines[: len(rows)], "", *lines[len(rows) :], ""])


def _mean_scores(counts: Sequence[MatchCounts], weights: Sequence[int]) -> list[float]:
    return [
        sum(getattr(item, name) * weight for item, weight in zip(counts, weights, strict=True)) / max(sum(weights), 1)
        for name in ("precision", "recall", "f1")
    ]


def multi_label_scores(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, float]:
    """Score sets of labels: micro and macro F1 in per cent, and the share of examples with exactly the gold set."""
    require_pairs(gold, predicted)
    labels = sorted(set().union(*gold, *predicted))
    by_class = [
        MatchCounts.of_sets([items & {label} for items in gold], [items & {label} for items in predicted])
        for label in labels
    ]
    total = MatchCounts.of_sets(gold, predicted)
    return {
        "exact_match": 100.0 * sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold),
        "f1": total.f1,
        "precision": total.precision,
        "recall": total.recall,
        "macro_f1": sum(counts.f1 for counts in by_class) / max(len(by_class), 1),
        "total": len(gold),
    }


def micro_f1(gold: Sequence[str], predicted: Sequence[str], without: Collection[str]) -> dict[str, float]:
    """Score one label per example: micro precision, recall and F1 over all labels but some, in per cent.

    Without "no relation" this is the metric of BioCreative VI's ChemProt track.
    """
    require_pairs(gold, predicted)
    excluded = set(without)
    sides = ([{label} - excluded for label in side] for side in (gold, predicted))
    return MatchCounts.of_sets(*sides).scores()


def matthews(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Compute Matthews' correlation coefficient, -1 to 1, for any number of classes; 0 without a denominator.

    Source: Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006, as in scikit-learn.
    """
    total, correct = len(gold), sum(map(str.__eq__, gold, predicted))
    num_gold, num_predicted = Counter(gold), Counter(predicted)
    covariance = correct * total - sum(num_gold[label] * num_predicted[label] for label in num_gold)
    gold_variance = total**2 - sum(count**2 for count in num_gold.values())
    predicted_variance = total**2 - sum(count**2 for count in num_predicted.values())
    denominator = math.sqrt(gold_variance * predicted_variance)
    return covariance / denominator if denominator else 0.0


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute Pearson's correlation, -1 to 1; 0 where one side is constant."""
    require_pairs(gold, predicted)
    gold_mean, predicted_mean = math.fsum(gold) / len(gold), math.fsum(predicted) / len(predicted)
    left, right = [value - gold_mean for value in gold], [value - predicted_mean for value in predicted]
    denominator = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return math.fsum(a * b for a, b in zip(left, right, strict=True)) / denominator if denominator else 0.0


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Compute Spearman's rank correlation, -1 to 1; equal values get the mean of their ranks."""
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
