"""PubTator: lines `id|t|title` and `id|a|abstract`, then tab-separated mentions and relations; an empty line between.

A mention: id, start, end, text, type, identifier (may be missing, "-" or "-1", or composite), and maybe its components
or a score. A relation: id, type, identifier, identifier, and maybe its novelty or a score. Full text has further lines
`id|body|text`. Offsets count characters of the texts with one character between them. What was read is written back
byte for byte.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from .document import Argument, Document, Entity, Original, Passage, Relation, passages_of
from .losses import Losses
from .sources import ReadOptions, text_lines

FORMAT = "pubtator"
_TEXT = re.compile(r"([^|\t\r\n]+)\|([A-Za-z]\w*)\|([^\r\n]*)(\r?\n)?\Z", re.DOTALL)
_PLACE = re.compile(r"[-+]?\d[\d.,;:| ]*")
_KINDS = {"t": "title", "a": "abstract"}
_TITLES = ("t", "title")


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Stream the documents of a file; lines that cannot be read are faults."""
    lines: list[str] = []
    first, name = 1, ""
    for number, line in text_lines(path, file):
        text = _TEXT.match(line.removeprefix("\ufeff"))
        if text:
            if name and (text[1] != name or text[2] in _TITLES):
                yield _document(path, first, lines, options)
                lines, first = [], number
            name = text[1]
        lines.append(line)
    if any(line.strip("\ufeff\r\n") for line in lines):
        yield _document(path, first, lines, options)


def _document(path: Path, first: int, lines: list[str], options: ReadOptions) -> Document:
    """Parse the lines of one document."""
    parts: list[tuple[str, dict[str, Any]]] = []
    items: list[Entity | Relation | None] = []
    kept, name, start = list[str](), "", first
    places: dict[str, str] = {}
    for number, line in enumerate(lines, start=first):
        content = line.removeprefix("\ufeff").rstrip("\r\n")
        text = _TEXT.match(line.removeprefix("\ufeff"))
        item: Entity | Relation | None = None
        if text and (not name or text[1] == name):
            start = start if name else number
            name = text[1]
            parts.append((text[3], {"type": _KINDS.get(text[2], text[2])}))
        elif content.strip():
            item = _annotation(content.split("\t"), name, len(items) + 1)
            if item is None:
                options.faults(_message(f"{path}:{number}", content, name))
                continue
            places[item.id] = f"{path}:{number}"
        kept.append(line)
        items.append(item)
    passages = passages_of(iter(parts))
    entities = tuple(item for item in items if isinstance(item, Entity))
    by_place = {_identifier(item, int): item.id for item in reversed(entities) if not item.identifiers}
    items = [_with_mentions(item, by_place) if isinstance(item, Relation) else item for item in items]
    original = Original(FORMAT, tuple(kept), tuple(items), passages, {}, places=places)
    relations = tuple(item for item in items if isinstance(item, Relation))
    return Document(name, passages, entities, relations, {}, f"{path}:{start}", original)


def _annotation(fields: list[str], name: str, number: int) -> Entity | Relation | None:
    """Parse a mention or a relation; None for anything else."""
    if fields[0] != name or len(fields) < 4:
        return None
    if all(map(_PLACE.fullmatch, fields[1:3])) and not (fields[1].isdecimal() and fields[2].isdecimal()):
        return None  # places, but none that a mention has: 0;19 of two fragments, -1, 2.0
    if fields[1].isdecimal() and fields[2].isdecimal():
        if len(fields) < 5:
            return None
        infons, score = _more(fields[6:], "components")
        fragments = ((int(fields[1]), int(fields[2])),)
        identifier = fields[5] if len(fields) > 5 else ""
        return Entity(f"T{number}", fragments, fields[3], fields[4], identifier, score, None, infons)
    infons, score = _more(fields[4:], "novel")
    arguments = tuple(Argument(f"entity{index}", identifier=fields[index + 1]) for index in (1, 2))
    return Relation(f"R{number}", fields[1], arguments, score, None, infons)


def _with_mentions(relation: Relation, by_place: Mapping[str, str]) -> Relation:
    """Let arguments that are written as places refer to the mentions there, which have no identifier."""
    if by_place.keys().isdisjoint(str(item.identifier) for item in relation.arguments):
        return relation
    found = ((item, by_place.get(str(item.identifier))) for item in relation.arguments)
    arguments = (item if name is None else replace(item, entity=name, identifier=None) for item, name in found)
    return replace(relation, arguments=tuple(arguments))


def _more(fields: list[str], name: str) -> tuple[dict[str, str], float | None]:
    """Read the columns behind the identifiers: a score if it is a number, else an infon."""
    if len(fields) == 1 and re.fullmatch(r"[01]?\.\d+(?:[eE]-?\d+)?|[01]\.?0*", fields[0]):
        return {}, float(fields[0])
    return ({name: "\t".join(fields)} if any(fields) else {}), None


