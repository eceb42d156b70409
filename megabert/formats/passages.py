"""Texts with ids: passages and queries, `id<TAB>text` (MS MARCO, NeMo) or BEIR's JSON lines; NeMo's candidates.

JSON lines have `_id` or `id`, `text`, and of passages perhaps `title`, which comes before the text.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, InputError, InputWarning
from .json_lines import is_json_lines, json_row
from .text_lines import iterate_lines, read_lines

# Usual names of columns, by which a first line is known as a header.
ID_COLUMNS = frozenset(("id", "_id", "pid", "qid", "docid", "doc_id", "docno", "query_id", "passage_id"))
TEXT_COLUMNS = frozenset(("text", "title", "passage", "query", "question", "document", "body", "url"))


def beir_file(path: Path, kind: str) -> Path:
    """Return the file of `kind`, corpus or queries, in a BEIR folder; a file as it is. Raises InputError."""
    if not path.is_dir():
        return path
    files = (path / f"{kind}.jsonl{ending}" for ending in ("", ".gz"))
    if found := next((file for file in files if file.is_file()), None):
        return found
    there = ", ".join(sorted(file.name for file in path.glob("*.jsonl*"))[:10]) or "no .jsonl file"
    raise InputError(f"{path} is a folder without BEIR's {kind}.jsonl; it has {there}. Give the path of a data file.")


def iterate_texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (id, text, location) of each line, one at a time. Raises InputError for a line without an id or a text."""
    is_json = is_json_lines(path)
    num_texts = 0
    for number, line in enumerate(iterate_lines(path), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        if number == 1 and not is_json and _is_header(line):
            text = f"{place}: the line names columns, {line[:60]!r}; it is left out. Lines are `id<TAB>text`."
            warnings.warn(text, InputWarning, stacklevel=2)
            continue
        name, text = _json_text(line, place) if is_json else _table_text(line, place)
        if not name or any(sign.isspace() for sign in name):
            raise InputError(f"{place}: the id is {name!r}; expected one without blanks.")
        num_texts += 1
        yield name, text, place
    if not num_texts:
        raise InputError(f"{path} has no text.")


def _is_header(line: str) -> bool:
    names = [name.strip().strip('"').lower() for name in line.split("\t")]
    return names[0] in ID_COLUMNS and len(names) > 1 and all(name in TEXT_COLUMNS for name in names[1:])


def _table_text(line: str, place: str) -> tuple[str, str]:
    name, tab, text = line.partition("\t")
    if not tab or not text.strip():
        raise InputError(f"{place}: there is no id or no text; expected `id<TAB>text`.")
    return name.strip(), text.replace("\t", " ")


def _json_text(line: str, place: str) -> tuple[str, str]:
    row = json_row(line, place)
    name = row.values.get("_id", row.values.get("id"))
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InputError(f"{place}: there is no id. Give each line `_id` or `id`.")
    parts = [row.values.get("title"), row.values.get("text")]
    text = " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())
    if not text:
        raise InputError(f"{place}: there is no `text`, a string that is not blank.")
    return str(name), text


def unique_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each line. Raises InputError where two have the same id."""
    seen = set[str]()
    for name, text, place in iterate_texts(path):
        if name in seen:
            raise InputError(f"{place}: the id {name!r} stands above, too. Give each its own.")
        seen.add(name)
        yield name, text


def read_texts(path: Path) -> dict[str, str]:
    """Read all texts by id, in the file's order, as `unique_texts`."""
    return dict(unique_texts(path))


def read_candidates(path: Path) -> dict[str, list[str]]:
    """Read NeMo's query_to_passages: `query<TAB>positive<TAB>negative...`, the relevant passage first."""
    candidates: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        query, *passages = line.split()
        if not passages or query in candidates:
            problem = f"the query {query!r} stands above, too" if passages else "there is no passage"
            raise InputError(f"{path}:{number}: {problem}; expected `query<TAB>positive<TAB>negative...`.")
        candidates[query] = passages
    return candidates


def read_queries(given: str) -> dict[str, str]:
    """Read a file of queries, or a BEIR folder's; what is neither is a query itself, named `query`."""
    if not given.strip():
        raise ConfigError("the query is blank. Give a query in quotes, or a file of queries.")
    path = Path(given)
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # too long for a name
        is_there = False
    if not is_there and path.suffix in (".tsv", ".jsonl", ".txt", ".gz"):
        raise InputError(f"{path} does not exist. Give a file of queries, or a query in quotes.")
    return read_texts(beir_file(path, "queries")) if is_there else {"query": given}
