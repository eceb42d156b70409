"""Log of a training: progress on the terminal, metrics.jsonl, TensorBoard event files."""

import dataclasses
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..analysis.metrics_file import METRICS, read_metrics
from ..config.schema import Settings
from ..storage import atomic_write, file_sha256, folder_sha256
from ..tasks.task import Task
from .display import BarDisplay, Display, LineDisplay, StepStatus
from .event_file import EventFile

if TYPE_CHECKING:
    from .setup import TrainingSetup

# Steps completed within these seconds count as one sample of the rate.
MIN_SAMPLE_SECONDS = 0.05
# Bytes of a data file whose SHA-256 a run records; a second for each 1.25 GB
LARGEST_HASHED = 2**30


class _Meter:
    """Throughput meter: tokens without padding over the time that is not spent on validations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._paused = 0.0
        self._tokens = 0
        self._mark = (0.0, 0)
        self._recent = deque([self._mark], maxlen=50)

    def seconds(self) -> float:
        """Return the seconds since the start, validations included."""
        return self._clock() - self._start

    def add(self, tokens: int) -> None:
        self._tokens += tokens
        now = self._now()
        # Sync-free steps are logged many at once: they are one sample, not fifty.
        if len(self._recent) > 1 and now[0] - self._recent[-2][0] < MIN_SAMPLE_SECONDS:
            self._recent[-1] = now
        else:
            self._recent.append(now)

    def recent_rate(self) -> float:
        """Return tokens per second, averaged over the last 50 samples."""
        return _rate(self._recent[0], self._recent[-1])

    def rate_since_mark(self) -> float:
        """Return tokens per second since the last call."""
        before, self._mark = self._mark, self._now()
        return _rate(before, self._mark)

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def _now(self) -> tuple[float, int]:
        return self.seconds() - self._paused, self._tokens


def _rate(before: tuple[float, int], after: tuple[float, int]) -> float:
    seconds, tokens = after[0] - before[0], after[1] - before[1]
    return tokens / seconds if seconds > 0 else 0.0


class _RunningMean:
    """Exponential moving average over about 50 values, with bias correction as in Adam."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Add a value and return the mean; a value that is not finite is returned and not added."""
        if not math.isfinite(value):
            return value
        self._sum = 0.98 * self._sum + 0.02 * value
        self._weight = 0.98 * self._weight + 0.02
        return self._sum / self._weight


class TrainingLog:
    """Log of a training that writes nothing: that of ranks other than 0."""

    def step(self, step: int, *, loss: float, lr: float, tokens: int, grad_norm: float, epoch: float) -> None:
        """Show a completed step. `tokens` excludes padding; `epoch` is fractional, for example 1.25."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append metrics of the training or of a validation."""

    @contextmanager
    def validation(self) -> Iterator[Callable[[int, int], None]]:
        """Show a validation; yields a callback for the number of batches done and their total."""
        yield lambda done, total: None

    def message(self, message: str) -> None:
        """Print a message, above the bar where there is one."""


