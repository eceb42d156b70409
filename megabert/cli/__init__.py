"""The command `megabert`: dispatch to one of COMMANDS, print errors, return an exit code.

Commands import torch and hydra inside their functions, so that `megabert --help` is fast.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from .. import __version__
from ..config.parser import did_you_mean
from ..errors import CheckpointWarning, ConfigError, MegabertError
from .annotation import annotate
from .checkpoints import fetch, models
from .conversion import convert
from .corpora import corpus, vocabulary
from .imports import import_data
from .inspection import inspect
from .plan import plan
from .predictions import evaluate, predict, score
from .settings import config
from .training import train

COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "score": score,
    "annotate": annotate,
    "config": config,
    "import": import_data,
    "corpus": corpus,
    "vocabulary": vocabulary,
    "models": models,
    "fetch": fetch,
    "inspect": inspect,
    "convert": convert,
    "plan": plan,
}
EXIT_CODES = {
    0: "success",
    64: "a setting or an argument is invalid",
    65: "a data file is invalid, or a loss is not finite",
    66: "a checkpoint is missing or invalid",
    70: "an internal error: a bug of megabert",
    73: "a file cannot be written",
    74: "the disk is full",
    75: "interrupted; the work can be resumed",
    76: "another process of the training was lost",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a MegabertError is printed without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 64
    if words[0] == "--version":
        print(f"megabert {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            hint = did_you_mean(words[0], COMMANDS)
            raise ConfigError(f"{words[0]!r} is not a command.{hint} See megabert --help.")
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            return COMMANDS[words[0]](words[1:])
    except MegabertError as error:
        if not error.is_reported:
            print(f"megabert: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of the pipe (head, less) has exited, which is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"megabert: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 74 if error.errno == errno.ENOSPC else 73
    except KeyboardInterrupt:
        print("megabert: interrupted.", file=sys.stderr)
        return 75
    except Exception:
        # The outermost frame: a bug keeps its traceback and has an exit code of its own.
        traceback.print_exc()
        return 70


def _show_warning(show: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a warning of megabert like its errors, without the line of code that others are shown with."""
    if issubclass(category, CheckpointWarning):
        print(f"megabert: {message}", file=sys.stderr)
    else:
        show(message, category, *where)


def _overview() -> str:
    lines = [f"megabert {__version__}: train, evaluate, convert and run models of Megatron-LM's BERT family.", ""]
    lines += [f"  megabert {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    lines += ["", "`megabert COMMAND --help` describes the options of a command.", "", "exit codes:"]
    lines += [f"  {code:>2}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines)
