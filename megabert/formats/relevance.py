"""Relevance judgements (qrels) and rankings (runs) in TREC's formats, and BEIR's table of judgements.

qrels: `query 0 document grade`; BEIR: a header, then `query<TAB>document<TAB>grade`.
run: `query Q0 document rank score tag`, of which the rank is ignored.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .text_lines import read_lines

QrelsByQuery = dict[str, dict[str, int]]
RunByQuery = dict[str, dict[str, float]]
_BEIR_HEADER = ["query-id", "corpus-id", "score"]


def read_qrels(path: Path) -> QrelsByQuery:
    """Read judgements: query -> document -> grade; comments (#) and empty lines are left out."""
    qrels: QrelsByQuery = {}
    for place, fields in _fields(path):
        if fields == _BEIR_HEADER:
            continue
        if len(fields) not in (3, 4):
            raise InputError(f"{place}: {len(fields)} fields; expected `query 0 document grade`.")
        query, document = fields[0], fields[-2]
        grade = _number(fields[-1], place, "grade", int)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise InputError(f"{place}: document {document!r} of query {query!r} has another grade above. Keep one.")
    if not qrels:
        raise InputError(f"{path} has no judgement.")
    return qrels


def read_run(path: Path) -> RunByQuery:
    """Read a ranking: query -> document -> score, in the order of the file."""
    run: RunByQuery = {}
    for place, fields in _fields(path):
        if len(fields) < 6:  # a tag may have blanks
            raise InputError(f"{place}: {len(fields)} fields; expected `query Q0 document rank score tag`.")
        query, _, document, _, score = fields[:5]
        documents = run.setdefault(query, {})
        if document in documents:
            raise InputError(f"{place}: document {document!r} is ranked twice for query {query!r}. Keep one line.")
        documents[document] = _number(score, place, "score", float)
    return run


def _fields(path: Path) -> list[tuple[str, list[str]]]:
    lines = ((f"{path}:{number}", line) for number, line in enumerate(read_lines(path), 1))
    return [(place, line.split()) for place, line in lines if line.strip() and not line.startswith("#")]


def _number(text: str, place: str, what: str, kind: type) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: the {what} is {text!r}; expected a {'whole ' * (kind is int)}number.")
    return value


def run_lines(query: str, documents: Sequence[str], scores: Sequence[float], tag: str) -> str:
    """Format a query's ranking, best first.

    Scores are written so that the order of the lines is that of trec_eval: strictly descending in float32.
    """
    import numpy as np

    lines, last = [], None
    for rank, (document, score) in enumerate(zip(documents, scores, strict=True), 1):
        value = np.float32(score)
        if last is not None and value >= last:
            value = np.nextafter(last, np.float32(-np.inf))
        last = value
        lines.append(f"{query} Q0 {document} {rank} {value:.9g} {tag}\n")
    return "".join(lines)


def check_documents(qrels: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any], source: Path) -> None:
    """Raise InputError where a document of qrels or of a run is not in the collection."""
    for query, documents in qrels.items():
        for document in documents:
            if document not in known:
                raise InputError(f"{source}: document {document!r} of query {query!r} is not in the collection.")


def check_judged(
    qrels: Mapping[str, Mapping[str, int]], queries: Mapping[str, Any], passages: Mapping[str, Any], source: Path
) -> str:
    """Check that judgements are of these queries and passages; returns a note on those that are not, or "".

    Raises InputError where no query or no passage is known.
    """
    names = list(dict.fromkeys(name for grades in qrels.values() for name in grades))
    notes = []
    for kind, known, judged in (("query", queries, list(qrels)), ("passage", passages, names)):
        unknown = [name for name in judged if name not in known]
        if len(unknown) == len(judged):
            raise InputError(
                f"{source}: no judged {kind} is known, such as {unknown[0]!r}. Give judgements of the same data."
            )
        if unknown:
            notes.append(f"{len(unknown)} of {len(judged)} judged {kind} ids are unknown, such as {unknown[0]!r}")
    return f"{source}: {'; '.join(notes)}." if notes else ""