class RunLog(TrainingLog):
    """Log of a run to the terminal, metrics.jsonl and TensorBoard. A context manager, for rank 0."""

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        first_step: int,
        progress_bar: bool,
        tensorboard: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the files in `folder` for a run that starts or resumes after `first_step` steps.

        Lines of metrics.jsonl about later steps are removed: those steps will be repeated.
        """
        folder.mkdir(parents=True, exist_ok=True)
        kept = _keep_until(folder / METRICS, first_step)
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        self._file = (folder / METRICS).open("a", encoding="utf-8", newline="\n")
        self._events: EventFile | None = None
        with suppress(ImportError):
            self._events = EventFile(folder / "tensorboard", first_step) if tensorboard else None
        self._shows_progress = progress_bar
        self._display = Display()
        if progress_bar and sys.stderr.isatty():
            self._display = BarDisplay(total_steps, first_step)
        elif progress_bar:
            self._display = LineDisplay(total_steps, first_step, clock)
        if tensorboard and self._events is None:
            self.message('No TensorBoard curves: tensorboard is not installed (pip install "megabert[track]").')
        self._loss = _RunningMean()
        self._meter = _Meter(clock)  # last, to leave out the time to import tensorboard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()
        self._file.close()
        if self._events is not None:
            self._events.close()

    def step(self, step: int, *, loss: float, lr: float, tokens: int, grad_norm: float, epoch: float) -> None:
        """Show a completed step. `tokens` excludes padding; `epoch` is fractional, for example 1.25."""
        self._meter.add(tokens)
        self._display.step(
            StepStatus(
                step=step,
                epoch=epoch,
                loss=self._loss.add(loss),
                lr=lr,
                grad_norm=grad_norm,
                tokens_per_second=self._meter.recent_rate(),
                seconds=self._meter.seconds(),
            )
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append metrics to metrics.jsonl and TensorBoard. Their "split" is "train" or "validation".

        Adds tokens_per_second since the last line to training metrics; validation metrics are also printed.
        """
        metrics = {name: value for name, value in metrics.items() if value is not None}
        split = metrics.pop("split")
        if split == "train":
            metrics["tokens_per_second"] = round(self._meter.rate_since_mark(), 1)
        elif self._shows_progress:
            self._display.message(f"step {step}  {split}: {_shown(metrics)}")
        seconds = round(self._seconds_before + self._meter.seconds(), 3)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": step, "seconds": seconds, "split": split, **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(step, split, metrics)

    @contextmanager
    def validation(self) -> Iterator[Callable[[int, int], None]]:
        """Show a validation; yields a callback for the number of batches done and their total.

        Its time does not count in tokens per second.
        """
        with self._meter.paused():
            self._display.validation(0, None)
            try:
                yield self._display.validation
            finally:
                self._display.end_validation()

    def message(self, message: str) -> None:
        """Print a message, above the bar where there is one."""
        self._display.message(message)


def _describe_data(task: Task[Any, Any]) -> list[dict[str, Any]]:
    """List the data files with their SHA-256, None for one that would take seconds."""
    model = task.settings.model
    files = {split: task.files(getattr(model, f"{split}_ds")) for split in ("train", "validation", "test")}
    return [
        {"split": split, "file": name, "sha256": _sha256(Path(name))}
        for split, names in files.items()
        for name in names
    ]


def _sha256(path: Path) -> str | None:
    if path.is_dir():
        return folder_sha256(path)
    return file_sha256(path) if path.is_file() and path.stat().st_size <= LARGEST_HASHED else None


def _write_run_json(
    folder: Path, about: Mapping[str, Any], settings: Settings, total_steps: int, data: Sequence[Mapping[str, Any]]
) -> None:
    """Write run.json, what is needed to repeat the run: task, command, versions, seed, all settings, data."""
    facts = {
        **about,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seed": settings.seed,
        "total_steps": total_steps,
        "settings": dataclasses.asdict(settings),
        "data": data,
    }
    atomic_write(folder / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _shown(metrics: Mapping[str, Any]) -> str:
    """Format metrics without those of each label and integers, which are counts of the data, always the same."""
    values = {name: value for name, value in metrics.items() if isinstance(value, float) and "/" not in name}
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Remove lines of metrics.jsonl about steps after `step`, which will be repeated; return the others."""
    if not path.exists():
        return []
    kept = [line for line in read_metrics(path) if line["step"] <= step] if step else []
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


@contextmanager
def open_log(setup: "TrainingSetup", first_step: int) -> "Iterator[TrainingLog]":
    """Open the log of a training and write run.json; on ranks other than 0 yield a log that writes nothing."""
    if not setup.world.is_rank_zero:
        yield TrainingLog()
        return
    settings, total_steps = setup.settings, setup.intervals.total_steps
    with RunLog(
        setup.folder,
        total_steps=total_steps,
        first_step=first_step,
        progress_bar=settings.trainer.enable_progress_bar,
        tensorboard=settings.exp_manager.create_tensorboard_logger,
    ) as log:
        _write_run_json(setup.folder, setup.documents["run"], settings, total_steps, _describe_data(setup.task))
        yield log
