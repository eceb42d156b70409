"""Accuracy of multiple-choice questions, of all and of each group, as RACE's authors compute it."""

from collections.abc import Sequence

from .counts import require_pairs


def choice_scores(
    gold: Sequence[int], predicted: Sequence[int], num_choices: Sequence[int], groups: Sequence[str | None]
) -> dict[str, float]:
    """Score chosen indices in per cent; `chance` is the expected accuracy of a uniform guess."""
    require_pairs(gold, predicted)
    is_correct = [a == b for a, b in zip(gold, predicted, strict=True)]
    scores = {"accuracy": 100.0 * sum(is_correct) / len(gold)}
    for group in sorted({group for group in groups if group is not None}):
        own = [correct for correct, name in zip(is_correct, groups, strict=True) if name == group]
        scores |= {f"{group}_accuracy": 100.0 * sum(own) / len(own), f"{group}_total": len(own)}
    chance = 100.0 * sum(1 / count for count in num_choices) / len(gold)
    return scores | {"chance": chance, "total": len(gold)}
