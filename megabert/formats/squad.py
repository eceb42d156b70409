"""SQuAD's JSON files, versions 1.1 and 2.0: read, checked, flattened to one example a question.

Source: https://rajpurkar.github.io/SQuAD-explorer/. A file is
{"version": ..., "data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id", "question", "answers"}]}]}]}.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Answer:
    """A text, and the character of the context at which it starts (None where the file does not say)."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Example:
    """A question about a context. `answers` is empty if it has none in the context, None if the file gives none."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None


def read_squad(path: Path) -> list[Example]:
    """Read a file; raises InputError with the place in it if it is not SQuAD JSON or contradicts itself."""
    content = _read_json(path)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise InputError(f'{path} is not a SQuAD file: expected {{"data": [{{"paragraphs": [...]}}, ...]}}.')
    examples = list(_examples(data, path))
    if not examples:
        raise InputError(f"{path} holds no questions.")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InputError(f"{path}: two questions have the id {example.id!r}. Give each its own.")
        seen.add(example.id)
    return examples


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Give the path of a SQuAD JSON file.") from None
    if not text.strip():
        raise InputError(f"{path} is empty. Give a SQuAD JSON file.")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a SQuAD file.") from None


def _examples(data: list[Any], path: Path) -> Iterator[Example]:
    for article_number, article in enumerate(data):
        article_place = f"{path}: data[{article_number}]"
        for number, paragraph in enumerate(_get(article, "paragraphs", list, article_place)):
            place = f"{article_place}.paragraphs[{number}]"
            context = _get(paragraph, "context", str, place)
            for question_number, question in enumerate(_get(paragraph, "qas", list, place)):
                yield _example(question, context, f"{place}.qas[{question_number}]")


def _example(question: Any, context: str, place: str) -> Example:
    name = _get(question, "id", (str, int), place)
    place = f"{place} (id {name!r})"
    text = _get(question, "question", str, place)
    if not text.strip():
        raise InputError(f"{place}: the question is empty.")
    if "answers" not in question and not question.get("is_impossible"):
        return Example(str(name), text, context, None)
    answers = _get(question, "answers", list, place) if "answers" in question else []
    if question.get("is_impossible"):
        return Example(str(name), text, context, ())
    return Example(str(name), text, context, tuple(_answer(item, context, place) for item in answers))


def _answer(item: Any, context: str, place: str) -> Answer:
    text = _get(item, "text", str, f"{place}.answers")
    if not text:
        raise InputError(f"{place}: an answer is empty. Give its text, or is_impossible: true and no answers.")
    if "answer_start" not in item:
        return Answer(text, None)
    start = _get(item, "answer_start", int, f"{place}.answers")
    if start < 0 or context[start : start + len(text)] != text:
        real = context.find(text)
        remedy = f"it stands at {real}: correct answer_start" if real >= 0 else "nor anywhere else: correct the answer"
        raise InputError(
            f"{place}: the answer {_shorten(text)!r} is not at character {start} of its context; {remedy}."
        )
    return Answer(text, start)


def _get(owner: Any, key: str, expected: type | tuple[type, ...], place: str) -> Any:
    if not isinstance(owner, dict) or key not in owner:
        raise InputError(f"{place} has no {key!r}; it is not SQuAD's format.")
    value = owner[key]
    if not isinstance(value, expected) or isinstance(value, bool):
        wanted = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise InputError(f"{place}: {key} is a {type(value).__name__}; expected {wanted}.")
    return value


def _shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
