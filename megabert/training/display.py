"""Progress of a training on the terminal: a progress bar, or plain lines where stderr is no terminal."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

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

from ..errors import print_message, printable

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class StepStatus:
    """Metrics shown after a step; the loss is smoothed over about 50 steps."""

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds: float

    def line(self) -> str:
        """Format the metrics as one line."""
        return (
            f"smoothed loss {self.loss:.4f}  lr {self.lr:.2e}  norm {self.grad_norm:.2f}  "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


class Display:
    """Progress display. This base class shows messages only."""

    def step(self, status: StepStatus) -> None:
        """Show the metrics after a step."""

    def validation(self, done: int, total: int | None) -> None:
        """Show the progress of a validation in batches."""

    def end_validation(self) -> None:
        """Remove the progress of a validation."""

    def message(self, message: str) -> None:
        """Print a message."""
        print_message(message)

    def stop(self) -> None:
        """Stop drawing."""


class LineDisplay(Display):
    """Plain lines for log files: after the first step, each tenth of the run, each half minute."""

    def __init__(self, total_steps: int, first_step: int, clock: Callable[[], float]) -> None:
        self._total = total_steps
        self._first = first_step
        self._next = first_step + 1
        self._clock = clock
        self._last_line = clock()

    def step(self, status: StepStatus) -> None:
        """Show the metrics after a step."""
        if not (status.step >= self._next or status.step == self._total or self._is_time()):
            return
        tenth = max(math.ceil(self._total / 10), 1)
        self._next = (status.step // tenth + 1) * tenth
        left = status.seconds / (status.step - self._first) * (self._total - status.step)
        self.message(
            f"step {status.step}/{self._total} ({status.step / self._total:.0%})  epoch {status.epoch:.2f}  "
            f"{status.line()}  {_duration(status.seconds)} elapsed, {_duration(left)} left"
        )

    def validation(self, done: int, total: int | None) -> None:
        """Show the progress of a validation in batches."""
        if self._is_time() and total is not None:
            self.message(f"validation {done}/{total}")

    def message(self, message: str) -> None:
        """Print a message."""
        self._last_line = self._clock()
        super().message(message)

    def _is_time(self) -> bool:
        return self._clock() - self._last_line >= SECONDS_BETWEEN_LINES


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _MetricsAndBars(Progress):
    """A row of metrics above the bars, since both do not fit into 80 columns."""

    metrics = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield Text(self.metrics)
        yield self.make_tasks_table(self.tasks)


class BarDisplay(Display):
    """Progress bar of the training, with a second one below it during a validation."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self._progress = _MetricsAndBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            redirect_stdout=sys.stdout.isatty(),  # output redirected to a file stays out of the bar
            speed_estimate_period=600,  # steps may take longer than the default of 30 seconds
        )
        self._training = self._progress.add_task("training", total=total_steps, completed=first_step)
        self._validation: TaskID | None = None
        self._progress.start()

    def step(self, status: StepStatus) -> None:
        """Show the metrics after a step."""
        self._progress.metrics = status.line()
        self._progress.update(self._training, completed=status.step, description=f"epoch {status.epoch:.2f}")

    def validation(self, done: int, total: int | None) -> None:
        """Show the progress of a validation in batches."""
        if self._validation is None:
            self._validation = self._progress.add_task("validation", total=total, completed=done)
        is_new = self._progress.tasks[-1].total != total
        self._progress.update(self._validation, completed=done, total=total, refresh=is_new)

    def end_validation(self) -> None:
        """Remove the progress of a validation."""
        if self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None

    def message(self, message: str) -> None:
        """Print a message."""
        self._progress.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Stop drawing."""
        self._progress.stop()
