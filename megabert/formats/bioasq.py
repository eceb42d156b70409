"""BioASQ's task B: questions with snippets and exact answers, in the JSON of its training and golden files.

Format: {"questions": [{"id", "type": yesno, factoid, list or summary, "body", "snippets": [{"text", ...}],
"exact_answer"}]}; the answer is "yes" or "no", or a list of answers, each a list of synonyms. Answers are submitted in
the same format. Source: https://participants-area.bioasq.org/general_information/Task_b/.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .json_lines import read_json
from .rows import Row

KINDS = ("yesno", "factoid", "list")
# Questions that are answered by a paragraph and have no exact answer.
SUMMARY = "summary"


@dataclass(frozen=True)
class Question:
    """A question and its snippets, a line each; `answers` are lists of synonyms, or (("yes",),), None if unknown."""

    id: str
    kind: str
    question: str
    context: str
    answers: tuple[tuple[str, ...], ...] | None
    location: str
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)


def read_bioasq(path: Path) -> list[Question]:
    """Read the questions that have exact answers; raises InputError with the location of what is malformed."""
    return [question_of(row) for row in question_rows(path) if row.values.get("type") != SUMMARY]


def question_rows(path: Path) -> list[Row]:
    """Read the objects of all questions of a file, golden or submitted; their ids are unique."""
    content = read_json(path)
    questions = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(questions, list):
        raise InputError(f'{path} is not BioASQ\'s format: expected {{"questions": [{{"id": ..., ...}}, ...]}}.')
    rows = []
    for number, item in enumerate(questions):
        if not isinstance(item, dict) or type(item.get("id")) not in (str, int):
            raise InputError(f"{path}: questions[{number}] is no object with an id.")
        rows.append(Row(item, f"{path}: questions[{number}] (id {item['id']!r})"))
    names = [str(row.values["id"]) for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise InputError(f"{path}: two questions have the id {twice!r}. Make each id unique.")
    if not rows:
        raise InputError(f"{path} holds no questions.")
    return rows


def question_of(row: Row) -> Question:
    """Make a question from its object."""
    kind = row.get("type")
    if kind not in KINDS:
        raise InputError(f"{row.location}: the type is {kind!r:.40}; expected one of {', '.join(KINDS)}, {SUMMARY}.")
    snippets = row.get("snippets")
    if not isinstance(snippets, list) or not all(isinstance(item, dict) and isinstance(item.get("text"), str)
                                                 for item in snippets):  # fmt: skip
        raise InputError(f"{row.location}: snippets is {str(snippets)[:60]!r}; expected a list of objects with a text.")
    context = "\n".join(dict.fromkeys(item["text"] for item in snippets if item["text"].strip()))
    if not context:
        raise InputError(f"{row.location}: there are no snippets, in which the answer is to be found. Add them.")
    answers = None
    if row.values.get("exact_answer") is not None:
        answers = exact_answers(kind, row.values["exact_answer"], row.location)
    return Question(str(row.values["id"]), kind, row.string("body"), context, answers, row.location)


def exact_answers(kind: str, value: Any, location: str) -> tuple[tuple[str, ...], ...]:
    """Convert an exact answer: a flat list is that of a factoid's synonyms, or of a list's answers."""
    if kind == "yesno":
        if not isinstance(value, str) or value.strip().lower() not in ("yes", "no"):
            raise InputError(f"{location}: the exact answer is {value!r:.60}; expected yes or no.")
        return ((value.strip().lower(),),)
    items = [value] if isinstance(value, str) else value
    if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
        items = [items] if kind == "factoid" else [[item] for item in items]
    is_right = isinstance(items, list) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in items
    )
    if not is_right or not any(name.strip() for names in items for name in names):
        raise InputError(f"{location}: the exact answer is {str(value)[:60]!r}; expected lists of synonyms.")
    return tuple(tuple(name for name in names if name.strip()) for names in items if any(map(str.strip, names)))


def to_submission(questions: Sequence[Mapping[str, Any]]) -> str:
    """Format answers as the challenge takes them."""
    return json.dumps({"questions": list(questions)}, ensure_ascii=False, indent=1) + "\n"
