"""Multiple-choice questions: RACE's folders, DREAM, MCTest, MedMCQA, MedQA, MMLU, JSON lines of any number of choices.

Sources: Lai et al. 2017, arXiv:1704.04683 (RACE); Sun et al. 2019, arXiv:1902.00164 (DREAM); Richardson et al. 2013
(MCTest); Pal et al. 2022, arXiv:2203.14371 (MedMCQA); Jin et al. 2020, arXiv:2009.13081 (MedQA); Hendrycks et al. 2021,
arXiv:2009.03300 (MMLU).
"""

import csv
import re
import string
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, InputWarning
from .data_files import data_suffix
from .json_lines import has_objects, is_json_lines, json_row, object_rows, read_json
from .rows import Row
from .text_lines import read_lines

LETTERS = string.ascii_uppercase
MCTEST_COLUMNS = 23
# Names that a value has in the files of different datasets, the first one is ours.
QUESTION = ("question", "sent1", "ctx")
PASSAGE = ("passage", "context", "article", "story")
CHOICES = ("choices", "options", "endings", "answers")
LABEL = ("label", "answer_idx", "answer", "answerKey")
MEDMCQA_CHOICES = ("opa", "opb", "opc", "opd")


@dataclass(frozen=True)
class Example:
    """A question on a passage ("" for none) and its choices; `label` is the index of the right one, None if unknown."""

    id: str
    question: str
    passage: str
    choices: tuple[str, ...]
    label: int | None
    location: str
    group: str | None = None
    """A part of the data whose accuracy is reported, too: middle or high (RACE), one or multiple (MCTest)."""
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)
    """Other fields of the data, which rows of predictions repeat."""


def read_choices(path: Path) -> list[Example]:
    """Read a file, or all *.txt of RACE's folder. Raises InputError with the location of what is malformed."""
    if path.is_dir():
        files = choice_files(path)
        return [example for file in files for example in read_choices(Path(file))]
    suffix = data_suffix(path)
    if suffix == ".csv":
        examples = list(_mmlu(path))
    elif suffix == ".tsv":
        examples = list(_mctest(path))
    else:
        examples = list(_json_examples(path))
    if not examples:
        raise InputError(f"{path} holds no questions.")
    check_question_ids(examples)
    return examples


def check_question_ids(examples: Iterable[Any]) -> None:
    """Raise InputError if two questions, from two places, have the same id."""
    locations: dict[str, str] = {}
    for item in examples:
        if locations.setdefault(item.id, item.location) != item.location:
            raise InputError(
                f"{item.location}: the id {item.id!r} is that of {locations[item.id]}, too. Make it unique."
            )


def choice_files(path: Path) -> list[str]:
    """List the files of RACE's folder: FOLDER/middle/ID.txt, FOLDER/high/ID.txt. Raises InputError if it has none."""
    files = sorted(map(str, path.rglob("*.txt")))
    if not files:
        raise InputError(f"{path} is a folder without *.txt. Give a file, or RACE's folder, {{middle,high}}/ID.txt.")
    return files


def example_of(row: Row, number: int) -> Example:
    """Make an example from a JSON object; the answer is a letter, the index of a choice from 0, or its text."""
    values = row.values
    nested = values.get("question")
    if isinstance(nested, dict) and "stem" in nested:  # ARC and OpenBookQA
        values = values | {"question": nested["stem"], "choices": nested.get("choices")}
    if MEDMCQA_CHOICES[0] in values:
        row = Row(values | {"choices": [row.get(name) for name in MEDMCQA_CHOICES]}, row.location)
        values = {name: row.values[name] for name in row.values if name not in MEDMCQA_CHOICES}
    row = Row(values, row.location)
    names = {role: _first(values, options) for role, options in
             {"question": QUESTION, "passage": PASSAGE, "choices": CHOICES, "label": LABEL}.items()}  # fmt: skip
    keys, choices = _choices(row.get(names["choices"] or "choices"), row.location)
    passage = values.get(names["passage"] or "passage", "")
    if not isinstance(passage, str):
        raise InputError(f"{row.location}: {names['passage']!r} is a {type(passage).__name__}; expected a string.")
    label = None if names["label"] is None else _label(values[names["label"]], keys, choices, row.location)
    group = row.identifier("", "group") or None
    given = row.others("id", "group", *names.values())
    return Example(
        row.identifier(number), row.string(names["question"] or "question"), passage, choices, label,
        row.location, group, given=given,
    )  # fmt: skip


