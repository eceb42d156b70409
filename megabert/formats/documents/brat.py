"""brat standoff: NAME.txt and NAME.ann (or .a1 and .a2): T, R, E, A, M, N, # and * lines; fragments, events.

A document is a pair of files. What was read is written back byte for byte; lines of entities that are removed go with
what refers to them. Source: brat's manual, brat.nlplab.org/standoff.html.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .document import Argument, Document, Entity, Original, Passage, Relation
from .losses import Losses
from .sources import ReadOptions, open_binary, read_whole, safe_file_name, text_of

FORMAT = "brat"
ANNOTATION_ENDINGS = (".ann", ".a1", ".a2")
_TEXT_BOUND = re.compile(r"(T\S*)\t(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)")
_RELATION = re.compile(r"(R\S*)\t(\S+) ([^\s:]+):(\S+) ([^\s:]+):(\S+)\s*")
_EVENT = re.compile(r"(E\S*)\t([^\s:]+):(\S+)((?: [^\s:]+:\S+)*)\s*")
_EQUIVALENCE = re.compile(r"\*\t(\S+)((?: \S+)+)\s*")
_REFERENCE = re.compile(r"[AMN]\S*\t\S+ (\S+)|#\S*\t\S+ (\S+)")
_NORMALIZATION = re.compile(r"N\S*\t\S+ (\S+) ([^\t]+)(?:\t(.*))?")
_ATTRIBUTE = re.compile(r"[AM]\S*\t(\S+) (\S+)(?: (.*))?")


def read(path: Path, file: IO[bytes], options: ReadOptions) -> Iterator[Document]:
    """Read the document of a .txt (or its .ann) and the annotations beside it."""
    if path.suffix in ANNOTATION_ENDINGS:
        path = path.with_suffix(".txt")
        with open_binary(path) as other:
            text = text_of(path, read_whole(path, other))
    else:
        text = text_of(path, read_whole(path, file))
    lines: list[str] = []
    places: dict[str, str] = {}
    parts: list[tuple[str, int]] = []
    items: list[Entity | Relation | None] = []
    for ending in ANNOTATION_ENDINGS:
        annotations = path.with_suffix(ending)
        if not annotations.is_file():
            continue
        with open_binary(annotations) as other:
            found = text_of(annotations, read_whole(annotations, other)).splitlines(keepends=True)
        found = _joined(found)
        kept = [(line, _item(line, len(lines) + number)) for number, line in enumerate(found)]
        for number, (line, item) in enumerate(kept, start=1):
            if item is None and not _is_other(line):
                options.faults(
                    f"{annotations}:{number}: {line.rstrip()[:80]!r} is no line of brat: expected T, R, E, A, M, N, # "
                    "or * with tabs. Correct or remove it."
                )
                continue
            if item is not None:
                places[item.id] = f"{annotations}:{number}"
            lines.append(line)
            items.append(item)
        parts.append((ending, len(lines)))
    items = _with_attributes(lines, items)
    passages = (Passage(0, text),)
    original = Original(FORMAT, (text, tuple(lines), tuple(parts)), tuple(items), passages, {}, places=places)
    entities = tuple(item for item in items if isinstance(item, Entity))
    relations = tuple(item for item in items if isinstance(item, Relation))
    yield Document(path.stem, passages, entities, relations, {}, str(path), original)


def _joined(lines: list[str]) -> list[str]:
    """Join again what splitlines splits within a line, such as at U+2028."""
    joined: list[str] = []
    for line in lines:
        if joined and not joined[-1].endswith("\n"):
            joined[-1] += line
        else:
            joined.append(line)
    return joined


def _item(line: str, number: int) -> Entity | Relation | None:
    content = line.removeprefix("\ufeff").rstrip("\r\n")
    if match := _TEXT_BOUND.fullmatch(content):
        spans = tuple((int(start), int(end)) for start, end in re.findall(r"(\d+) (\d+)", match[3]))
        return Entity(match[1], spans, match[4], match[2])
    if match := _RELATION.fullmatch(content):
        return Relation(match[1], match[2], (Argument(match[3], match[4]), Argument(match[5], match[6])))
    if match := _EVENT.fullmatch(content):
        roles = [part.split(":", 1) for part in match[4].split()]
        return Relation(match[1], match[2], (Argument("trigger", match[3]), *(Argument(*role) for role in roles)))
    if match := _EQUIVALENCE.fullmatch(content):
        return Relation(f"*{number}", match[1], tuple(Argument("", name) for name in match[2].split()))
    return None


def _is_other(line: str) -> bool:
    """Whether a line is an attribute, a normalization, a note, or empty."""
    return not line.strip() or bool(_REFERENCE.match(line))


def _with_attributes(lines: list[str], items: list[Entity | Relation | None]) -> list[Entity | Relation | None]:
    """Give entities their identifiers and attributes, which stand in lines of their own."""
    identifiers: dict[str, list[str]] = {}
    infons: dict[str, dict[str, Any]] = {}
    for line in lines:
        content = line.rstrip("\r\n")
        if match := _NORMALIZATION.fullmatch(content):
            identifiers.setdefault(match[1], []).append(match[2].strip())
        elif match := _ATTRIBUTE.fullmatch(content):
            infons.setdefault(match[2], {})[match[1]] = match[3] or "true"
        elif content.startswith("#") and content.count("\t") >= 2 and _REFERENCE.match(content):
            target, note = content.split("\t")[1].split(" ", 1)[-1], content.split("\t", 2)[2]
            infons.setdefault(target, {})["note"] = note
    changed: list[Entity | Relation | None] = []
    for item in items:
        if isinstance(item, Entity) and (item.id in identifiers or item.id in infons):
            joined = "|".join(identifiers.get(item.id, ()))
            item = dataclasses.replace(item, identifier=joined, infons=infons.get(item.id, {}))
        changed.append(item)
    return changed


def files(document: Document, losses: Losses) -> dict[str, bytes]:
    """Return the files of a document by name."""
    name = safe_file_name(document.id)
    if name != document.id:
        losses["slashes and the like in identifiers of documents"] += 1
    original = document.original_of(FORMAT)
    if original is None:
        rendered = "".join(_rendered(document, losses))
        return {f"{name}.txt": document.text().encode(), f"{name}.ann": rendered.encode()}
    text, old_lines, parts = original.content
    kept, entities, relations = document.changes(original)
    removed = {old.id for old, new in zip(original.items, kept, strict=True) if old is not None and new is None}
    lines: list[str | None] = []
    for line, old, new in zip(old_lines, original.items, kept, strict=True):
        reference = _REFERENCE.match(line)
        if (old is not None and new is None) or (reference and (reference[1] or reference[2]) in removed):
            lines.append(None)
        elif old == new or (isinstance(new, Entity) and _same_line(old, new)):
            lines.append(line)
        else:
            lines.append(_one_line(new, losses) if new is not None else line)
    added = _Numbers(document, old_lines).lines(entities, relations, document, losses)
    result, start = {f"{name}.txt": text.encode()}, 0
    parts = parts or ((".ann", 0),)
    for ending, end in parts:
        result[f"{name}{ending}"] = "".join(line for line in lines[start:end] if line is not None).encode()
        start = end
    last = f"{name}{parts[-1][0]}"
    if added and result[last] and not result[last].endswith(b"\n"):
        result[last] += b"\n"
    result[last] += "".join(added).encode()
    return result


def _same_line(old: Any, new: Entity) -> bool:
    return isinstance(old, Entity) and (old.fragments, old.text, old.type) == (new.fragments, new.text, new.type)


def _rendered(document: Document, losses: Losses) -> list[str]:
    if len(document.passages) > 1:
        losses["borders of passages (a line end is written)"] += 1
    losses.infons(document)
    return _Numbers(document, ()).lines(document.entities, document.relations, document, losses)


class _Numbers:
    """Names of brat for annotations: those that fit stay, others are numbered on."""

    def __init__(self, document: Document, lines: Any) -> None:
        taken = [re.match(r"([TRN])(\d+)\t", line) for line in lines]
        self.counts = {kind: max([int(item[2]) for item in taken if item and item[1] == kind] or [0]) for kind in "TRN"}
        self.entities = {item.id for item in document.entities}
        # An entity and a relation may have one identifier in other formats.
        fitting = [("T", item.id) for item in document.entities if re.fullmatch(r"T\d+", item.id)]
        fitting += [("R", item.id) for item in document.relations if re.fullmatch(r"[RE]\d+", item.id)]
        self.names = {(kind, name): name for kind, name in fitting}
        for _, name in fitting:
            if name[0] in "TR":
                self.counts[name[0]] = max(self.counts[name[0]], int(name[1:]))

    def name(self, kind: str, given: str) -> str:
        if (kind, given) not in self.names:
            self.counts[kind] += 1
            self.names[kind, given] = f"{kind}{self.counts[kind]}"
        return self.names[kind, given]

    def end(self, given: str) -> str:
        """Return the name of what a relation refers to: an entity, or another event."""
        return self.name("T" if given in self.entities else "R", given)

    def lines(self, entities: Any, relations: Any, document: Document, losses: Losses) -> list[str]:
        written = []
        text = document.text()
        for entity in entities:
            name = self.name("T", entity.id)
            written.append(_one_line(dataclasses.replace(entity, id=name), losses, text))
            for identifier in entity.identifiers:
                self.counts["N"] += 1
                reference = identifier if ":" in identifier else f"ID:{identifier}"
                written.append(
                    f"N{self.counts['N']}\tReference {name} {_word(reference, losses)}\t{_flat(entity.text)}\n"
                )
        for relation in relations:
            arguments = [(item.role, item.entity) for item in relation.arguments if item.entity is not None]
            if len(arguments) < 2:
                losses["relations between identifiers instead of mentions"] += 1
                continue
            if relation.id[:1] == "E" and ("R", relation.id) in self.names:
                trigger, *rest = arguments
                ends = "".join(f" {_word(role, losses)}:{self.end(item)}" for role, item in rest)
                written.append(f"{relation.id}\t{_word(relation.type, losses)}:{self.end(trigger[1])}{ends}\n")
                continue
            name = self.name("R", relation.id)
            losses["further arguments of relations"] += max(len(arguments) - 2, 0)
            roles = [role or f"Arg{number}" for number, (role, _) in enumerate(arguments[:2], start=1)]
            ends = " ".join(
                f"{_word(role, losses)}:{self.end(item)}" for role, (_, item) in zip(roles, arguments, strict=False)
            )
            written.append(f"{name}\t{_word(relation.type, losses)} {ends}\n")
        return written


def _one_line(item: Entity | Relation, losses: Losses, text: str = "") -> str:
    if isinstance(item, Relation):
        ends = " ".join(f"{argument.role}:{argument.entity}" for argument in item.arguments)
        return f"{item.id}\t{_word(item.type, losses)} {ends}\n"
    # A line end may not stand within a fragment.
    fragments = []
    for start, end in item.fragments:
        spans = [(start + part.start(), start + part.end()) for part in re.finditer(r"[^\r\n]+", text[start:end])]
        fragments += spans or [(start, end)]
    shown = " ".join(text[start:end] for start, end in fragments) if text else item.text
    places = ";".join(f"{start} {end}" for start, end in fragments)
    return f"{item.id}\t{_word(item.type, losses)} {places}\t{shown}\n"


def _word(name: str, losses: Losses) -> str:
    word = re.sub(r"[\s:;]" if ":" not in name else r"\s", "_", name) or "_"
    if word != name:
        losses["blanks in types and identifiers (an underscore is written)"] += 1
    return word


def _flat(text: str) -> str:
    return re.sub(r"[\t\r\n]", " ", text)
