"""i2b2 2010: a clinical note NAME.txt with concepts in NAME.con, and perhaps assertions (.ast) and relations (.rel).

    c="chest pain" 2:3 2:4||t="problem"        c="aspirin" 3:2 3:2||r="TrAP"||c="chest pain" 3:4 3:5

Places are LINE:TOKEN, first and last; lines count from 1, tokens between blanks from 0. The files lie in one folder, or
each kind in a folder of its own. Source: Uzuner et al. 2011, doi:10.1136/amiajnl-2011-000203.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from ...errors import InputError
from .document import Argument, Document, Entity, Passage, Relation
from .sources import ReadOptions, open_binary, read_whole, text_lines, text_of

ENDING, ASSERTIONS, RELATIONS = ".con", ".ast", ".rel"
_CONCEPT = r'c="(.*?)" (\d+):(\d+) (\d+):(\d+)'
_LINES = {
    ENDING: re.compile(rf'{_CONCEPT}\|\|t="(?P<kind>[^"]+)"'),
    ASSERTIONS: re.compile(rf'{_CONCEPT}\|\|t="(?P<kind>[^"]+)"\|\|a="(?P<assertion>[^"]+)"'),
    RELATIONS: re.compile(rf'{_CONCEPT}\|\|r="(?P<kind>[^"]+)"\|\|{_CONCEPT}'),
}
_Span = tuple[int, int]


def companion(path: Path, ending: str) -> Path | None:
    """Find the file of the same name with another ending, in the same folder or one beside it; else None."""
    if path.with_suffix(ending).is_file():
        return path.with_suffix(ending)
    folders = sorted(path.parent.parent.iterdir()) if path.parent.parent != path.parent else []
    found = (folder / f"{path.stem}{ending}" for folder in folders if folder.is_dir())
    return next((file for file in found if file.is_file()), None)


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read the note of a .con, or of a .txt, and its annotations."""
    note = companion(path, ".txt")
    if note is None:
        raise InputError(f"{path}: there is no {path.stem}.txt, its text, in its folder or one beside it.")
    with open_binary(note) as other:
        text = text_of(note, read_whole(note, other))
    tokens = [[match.span() for match in re.finditer(r"\S+", line)] for line in text.split("\n")]
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def spans(ending: str) -> Iterator[tuple[list[_Span], list[str]]]:
        """Yield the characters of a line's concepts, and its other fields; a line that does not fit is a fault."""
        for place, content in _lines(companion(path, ending)):
            match = _LINES[ending].fullmatch(content)
            concepts = re.findall(_CONCEPT, content)
            found = [_span(concept, text, tokens, starts) for concept in concepts]
            if match is None or None in found:
                options.faults(f"{place}: {content[:80]!r} {_problem(match, note)}")
            else:
                yield [span for span in found if span], [match[name] for name in match.groupdict()]

    entities: list[Entity] = []
    for (span,), (kind,) in spans(ENDING):
        entities.append(Entity(f"T{len(entities) + 1}", (span,), text[slice(*span)], kind, infons={}))
    by_span = {entity.fragments[0]: entity for entity in reversed(entities)}
    for (span,), (_, assertion) in spans(ASSERTIONS):
        if span in by_span:
            cast(dict[str, Any], by_span[span].infons)["assertion"] = assertion
    relations: list[Relation] = []
    for ends, (kind,) in spans(RELATIONS):
        names = [by_span[end].id if end in by_span else f"a concept at {end[0]} to {end[1]}" for end in ends]
        arguments = tuple(Argument(f"Arg{number}", entity=name) for number, name in enumerate(names, start=1))
        relations.append(Relation(f"R{len(relations) + 1}", kind, arguments))
    yield Document(note.stem, (Passage(0, text),), tuple(entities), tuple(relations), location=str(note))


def _lines(path: Path | None) -> Iterator[tuple[str, str]]:
    if path is not None:
        with open_binary(path) as file:
            for number, line in text_lines(path, file):
                if content := line.removeprefix("\ufeff").strip():
                    yield f"{path}:{number}", content


def _span(concept: tuple[str, ...], text: str, tokens: list[list[_Span]], starts: list[int]) -> _Span | None:
    """Return the characters of a concept's tokens; None if there are no such, or others than its words."""
    words, *places = concept
    first_line, first, last_line, last = map(int, places)
    if not 1 <= first_line <= last_line <= len(tokens):
        return None
    if first >= len(tokens[first_line - 1]) or last >= len(tokens[last_line - 1]):
        return None
    start = starts[first_line - 1] + tokens[first_line - 1][first][0]
    end = starts[last_line - 1] + tokens[last_line - 1][last][1]
    return (start, end) if text[start:end].lower().split() == words.lower().split() else None


def _problem(match: re.Match[str] | None, note: Path) -> str:
    if match is None:
        return 'is no line of i2b2: expected c="WORDS" LINE:TOKEN LINE:TOKEN and fields such as t="TYPE".'
    return f"has words that do not stand at their lines and tokens of {note}. Correct or remove it."
