"""SQuAD's JSON files, versions 1.1 and 2.0, flattened to one example per question; rows of questions of datasets, MRQA.

Format: {"version", "data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers",
"is_impossible"}]}]}]}; an answer is {"text", "answer_start"}. Source: https://rajpurkar.github.io/SQuAD-explorer/.
A row (JSON lines, Parquet) has `context` and a question, whose answers may be an object of lists, {"text": [], ...}, or
`qas` with `detected_answers` whose `char_spans` have inclusive ends (MRQA 2019).
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputError
from .data_files import data_suffix, largest_expansion, open_data
from .json_lines import has_objects, is_json_lines, object_rows
from .json_reader import JsonReader
from .parallel_passes import find_repeated
from .record_streams import RecordStream, derived, is_held
from .rows import Row


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


def read_squad(path: Path) -> Sequence[Example]:
    """Read a SQuAD file, a large one as a stream of paragraphs.

    Raises InputError with the location in it if it is not SQuAD JSON or inconsistent.
    """
    expansion = largest_expansion()
    if _has_rows(path):
        examples: Sequence[Example] = derived(object_rows(path), lambda rows: chain.from_iterable(map(_of_row, rows)))
    else:
        examples = RecordStream(lambda: _examples(path, expansion))
        examples = list(examples) if is_held(path) else examples
    if not examples:
        raise InputError(f"{path} holds no questions.")
    require_unique_ids(examples, str(path))
    return examples


def _has_rows(path: Path) -> bool:
    """Return whether a file has rows of questions: by its ending, or by its first line."""
    if not is_json_lines(path) or not path.is_file():
        return has_objects(path) and not is_json_lines(path)
    with open_data(path) as file:
        line = next((line for line in iter(lambda: file.readline(2**20), b"") if line.strip()), b"")
    start = line.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        return data_suffix(path) == ".json" and start[1:].lstrip()[:1] in (b"", b"{")
    try:
        values = json.loads(start)
    except (ValueError, RecursionError):
        return False  # an object on several lines
    return isinstance(values, dict) and "data" not in values and not {"question", "qas", "header"}.isdisjoint(values)


def _of_row(row: Row) -> Iterator[Example]:
    """Return the questions of a row; the first one of MRQA's has none."""
    if "header" in row.values and "context" not in row.values:
        return
    context = _get(row.values, "context", str, row.location)
    if "qas" not in row.values:
        yield _example(row.values, context, row.location)
        return
    for number, question in enumerate(_get(row.values, "qas", list, row.location)):
        location = f"{row.location}: qas[{number}]"
        if isinstance(question, dict) and "detected_answers" in question:
            found = _detected(question["detected_answers"], context, f"{location}.detected_answers")
            question = {**question, "id": question.get("qid", question.get("id")), "answers": found}
        yield _example(question, context, location)


def _detected(answers: Any, context: str, location: str) -> list[dict[str, Any]]:
    """Return MRQA's detected answers as those of SQuAD; their texts may have other case, accents and blanks."""
    found: list[dict[str, Any]] = []
    for item in _get({"answers": answers}, "answers", list, location):
        for span in _get(item, "char_spans", list, location):
            is_span = isinstance(span, list) and len(span) == 2 and all(type(end) is int and end >= 0 for end in span)
            text = context[span[0] : span[1] + 1] if is_span else ""
            if not text or _letters(str(item.get("text", text))) != _letters(text):
                raise InputError(
                    f"{location}: the answer {str(item.get('text'))[:60]!r} is not at the characters {span}, the end "
                    f"inclusive, where {text[:60]!r} stands. Correct char_spans."
                )
            found.append({"text": text, "answer_start": span[0]})
    return found


def _letters(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text).casefold()
    return "".join(letter for letter in letters if not (letter.isspace() or unicodedata.combining(letter)))


def require_unique_ids(examples: Sequence[Example], source: str) -> None:
    """Raise InputError if two questions have the same id, by which answers are scored."""
    ids = derived(examples, lambda examples: (example.id for example in examples))
    if repeated := find_repeated(ids):
        raise InputError(f"{source}: two questions have the id {ids[repeated[0]]!r}. Make each id unique.")


def _examples(path: Path, max_expansion: int) -> Iterator[Example]:
    with open_data(path, max_expansion) as file:
        for location, paragraph in _paragraphs(JsonReader(path, file)):
            context = _get(paragraph, "context", str, location)
            for number, question in enumerate(_get(paragraph, "qas", list, location)):
                yield _example(question, context, f"{location}.qas[{number}]")


def _paragraphs(reader: JsonReader) -> Iterator[tuple[str, Any]]:
    """Read the paragraphs of all articles, with their locations."""
    has_data = False
    if reader.peek() not in "{[":
        reader.value()
    for _ in reader.items() if reader.peek() == "[" else ():
        reader.value()
    for name in reader.members() if reader.peek() == "{" else ():
        if name != "data" or reader.peek() != "[":
            reader.value()
            continue
        has_data = True
        for number in reader.items():
            yield from _article(reader, f"{reader.path}: data[{number}]")
    if not has_data:
        raise InputError(f'{reader.path} is not a SQuAD file: expected {{"data": [{{"paragraphs": [...]}}, ...]}}.')
    reader.end()


def _article(reader: JsonReader, location: str) -> Iterator[tuple[str, Any]]:
    others: Any = {}
    if reader.peek() != "{":
        others = reader.value()
    else:
        for name in reader.members():
            if name == "paragraphs" and reader.peek() == "[":
                for number in reader.items():
                    yield f"{location}.paragraphs[{number}]", reader.value()
                others[name] = []
            else:
                others[name] = reader.value()
    if isinstance(others, dict) and "paragraphs" not in others and {"context", "question"} <= others.keys():
        yield location, {"context": others["context"], "qas": [others]}  # so does run_qa.py of transformers
    else:
        _get(others, "paragraphs", list, location)


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
    answers = _listed(question["answers"], location) if "answers" in question else []
    if is_impossible and answers:  # trained on without an answer, scored by the official script with one
        raise InputError(f"{location}: is_impossible is true; expected no answers. Correct one of them.")
    return Example(str(name), text, context, tuple(_answer(item, context, location) for item in answers))


def _listed(answers: Any, location: str) -> list[Any]:
    """Return answers as a list; datasets has an object of two lists."""
    lists = [answers[name] for name in ("text", "answer_start")] if _are_columns(answers) else []
    if len({len(item) for item in lists}) > 1:
        raise InputError(f"{location}: {len(lists[0])} texts of answers and {len(lists[1])} of their answer_start.")
    if lists:
        return [{"text": text, "answer_start": start} for text, start in zip(*lists, strict=True)]
    return list(_get({"answers": answers}, "answers", list, location))


def _are_columns(answers: Any) -> bool:
    return isinstance(answers, dict) and all(isinstance(answers.get(name), list) for name in ("text", "answer_start"))


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
