"""What a run tells while it trains: progress on the terminal, metrics.jsonl, TensorBoard curves.

A line of metrics.jsonl is one JSON object: {"step": 50, "seconds": 81.2, "split": "train", "loss": 1.2, ...}.
`step` is the number of optimizer steps done; `seconds` count from the start of the run, all its resumptions
together; a number that is not finite is null.
"""

import json
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import CheckpointError

METRICS = "metrics.jsonl"
# Seconds within which steps count as one for the rate that is shown.
SHORTEST_MOMENT = 0.05
SECONDS_BETWEEN_LINES = 30.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl; a last line that a crash cut short is left out.

    Raises CheckpointError if any other line is not one of figures.
    """
    *whole, rest = path.read_bytes().split(b"\n")
    lines = [_parse(line) for line in whole]
    if None in lines:
        raise CheckpointError(f"{path}:{lines.index(None) + 1} is not a line of figures. Remove that line.")
    return [line for line in [*lines, _parse(rest)] if line is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        figures = json.loads(line)
    except ValueError:
        return None
    return figures if isinstance(figures, dict) and {"step", "seconds", "split"} <= figures.keys() else None


def _keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut metrics.jsonl back to what was done when `step` steps were done; return those lines."""
    kept = [line for line in read_metrics(path) if line["step"] <= step] if step and path.exists() else []
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return kept


class _Meter:
    """Measures time, and real tokens over the time that is not spent on validations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._paused = 0.0
        self._tokens = 0
        self._mark = (0.0, 0)
        self._recent = deque([self._mark], maxlen=50)

    def seconds(self) -> float:
        """Seconds since the start, validations included."""
        return self._clock() - self._start

    def add(self, tokens: int) -> None:
        self._tokens += tokens
        now = self._now()
        # Of a GPU many steps are heard of at once: they are one moment, not fifty.
        if len(self._recent) > 1 and now[0] - self._recent[-2][0] < SHORTEST_MOMENT:
            self._recent[-1] = now
        else:
            self._recent.append(now)

    def recent_rate(self) -> float:
        """Tokens per second over the last steps: steady enough to be read."""
        return _rate(self._recent[0], self._recent[-1])

    def rate_since_mark(self) -> float:
        """Tokens per second since the last call."""
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
    """A mean over about the last 50 values: an exponential one, corrected at the start as in Adam."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Take a value in and return the mean; one that is not finite is returned and not taken in."""
        if not math.isfinite(value):
            return value
        self._sum = 0.98 * self._sum + 0.02 * value
        self._weight = 0.98 * self._weight + 0.02
        return self._sum / self._weight


@dataclass(frozen=True)
class _Status:
    """What there is to show after a step."""

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds: float

    def figures(self) -> str:
        return (
            f"loss {self.loss:.4f}  lr {self.lr:.2e}  norm {self.grad_norm:.2f}  {self.tokens_per_second:,.0f} tokens/s"
        )


class _Display:
    """A way to show progress to people. This one shows nothing but what is said."""

    def start(self) -> None:
        """Take hold of the terminal."""

    def step(self, status: _Status) -> None:
        """Show how things stand after a step."""

    def validation(self, done: int, total: int) -> None:
        """Show how far a validation is."""

    def end_validation(self) -> None:
        """Leave the validation."""

    def say(self, text: str) -> None:
        """Print a line in any case."""
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Let go of the terminal."""


class _Lines(_Display):
    """Plain lines for the log of a batch job: the first step, each tenth of the run, each half minute."""

    def __init__(self, total_steps: int, first_step: int, clock: Callable[[], float]) -> None:
        self._total = total_steps
        self._first = first_step
        self._next = first_step + 1
        self._clock = clock
        self._last_line = clock()

    def step(self, status: _Status) -> None:
        if not (status.step >= self._next or status.step == self._total or self._is_time()):
            return
        tenth = max(math.ceil(self._total / 10), 1)
        self._next = (status.step // tenth + 1) * tenth
        left = status.seconds / (status.step - self._first) * (self._total - status.step)
        self.say(
            f"step {status.step}/{self._total} ({status.step / self._total:.0%})  epoch {status.epoch:.2f}  "
            f"{status.figures()}  {_duration(status.seconds)} elapsed, {_duration(left)} left"
        )

    def validation(self, done: int, total: int) -> None:
        if self._is_time():
            self.say(f"validation {done}/{total}")

    def say(self, text: str) -> None:
        self._last_line = self._clock()
        super().say(text)

    def _is_time(self) -> bool:
        return self._clock() - self._last_line >= SECONDS_BETWEEN_LINES


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _FiguresAndBars(Progress):
    """A row of figures above the bars: beside them there is no room on a terminal of 80 columns."""

    figures = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield Text(self.figures)
        yield self.make_tasks_table(self.tasks)


class _Bar(_Display):
    """A progress bar, and below it a second one while a validation runs."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._progress = _FiguresAndBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            redirect_stdout=sys.stdout.isatty(),  # output that goes to a file stays out of the bar
            speed_estimate_period=600,  # a step may take longer than the 30 seconds that are the default
        )
        self._training = self._progress.add_task("training", total=total_steps, completed=first_step)
        self._validation: TaskID | None = None

    def start(self) -> None:
        self._progress.start()

    def step(self, status: _Status) -> None:
        self._progress.figures = status.figures()
        self._progress.update(self._training, completed=status.step, description=f"epoch {status.epoch:.2f}")

    def validation(self, done: int, total: int) -> None:
        if self._validation is None:
            self._validation = self._progress.add_task("validation", total=total, completed=done)
        self._progress.update(self._validation, completed=done)

    def end_validation(self) -> None:
        if self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()


