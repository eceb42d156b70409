"""What a search finds for a mention, or for a part of a composite one: names with their concepts, the best first."""

from dataclasses import dataclass
from typing import NamedTuple


class NameCandidate(NamedTuple):
    """A name of the dictionary with its concept's identifiers, the concept's own first."""

    name: str
    identifiers: tuple[str, ...]
    similarity: float
    mentions: int = 0
    """How often it is a mention of its concept in the documents that the dictionary was built of."""
    is_listed: bool = True
    """Whether the dictionary has it from a file of names, too."""
    concept: int = -1
    embedding_excess: float = 0.0
    """The similarity of its embedding minus that of its n-grams; 0 without embeddings, or where spelling decides."""


@dataclass(frozen=True)
class LinkedPart:
    """A mention, or a part of a composite one, as it was searched, with candidates, the best first."""

    text: str
    candidates: tuple[NameCandidate, ...]
    scores: tuple[float, ...] = ()
    """Those of a CandidateRanker, by which it has ordered the candidates."""

    @property
    def similarity(self) -> float:
        """That of the best candidate, 0 without any."""
        return self.candidates[0].similarity if self.candidates else 0.0
