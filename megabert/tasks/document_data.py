"""Annotated documents as training data of tasks: the settings of what is read from them, and the reading.

The formats are imported where documents are read: a command that reads none starts in less time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.schema import choice
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


def read_tagged_sentences(path: Path, types: Mapping[str, str], notes: list[str]) -> list[TaggedText]:
    """Read documents as sentences of tagged words, without empty ones; what was left out is noted."""
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.training_examples import ExampleCounts, TypeRule, tagged_sentences

    counts = ExampleCounts()
    sentences = tagged_sentences(read_documents([path]), TypeRule(types), counts)
    found = [sentence for sentence in sentences if sentence.words]
    _note(path, counts, notes)
    return found


def read_pair_rows(path: Path, settings: RelationTypeSettings, negative_label: str, notes: list[str]) -> list[Row]:
    """Read documents as rows of a text, its head and tail, and the label."""
    from ..formats.documents.convert_documents import read_documents
    from ..formats.documents.training_examples import ExampleCounts, PairOptions, TypeRule, entity_pairs

    counts = ExampleCounts()
    options = PairOptions(settings.scope, negative_label, TypeRule(settings.relation_types))
    documents = [TypeRule(settings.entity_types).chosen(document, counts) for document in read_documents([path])]
    rows = [Row(pair.values(), pair.location) for pair in entity_pairs(documents, options, counts)]
    _note(path, counts, notes)
    return rows


def _note(path: Path, counts: ExampleCounts, notes: list[str]) -> None:
    note = counts.note(path)
    if note:
        notes.append(note)
