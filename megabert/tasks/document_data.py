"""Annotated documents as training data of tasks: the settings of what is read from them, and the reading.

The formats are imported where documents are read: a command that reads none starts in less time.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import choice
from ..errors import ConfigError, InputError, InputWarning
from ..formats.rows import Row

if TYPE_CHECKING:
    from ..formats.documents.training_examples import ExampleCounts, TaggedText


@dataclass
class EntityTypeSettings:
    """Which entities of documents are read."""

    entity_types: dict[str, str] = field(default_factory=dict)
    """Of documents, and of words with tags: types and new names, {SpecificDisease:Disease,*:Other}; {}: all."""


@dataclass
class RelationTypeSettings(EntityTypeSettings):
    """Which pairs of entities of documents are read."""

    relation_types: dict[str, str] = field(default_factory=dict)
    """Of annotated documents: types of relations to read and their names (* is any other); {}: all."""
    scope: str = choice("sentence", "sentence", "document")
    """Of documents: pairs of mentions of a sentence, or of identifiers of a document, at their nearest mentions."""


def are_documents(path: Path) -> bool:
    """Return whether a file's ending, or what is in a folder, is that of annotated documents."""
    from ..formats.documents.document_formats import is_document_path

    return is_document_path(path)


def starts_as_pubtator(lines: Iterable[str]) -> bool:
    """Whether the first line with text is that of a document in PubTator's format."""
    from ..formats.documents.document_formats import is_pubtator

    return is_pubtator(next(filter(None, lines), "").encode())


def read_tagged_sentences(path: Path, types: Mapping[str, str]) -> list[TaggedText]:
    """Read documents as sentences of tagged words, without empty ones; warns of what was left out."""
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.training_examples import ExampleCounts, TypeRule, tagged_sentences

    counts = ExampleCounts()
    sentences = tagged_sentences(read_documents([path]), TypeRule(types), counts)
    found = [sentence for sentence in sentences if sentence.words]
    _warn(path, counts)
    return found


def related_entity_types(paths: Sequence[Path], settings: RelationTypeSettings) -> list[list[str]]:
    """List the types of head and tail that some relation of documents has."""
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.training_examples import TypeRule, related_types

    rule = TypeRule(settings.entity_types)
    documents = (rule.chosen(document, Counter()) for document in read_documents(paths))
    return sorted(map(list, related_types(documents)))


def read_pair_rows(
    path: Path, settings: RelationTypeSettings, negative_label: str | None, pair_types: Iterable[Iterable[str]]
) -> list[Row]:
    """Read documents as rows of a text, its head and tail, and the label; warns of what was left out.

    `pair_types` are those of the training data; pairs of types that the documents relate are read, too. Documents
    without any relation are unlabelled.
    """
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.training_examples import ExampleCounts, PairOptions, TypeRule, entity_pairs, related_types

    if negative_label is None:
        raise ConfigError("Pairs without a relation need a label of their own: model.dataset.negative_label=false.")
    counts = ExampleCounts()
    documents = [TypeRule(settings.entity_types).chosen(document, counts) for document in read_documents([path])]
    types = frozenset((head, tail) for head, tail in pair_types) | related_types(documents)
    if not types:
        raise InputError(
            f"{path}: which types of entities make pairs is learnt from relations, and neither these documents nor the "
            "training data have any. `megabert annotate --pairs HEAD:TAIL` names the types."
        )
    options = PairOptions(settings.scope, negative_label, TypeRule(settings.relation_types), types)
    rows = [Row(pair.values(), pair.location) for pair in entity_pairs(documents, options, counts)]
    if not any(document.relations for document in documents):
        rows = [Row(row.others("label"), row.location) for row in rows]
    _warn(path, counts)
    if not rows:
        warnings.warn(f"{path}: no pair of entities is read.", InputWarning, stacklevel=2)
    return rows


def _warn(path: Path, counts: ExampleCounts) -> None:
    note = counts.note(path)
    if note:
        warnings.warn(note, InputWarning, stacklevel=3)
