"""Session whose sequences are computed in the server's queue, together with those of other requests."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features
from ..inference import RunOptions, SessionOutput
from .model_queue import ComputeQueue, Work, WorkCancelled

WITH_HEAD, MEAN, STATES, NEAREST = "head", "mean", "states", "nearest"


def lane_name(model: str, kind: str) -> str:
    """Return the name of a model's lane: its head, its hidden states or their mean, or nearest names."""
    return f"{model}/{kind}"


@dataclass(frozen=True)
class QueuedSession:
    """The session of one request. A long one is queued in parts, so that others come between them."""

    queue: ComputeQueue
    model: str
    work: Work
    part_tokens: int
    max_positions: int
    kind: str = WITH_HEAD

    @property
    def needs_targets(self) -> bool:
        """Sequences come without targets."""
        return False

    def without_head(self) -> "QueuedSession":
        """Return the session of the network without its head."""
        return replace(self, kind=MEAN)

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Queue all parts and wait for their logits. Raises ModelFailure or WorkCancelled."""
        work = self.work
        work.check()
        futures = []
        work.host.release()
        try:
            for part in _parts(features, self.part_tokens):
                futures.append(self.queue.submit(lane_name(self.model, self.kind), part))
                work.add(futures[-1])
            logits: list[NDArray[np.float32]] = []
            for future in futures:
                computed = future.result()
                logits += computed.logits
                work.queue_seconds += computed.queue_seconds
                work.inference_seconds += computed.inference_seconds
        except CancelledError:
            raise WorkCancelled from None
        finally:
            work.host.acquire()
        work.tokens += sum(map(len, features))
        work.windows += len(features)
        work.cut_tokens += sum(item.num_cut for item in features)
        return SessionOutput(logits, None)


def _parts(features: Sequence[Features], tokens: int) -> Iterator[list[Features]]:
    part: list[Features] = []
    size = 0
    for item in features:
        if part and size + len(item) > tokens:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item)
    if part:
        yield part
