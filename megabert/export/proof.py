"""Prove an exported model: logits, task score, agreement of labels, size and speed beside those of the run."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..data.packing import Features
from ..errors import InputError
from ..inference import Evaluation, Predictor, Session, without_fractions
from ..model.config import NUM_PREDICTIONS

MAX_DIFFERENCE = 1e-4
"""Of logits in float32."""
MAX_LOSS = 0.5
"""Of the main score, in points."""
NUM_TIMED = 64


@dataclass(frozen=True)
class ExportProof:
    """An exported model beside its run; what was not measured is None."""

    max_difference: float
    """Largest difference of logits, over all shapes."""
    shapes: dict[str, float]
    """Largest difference by shape."""
    score: str | None = None
    score_before: float | None = None
    score_after: float | None = None
    agreement: float | None = None
    """Per cent of predicted labels that are equal."""
    milliseconds_before: float | None = None
    """For a sequence, in batches."""
    milliseconds_after: float | None = None
    device_before: str | None = None

    def lines(self) -> Iterator[str]:
        """Yield lines for the user."""
        yield f"logits differ from the run's by at most {self.max_difference:.2g}, over {', '.join(self.shapes)}."
        if self.score is not None:
            yield f"{self.score}: {self.score_before:.2f} before, {self.score_after:.2f} after."
            yield f"{self.agreement:.2f} % of the predicted labels are equal."
        if self.milliseconds_after is not None:
            yield (
                f"a sequence takes {self.milliseconds_after:.2f} ms; the run in PyTorch ({self.device_before}) "
                f"{self.milliseconds_before:.2f} ms."
            )

    def to_document(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def check_float(comparison: ExportProof) -> None:
    """Raise InputError if logits in float32 differ."""
    if not comparison.max_difference <= MAX_DIFFERENCE:
        raise InputError(
            f"the exported logits differ from the run's by {comparison.max_difference:.3g}; at most {MAX_DIFFERENCE:g} "
            f"is correct. By shape: {comparison.shapes}. This export is refused: please report the network."
        )


def check_score(comparison: ExportProof) -> None:
    """Raise InputError if the main score is lower than before by more than MAX_LOSS points."""
    name, before, after = comparison.score, comparison.score_before, comparison.score_after
    if name is None or before is None or after is None:
        return
    loss = after - before if "loss" in name else before - after
    if not loss <= MAX_LOSS:
        raise InputError(
            f"{name} falls from {before:.2f} to {after:.2f}, by more than {MAX_LOSS} points: 8 bits are too few for "
            "this network. Export it in float32, try --calibration FILE, or write it all the same with --force."
        )


def compare(run: Predictor, exported: Session, data: Sequence[Any] | None, *, num_segments: int) -> ExportProof:
    """Compare an exported network with its run on random sequences of various shapes, and on examples with labels."""
    shapes = {name: _difference(run, exported, features) for name, features in proof_shapes(run, num_segments)}
    comparison = ExportProof(max(shapes.values()), shapes)
    if not data:
        return comparison
    features = run.task.features(data, run.tokenizer, with_targets=False)
    timed = [features[index] for index in range(min(NUM_TIMED, len(features)))]
    comparison = replace(
        comparison,
        milliseconds_before=_milliseconds(run, run.session, timed),
        milliseconds_after=_milliseconds(run, exported, timed),
        device_before=f"{getattr(run.session, 'device', 'cpu')}, {getattr(run.session, 'precision', '32')}",
    )
    if run.session.needs_targets:
        return comparison
    before, after = (
        replace(run, session=session).evaluate(data, features=features) for session in (run.session, exported)
    )
    name = run.task.main_score
    return replace(
        comparison,
        score=name,
        score_before=before.scores[name],
        score_after=after.scores[name],
        agreement=agreement(run, before, after),
    )


def proof_shapes(run: Predictor, num_segments: int) -> Iterator[tuple[str, list[Features]]]:
    """Yield sequences of random tokens: batch 1, length 1, the full length, a batch of mixed lengths."""
    full = min(run.session.max_positions, run.task.row_length)
    mixed = sorted({1, 2, 5, full // 3, full - 1, full})
    for name, lengths in (
        ("batch 1", [full // 2]),
        ("length 1", [1]),
        ("one of full length", [full]),
        ("mixed lengths", [*mixed, 3, 3]),
    ):
        random = np.random.default_rng(sum(lengths))
        features = []
        for length in lengths:
            ids = random.integers(0, len(run.tokenizer), length)
            segments = (np.arange(length) > length // 2).astype(np.int64) * (num_segments > 1)
            features.append(Features(ids, segments))
        yield name, features


def _difference(run: Predictor, exported: Session, features: Sequence[Features]) -> float:
    """Return the largest difference of logits; of language models that of probabilities, since tokens may tie."""
    before, after = (_logits(run, session, features) for session in (run.session, exported))
    skip = NUM_PREDICTIONS if run.session.needs_targets else 0
    pairs = zip(before, after, strict=True)
    if any(first.shape != second.shape for first, second in zip(before, after, strict=True)):
        return float("inf")
    return max(float(np.abs(first[..., skip:] - second[..., skip:]).max()) for first, second in pairs)


def _logits(run: Predictor, session: Session, features: Sequence[Features]) -> list[Any]:
    output = session.run(
        features, batch_size=run.batch_size, max_length=run.task.row_length, pad_id=run.tokenizer.pad_id
    )
    return output.logits


def _milliseconds(run: Predictor, session: Session, features: Sequence[Features]) -> float:
    """Measure the time of a sequence: the better of two measurements."""
    return 1000 / len(features) * min(_seconds(lambda: _logits(run, session, features)) for _ in range(2))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def agreement(run: Predictor, before: Evaluation, after: Evaluation) -> float:
    """Compute the share of equal predicted labels, in per cent; without labels that of equal predictions.

    Predictions are equal if all but their numbers with a fraction are.
    """
    task = run.task
    pairs = [task.label_pairs(item.examples, item.predictions) for item in (before, after)]
    labels = [[predicted for kind in item.values() for _, predicted in kind] for item in pairs]
    if not labels[0] or len(labels[0]) != len(labels[1]):
        labels = [[str(without_fractions(task.to_json(one))) for one in item.predictions] for item in (before, after)]
    equal = [first == second for first, second in zip(*labels, strict=True)]
    return 100 * sum(equal) / max(len(equal), 1)
