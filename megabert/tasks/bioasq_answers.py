"""Where the answers to BioASQ's questions stand in snippets, which candidates are one answer, how many are wanted."""

import re
from collections.abc import Sequence

from ..errors import InputError
from ..formats.bioasq import Question
from .answer_spans import Candidate

LONGEST_ANSWER = 100
"""Characters of an answer that the challenge takes."""
NUMBERS = {word: number for number, word in enumerate(
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=2)}  # fmt: skip


def answer_places(example: Question) -> list[tuple[int, int]]:
    """Find the characters of all answers and synonyms in the snippets, in any case, as whole words."""
    if example.answers is None:
        raise InputError(f"{example.location}: the question has no exact answer to train on. Add it.")
    if example.kind == "yesno":
        return []
    names = sorted({name.strip() for synonyms in example.answers for name in synonyms}, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return [match.span() for match in re.finditer(pattern, example.context, re.IGNORECASE)] if names else []


def without_crossings(n_best: Sequence[Candidate], margin: float = 1.0) -> list[Candidate]:
    """Leave out spans from the start of one answer of a list to the end of another, which score as much as they do.

    That is: where two others that do not overlap have its start and its end, and scores at most `margin` lower.
    """
    kept = []
    for item in n_best:
        good = [other for other in n_best if other is not item and other.score >= item.score - margin]
        ends = [other.end for other in good if other.start == item.start and other.end < item.end]
        starts = [other.start for other in good if other.end == item.end and other.start > item.start]
        if not (ends and starts and min(ends) <= max(starts)):
            kept.append(item)
    return kept


def distinct_answers(n_best: Sequence[Candidate]) -> list[tuple[str, float]]:
    """Join answers that differ in case or in marks at their ends, and leave out what is too long; best first."""
    found: dict[str, tuple[str, float]] = {}
    for candidate in n_best:
        text = candidate.text.strip(" \n\t.,;:()[]\"'")
        if text and len(text) <= LONGEST_ANSWER:
            first, probability = found.get(text.lower(), (text, 0.0))
            found[text.lower()] = (first, probability + candidate.probability)
    return sorted(found.values(), key=lambda item: -item[1])


def named_number(question: str) -> int | None:
    """Find the number of answers that a question names, such as 3 in "Which three genes ..."; None if it names none."""
    pattern = rf"\b(?:which|list|name|what are(?: the)?)(?: the)? (\d{{1,2}}|{'|'.join(NUMBERS)})\b"
    match = re.search(pattern, question.lower())
    number = 0 if match is None else NUMBERS.get(match[1]) or int(match[1])
    return number if number > 1 else None