def _message(place: str, content: str, name: str) -> str:
    shown = content if len(content) <= 80 else f"{content[:77]}..."
    if not name:
        return (
            f"{place}: {shown!r} stands before any text. A document begins with its lines id|t|title and id|a|abstract."
        )
    return (
        f"{place}: {shown!r} is no line of document {name}. A mention has its id, start, end, text, type and "
        "identifier, a relation its id, type and two identifiers, separated by tabs. Correct or remove the line."
    )


def render(document: Document, losses: Losses) -> bytes:
    """Write a document; the lines of a PubTator file that still hold are written as they were."""
    original = document.original_of(FORMAT)
    if original is None:
        return _rendered(document, losses).encode()
    kept, entities, relations = document.changes(original)
    name, text, named = document.id, document.text(), {entity.id: entity for entity in document.entities}

    def line_of(item: Entity | Relation) -> str:
        if isinstance(item, Relation):
            return _relation_line(name, item, named, losses, int)
        start, end = losses.fragments(item)
        return _mention(name, item, start, end, text[start:end])

    lines: list[str] = []
    for line, old, new in zip(original.content, original.items, kept, strict=True):
        if old is None or new == old:
            lines.append(line)
        elif new is not None:
            lines.append(line_of(new) + _end(line))
    added = [*map(line_of, entities), *map(line_of, relations)]
    if added:
        place = max((index for index, line in enumerate(lines) if line.strip()), default=-1) + 1
        if place and not lines[place - 1].endswith("\n"):
            lines[place - 1] += "\n"
        lines[place:place] = [line + _end(lines[0]) for line in added]
    return "".join(lines).encode()


def _end(line: str) -> str:
    return "\r\n" if line.endswith("\r\n") else "\n"


def _rendered(document: Document, losses: Losses) -> str:
    """Write a document of another format: a title, and all else as its abstract, joined by blanks."""
    title, body, shift = _two_texts(document, losses)
    name = " ".join(document.id.replace("|", "_").split()) or "-"
    if name != document.id:
        losses["bars, tabs and line ends in identifiers of documents"] += 1
    lines = [f"{name}|t|{title}", f"{name}|a|{body}"]
    losses.infons(document, ("type", "novel", "components"))
    text = document.text()
    for entity in document.entities:
        start, end = losses.fragments(entity)
        lines.append(_mention(name, entity, shift(start), shift(end), text[start:end]))
    named = {entity.id: entity for entity in document.entities}
    lines += [_relation_line(name, relation, named, losses, shift) for relation in document.relations]
    return "\n".join([*lines, "", ""])


def _flat(text: str) -> str:
    """Replace what would end a line or a column, character by character."""
    return text if text.isprintable() else re.sub(r"[\t\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", " ", text)


def _two_texts(document: Document, losses: Losses) -> tuple[str, str, Any]:
    """Return title, abstract, and the function from the document's offsets to those of the two."""
    passages = list(document.passages) or [Passage(0, "")]
    has_title = passages[0].infons.get("type") == "title"
    title = _flat(passages[0].text) if has_title else ""
    rest = passages[1:] if has_title else passages
    if any("\n" in item.text or "\t" in item.text or "\r" in item.text for item in passages):
        losses["line ends and tabs within texts (a blank is written)"] += 1
    if len(rest) > 1:
        losses["more passages than title and abstract (they are joined; offsets follow)"] += 1
    starts, moved = list[int](), list[int]()
    body, offset = [], len(title) + 1
    for passage in rest:
        starts.append(passage.offset)
        moved.append(offset)
        body.append(_flat(passage.text))
        offset += len(passage.text) + 1

    def shift(position: int) -> int:
        if has_title and position <= passages[0].end:
            return position - passages[0].offset
        index = bisect_right(starts, position) - 1
        return position if index < 0 else position - starts[index] + moved[index]

    return title, " ".join(body), shift


def _relation_line(name: str, item: Relation, named: Mapping[str, Entity], losses: Losses, shift: Any) -> str:
    """Write a relation; a mention stands for its identifier, or its place without one."""
    ends = [argument.identifier or _identifier(named.get(argument.entity or ""), shift) for argument in item.arguments]
    if len(ends) != 2:
        losses["relations of other than two arguments (the first two are written)"] += 1
    columns = [name, item.type or "-", *[*ends, "-", "-"][:2], str(item.infons.get("novel") or _score(item) or "")]
    return "\t".join(_flat(column) for column in columns if column)


def _identifier(entity: Entity | None, shift: Any) -> str:
    if entity is None or entity.identifiers:
        return "-" if entity is None else entity.identifier
    return f"{shift(entity.start)}:{shift(entity.end)}"


def _mention(name: str, entity: Entity, start: int, end: int, text: str) -> str:
    last = entity.infons.get("components") or _score(entity)
    kind, identifier, end_column = entity.type or "-", entity.identifier or "-", f"\t{last}" if last else ""
    if text and f"{name}{text}{kind}{identifier}{last}".isprintable():  # most
        return f"{name}\t{start}\t{end}\t{text}\t{kind}\t{identifier}{end_column}"
    columns = [name, str(start), str(end), text, kind, identifier, str(last or "")]
    return "\t".join(_flat(column) for column in columns if column)


def _score(item: Entity | Relation) -> str:
    return "" if item.score is None else f"{item.score:.6g}"
