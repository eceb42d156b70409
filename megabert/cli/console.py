"""What all commands share: argument parsers, log lines and progress bars on the terminal, JSON output."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config.listing import list_settings
from ..errors import ConfigError, print_message, printable
from ..formats.data_files import expand_names

STDOUT = "standard output"
Command = Callable[[Sequence[str]], int | None]
"""A command: takes the words behind its name; may return an exit code."""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors exit with 64, like those of settings."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. See {self.prog} --help.")


class _SettingsParser(_Parser):
    """A parser whose help lists settings: their strings are read from the source, which only help may take time for."""

    schema: type

    def format_help(self) -> str:
        settings = "\n".join(f"  {setting.heading()}\n      {setting.help}" for setting in list_settings(self.schema))
        note, self.epilog = self.epilog, f"settings:\n{settings}\n\n{self.epilog}"
        text = super().format_help()
        self.epilog = note
        return text


def new_parser(name: str, command: Command, epilog: str) -> argparse.ArgumentParser:
    """Create the parser of a command; the command's docstring is the description in its help."""
    return _Parser(prog=f"megabert {name}", description=command.__doc__, epilog=epilog, allow_abbrev=False)


def add_subcommand(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, details: str = ""
) -> argparse.ArgumentParser:
    """Add a subcommand that `arguments.run(arguments)` runs; its own help shows the details, or else the summary."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=details or f"{summary}.")
    parser.set_defaults(run=run)
    return parser


def new_settings_parser(name: str, command: Command, schema: type, note: str) -> argparse.ArgumentParser:
    """Create the parser of a command with settings; its help lists them, followed by a note."""
    parser = _SettingsParser(prog=f"megabert {name}", description=command.__doc__, epilog=note, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.schema = schema
    return parser


def require_not_input(output: Path | str | None, inputs: Iterable[Path | str | None]) -> None:
    """Raise ConfigError if a file to write is one of those that the command reads, names or patterns; None is none."""
    names = expand_names([str(name) for name in inputs if name is not None])
    if output is not None and any(
        Path(name).exists() and Path(output).exists() and Path(output).samefile(name) for name in names
    ):
        raise ConfigError(f"{output} is read by this command, and would be overwritten. Name another file.")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on stderr if it is a terminal; yields its update function (done, total), or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def log(line: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print_message(line)


def show(text: str, end: str = "\n") -> None:
    """Print a result to stdout; raises OSError as `writing_to_stdout` does."""
    with writing_to_stdout():
        sys.stdout.write(printable(text + end, sys.stdout.encoding))


def flush_output() -> None:
    """Write what `show` has buffered."""
    if sys.stdout is not None:
        with writing_to_stdout():
            sys.stdout.flush()


@contextmanager
def writing_to_stdout() -> Iterator[None]:
    """Raise an OSError that names stdout where it is closed or its disk is full."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "the stream is closed", STDOUT)
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from None


def abandon(stream: Any) -> None:
    """Discard what could not be written to a stream: Python would try again at its exit, and report an error."""
    with suppress(OSError, ValueError, AttributeError):  # a closed one, or one without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def to_json(document: Any) -> str:
    """Format a document as indented JSON; a list that fits is one line."""
    return _indented(document, "")


def _indented(value: Any, margin: str) -> str:
    line = json.dumps(value, ensure_ascii=False)
    inner = f"{margin}  "
    if isinstance(value, dict) and value:
        items = [
            f"{json.dumps(str(name), ensure_ascii=False)}: {_indented(item, inner)}" for name, item in value.items()
        ]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{margin}}}"
    if isinstance(value, list | tuple) and (len(line) > MAX_LIST or any(isinstance(item, dict) for item in value)):
        return "[\n" + ",\n".join(inner + _indented(item, inner) for item in value) + f"\n{margin}]"
    return line


MAX_LIST = 100
"""Characters of a list that is printed in one line."""
