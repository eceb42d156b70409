"""Documents as training examples: sentences of tagged words, and pairs of entities with their relation.

Sentences never cut an entity: those that one reaches over are joined. Words are runs of letters and digits, and single
other characters, so that few entities end within a word; an entity that does covers the whole word. Of entities that
overlap the longest is kept, then the first; of a discontinuous one the whole extent. All of it is counted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...tokenizers.sentences import split_sentences
from .document import Document, Entity, Relation

Span = tuple[int, int]
_WORD = re.compile(r"[^\W_]+|\S")


@dataclass(frozen=True)
class TypeRule:
    """Which types of entities or relations are read, and as what: {} keeps all, a mapping keeps its keys."""

    names: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, kind: str) -> str | None:
        """Return the type to use, None to leave it out."""
        return kind if not self.names else self.names.get(kind)


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


def tagged_sentences(
    documents: Iterable[Document], types: TypeRule = TypeRule(), counts: Counter[str] | None = None
) -> Iterator[TaggedText]:
    """Turn documents into sentences of words with tags in IOB2."""
    counts = Counter() if counts is None else counts
    for document in documents:
        chosen = [(entity, kind) for entity in document.entities if (kind := types(entity.type))]
        counts["entities of other types left out"] += len(document.entities) - len(chosen)
        kept = _without_overlaps(chosen, counts)
        text = document.text()
        for number, (start, end) in enumerate(sentences_of(document, [entity for entity, _ in kept]), start=1):
            inside = [(entity, kind) for entity, kind in kept if start <= entity.start < end]
            words = split_document_words(text[start:end])
            tags = _tags(words, start, inside, counts)
            name = f"{document.id}.{number}"
            yield TaggedText(name, text[start:end], words, tags, f"{document.location} ({name})", start)


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
    for entity, kind in entities:
        start, end = entity.start - offset, entity.end - offset
        inside = [index for index, word in enumerate(words) if word[0] < end and word[1] > start]
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

    def values(self) -> dict[str, object]:
        """Return the object that the relation extraction task reads."""
        ends = {
            name: {"start": start, "end": end, "type": kind}
            for name, (start, end, kind) in (("head", self.head), ("tail", self.tail))
        }
        return {"id": self.id, "text": self.text, **ends, "label": self.label}


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
    pair_types = options.pair_types or related_types(documents)
    make = _sentence_pairs if options.scope == "sentence" else _document_pairs
    for document in documents:
        yield from make(document, pair_types, options, counts)


def related_types(documents: Iterable[Document]) -> frozenset[tuple[str, str]]:
    """Collect the types of the entities that relations hold between."""
    found = set()
    for document in documents:
        for relation in document.relations:
            heads, tails = ends_of(document, relation)
            found |= {(head.type, tail.type) for head in heads for tail in tails}
    return frozenset(found)


def ends_of(document: Document, relation: Relation) -> tuple[list[Entity], list[Entity]]:
    """Return the mentions that are a relation's first and second argument; an identifier's are all its mentions."""
    found = []
    for argument in relation.arguments[:2]:
        if argument.entity is not None:
            found.append([entity for entity in document.entities if entity.id == argument.entity])
        else:
            names = {argument.identifier}
            entities = [item for item in document.entities if item.identifier in names or names & {*item.identifiers}]
            found.append(entities)
    return (found[0], found[1]) if len(found) == 2 else ([], [])


def _labels(document: Document, options: PairOptions, counts: Counter[str]) -> dict[tuple[str, str], str]:
    """Return the label of each related pair of mentions, by their ids."""
    labels: dict[tuple[str, str], str] = {}
    for relation in document.relations:
        kind = options.types(relation.type)
        if kind is None:
            counts["relations of other types left out"] += 1
            continue
        heads, tails = ends_of(document, relation)
        counts["relations whose arguments are not mentioned"] += not (heads and tails)
        counts["relations of more than two arguments, read as their first two"] += len(relation.arguments) > 2
        for head in heads:
            for tail in tails:
                if labels.setdefault((head.id, tail.id), kind) != kind:
                    counts["pairs with a second relation, left out"] += 1
    return labels


def _sentence_pairs(
    document: Document, pair_types: frozenset[tuple[str, str]], options: PairOptions, counts: Counter[str]
) -> Iterator[EntityPair]:
    labels, text, used = _labels(document, options, counts), document.text(), set()
    for start, end in sentences_of(document, document.entities):
        inside = [entity for entity in document.entities if start <= entity.start and entity.end <= end]
        for head in inside:
            for tail in inside:
                if head is tail or (head.type, tail.type) not in pair_types:
                    continue
                label = labels.get((head.id, tail.id))
                if label is None and _is_mirror(head, tail, labels, pair_types):
                    continue
                used.add((head.id, tail.id))
                places = [(item.start - start, item.end - start, item.type) for item in (head, tail)]
                name = f"{document.id}.{head.id}.{tail.id}"
                label = label or options.negative_label
                yield EntityPair(name, text[start:end], places[0], places[1], label, f"{document.location} ({name})")
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
    labels: dict[tuple[str, str], str] = {}
    for (head_id, tail_id), label in _identifier_labels(document, options, counts).items():
        labels[head_id, tail_id] = label
    text = document.text()
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
            yield EntityPair(name, text, places[0], places[1], label, f"{document.location} ({name})")


def _identifier_labels(document: Document, options: PairOptions, counts: Counter[str]) -> dict[tuple[str, str], str]:
    by_id = {entity.id: entity.identifiers for entity in document.entities}
    labels: dict[tuple[str, str], str] = {}
    for relation in document.relations:
        kind = options.types(relation.type)
        if kind is None or len(relation.arguments) < 2:
            counts["relations of other types left out"] += 1
            continue
        ends = [
            by_id.get(item.entity, ()) if item.entity is not None else (str(item.identifier),)
            for item in relation.arguments[:2]
        ]
        counts["relations whose arguments have no identifier"] += not all(ends)
        for pair in ((head, tail) for head in ends[0] for tail in ends[1]):
            if labels.setdefault(pair, kind) != kind:
                counts["pairs with a second relation, left out"] += 1
    return labels
