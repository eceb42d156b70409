"""OBO: stanzas [Term] with id, name, synonyms, alt_id and is_obsolete. Source: OBO Flat File Format 1.4."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...errors import InputError
from ..documents.sources import text_lines
from .concept import Concept, DictionaryOptions

_KEPT = ("EXACT", "RELATED", "")  # narrower and broader names are those of other concepts
_SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s*([A-Z]*)')
_ESCAPE = re.compile(r"\\(.)")


def read(path: Path, file: IO[bytes], options: DictionaryOptions) -> Iterator[Concept]:
    """Stream the terms that are not obsolete; synonyms that are narrower or broader are dropped."""
    stanza: list[tuple[int, str, str]] = []
    kind, start = "", 0
    for number, line in text_lines(path, file):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            if kind == "[Term]":
                yield from _term(path, start, stanza, options)
            kind, start, stanza = line, number, []
        elif kind == "[Term]" and line and not line.startswith("!"):
            tag, colon, value = line.partition(":")
            if not colon:
                raise InputError(f"{path}:{number}: {line[:60]!r} is no line tag: value of OBO. Correct or remove it.")
            stanza.append((number, tag, value.strip()))
    if kind == "[Term]":
        yield from _term(path, start, stanza, options)


def _term(path: Path, start: int, stanza: list[tuple[int, str, str]], options: DictionaryOptions) -> Iterator[Concept]:
    values: dict[str, list[str]] = {}
    for _, tag, value in stanza:
        values.setdefault(tag, []).append(value)
    identifiers = values.get("id", [""])
    location = f"{path}:{start}"
    if "true" in (value.split("!")[0].strip() for value in values.get("is_obsolete", ())):
        options.dropped["obsolete terms"] += 1
        return
    names = [_text(name) for name in values.get("name", ())]
    for synonym in values.get("synonym", ()):
        match = _SYNONYM.match(synonym)
        if match is None:
            raise InputError(f'{location}: synonym: {synonym[:60]} has no name in quotes, as "name" EXACT [].')
        if match[2] in _KEPT:
            names.append(_text(match[1]))
        else:
            options.dropped[f"synonyms that are {match[2].lower()}"] += 1
    alternatives = options.curies(_text(item) for item in values.get("alt_id", ()))
    yield Concept(options.curie(_text(identifiers[0]), location), tuple(names), alternatives, 0, location)


def _text(value: str) -> str:
    """Remove escapes, and a comment or trailing modifier."""
    value = re.split(r"(?<!\\)\s[!{]", value)[0]
    return _ESCAPE.sub(lambda match: {"n": "\n", "W": " ", "t": "\t"}.get(match[1], match[1]), value).strip()
