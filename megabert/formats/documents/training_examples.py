"""Documents as training examples: sentences of tagged words, and pairs of entities with their relation.

Sentences never cut an entity: those that one reaches over are joined. Words are runs of letters and digits, and single
other characters, so that few entities end within a word; an entity that does covers the whole word. Of entities that
overlap the longest is kept, then the first; of a discontinuous one the whole extent. All of it is counted.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...tokenizers.sentences import split_sentences
from .document import Document, Entity, Relation, split_identifier

Span = tuple[int, int]
# Combining marks belong to the character before.
_MARK = "[\u0300-\u036f\u1ab0-\u1aff\u20d0-\u20ff]"
_WORD = re.compile(rf"[^\W_](?:[^\W_]|{_MARK})*|\S{_MARK}*")


@dataclass(frozen=True)
class TypeRule:
    """Which types of entities or relations are read, and as what: {} keeps all, a mapping keeps its keys."""

    names: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, kind: str) -> str | None:
        """Return the type to use, None to leave it out."""
        return kind if not self.names else self.names.get(kind, self.names.get("*"))

    def chosen(self, document: Document, counts: Counter[str]) -> Document:
        """Return a document with the chosen entities under their new types."""
        if not self.names:
            return document
        chosen = [(entity, kind) for entity in document.entities if (kind := self(entity.type))]
        counts["entities of other types left out"] += len(document.entities) - len(chosen)
        entities = tuple(replace(entity, type=kind) for entity, kind in chosen)
        return replace(document, entities=entities)


@dataclass
class ExampleCounts(Counter[str]):
    """What was changed to make examples, for a note."""

    def note(self, path: object) -> str:
        """Describe the counts in one line, "" if there are none."""
        parts = [f"{count:,} {what}" for what, count in sorted(self.items()) if count]
        return f"{path}: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class TaggedText:
    """A sentence: its text, words as characters of it, a tag in IOB2 for each, and where it comes from."""

    id: str
    text: str
    words: tuple[Span, ...]
    tags: tuple[str, ...]
    location: str
    start: int
    """Its first character in the document."""


def split_document_words(text: str) -> tuple[Span, ...]:
    """Split text into words: runs of letters and digits, and each other character that is not blank."""
    return tuple(match.span() for match in _WORD.finditer(text))


def sentences_of(document: Document, entities: Sequence[Entity] = ()) -> list[Span]:
    """Split the passages of a document into sentences, none of which ends within one of the entities."""
    spans: list[Span] = []
    for passage in document.passages:
        spans += [(passage.offset + start, passage.offset + end) for start, end in split_sentences(passage.text)]
    joined: list[Span] = []
    reach = sorted((entity.start, entity.end) for entity in entities)
    index, covered = 0, 0
    for start, end in spans:
        if joined and start < covered:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
        while index < len(reach) and reach[index][0] < end:
            covered = max(covered, reach[index][1])
            index += 1
    return joined


def contexts_of(document: Document) -> list[str]:
    """Return the sentence of each entity, "" where none has its start."""
    spans, text = sentences_of(document), document.text()
    starts = [start for start, _ in spans]
    places = [bisect_right(starts, entity.start) - 1 for entity in document.entities]
    return [text[slice(*spans[place])] if place >= 0 else "" for place in places]


def tagged_sentences(
    documents: Iterable[Document], types: TypeRule = TypeRule(), counts: Counter[str] | None = None
) -> Iterator[TaggedText]:
    """Turn documents into sentences of words with tags in IOB2."""
    counts = Counter() if counts is None else counts
    for document in documents:
        document = _without_blanks(document, counts)
        chosen = [(entity, kind) for entity in document.entities if (kind := types(entity.type))]
        num_untyped = sum(not entity.type for entity in document.entities) if not types.names else 0
        counts["entities without a type left out"] += num_untyped
        counts["entities of other types left out"] += len(document.entities) - len(chosen) - num_untyped
        kept = _without_overlaps(chosen, counts)
        text, starts = document.text(), [entity.start for entity, _ in kept]
        for number, (start, end) in enumerate(sentences_of(document, [entity for entity, _ in kept]), start=1):
            inside = kept[bisect_left(starts, start) : bisect_left(starts, end)]
            words = split_document_words(text[start:end])
            tags = _tags(words, start, inside, counts)
            name = f"{document.id}.{number}"
            yield TaggedText(name, text[start:end], words, tags, f"{document.location} ({name})", start)


def _without_blanks(document: Document, counts: Counter[str]) -> Document:
    """Leave out the white space on the ends of entities, which no sentence has, and entities of nothing else."""
    text, entities = document.text(), []
    for entity in document.entities:
        words = text[entity.start : entity.end]
        if not words.strip():
            counts["entities of white space, left out"] += 1
        elif words != words.strip():
            start = entity.start + len(words) - len(words.lstrip())
            entities.append(replace(entity, fragments=((start, start + len(words.strip())),), text=words.strip()))
        else:
            entities.append(entity)
    return replace(document, entities=tuple(entities))


def _without_overlaps(chosen: Sequence[tuple[Entity, str]], counts: Counter[str]) -> list[tuple[Entity, str]]:
    """Keep the longest of entities that overlap, then the first; in the order of the text."""
    kept: list[tuple[Entity, str]] = []
    taken: set[int] = set()
    for entity, kind in sorted(chosen, key=lambda item: (item[0].start - item[0].end, item[0].start)):
        if taken.isdisjoint(range(entity.start, entity.end)):
            taken.update(range(entity.start, entity.end))
            kept.append((entity, kind))
            counts["discontinuous entities read as their whole extent"] += len(entity.fragments) > 1
        else:
            counts["entities left out for a longer one that they overlap"] += 1
    return sorted(kept, key=lambda item: item[0].start)


def _tags(
    words: Sequence[Span], offset: int, entities: Sequence[tuple[Entity, str]], counts: Counter[str]
) -> tuple[str, ...]:
    tags = ["O"] * len(words)
    starts, ends = [word[0] for word in words], [word[1] for word in words]
    for entity, kind in entities:
        start, end = entity.start - offset, entity.end - offset
        inside = range(bisect_right(ends, start), bisect_left(starts, end))
        if not inside or tags[inside[0]] != "O":
            counts["entities that share their only word with another one"] += 1
            continue
        is_whole = words[inside[0]][0] == start and words[inside[-1]][1] == end
        counts["entities that end within a word, read as whole words"] += not is_whole
        for index in inside:
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{kind}"
    return tuple(tags)


@dataclass(frozen=True)
class EntityPair:
    """Two entities of a text, given by their characters and types, with the relation between them."""

    id: str
    text: str
    head: tuple[int, int, str]
    tail: tuple[int, int, str]
    label: str
    location: str
    ends: tuple[str, str]
    """The entities' ids (scope sentence) or identifiers (document)."""

    def values(self) -> dict[str, object]:
        """Return the object that the relation extraction task reads."""
        entities = {
            name: {"start": start, "end": end, "type": kind}
            for name, (start, end, kind) in (("head", self.head), ("tail", self.tail))
        }
        return {"id": self.id, "text": self.text, **entities, "label": self.label}