def _first(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in values), None)


def _rows_examples(rows: Sequence[Row], path: Path) -> Iterator[Example]:
    """Make an example of each object; `cop` of MedMCQA, the number of the right option, becomes its label."""
    numbers = {row.values["cop"] for row in rows if isinstance(row.values.get("cop"), int)}
    first = 0 if 0 in numbers or (-1 in numbers and len(MEDMCQA_CHOICES) not in numbers) else 1
    if numbers and not numbers & {0, -1, len(MEDMCQA_CHOICES)}:
        text = (
            f"{path}: cop, the right option, counts from 1, as in MedMCQA's files. The library datasets counts from "
            "0, which no row has. If it is so here, write the letters as label."
        )
        warnings.warn(text, InputWarning, stacklevel=2)
    for number, row in enumerate(rows, start=1):
        cop = row.values.get("cop")
        if cop is None:
            yield example_of(row, number)
            continue
        is_number = isinstance(cop, int) and not isinstance(cop, bool)
        if not is_number and str(cop).upper() not in LETTERS[: len(MEDMCQA_CHOICES)]:
            raise InputError(f"{row.location}: cop is {cop!r:.40}; expected the number of the right option, or -1.")
        label = str(cop).upper() if not is_number else cop if cop < 0 else cop - first
        yield example_of(Row(row.others("cop") | {"label": label}, row.location), number)


def _choices(value: Any, location: str) -> tuple[list[str], tuple[str, ...]]:
    """Return the keys of choices (letters where they have none) and their texts."""
    if isinstance(value, dict) and "text" in value and isinstance(value["text"], list):  # datasets' ARC
        labels = value.get("label", LETTERS[: len(value["text"])])
        if len(labels) != len(value["text"]):
            raise InputError(f"{location}: {len(value['text'])} choices with {len(labels)} labels. Give each one.")
        value = [{"text": text, "label": label} for text, label in zip(value["text"], labels, strict=True)]
    if isinstance(value, list) and value and all(isinstance(item, dict) and "value" in item for item in value):
        value = [{"text": item["value"], "label": item.get("key", "")} for item in value]  # MedQA in BigBio's source
    if isinstance(value, dict):
        keys, texts = list(map(str, value)), list(value.values())
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "text" in item for item in value):
        keys, texts = [str(item.get("label", "")) for item in value], [item["text"] for item in value]
    else:
        texts = value if isinstance(value, list) else []
        keys = list(LETTERS[: len(texts)])
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{location}: the choices are {str(value)[:80]!r}; expected two or more strings, none blank.")
    return keys, tuple(texts)


def _label(value: Any, keys: Sequence[str], choices: Sequence[str], location: str) -> int | None:
    """Find the right choice from its index, its key (a letter) or its text; None stands for unknown."""
    if value is None or value in (-1, ""):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    for names in (keys, choices) if isinstance(value, str) else ():
        found = [number for number, name in enumerate(names) if name == value]
        if len(found) > 1:
            raise InputError(f"{location}: the answer {value!r:.60} is {len(found)} of the choices. Give its index.")
        if found:
            return found[0]
    if isinstance(value, str) and value.isdecimal() and int(value) < len(choices):
        return int(value)
    raise InputError(
        f"{location}: the answer {value!r:.60} is none of the {len(choices)} choices. Give its letter, its index "
        "from 0 or its text."
    )


def _json_examples(path: Path) -> Iterator[Example]:
    """Read RACE's object, DREAM's list, a list of objects, JSON lines, or rows of Parquet or Arrow."""
    if not is_json_lines(path) and has_objects(path):
        yield from _rows_examples(list(object_rows(path)), path)
        return
    lines = read_lines(path)
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if filled[0][1].lstrip()[0] == "[" or len(filled) == 1 or not filled[0][1].rstrip().endswith("}"):
        yield from _document_examples(read_json(path), path)
        return
    yield from _rows_examples([json_row(line, f"{path}:{number}") for number, line in filled], path)


def _document_examples(content: Any, path: Path) -> Iterator[Example]:
    if isinstance(content, dict) and "article" in content and "questions" in content:
        yield from _race(content, path)
    elif isinstance(content, dict):
        yield from _rows_examples([Row(content, str(path))], path)
    elif isinstance(content, list) and all(isinstance(item, dict) for item in content):
        yield from _rows_examples([Row(item, f"{path}: [{number}]") for number, item in enumerate(content)], path)
    elif isinstance(content, list):
        yield from _dream(content, path)
    else:
        raise InputError(f"{path} holds a JSON {type(content).__name__}; expected multiple-choice questions.")


