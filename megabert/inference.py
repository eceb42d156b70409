"""Predictor: from examples to predictions by features, model and decoding; inference and validation go through it.

Training validates with it; `evaluate`, `predict` and `megabert.load` use the same object. The network itself is behind
a `Session`, so that this module imports no torch: `torch_session.py` has the one for PyTorch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .data.packing import Features
from .errors import InputError
from .tasks.task import Task
from .tokenizers.wordpiece import Tokenizer

ProgressCallback = Callable[[int, int], None]
"""Called with the number of batches done and their total."""


class EvaluationStopped(Exception):  # noqa: N818  (control flow, not an error)
    """An evaluation ended early because its `should_stop` returned true."""


@dataclass(frozen=True)
class SessionOutput:
    """Logits of each feature, [T, C] for tokens or [C] for sequences, and the mean loss where it was requested."""

    logits: list[NDArray[np.float32]]
    loss: float | None


class Session(Protocol):
    """A loaded network that turns features into logits."""

    @property
    def needs_targets(self) -> bool:
        """Whether the network computes losses instead of logits, so that features need targets."""

    def run(
        self,
        features: Sequence[Features],
        *,
        batch_size: int,
        max_length: int,
        pad_id: int,
        with_loss: bool = False,
        progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> SessionOutput:
        """Compute logits of all features, in their order, with a token budget of batch_size x max_length a batch.

        `should_stop` is called after each batch; where it returns true EvaluationStopped is raised.
        """


@dataclass(frozen=True)
class Evaluation:
    """Scores of a data file with the predictions that they are computed from; `loss` is None if not requested."""

    scores: dict[str, float]
    examples: Sequence[Any]
    predictions: Sequence[Any]
    loss: float | None


@dataclass(frozen=True)
class Predictor:
    """A trained network with its task and tokenizer. `megabert.load(RUN)` returns one."""

    task: Task[Any, Any]
    tokenizer: Tokenizer
    session: Session
    batch_size: int = 32
    """Token budget of a batch: this many sequences of the maximum length."""
    digest: str = ""
    """Identifies the checkpoint: the start of its manifest's SHA-256."""

    def predict(self, **fields: Any) -> Any:
        """Predict one example given by its fields, for example question=... and context=...."""
        return self.predict_examples([self.task.example(**fields)])[0]

    def predict_examples(
        self,
        examples: Sequence[Any],
        progress: ProgressCallback | None = None,
        features: Sequence[Features] | None = None,
    ) -> list[Any]:
        """Predict many examples; predictions come in their order. Precomputed `features` are reused."""
        if features is None:
            features = self.task.features(examples, self.tokenizer, with_targets=False)
        output = self._run(features, progress=progress)
        return self.task.decode(examples, features, output.logits)

    def evaluate(
        self,
        examples: Sequence[Any],
        *,
        with_loss: bool = False,
        features: Sequence[Features] | None = None,
        progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Evaluation:
        """Predict and score examples that have answers; precomputed `features` are reused.

        Raises EvaluationStopped when `should_stop` returns true between batches.
        """
        if features is None:
            with_targets = with_loss or self.session.needs_targets
            features = self.task.features(examples, self.tokenizer, with_targets=with_targets)
        output = self._run(features, with_loss=with_loss, progress=progress, should_stop=should_stop)
        predictions = self.task.decode(examples, features, output.logits)
        return Evaluation(self.task.score(examples, predictions), examples, predictions, output.loss)

    def evaluate_file(self, path: Path, progress: ProgressCallback | None = None) -> Evaluation:
        """Predict and score a data file."""
        return self.evaluate(self.task.read(path), progress=progress)

    def _run(self, features: Sequence[Features], **options: Any) -> SessionOutput:
        max_length, pad_id = self.task.row_length, self.tokenizer.pad_id
        output = self.session.run(features, batch_size=self.batch_size, max_length=max_length, pad_id=pad_id, **options)
        if any(not np.isfinite(item).all() for item in output.logits):
            raise InputError(
                "the network's outputs are not finite numbers. Use trainer.precision=32 or another checkpoint."
            )
        return output