@dataclass(frozen=True)
class PairOptions:
    """Which pairs become examples."""

    scope: str = "sentence"
    """sentence: two mentions of one sentence; document: two identifiers of one document, at their nearest mentions."""
    negative_label: str = "false"
    types: TypeRule = field(default_factory=TypeRule)
    pair_types: frozenset[tuple[str, str]] | None = None
    """Types of head and tail; None: those that relations of the data have."""


def entity_pairs(
    documents: Sequence[Document], options: PairOptions = PairOptions(), counts: Counter[str] | None = None
) -> Iterator[EntityPair]:
    """Turn documents into pairs of entities, of related ones and of all others of the same types."""
    counts = Counter() if counts is None else counts
    documents = [_without_blanks(document, counts) for document in documents]
    pair_types = options.pair_types or related_types(documents)
    make = _sentence_pairs if options.scope == "sentence" else _document_pairs
    for document in documents:
        extents = sum(len(entity.fragments) > 1 for entity in document.entities)
        counts["discontinuous entities read as their whole extent"] += extents
        yield from make(document, pair_types, options, counts)


def related_types(documents: Iterable[Document]) -> frozenset[tuple[str, str]]:
    """Collect the types of the entities that relations hold between."""
    found = set()
    for document in documents:
        mentions = _Mentions(document)
        for relation in document.relations:
            heads, tails = mentions.ends(relation)
            found |= {(head.type, tail.type) for head in heads for tail in tails}
    return frozenset(found)


class _Mentions:
    """The mentions of a document by their ids and by their identifiers."""

    def __init__(self, document: Document) -> None:
        self.by_id = {entity.id: entity for entity in document.entities}
        self.by_identifier: dict[str, list[Entity]] = {}
        for entity in document.entities:
            for identifier in dict.fromkeys((entity.identifier, *entity.identifiers)):
                self.by_identifier.setdefault(identifier, []).append(entity)

    def ends(self, relation: Relation) -> tuple[list[Entity], list[Entity]]:
        """Return the mentions that are a relation's first and second argument; an identifier's are all its mentions."""
        found = [
            self.by_identifier.get(str(argument.identifier), [])
            if argument.entity is None
            else [self.by_id[name] for name in (argument.entity,) if name in self.by_id]
            for argument in relation.arguments[:2]
        ]
        return (found[0], found[1]) if len(found) == 2 else ([], [])


