"""Errors for users: which value is wrong, where it came from and what to do; each class has its exit code.

The command line prints their message without a traceback and exits with `exit_code`. The codes follow BSD's
sysexits.h (64 usage, 65 data, 70 internal, 75 temporary failure); 66 stands for a checkpoint that cannot be used.
Any other exception is a bug and keeps its traceback.
"""

import copyreg
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

# Characters that move the cursor, change colours or reorder text: a name in a file must not do that to a terminal.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class MegabertError(Exception):
    """Base class of the errors that the command line prints as one message."""

    exit_code = 70
    is_reported = False
    """Whether another process of the same run already prints this error."""


class ConfigError(MegabertError):
    """A setting or an argument does not exist, is invalid, or contradicts another."""

    exit_code = 64


class InputError(MegabertError):
    """A data file cannot be parsed, or a loss or norm is not finite."""

    exit_code = 65


class InputWarning(UserWarning):
    """Data are read, but some of it is left out, truncated or probably not what was meant."""


class ExamplesWarning(InputWarning):
    """Something holds for some of the examples; `counts` of several blocks of examples add up.

    `text` is a format string of `first`, what it holds for first, `total`, the number of examples, and the counts.
    """

    def __init__(self, text: str, first: str, total: int, **counts: int) -> None:
        super().__init__(text.format(first=first, total=total, **counts))
        self.text, self.first, self.counts = text, first, counts

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message as it is; another process may send it."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    def with_later(self, others: "Sequence[ExamplesWarning]", total: int) -> "ExamplesWarning":
        """Add the counts of later blocks; `total` is the number of all examples."""
        counts = {name: count + sum(item.counts[name] for item in others) for name, count in self.counts.items()}
        return ExamplesWarning(self.text, self.first, total, **counts)


class CheckpointError(MegabertError):
    """A checkpoint, vocabulary or run folder is missing, damaged, or of another shape."""

    exit_code = 66


class CheckpointWarning(UserWarning):
    """A damaged checkpoint of a run is skipped for another one, or a damaged cache entry is made again."""


class Interrupted(MegabertError):  # noqa: N818  (not a failure: the run can be resumed)
    """The user or the scheduler stopped the run; a checkpoint is saved."""

    exit_code = 75


class PeerLost(MegabertError):  # noqa: N818  (names the event)
    """Another process of a distributed run has exited, so this one cannot continue."""

    exit_code = 76


def printable(text: str, encoding: str | None = "utf-8") -> str:
    """Escape control characters as JSON does; escape all but ASCII if `encoding` lacks a character of the text."""
    text = _CONTROLS.sub(_escape, text)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        text = re.sub("[^\x00-\x7f]", _escape, text)
    return text


def _escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def print_message(line: str) -> None:
    """Print a line to stderr. That a disk is full or the stream closed does not end the work: results go elsewhere."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(printable(line, sys.stderr.encoding), file=sys.stderr, flush=True)