class _Events:
    """A TensorBoard event file, written with TensorBoard's own records.

    torch.utils.tensorboard would do the same, but it imports TensorFlow where that is installed.
    Raises ImportError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads all files with "tfevents" in the name, in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._add(file_version="brain.Event:2")
        # A start at a step tells TensorBoard to drop what older files hold from that step on.
        self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        values = [self._summary.Value(tag=f"{split}/{name}", simple_value=figure) for name, figure in figures.items()]
        self._add(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _add(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()


class RunLog:
    """Tells people and files how a run goes. A context manager, for one process (the first)."""

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
        """Open the files in `folder`, for a run of which `first_step` steps are done already.

        Lines of metrics.jsonl about later steps are dropped: those steps are to be made again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        kept = _keep_until(folder / METRICS, first_step)
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        self._file = (folder / METRICS).open("a", encoding="utf-8", newline="\n")
        self._loss = _RunningMean()
        self._shows_progress = progress_bar
        self._display = _Display()
        if progress_bar and sys.stderr.isatty():
            self._display = _Bar(total_steps, first_step)
        elif progress_bar:
            self._display = _Lines(total_steps, first_step, clock)
        self._events: _Events | None = None
        if tensorboard:
            try:
                self._events = _Events(folder / "tensorboard", first_step)
            except ImportError:
                self.say('No TensorBoard curves: tensorboard is not installed (pip install "megabert[track]").')
        self._meter = _Meter(clock)  # last: the import of tensorboard is none of the run's time

    def __enter__(self) -> Self:
        self._display.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.stop()
        self._file.close()
        if self._events is not None:
            self._events.close()

    def step(self, step: int, *, loss: float, lr: float, tokens: int, grad_norm: float, epoch: float) -> None:
        """Show a step that is done. `tokens` leaves out padding; `epoch` is how many are done, say 1.25."""
        self._meter.add(tokens)
        self._display.step(
            _Status(
                step=step,
                epoch=epoch,
                loss=self._loss.add(loss),
                lr=lr,
                grad_norm=grad_norm,
                tokens_per_second=self._meter.recent_rate(),
                seconds=self._meter.seconds(),
            )
        )

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append figures to metrics.jsonl and TensorBoard. Their "split" is "train" or "validation".

        Training figures get tokens_per_second since the last line; those of a validation are shown as well.
        """
        figures = {name: figure for name, figure in figures.items() if figure is not None}
        split = figures.pop("split")
        if split == "train":
            figures["tokens_per_second"] = round(self._meter.rate_since_mark(), 1)
        elif self._shows_progress:
            # Whole numbers are counts of the data, the same each time.
            shown = [
                f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float) and "/" not in name
            ]
            self.say(f"step {step}  {split}: {'  '.join(shown)}")
        seconds = round(self._seconds_before + self._meter.seconds(), 3)
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        line = {"step": step, "seconds": seconds, "split": split, **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(step, split, figures)

    @contextmanager
    def validation(self) -> Iterator[Callable[[int, int], None]]:
        """Show a validation: call what comes back with the batches that are done and all of them.

        The time that it takes does not count in tokens per second.
        """
        with self._meter.paused():
            try:
                yield self._display.validation
            finally:
                self._display.end_validation()

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        self._display.say(text)


class SilentLog(RunLog):
    """The log of a process that does not speak: another one writes the same figures."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, step: int, *, loss: float, lr: float, tokens: int, grad_norm: float, epoch: float) -> None:
        """Say nothing."""

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Say nothing."""

    @contextmanager
    def validation(self) -> Iterator[Callable[[int, int], None]]:
        """Say nothing."""
        yield lambda done, total: None

    def say(self, text: str) -> None:
        """Say nothing."""
