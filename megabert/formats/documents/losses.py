"""Count what a format cannot hold, to be reported once at the end of a conversion."""

from collections import Counter
from collections.abc import Collection

from .document import Document, Entity


class Losses(Counter[str]):
    """What was dropped or changed, and how often."""

    def lines(self, name: str) -> list[str]:
        """Describe the losses of a format, a line each."""
        kinds = [(what, count) for what, count in sorted(self.items()) if count]
        return [f"{name} does not hold {what}: {count:,} dropped or changed." for what, count in kinds]

    def infons(self, document: Document, kept: Collection[str] = (), *, of_document: bool = True) -> None:
        """Count the infons of a document, its passages, entities and relations, without those of names in `kept`."""
        if of_document:
            self["infons of documents"] += len(document.infons)
        for name in ("passages", "entities", "relations"):
            self[f"infons of {name}"] += sum(key not in kept for item in getattr(document, name) for key in item.infons)

    def fragments(self, entity: Entity) -> tuple[int, int]:
        """Return the extent of an entity; the gaps of a discontinuous one are counted as lost."""
        fragments = entity.fragments
        if len(fragments) == 1:
            return fragments[0]
        self["gaps of discontinuous entities (the whole extent is written)"] += 1
        return entity.start, entity.end
