"""The command `megabert`: dispatch to one of COMMANDS, print errors, return an exit code.

Commands import torch and hydra inside their functions, so that `megabert --help` is fast.
"""

import errno
import gc
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from .. import __version__
from ..config.parser import did_you_mean
from ..errors import CheckpointWarning, ConfigError, InputWarning, MegabertError
from ..parallel.signals import interrupt_on_sigterm
from .annotation import annotate
from .checkpoints import fetch, models
from .console import STDOUT, Command, abandon, flush_output, log, show
from .conversion import convert
from .corpora import corpus, vocabulary
from .correction import review, select, suspects
from .doctor import doctor
from .exports import export
from .imports import import_data
from .inspection import inspect
from .linking import dictionary, link
from .merge import merge
from .plan import plan
from .predictions import evaluate, predict, score
from .reranking import rerank
from .retrieval import embed, index, search
from .runs import errors, runs
from .serving import serve
from .settings import config
from .text_generation import generate
from .training import train


def completion(words: Sequence[str]) -> None:
    """Print the script that completes commands and settings in a shell: megabert completion bash."""
    from .completion import print_script

    print_script(words, completion, COMMANDS)


COMMAND_GROUPS: Mapping[str, Mapping[str, Command]] = {
    "Train, evaluate, predict": {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "score": score,
        "generate": generate,
        "serve": serve,
        "runs": runs,
        "errors": errors,
        "config": config,
        "plan": plan,
    },
    "Documents and identifiers": {
        "annotate": annotate,
        "dictionary": dictionary,
        "link": link,
        "select": select,
        "review": review,
        "suspects": suspects,
    },
    "Embeddings and search": {
        "embed": embed,
        "index": index,
        "search": search,
        "rerank": rerank,
    },
    "Data and checkpoints": {
        "import": import_data,
        "corpus": corpus,
        "vocabulary": vocabulary,
        "models": models,
        "fetch": fetch,
        "inspect": inspect,
        "convert": convert,
        "merge": merge,
        "export": export,
    },
    "Installation": {
        "doctor": doctor,
        "completion": completion,
    },
}
COMMANDS = {name: command for group in COMMAND_GROUPS.values() for name, command in group.items()}
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
    # Start-up allocates many objects that live on. After each 700, Python's default, they are searched for garbage: 54
    # times and 0.15 s until the first answer of `predict`, where 10,000 take 0.01 s.
    gc.set_threshold(10_000)
    try:
        code = _run(list(sys.argv[1:] if words is None else words))
        flush_output()
    except MegabertError as error:
        if not error.is_reported:
            log(f"megabert: {error}")
        code = error.exit_code
    except BrokenPipeError:
        # The reader of the pipe (head, less) has exited, which is no error.
        abandon(sys.stdout)
        code = 0
    except OSError as error:
        # `mkdir` of a folder, or below one, where a file stands
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is where a folder must be" if is_file else error.strerror or error
        log(f"megabert: {reason}: {error.filename or ''}".rstrip(": "))
        if error.filename == STDOUT:
            abandon(sys.stdout)
        code = 74 if error.errno == errno.ENOSPC else 73
    except KeyboardInterrupt:
        log("megabert: interrupted.")
        code = 75
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":  # megabert-runtime is without it
            log("megabert: this command needs PyTorch, which is not installed: pip install megabert.")
            code = 64
        else:
            # The outermost frame: a bug keeps its traceback and has an exit code of its own.
            log(traceback.format_exc().rstrip())
            code = 70
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)
    return code


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        show(_overview())
        return 0 if words else 64
    if words[0] == "--version":
        show(f"megabert {__version__}")
        return 0
    if words[0] not in COMMANDS:
        hint = did_you_mean(words[0], COMMANDS)
        raise ConfigError(f"{words[0]!r} is not a command.{hint} See megabert --help.")
    with warnings.catch_warnings(), interrupt_on_sigterm():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        return COMMANDS[words[0]](words[1:]) or 0


def _show_warning(show_line: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Print a warning of megabert like its errors, without the line of code that others are shown with."""
    if issubclass(category, CheckpointWarning | InputWarning):
        log(f"megabert: {message}")
    else:
        show_line(message, category, *where)


def _overview() -> str:
    lines = [f"megabert {__version__}: train, evaluate, convert and run models of Megatron-LM's BERT family."]
    for title, group in COMMAND_GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  megabert {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in group.items()]
    lines += ["", "`megabert COMMAND --help` describes the options of a command.", "", "exit codes:"]
    lines += [f"  {code:>2}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\n".join(lines)
