"""Give the entities of documents identifiers: those of a type by a linker, which has the document's abbreviations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..formats.dictionaries.curies import to_curie
from ..formats.documents.abbreviations import abbreviations_of
from ..formats.documents.document import Document, Entity
from ..formats.documents.training_examples import contexts_of
from ..linking.linker import Link, Linker, LinkQuery
from .annotator import SCORE_DIGITS, Annotated

NAME, SCORE = "name", "link_score"


@dataclass
class EntityLinker:
    """Add identifiers to the entities of a type that have none; - is NIL. Names and scores become infons."""

    type: str
    linker: Linker
    species: tuple[int, ...] = ()
    """Taxa of the concepts where a document names none that the dictionary has; (): any."""

    def __call__(self, items: Sequence[Annotated]) -> list[Annotated]:
        """Link the entities of all documents together."""
        queries: list[LinkQuery] = []
        for item in items:
            entities = [entity for entity in item.document.entities if self._is_wanted(entity)]
            if entities:
                definitions, species = abbreviations_of(item.document), self._species(item.document)
                contexts = [""] * len(entities)
                if self.linker.reader is not None:
                    contexts = contexts_of(replace(item.document, entities=tuple(entities)))
                queries += [
                    LinkQuery(entity.text, definitions, species, context)
                    for entity, context in zip(entities, contexts, strict=True)
                ]
        links = iter(self.linker.link(queries))
        return [replace(item, document=self._linked(item.document, links)) for item in items]

    def _is_wanted(self, entity: Entity) -> bool:
        return entity.type == self.type and not entity.identifier

    def _linked(self, document: Document, links: Iterator[Link]) -> Document:
        """Take as many links as the document has entities to link."""
        entities = []
        for entity in document.entities:
            if self._is_wanted(entity):
                link = next(links)
                name = {NAME: link.name} if link.name else {}
                infons = {**entity.infons, **name, SCORE: round(link.score, SCORE_DIGITS)}
                entity = Entity(  # replace() takes three times as long
                    entity.id,
                    entity.fragments,
                    entity.text,
                    entity.type,
                    link.identifier,
                    entity.score,
                    entity.source,
                    infons,
                )
            entities.append(entity)
        return replace(document, entities=tuple(entities))

    def _species(self, document: Document) -> tuple[int, ...]:
        """List the taxa of a document that the dictionary has; without any the default ones."""
        taxa = [
            int(local)
            for entity in document.entities
            for item in entity.identifiers
            for prefix, _, local in (to_curie(item, entity.type.lower()).partition(":"),)
            if prefix == "ncbitaxon" and local.isdecimal()
        ]
        known = self.linker.dictionary.taxa if taxa else ()
        return tuple(sorted({taxon for taxon in taxa if taxon in known})) or self.species
