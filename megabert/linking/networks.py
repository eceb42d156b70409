"""What a linker needs of networks: the search by embeddings, and a reader of mentions in their sentences."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..inference import Predictor, Session
from .candidates import LinkedPart


class DenseSearch(Protocol):
    """The search by embeddings."""

    @property
    def run_digest(self) -> str:
        """The digest of the run that made the embeddings."""

    @property
    def session(self) -> Session:
        """What embeds texts."""

    def with_session(self, session: Session) -> "DenseSearch":
        """Return the search with the session of another process."""

    def search(self, texts: Sequence[str]) -> "Sequence[DenseResult]":
        """Embed texts and find the nearest names of each."""


class DenseResult(Protocol):
    """What the search by embeddings finds for a text."""

    @property
    def names(self) -> NDArray[np.int64]:
        """The numbers of the nearest names."""

    def similarities(self, names: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the cosine similarities of names."""


class MentionReader(Protocol):
    """Orders candidates by the sentences of mentions, as a CrossEncoder does."""

    @property
    def predictor(self) -> Predictor:
        """The run that reads."""

    @property
    def digest(self) -> list[Any]:
        """Identifies it."""

    def with_session(self, session: Session) -> "MentionReader":
        """Return the reader with the session of another process."""

    def reordered(
        self, mentions: Sequence[tuple[LinkedPart, ...]], contexts: Sequence[str], slope: float
    ) -> list[tuple[LinkedPart, ...]]:
        """Order the candidates of the parts of mentions."""
