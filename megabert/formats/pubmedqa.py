"""PubMedQA: questions on abstracts with the answer yes, no or maybe, in its authors' JSON, an object by PMID.

Format: {PMID: {"QUESTION", "CONTEXTS": [...], "final_decision", "LONG_ANSWER", ...}}; answers to be scored are {PMID:
"yes"}. Question and contexts are the pair; the long answer, which holds the decision, is not read.
Source: Jin et al. 2019, arXiv:1909.06146, and evaluation.py of its repository.
"""

from pathlib import Path
from typing import Any

from ..errors import InputError
from .data_files import data_suffix, open_data
from .json_lines import read_json
from .rows import Row

DECISIONS = ("yes", "no", "maybe")
PMID = "pmid"
"""The field that marks a row as PubMedQA's."""


def is_pubmedqa(path: Path) -> bool:
    """Return whether a file has PubMedQA's keys."""
    if data_suffix(path) != ".json":
        return False
    with open_data(path) as file:
        return b'"CONTEXTS"' in file.read(2**16)


def read_pubmedqa(path: Path) -> list[Row]:
    """Read pairs of question and contexts with the decision, where there is one, and the PMID as id."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path} is not PubMedQA\'s format: expected {{"PMID": {{"QUESTION", "CONTEXTS", ...}}}}.')
    rows = []
    for name, item in content.items():
        location = f"{path}: {name}"
        if not isinstance(item, dict):
            raise InputError(f"{location}: a JSON {type(item).__name__}; expected an object with QUESTION, CONTEXTS.")
        row = Row(item, location)
        contexts = row.strings("CONTEXTS")
        values = {"text": row.string("QUESTION"), "text_b": " ".join(contexts), "id": name, PMID: name}
        if "final_decision" in item:
            if item["final_decision"] not in DECISIONS:
                raise InputError(
                    f"{location}: final_decision is {str(item['final_decision'])[:40]!r}; expected "
                    f"{', '.join(DECISIONS)}. Leave it out if it is unknown."
                )
            values["label"] = item["final_decision"]
        rows.append(Row(values, location))
    return rows


def read_answers(path: Path) -> list[Row]:
    """Read a file of answers, {PMID: answer}, as rows with id and label."""
    content: Any = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(answer, str) for answer in content.values()):
        raise InputError(f'{path} is not a file of answers: expected {{"PMID": "yes", ...}}.')
    return [Row({"id": name, "label": answer}, f"{path}: {name}") for name, answer in content.items()]
