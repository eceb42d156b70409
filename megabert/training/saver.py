"""Checkpoints written in the background: device tensors are copied, and a thread fetches and writes the copies.

With several ranks each writes some unsharded tensors, gathered one after another from the shards of all.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ..checkpoints.files.lazy_tensor import Readable
from ..checkpoints.native.manifest_folder import run_on_all
from ..checkpoints.native.run_checkpoints import Contents, prune, read_whole, write, write_together
from ..parallel.sharding import Sharding
from .monitor import is_at_end
from .optimizer import optimizer_tensors, parameter_of
from .resume import Progress

if TYPE_CHECKING:
    from .setup import TrainingSetup
    from .step import Stepper


class Saver:
    """Writes checkpoints one after another. A context manager; leaving it waits for the last one.

    An error while writing is raised at the next save, at `wait` or on leaving; `has_failed` reports it before.
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
        """Write a snapshot of the contents, directly or in the background.

        The contents of the last checkpoint do not change any more, so they are not copied first.
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

    @property
    def has_failed(self) -> bool:
        """Whether writing the last checkpoint has ended with an error that is not raised yet."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Wait for the checkpoint being written."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


def _copied(tensors: Mapping[str, Readable | Tensor]) -> Mapping[str, Readable | Tensor]:
    """Copy device tensors on the device, which takes milliseconds, or to the host if device memory is short.

    Host tensors were gathered for this checkpoint and do not change.
    """
    wholes = {name: read_whole(item).detach() for name, item in tensors.items()}
    if not any(item.is_cuda for item in wholes.values()):
        return wholes
    size = sum(item.nbytes for item in wholes.values())
    has_room = size < torch.cuda.mem_get_info()[0] / 2
    return {name: item.clone() if has_room else item.to("cpu", copy=True) for name, item in wholes.items()}


def save_checkpoint(
    setup: "TrainingSetup", progress: Progress, stepper: "Stepper", saver: Saver, *, is_last: bool
) -> None:
    """Save model, optimizer and progress; afterwards only the last and the save_top_k best checkpoints are kept."""
    world, folder = setup.world, setup.folder
    groups: dict[str, Mapping[str, Tensor]] = {
        "model": stepper.master_weights,
        "optimizer": optimizer_tensors(stepper.optimizer, stepper.master_weights),
    }
    contents = Contents(
        tensors=groups if world.size == 1 else gather_tensors(groups, stepper.sharding),
        documents=setup.documents | {"progress": asdict(progress) | {"scaler": stepper.scaler.state_dict()}},
        texts=setup.predictor.tokenizer.files(),
    )
    is_end = is_at_end(setup, progress) and progress.validated_step == progress.step
    facts: dict[str, Any] = {"figure": progress.figure, "loss": progress.loss, "is_end": is_end}
    ranks: dict[str, Any] = {"part": world.rank, "num_parts": world.size}

    keep_best = setup.settings.exp_manager.checkpoint_callback_params.save_top_k

    def write_and_prune(contents: Contents) -> None:
        gather = world.all_gather_text_on_writer_thread
        if world.size == 1:
            write(folder, progress.step, contents, **facts)
        else:
            write_together(folder, progress.step, contents, **facts, **ranks, all_gather_text=gather)
        run_on_all(lambda: prune(folder, setup.mode, keep_best) if world.is_rank_zero else None, gather)

    saver.save(contents, write_and_prune, is_last=is_last)


def gather_tensors(groups: Mapping[str, Mapping[str, Tensor]], sharding: Sharding) -> dict[str, dict[str, Tensor]]:
    """Unshard tensors one by one and keep, on the host, those that this rank writes; all ranks call this.

    Groups are a model's parameters by name, and an optimizer's state as optimizer_tensors names it.
    """
    filled = [0] * sharding.world.size
    written: dict[str, dict[str, Tensor]] = {group: {} for group in groups}
    for group, tensors in groups.items():
        for key, shard in tensors.items():
            name = parameter_of(key)
            whole = shard.detach() if name is None else sharding.unshard(name, shard.detach())
            owner = filled.index(min(filled))
            filled[owner] += whole.numel()
            if owner == sharding.world.rank:
                written[group][key] = whole.cpu()
    return written
