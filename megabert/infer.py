"""From text to answers, the one way: `predict` is features, network and decode; `evaluate` is predict and score.

Training validates through here, the commands and a server answer through here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import InputError
from .model.heads import TaskModel
from .parallel.mesh import autocast
from .tasks.task import Task
from .text.batch import Features
from .text.loader import evaluation_batches
from .text.tokenizer import Tokenizer


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
    batch_size: int = 32

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
        features: list[Features] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Predict and score examples that have answers. `features` saves building them again and again."""
        if features is None:
            features = self.task.features(examples, self.tokenizer, with_targets=with_loss)
        logits, loss = self._logits(features, progress, with_loss=with_loss)
        predictions = self.task.decode(examples, features, logits)
        return Evaluation(self.task.score(examples, predictions), examples, predictions, loss)

    def evaluate_file(self, path: Path, progress: Callable[[int, int], None] | None = None) -> Evaluation:
        """Predict and score a data file."""
        return self.evaluate(self.task.read(path), progress=progress)

    def _logits(
        self, features: Sequence[Features], progress: Callable[[int, int], None] | None, *, with_loss: bool
    ) -> tuple[list[NDArray[np.float32]], float | None]:
        """Run the network; returns each feature's logits, [T, C], and the mean loss if asked for."""
        logits: list[NDArray[np.float32]] = [np.zeros((0, 0), dtype=np.float32)] * len(features)
        loss_sum, weight = 0.0, 0.0
        batches = evaluation_batches(features, self.batch_size, self.task.row_length, self.tokenizer.pad_id)
        was_training = self.model.training
        self.model.eval()
        try:
            for number, (group, batch) in enumerate(batches, start=1):
                batch = batch.to(self.device)
                with torch.inference_mode(), autocast(self.device, self.precision):
                    logits_BLC = self.model(*batch.inputs())
                    if with_loss:
                        loss_sum += float(self.task.loss(logits_BLC, batch))
                        weight += batch.weight
                flat = logits_BLC.float().flatten(0, 1).cpu().numpy()
                starts, lengths = batch.starts_N.tolist(), batch.lengths_N.tolist()
                for index, start, length in zip(group, starts, lengths, strict=True):
                    logits[index] = flat[start : start + length]
                if progress is not None:
                    progress(number, len(batches))
        finally:
            self.model.train(was_training)
        if any(not np.isfinite(item).all() for item in logits):
            raise InputError(
                "the network's outputs are not finite numbers. Use trainer.precision=32 or another checkpoint."
            )
        return logits, (loss_sum / weight if with_loss and weight else None)
