"""SQuAD's JSON files, versions 1.1 and 2.0, flattened to one example per question.

Format: {"version", "data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
"is_impossible"}]}]}]}; an answer is {"text", "answer_start"}. Source: https://rajpurkar.github.io/SQuAD-explorer/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .json_lines import read_json


@dataclass(frozen=True)
class Answer:
    """An answer's text, and the character of the context at which it starts (None where the file has no start)."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Example:
    """A question about a context; `answers` is empty if the context has no answer, None if the file has no answers."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None


def read_squad(path: Path) -> list[Example]:
    """Read a SQuAD file. Raises InputError with the location in it if it is not SQuAD JSON or inconsistent."""
    content = read_json(path)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise InputError(f'{path} is not a SQuAD file: expected {{"data": [{{"paragraphs": [...]}}, ...]}}.')
    examples = list(_examples(data, path))
    if not examples:
        raise InputError(f"{path} holds no questions.")
    require_unique_ids(examples, str(path))
    return examples


def require_unique_ids(examples: Sequence[Example], source: str) -> None:
    """Raise InputError if two questions have the same id, by which answers are scored."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(f"{source}: two questions have the id {example.id!r}. Make each id unique.")
        seen.add(example.id)


def _examples(data: list[Any], path: Path) -> Iterator[Example]:
    for article_number, article in enumerate(data):
        article_location = f"{path}: data[{article_number}]"
        for number, paragraph in enumerate(_get(article, "paragraphs", list, article_location)):
            location = f"{article_location}.paragraphs[{number}]"
            context = _get(paragraph, "context", str, location)
            for question_number, question in enumerate(_get(paragraph, "qas", list, location)):
                yield _example(question, context, f"{location}.qas[{question_number}]")


def _example(question: Any, context: str, location: str) -> Example:
    name = _get(question, "id", (str, int), location)
    location = f"{location} (id {name!r})"
    text = _get(question, "question", str, location)
    if not text.strip():
        raise InputError(f"{location}: the question is empty.")
    is_impossible = question.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise InputError(f"{location}: is_impossible is {is_impossible!r:.40}; expected true or false, without quotes.")
    if "answers" not in question and not is_impossible:
        return Example(str(name), text, context, None)
    answers = _get(question, "answers", list, location) if "answers" in question else []
    if is_impossible:
        return Example(str(name), text, context, ())
    return Example(str(name), text, context, tuple(_answer(item, context, location) for item in answers))


def _answer(item: Any, context: str, location: str) -> Answer:
    text = _get(item, "text", str, f"{location}.answers")
    if not text:
        raise InputError(f"{location}: an answer is empty. Give its text, or is_impossible: true and no answers.")
    if "answer_start" not in item:
        return Answer(text, None)
    start = _get(item, "answer_start", int, f"{location}.answers")
    if start < 0 or context[start : start + len(text)] != text:
        real = context.find(text)
        remedy = f"it starts at {real}: correct answer_start" if real >= 0 else "nor anywhere else: correct the answer"
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise InputError(f"{location}: the answer {shown!r} is not at character {start} of its context; {remedy}.")
    return Answer(text, start)


def _get(owner: Any, key: str, expected: type | tuple[type, ...], location: str) -> Any:
    if not isinstance(owner, dict) or key not in owner:
        raise InputError(f"{location} has no {key!r}; it is not SQuAD's format.")
    value = owner[key]
    if not isinstance(value, expected) or isinstance(value, bool):
        expected_names = " or ".join(
            kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,))
        )
        raise InputError(f"{location}: {key} is a {type(value).__name__}; expected {expected_names}.")
    return value
