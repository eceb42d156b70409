"""Annotation by actors of Ray, on one machine or a cluster: each has the networks, this process reads and writes.

A chunk's batches hold its own sequences only, so the output is that of one process. The extra `ray`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import ConfigError
from ..inference import Session
from .job import AnnotateChunks
from .pipeline import ReadChunks

CHUNKS_PER_ACTOR = 4
Load = Callable[[], tuple[AnnotateChunks, Sequence[Session]]]
"""Called once in each actor."""


class _Annotation:
    """What an actor is."""

    def __init__(self, load: Load) -> None:
        work, sessions = load()
        self._annotate = work(sessions)

    def annotate(self, chunk: Any) -> Any:
        """Annotate a chunk."""
        return self._annotate(chunk)


def process_chunks_by_ray(read: ReadChunks, load: Load, num_actors: int) -> Iterator[Any]:
    """Yield the result of each chunk, in order, from a bounded number in flight; as `process_chunks`.

    GPUs of the cluster are divided among the actors, at most one each. Raises what working on a chunk raised.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ModuleNotFoundError as error:
        raise ConfigError(f"--ray needs {error.name}, which is not installed: pip install 'megabert[ray]'.") from None
    was_running = ray.is_initialized()
    ray.init(ignore_reinit_error=True, include_dashboard=False)
    try:
        num_gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / num_actors)
        actor: Any = ray.remote(num_cpus=1, num_gpus=num_gpus)(_Annotation)
        pool = ActorPool([actor.remote(load) for _ in range(num_actors)])
        num_waiting = 0
        for chunk in read():
            pool.submit(lambda member, item: member.annotate.remote(item), chunk)
            num_waiting += 1
            if num_waiting > CHUNKS_PER_ACTOR * num_actors:
                num_waiting -= 1
                yield pool.get_next()
        while pool.has_next():
            yield pool.get_next()
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        if not was_running:
            ray.shutdown()
