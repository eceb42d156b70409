"""Predictor: from examples to predictions by features, model and decoding; inference and validation go through it.

Training validates with it; `evaluate`, `predict` and `megabert.load` use the same object. The network itself is behind
a `Session`, so that this module imports no torch: `torch_session.py` has the one for PyTorch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from .data.packing import Features
from .data.windows import half_overlapping_spans
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


def by_feature(logits_NC: NDArray[np.float32], parts: Sequence[int]) -> list[NDArray[np.float32]]:
    """Split the logits of sequences: [C] of a feature with one sequence, [P, C] of one with several."""
    starts = np.cumsum([0, *parts])
    pairs = zip(starts[:-1].tolist(), parts, strict=True)
    return [logits_NC[start] if count == 1 else logits_NC[start : start + count] for start, count in pairs]


class RunOptions(TypedDict):
    """How a session computes: batches with a budget of batch_size x max_length tokens, padded with pad_id."""

    batch_size: int
    max_length: int
    pad_id: int
    with_loss: NotRequired[bool]
    progress: NotRequired[ProgressCallback | None]
    should_stop: NotRequired[Callable[[], bool] | None]
    """Called after each batch; where it returns true EvaluationStopped is raised."""


class LoadOptions(TypedDict, total=False):
    """How a trained model is loaded: `build.load_run` and an exported folder take these."""

    accelerator: str
    precision: str
    compiled: bool
    batch_size: int
    task_name: str | None
    overrides: Sequence[str]
    """Settings of the task that are changed, as key=value."""
    for_many: bool
    """Whether it predicts many texts, so that a comparison of precisions is worth its time."""


class Session(Protocol):
    """A loaded network that turns features into logits."""

    @property
    def needs_targets(self) -> bool:
        """Whether the network computes losses instead of logits, so that features need targets."""

    @property
    def max_positions(self) -> int:
        """The most tokens of a sequence."""

    def without_head(self) -> "Session":
        """Return the network without its head: the mean of each sequence's last hidden states instead of logits."""

    def run(self, features: Sequence[Features], **options: Unpack[RunOptions]) -> SessionOutput:
        """Compute logits of all features, in their order."""


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
    notes: tuple[str, ...] = ()
    """What the files of a model of other programs do not state, and what was assumed."""

    @property
    def labels(self) -> dict[str, list[str]]:
        """The labels that the network can predict, by kind, such as {"tag": ["O", "B-Disease", ...]}."""
        return self.task.label_sets()

    def predict(self, **fields: Any) -> Any:
        """Predict one example given by its fields, for example question=... and context=....

        Where a field is a list of values (text=["...", "..."]) returns a list with a prediction for each; fields with
        one value count for all. Raises InputError for lists of different lengths.
        """
        lists = {name: value for name, value in fields.items() if self._are_many(name, value)}
        if not lists:
            return self.predict_examples([self.task.example(**fields)])[0]
        lengths = {name: len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InputError(f"lists of different lengths: {shown}. Give as many of each.")
        examples = []
        for number in range(next(iter(lengths.values()))):
            own = {name: value[number] for name, value in lists.items()}
            examples.append(self.task.example(**{"id": str(number + 1), **fields, **own}))
        return self.predict_examples(examples)

    def _are_many(self, name: str, value: Any) -> bool:
        """Whether the value of a field is a list of values, one for each of several examples."""
        if not isinstance(value, list | tuple):
            return False
        is_list = self.task.input_fields.get(name, str) is list
        return not is_list or (len(value) > 0 and all(isinstance(item, list | tuple) for item in value))

    def embed(self, texts: Sequence[str], *, role: str = "passage") -> NDArray[np.float32]:
        """Compute a vector of each text, the mean of the last hidden states of its tokens: [N, D].

        A text that is too long for one sequence is read in overlapping windows, of which the mean is taken. A run of a
        task of embeddings has its own pooling, reads the first tokens only, and has a prompt for each role (query,
        passage).
        """
        tokenizer = self.tokenizer
        if self.task.is_embedding:
            features = self.task.text_features(texts, tokenizer, role)
            return np.array(self.run(features).logits, dtype=np.float32)
        first, last = tokenizer.edges()
        room = self.task.row_length - len(first) - len(last)
        features = []
        for number, ids in enumerate(tokenizer.encode_ids(list(texts))):
            for start, end in half_overlapping_spans(len(ids), room):
                token_ids = np.concatenate([first, ids[start:end], last]).astype(np.int64)
                if not len(token_ids):
                    raise InputError(f"text {number + 1} has no token. Leave it out.")
                features.append(Features(token_ids, np.zeros_like(token_ids), notes=number))
        output = replace(self, session=self.session.without_head()).run(features)
        vectors: list[list[NDArray[np.float32]]] = [[] for _ in texts]
        for feature, vector in zip(features, output.logits, strict=True):
            vectors[feature.notes].append(vector)
        return np.array([np.mean(items, axis=0) for items in vectors], dtype=np.float32)

    def predict_examples(
        self,
        examples: Sequence[Any],
        progress: ProgressCallback | None = None,
        features: Sequence[Features] | None = None,
    ) -> list[Any]:
        """Predict many examples; predictions come in their order. Precomputed `features` are reused."""
        if features is None:
            features = self.task.features(examples, self.tokenizer, with_targets=False)
        output = self.run(features, progress=progress)
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
        output = self.run(features, with_loss=with_loss, progress=progress, should_stop=should_stop)
        predictions = self.task.decode(examples, features, output.logits)
        return Evaluation(self.task.score(examples, predictions), examples, predictions, output.loss)

    def run(self, features: Sequence[Features], **options: Any) -> SessionOutput:
        """Compute the logits of features; raises InputError unless all are finite."""
        max_length, pad_id = self.task.row_length, self.tokenizer.pad_id
        output = self.session.run(features, batch_size=self.batch_size, max_length=max_length, pad_id=pad_id, **options)
        if any(not np.isfinite(item).all() for item in output.logits):
            raise InputError(
                "the network's outputs are not finite numbers. Use trainer.precision=32 or another checkpoint."
            )
        return output


def without_fractions(value: Any) -> Any:
    """Replace floats in plain values, such as scores, by None: what is left of two answers is compared."""
    if isinstance(value, dict):
        return {key: without_fractions(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_fractions(item) for item in value]
    return None if isinstance(value, float) else value
