"""From text to answers, the one way: `predict` is features, network and decode; `evaluate` is predict and score.

Training validates through here, the commands and a server answer through here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data.packing import Batch, Features
from .data.prefetch import prefetch
from .data.sampler import EvaluationBatches, lengths_of
from .errors import InputError
from .kernels.cuda_graph import CapturedGraph, side_stream
from .model.heads import TaskModel
from .parallel.process_group import SINGLE_PROCESS, World
from .tasks.task import Task
from .tokenizers.wordpiece import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """Scores of a data file, and the predictions that they are of. `loss` is None where it was not asked for."""

    scores: dict[str, float]
    examples: Sequence[Any]
    predictions: Sequence[Any]
    loss: float | None


@dataclass(frozen=True)
class Predictor:
    """A trained network with its task and tokenizer. `megabert.load(RUN)` gives one."""

    task: Task[Any, Any]
    model: TaskModel
    tokenizer: Tokenizer
    device: torch.device
    precision: str = "32"
    """What the encoder computes in; its weights are in it already."""
    batch_size: int = 32
    """A batch has as many tokens as so many of the longest texts."""
    is_static: bool = False
    """Batches have one size, and many of them are recorded in a CUDA graph unless FSDP spreads the network."""
    world: World = SINGLE_PROCESS
    """Several processes share the batches, and all get all answers: all must call the same, in the same order."""

    def predict(self, **fields: Any) -> Any:
        """Answer one example given by its fields, for example question=... and context=...."""
        return self.predict_examples([self.task.example(**fields)])[0]

    def predict_examples(
        self, examples: Sequence[Any], progress: Callable[[int, int], None] | None = None
    ) -> list[Any]:
        """Answer many examples, in their order; `progress` is told batches done and in all."""
        features = self.task.features(examples, self.tokenizer, with_targets=False)
        logits, _ = self._logits(features, progress, with_loss=False)
        return self.task.decode(examples, features, logits)

    def evaluate(
        self,
        examples: Sequence[Any],
        *,
        with_loss: bool = False,
        features: Sequence[Features] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Predict and score examples that have answers. `features` saves building them again and again."""
        if features is None:
            with_targets = with_loss or self.model.head.takes_targets
            features = self.task.features(examples, self.tokenizer, with_targets=with_targets)
        logits, loss = self._logits(features, progress, with_loss=with_loss)
        predictions = self.task.decode(examples, features, logits)
        return Evaluation(self.task.score(examples, predictions), examples, predictions, loss)

    def evaluate_file(self, path: Path, progress: Callable[[int, int], None] | None = None) -> Evaluation:
        """Predict and score a data file."""
        return self.evaluate(self.task.read(path), progress=progress)

    def _logits(
        self, features: Sequence[Features], progress: Callable[[int, int], None] | None, *, with_loss: bool
    ) -> tuple[list[NDArray[np.float32]], float | None]:
        """Run the network; returns each feature's logits, [T, C] or [C], and the mean loss if asked for."""
        logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(features)
        batches = EvaluationBatches(
            features,
            self.batch_size,
            self.task.row_length,
            self.tokenizer.pad_id,
            static_size=self.is_static,
            share=self.world.data_rank,
            num_shares=self.world.data_size,
        )
        width = 0
        was_training = self.model.training
        self.model.eval()
        try:
            with side_stream(self.device):
                run = _Pass(self, len(batches), with_loss=with_loss)
                for number, (group, batch, array) in enumerate(run(batches), start=1):
                    width = array.shape[1]
                    if self.model.head.is_per_sequence:
                        parts = list(array[: len(group)])
                    else:
                        parts = np.split(array, batch.cu_seqlens_N1[1:].tolist())[: len(group)]
                    for index, part in zip(group, parts, strict=True):
                        logits[index] = part
                    if progress is not None:
                        progress(number, len(batches))
                loss, weight = float(run.loss_sum), run.weight
        finally:
            self.model.train(was_training)
        if self.world.size > 1 and len(batches):
            logits = self._everyones(logits, lengths_of(features), width)
            loss, weight = self._sum(np.array([loss, weight])).tolist()
        if any(not np.isfinite(item).all() for item in logits):
            raise InputError(
                "the network's outputs are not finite numbers. Use trainer.precision=32 or another checkpoint."
            )
        return logits, (loss / weight if with_loss and weight else None)

    def _everyones(
        self, own: list[NDArray[np.float32]], lengths: NDArray[np.int64], width: int
    ) -> list[NDArray[np.float32]]:
        """Put the answers of all processes together: each has filled in its own, and 0 is added to them."""
        is_per_sequence = self.model.head.is_per_sequence
        shapes = [(width,) if is_per_sequence else (int(length), width) for length in lengths]
        filled = [item if item.size else np.zeros(shape) for item, shape in zip(own, shapes, strict=True)]
        laid = self._sum(np.concatenate([item.astype(np.float32).ravel() for item in filled]))
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(laid, ends), shapes, strict=True)]

    def _sum(self, numbers: NDArray[Any]) -> NDArray[Any]:
        # Those who share layers have the same answers: one of them counts.
        tensor = torch.from_numpy(numbers if self.world.tensor_rank == 0 else np.zeros_like(numbers))
        self.world.all_reduce(tensor)
        return tensor.numpy()


