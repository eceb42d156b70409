"""The command `megabert`: words in, one of the functions of COMMANDS, text and JSON out, an exit code.

Imports stand inside the functions so that `megabert --help` answers at once.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

from .. import __version__
from ..errors import ConfigError, MegabertError
from .checkpoints import fetch, models
from .conversion import convert
from .corpora import corpus, vocabulary
from .imports import import_data
from .inspection import inspect
from .plan import plan
from .runs import config, evaluate, predict, score, train

COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "score": score,
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
EXIT_CODES = (
    "exit codes: 0 done, 64 a setting is wrong, 65 a data file or the numbers are, 66 a checkpoint is, "
    "70 a defect of megabert, 73 a file cannot be written, 74 the disk is full, 75 stopped, can be taken up again, "
    "76 another process of a training is gone"
)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors that speak to people are printed without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 64
    if words[0] == "--version":
        print(f"megabert {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            from ..config.parser import nearest

            guess = nearest(words[0], COMMANDS)
            raise ConfigError(
                f"{words[0]!r} is not a command.{f' Did you mean {guess}?' if guess else ''} See megabert --help."
            )
        return COMMANDS[words[0]](words[1:]) or 0
    except MegabertError as error:
        if not error.is_told:
            print(f"megabert: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"megabert: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 74 if error.errno == errno.ENOSPC else 73
    except KeyboardInterrupt:
        print("megabert: stopped.", file=sys.stderr)
        return 75
    except Exception:
        # The outermost frame: a defect of ours keeps its traceback and gets its own exit code.
        traceback.print_exc()
        return 70


def _overview() -> str:
    lines = [f"megabert {__version__}: Megatron-LM's BERT family, from checkpoint to answers.", ""]
    lines += [f"  megabert {name:<10} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join([*lines, "", "megabert COMMAND --help says more of each.", EXIT_CODES])
