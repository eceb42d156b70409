"""Session in a worker process: features go to the process that has the network, logits come back over a pipe."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features
from ..data.word_windows import WordWindows
from ..inference import RunOptions, Session, SessionOutput


@dataclass(frozen=True)
class RunRequest:
    """Features of one call of `Session.run`, concatenated to three arrays: pickled in microseconds."""

    session: int
    """Which of the sessions of the process that has the networks."""
    token_ids: NDArray[np.int32]
    segment_ids: NDArray[np.int8]
    lengths: NDArray[np.int32]
    batch_size: int
    max_length: int
    pad_id: int

    def steps(self, sessions: Sequence[Session]) -> Generator[Any, None, tuple[NDArray[np.float32], bool]]:
        """Compute the logits in the process that has the networks; yields the events of a GPU that it waits for.

        Returns those of all tokens, [T, C], and true; or of a head for whole sequences [N, C], and false.
        """
        token_ids, segment_ids = self.token_ids.astype(np.int64), self.segment_ids.astype(np.int64)
        features = [Features(token_ids[own], segment_ids[own]) for own in _slices(self.lengths)]
        session: Any = sessions[self.session]
        options = {"batch_size": self.batch_size, "max_length": self.max_length, "pad_id": self.pad_id}
        if hasattr(session, "steps"):
            output = yield from session.steps(features, **options)
        else:
            output = session.run(features, **options)
        if output.logits[0].ndim == 2:
            return np.concatenate(output.logits), True
        return np.stack(output.logits), False


@dataclass(frozen=True)
class RemoteSession:
    """A session of another process, or of none yet. Raises EOFError if that process ends."""

    connection: Connection | None
    number: int

    @property
    def needs_targets(self) -> bool:
        """Features are sent without targets."""
        return False

    @property
    def max_positions(self) -> int:
        """Refuse: the length of windows is settled before workers start."""
        raise NotImplementedError

    def without_head(self) -> Session:
        """Refuse: documents are annotated by whole networks."""
        raise NotImplementedError

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Send the features and wait for their logits; without loss and progress."""
        if not features:
            return SessionOutput([], None)
        if isinstance(features, WordWindows):
            lengths, token_ids = features.lengths(), features.token_ids
            segment_ids = np.zeros(len(token_ids), dtype=np.int8)
        else:
            lengths = np.array([len(item) for item in features])
            token_ids = np.concatenate([item.token_ids for item in features])
            segment_ids = np.concatenate([item.segment_ids for item in features])
        request = RunRequest(
            self.number,
            token_ids.astype(np.int32),
            segment_ids.astype(np.int8),
            lengths.astype(np.int32),
            options["batch_size"],
            options["max_length"],
            options["pad_id"],
        )
        assert self.connection is not None
        self.connection.send(request)
        logits, are_of_tokens = self.connection.recv()
        return SessionOutput([logits[own] for own in _slices(lengths)] if are_of_tokens else list(logits), None)


def _slices(lengths: NDArray[Any]) -> list[slice]:
    """Return the places of concatenated sequences."""
    return [slice(*pair) for pair in pairwise([0, *np.cumsum(lengths).tolist()])]