# So few batches are not worth recording.
FEWEST_RECORDED = 4


class _Pass:
    """The network applied to one batch after another. A GPU is kept one batch ahead of who takes the results."""

    def __init__(self, predictor: Predictor, num_batches: int, *, with_loss: bool) -> None:
        self._predictor = predictor
        self._device = predictor.device
        self._with_loss = with_loss
        self.loss_sum = torch.zeros((), device=self._device)
        self.weight = 0.0
        self._static: Batch | None = None
        self._recorded: CapturedGraph[tuple[Tensor, Tensor]] | None = None
        if predictor.is_static and predictor.world.fsdp_size == 1 and num_batches >= FEWEST_RECORDED:
            self._recorded = CapturedGraph(lambda: self._compute(self._static), torch.cuda.graph_pool_handle())

    def __call__(self, batches: EvaluationBatches) -> Iterator[tuple[list[int], Batch, NDArray[np.float32]]]:
        """Yield each batch with its features' numbers and its logits."""
        before: tuple[list[int], Batch, Tensor, torch.cuda.Event | None] | None = None
        # FSDP uses the memory into which it gathers weights again in training, where it must not be inference's.
        without_gradients = torch.no_grad if self._predictor.world.fsdp_size > 1 else torch.inference_mode
        with closing(prefetch(self._prepare, batches)) as prepared:
            for group, batch in prepared:
                with without_gradients():
                    logits, loss = self._run(batch)
                    self.loss_sum += loss
                    self.weight += batch.weight
                    now = (group, batch, *self._send_to_host(logits))
                if before is not None:
                    yield self._finish(*before)
                before = now
            if before is not None:
                yield self._finish(*before)

    def _prepare(self, item: tuple[list[int], Batch]) -> tuple[list[int], Batch]:
        group, batch = item
        return group, batch.map(Tensor.pin_memory) if self._device.type == "cuda" else batch

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._recorded is None:
            return self._compute(batch.to(self._device))
        if self._static is None:
            self._static = batch.to(self._device)
        self._static.copy_from(batch)
        return self._recorded()

    def _compute(self, batch: Batch | None) -> tuple[Tensor, Tensor]:
        assert batch is not None
        logits = self._predictor.model(*batch.inputs()).float()
        if self._with_loss:
            return logits, self._predictor.task.loss(logits, batch)
        return logits, torch.zeros((), device=self._device)

    def _send_to_host(self, tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if not tensor.is_cuda:
            return tensor, None
        host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def _finish(
        self, group: list[int], batch: Batch, logits: Tensor, event: torch.cuda.Event | None
    ) -> tuple[list[int], Batch, NDArray[np.float32]]:
        if event is not None:
            event.synchronize()
        return group, batch, logits.numpy()
