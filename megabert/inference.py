"""Predictor: from examples to predictions by features, model and decoding; inference and validation go through it.

Training validates with it; `evaluate`, `predict` and `megabert.load` use the same object. The network itself is behind
a `Session`, so that this module imports no torch: `torch_session.py` has the one for PyTorch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NotRequired, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from .data.packing import Features, PlainSequences
from .data.prefetch import prefetch
from .data.windows import half_overlapping_spans
from .errors import InputError
from .tasks.task import Task
from .tokenizers.wordpiece import Tokenizer

TEXTS_AHEAD = 2048
"""Texts that are tokenized in a thread while the network embeds those before them."""
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

    def predict(self, *unnamed: Any, **fields: Any) -> Any:
        """Predict one example given by its fields, for example question=... and context=....

        Where a field is a list of values (text=["...", "..."]), an array, a column or an iterator, returns a list with
        a prediction for each; fields with one value count for all. Raises InputError for lists of different lengths.
        """
        if unnamed:
            names = ", ".join(f"{name}=..." for name in self.task.input_fields) or "text=..."
            raise InputError(f"predict takes fields by name: {names}")
        fields = {name: listed(value) for name, value in fields.items()}
        lists = {name: value for name, value in fields.items() if self._are_many(name, value)}
        if not lists:
            return self.predict_examples([self._example(fields)])[0]
        lengths = {name: len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise InputError(f"lists of different lengths: {shown}. Give as many of each.")
        examples = []
        for number in range(next(iter(lengths.values()))):
            own = {name: value[number] for name, value in lists.items()}
            try:
                examples.append(self._example({"id": str(number + 1), **fields, **own}))
            except InputError as error:
                raise InputError(f"example {number + 1}: {error}") from None
        return self.predict_examples(examples)

    def _example(self, fields: Mapping[str, Any]) -> Any:
        """Make an example; where a field is none of the task's, the error names those that there are."""
        known = self.task.input_fields
        try:
            return self.task.example(**fields)
        except InputError as error:
            if known and any(name not in known and name != "id" for name in fields):
                raise InputError(f"{error} {self.task.name()} takes {', '.join(known)}.") from None
            raise

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
        texts = list_of_texts(texts, "embed")
        is_embedding = self.task.is_embedding
        session = self.session if is_embedding else self.session.without_head()
        options: RunOptions = {
            "batch_size": self.batch_size, "max_length": self.task.row_length, "pad_id": self.tokenizer.pad_id
        }  # fmt: skip

        def features_of(start: int) -> tuple[Sequence[Features], NDArray[np.int64]]:
            own = texts[start : start + TEXTS_AHEAD]
            wrong = next((number for number, text in enumerate(own) if not isinstance(text, str)), None)
            if wrong is not None:
                kind = type(own[wrong]).__name__
                raise InputError(f"text {start + wrong + 1} is a {kind}; expected a string.")
            if is_embedding:
                return self.task.text_features(own, self.tokenizer, role), np.arange(len(own))
            windows = self._text_windows(own, start)
            return windows, windows.notes

        parts = []
        starts = range(0, len(texts), TEXTS_AHEAD)
        chunks = prefetch(features_of, starts, depth=2) if len(starts) > 1 else map(features_of, starts)
        for features, owners in chunks:
            vectors = np.array(session.run(features, **options).logits, dtype=np.float32)
            _require_finite([vectors])
            firsts = np.flatnonzero(np.diff(owners, prepend=-1))
            if len(firsts) < len(owners):
                counts = np.diff(firsts, append=len(owners))
                vectors = (np.add.reduceat(vectors, firsts) / counts[:, None]).astype(np.float32)
            parts.append(vectors)
        return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)

    def _text_windows(self, texts: Sequence[str], before: int) -> PlainSequences:
        """Tokenize texts to windows, whose notes are the number of their text; `before` are the texts before these."""
        edges = self.tokenizer.edges()
        room = self.task.row_length - sum(map(len, edges))
        ids, num_tokens = self.tokenizer.encode_joined(texts)
        if not num_tokens.all() and not any(edges):
            raise InputError(f"text {before + int(num_tokens.argmin()) + 1} has no token. Leave it out.")
        spans = [half_overlapping_spans(count, room) for count in num_tokens.tolist()]
        owners = np.repeat(np.arange(len(spans)), list(map(len, spans)))
        starts, ends = np.array(list(chain.from_iterable(spans)), dtype=np.int64).reshape(-1, 2).T
        starts_of_texts = np.cumsum(num_tokens) - num_tokens
        columns = {"notes": owners, "num_cut": np.zeros_like(owners)}
        return PlainSequences.between(edges, ids, starts_of_texts[owners] + starts, ends - starts, **columns)

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
        _require_finite(output.logits)
        return output


def listed(values: Any) -> Any:
    """Return an array, a column of a table or an iterator as a list, and tuples in it as lists; all else as it is."""
    if isinstance(values, str):
        return values
    if getattr(values, "ndim", 0) == 1 and hasattr(values, "tolist"):
        values = values.tolist()
    elif isinstance(values, Iterator):
        values = list(values)
    elif isinstance(values, list | tuple) and values and not isinstance(values[0], str):
        return [listed(item) for item in values]
    return list(values) if isinstance(values, tuple) else values


def list_of_texts(texts: Any, taker: str) -> Sequence[Any]:
    """Return the argument of a function that takes several texts as a sequence. Raises InputError for one text."""
    if isinstance(texts, str):
        raise InputError(f"{taker} takes a list of texts, and one text is given. Give [text].")
    texts = listed(texts)
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise InputError(f"{taker} takes a list of texts, not a {type(texts).__name__}.")
    return texts


def _require_finite(arrays: Sequence[NDArray[np.float32]]) -> None:
    if any(not np.isfinite(item).all() for item in arrays):
        raise InputError(
            "the network's outputs are not finite numbers. Use trainer.precision=32 or another checkpoint."
        )


def without_fractions(value: Any) -> Any:
    """Replace floats in plain values, such as scores, by None: what is left of two answers is compared."""
    if isinstance(value, dict):
        return {key: without_fractions(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_fractions(item) for item in value]
    return None if isinstance(value, float) else value