def _race(content: dict[str, Any], path: Path) -> Iterator[Example]:
    """Read an article of RACE; ids are the folder's and file's names with the number of the question."""
    article, questions, options = (content.get(name) for name in ("article", "questions", "options"))
    answers = content.get("answers")
    lists: list[Any] = [questions, options] + ([] if answers is None else [answers])
    if not isinstance(article, str) or not all(isinstance(item, list) and len(item) == len(lists[0]) for item in lists):
        raise InputError(f"{path} is not RACE's format: expected article, and as many questions, options and answers.")
    group = path.parent.name if path.parent.name in ("middle", "high") else None
    name = f"{group or ''}{path.stem}"
    for number, (question, choices) in enumerate(zip(lists[0], lists[1], strict=True)):
        values = {"question": question, "passage": article, "choices": choices, "group": group}
        if answers is not None:
            values["label"] = answers[number]
        row = Row(values | {"id": f"{name}-{number}"}, f"{path}: question {number + 1}")
        yield example_of(row, number)


def _is_dialogue(item: Any) -> bool:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(part, list) for part in item[:2]):
        return False
    return all(isinstance(turn, str) for turn in item[0])


def _dream(content: list[Any], path: Path) -> Iterator[Example]:
    """Read DREAM's dialogues, [[turns], [{question, choice, answer}], id]; the passage is the turns, one a line."""
    for number, item in enumerate(content):
        location = f"{path}: [{number}]"
        if not _is_dialogue(item):
            raise InputError(f"{location} is not DREAM's format: expected [[turns], [questions], id].")
        name = Row({"id": item[2]}, f"{location}[2]").identifier(number)
        for question_number, question in enumerate(item[1]):
            if not isinstance(question, dict) or "choice" not in question:
                raise InputError(
                    f"{location}[1][{question_number}]: expected an object of question, choice and answer."
                )
            values = {
                "question": question.get("question"),
                "passage": "\n".join(item[0]),
                "choices": question["choice"],
            }
            if "answer" in question:
                values["label"] = question["answer"]
            row = Row(values | {"id": f"{name}-{question_number}"}, f"{location}[1][{question_number}]")
            yield example_of(row, question_number)


def _mctest(path: Path) -> Iterator[Example]:
    """Read MCTest's stories of four questions; the answers are in the file of the same name with .ans, if there."""
    lines = read_lines(path)
    answers_path = Path(re.sub(r"\.tsv(?=\.|$)", ".ans", str(path)))
    answers = (
        [line.split("\t") for line in read_lines(answers_path) if line.strip()] if answers_path.is_file() else None
    )
    stories = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if answers is not None and len(answers) != len(stories):
        raise InputError(f"{answers_path} has {len(answers)} lines for the {len(stories)} stories of {path}.")
    for index, (line_number, line) in enumerate(stories):
        columns, location = line.split("\t"), f"{path}:{line_number}"
        if len(columns) != MCTEST_COLUMNS:
            raise InputError(f"{location}: {len(columns)} columns; MCTest's have {MCTEST_COLUMNS}, separated by tabs.")
        letters = None if answers is None else answers[index]
        if letters is not None and len(letters) != 4:
            raise InputError(f"{answers_path}:{index + 1}: {len(letters)} answers; expected 4 letters.")
        for number in range(4):
            kind, _, question = columns[3 + 5 * number].partition(": ")
            values = {
                "id": f"{columns[0]}-{number}", "question": question or kind, "choices": columns[4 + 5 * number :][:4],
                "passage": columns[2].replace("\\newline", "\n").replace("\\tab", "\t"),
                "group": kind if question and kind in ("one", "multiple") else None,
            }  # fmt: skip
            if letters is not None:
                values["label"] = letters[number].strip()
            yield example_of(Row(values, f"{location}, question {number + 1}"), number)


def _mmlu(path: Path) -> Iterator[Example]:
    """Read MMLU's rows without a header: question, choices, and the letter of the answer."""
    reader = csv.reader(line + "\n" for line in read_lines(path))
    try:
        for number, row in enumerate(reader, start=1):
            location = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) < 4:
                raise InputError(
                    f"{location}: {len(row)} columns; expected question, two or more choices, and a letter."
                )
            values = {"id": str(number), "question": row[0], "choices": row[1:-1], "label": row[-1].strip()}
            yield example_of(Row(values, location), number)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}.") from None
