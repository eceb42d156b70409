"""Count what a format cannot hold, to be reported once at the end of a conversion."""

from collections import Counter

from .document import Document, Entity


class Losses(Counter[str]):
    """What was dropped or changed, and how often."""

    def lines(self, name: str) -> list[str]:
        """Describe the losses of a format, a line each."""
        return [f"{name} does not hold {what}: {count:,} dropped or changed." for what, count in sorted(self.items())]

    def infons(self, document: Document, *, of_document: bool = True) -> None:
        """Count the infons of a document, its passages, entities and relations."""
        if of_document:
            self["infons of documents"] += len(document.infons)
        for name in ("passages", "entities", "relations"):
            count = sum(len(item.infons) for item in getattr(document, name))
            if count:
                self[f"infons of {name}"] += count
        self += Counter()  # without zeros

    def fragments(self, entity: Entity) -> tuple[int, int]:
        """Return the extent of an entity; the gaps of a discontinuous one are counted as lost."""
        if len(entity.fragments) > 1:
            self["gaps of discontinuous entities (the whole extent is written)"] += 1
        return entity.start, entity.end
