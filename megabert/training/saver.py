"""Checkpoints written while a GPU goes on: its tensors are copied, a thread fetches the copies and writes them.

Of several processes each writes some whole tensors, put together from everybody's parts one after another.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ..checkpoints.files.lazy_tensor import Readable
from ..checkpoints.native.run_checkpoints import Contents, read_whole
from ..parallel.sharding import Sharding
from .optimizer import SHAPES


class Saver:
    """Writes one checkpoint after another. A context manager; leaving it waits for the last one.

    An error while writing is raised at the next save, at `wait` or on leaving.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="saver") if in_background else None
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        if error is None:
            self.wait()

    def save(self, contents: Contents, write: Callable[[Contents], None], *, is_last: bool = False) -> None:
        """Take the contents as they are now, and write them, now or in the background.

        The last ones do not change any more: they are fetched while they are written.
        """
        self.wait()
        if self._executor is None or is_last:
            write(contents)
            return
        copies = {group: _copied(items) for group, items in contents.tensors.items()}
        done = torch.cuda.Event()
        done.record()

        def write_copies() -> None:
            done.synchronize()
            write(replace(contents, tensors=copies))

        self._last = self._executor.submit(write_copies)

    def wait(self) -> None:
        """Wait until all is on the disk."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


def _copied(tensors: Mapping[str, Readable | Tensor]) -> Mapping[str, Readable | Tensor]:
    """Copy a GPU's tensors where they are, a matter of milliseconds; to the host if it has no room to spare for that.

    Where all are on the host they were put together for this checkpoint, and do not change.
    """
    wholes = {name: read_whole(item).detach() for name, item in tensors.items()}
    if not any(item.is_cuda for item in wholes.values()):
        return wholes
    size = sum(item.nbytes for item in wholes.values())
    has_room = size < torch.cuda.mem_get_info()[0] / 2
    return {name: item.clone() if has_room else item.to("cpu", copy=True) for name, item in wholes.items()}


def own_tensors(groups: Mapping[str, Mapping[str, Tensor]], sharding: Sharding) -> dict[str, dict[str, Tensor]]:
    """Put tensors together and keep those that this process is to write, on the host; all processes call this.

    Groups are a model's parameters by name, and an optimizer's state as optimizer_tensors names it.
    """
    filled = [0] * sharding.world.size
    own: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for group, tensors in groups.items():
        for key, part in tensors.items():
            name = parameter_of(key)
            whole = part.detach() if name is None else sharding.unshard(name, part.detach())
            owner = filled.index(min(filled))
            filled[owner] += whole.numel()
            if owner == sharding.world.rank:
                own[group][key] = whole.cpu()
    return own


def parameter_of(key: str) -> str | None:
    """Name the parameter of whose shape a tensor is: itself, or a state's; None for counts and the like."""
    name, _, state = key.rpartition("/")
    return key if not name else None if state in SHAPES else name