def _labels(document: Document, options: PairOptions, counts: Counter[str]) -> dict[tuple[str, str], str]:
    """Return the label of each related pair of mentions, by their ids."""
    labels: dict[tuple[str, str], str] = {}
    mentions = _Mentions(document)
    for relation in document.relations:
        kind = options.types(relation.type)
        if kind is None:
            counts["relations of other types left out"] += 1
            continue
        heads, tails = mentions.ends(relation)
        counts["relations whose arguments are not mentioned"] += not (heads and tails)
        counts["relations of more than two arguments, read as their first two"] += len(relation.arguments) > 2
        counts["relations of a mention with itself, left out"] += len(heads) == 1 and heads == tails
        for head, tail in ((head, tail) for head in heads for tail in tails if head is not tail):
            if labels.setdefault((head.id, tail.id), kind) != kind:
                counts["pairs with a second relation, left out"] += 1
    return labels


def _sentence_pairs(
    document: Document, pair_types: frozenset[tuple[str, str]], options: PairOptions, counts: Counter[str]
) -> Iterator[EntityPair]:
    labels, text, used = _labels(document, options, counts), document.text(), set()
    entities = sorted(document.entities, key=lambda entity: entity.start)
    starts = [entity.start for entity in entities]
    for start, end in sentences_of(document, document.entities):
        inside = entities[bisect_left(starts, start) : bisect_left(starts, end)]
        for head in inside:
            for tail in inside:
                if head is tail or (head.type, tail.type) not in pair_types:
                    continue
                label = labels.get((head.id, tail.id))
                if label is None and _is_mirror(head, tail, labels, pair_types):
                    continue
                used.add((head.id, tail.id))
                places = [(item.start - start, item.end - start, item.type) for item in (head, tail)]
                name, ends = f"{document.id}.{head.id}.{tail.id}", (head.id, tail.id)
                label, location = label or options.negative_label, f"{document.location} ({name})"
                yield EntityPair(name, text[start:end], places[0], places[1], label, location, ends)
    counts["related pairs of mentions in different sentences, left out"] += len(labels.keys() - used)


def _is_mirror(
    head: Entity, tail: Entity, labels: Mapping[tuple[str, str], str], pair_types: frozenset[tuple[str, str]]
) -> bool:
    """Whether an unrelated pair of types that occur in both directions stands for its other direction already."""
    if (tail.type, head.type) not in pair_types:
        return False
    return (tail.id, head.id) in labels or head.start > tail.start


def _document_pairs(
    document: Document, pair_types: frozenset[tuple[str, str]], options: PairOptions, counts: Counter[str]
) -> Iterator[EntityPair]:
    mentions: dict[str, list[Entity]] = {}
    for entity in document.entities:
        for identifier in entity.identifiers:
            mentions.setdefault(identifier, []).append(entity)
    labels = _identifier_labels(document, options, counts)
    text, used = document.text(), set()
    for head_id, heads in mentions.items():
        for tail_id, tails in mentions.items():
            if head_id == tail_id or (heads[0].type, tails[0].type) not in pair_types:
                continue
            related = labels.get((head_id, tail_id))
            if related is None and ((tail_id, head_id) in labels or _is_mirror(heads[0], tails[0], {}, pair_types)):
                continue
            pairs = [(head, tail) for head in heads for tail in tails if head is not tail]
            if not pairs:
                continue
            head, tail = min(pairs, key=lambda pair: (abs(pair[0].start - pair[1].start), pair[0].start))
            places = [(item.start, item.end, item.type) for item in (head, tail)]
            name = f"{document.id}.{head_id}.{tail_id}"
            label = related or options.negative_label
            location = f"{document.location} ({name})"
            used.add((head_id, tail_id))
            yield EntityPair(name, text, places[0], places[1], label, location, (head_id, tail_id))
    unused = labels.keys() - used
    counts["relations of an identifier with itself, left out"] += sum(head == tail for head, tail in unused)
    counts["related pairs of identifiers without two mentions, left out"] += sum(head != tail for head, tail in unused)


def _identifier_labels(document: Document, options: PairOptions, counts: Counter[str]) -> dict[tuple[str, str], str]:
    by_id = {entity.id: entity.identifiers for entity in document.entities}
    labels: dict[tuple[str, str], str] = {}
    for relation in document.relations:
        kind = options.types(relation.type)
        if kind is None or len(relation.arguments) < 2:
            what = "of other types left out" if kind is None else "of one argument, left out"
            counts[f"relations {what}"] += 1
            continue
        ends = [
            by_id.get(item.entity, ()) if item.entity is not None else split_identifier(str(item.identifier))
            for item in relation.arguments[:2]
        ]
        counts["relations whose arguments have no identifier"] += not all(ends)
        for pair in ((head, tail) for head in ends[0] for tail in ends[1]):
            if labels.setdefault(pair, kind) != kind:
                counts["pairs with a second relation, left out"] += 1
    return labels
