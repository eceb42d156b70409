"""Score predictions against gold answers: plain values in, numbers out, no files and no tensors.

Each function reproduces the arithmetic of the scorer that it names, so that a score can stand beside
published ones. Where that scorer stops with an exception, or gives a number that no setting of the model
can reach, the docstring says so and says what is done here.

Question answering follows the two scripts of the SQuAD authors, `evaluate-v1.1.py` and `evaluate-v2.0.py`
(Rajpurkar et al. 2016, arXiv:1606.05250; Rajpurkar et al. 2018, arXiv:1806.03822).
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from .counts import MatchCounts, require_pairs
from .tagging import _counts_of, _overlaps


def classification_scores(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Score one label a text: accuracy, macro and weighted F1, Matthews' correlation, and each class, in per cent.

    Macro averages count the classes that occur in gold or prediction. As scikit-learn's classification_report and
    matthews_corrcoef; a precision or recall without a denominator is 0.
    """
    require_pairs(gold, predicted)
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
        label: MatchCounts(row[place], sum(row), columns[place])
        for place, (label, row) in enumerate(zip(matrix.labels, matrix.counts, strict=True))
    }
    in_gold = [own for own in counts.values() if own.num_gold]
    correct = sum(own.num_correct for own in in_gold)
    total = sum(own.num_gold for own in in_gold)
    rows = [(label, own.figures(), own.num_gold) for label, own in counts.items()]
    averages = [
        ("micro avg", MatchCounts(correct, total, total).figures(), total),
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


def _mean_figures(counts: Sequence["MatchCounts"], weights: Sequence[int]) -> tuple[float, float, float]:
    figures = [own.figures() for own in counts]
    precision, recall, f1 = (
        sum(row[place] * weight for row, weight in zip(figures, weights, strict=True)) / max(sum(weights), 1)
        for place in range(3)
    )
    return precision, recall, f1


def multi_label_scores(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> dict[str, float]:
    """Score sets of labels: micro and macro F1 in per cent, and the share of texts with exactly the right set."""
    require_pairs(gold, predicted)
    labels = sorted(set().union(*gold, *predicted))
    by_class = [MatchCounts(*_overlaps(gold, predicted, {label})) for label in labels]
    total = MatchCounts(*_overlaps(gold, predicted, set(labels)))
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
    require_pairs(gold, predicted)
    pairs = zip(gold, predicted, strict=True)
    counts = MatchCounts(
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
    require_pairs(gold, predicted)
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


"""Type, first word, and the word behind the last."""
