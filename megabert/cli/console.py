"""What all commands share: parsers of words, lines and bars on the terminal, JSON."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes exit like all others, with 64."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def new_parser(name: str, command: Callable[[Sequence[str]], int], epilog: str) -> argparse.ArgumentParser:
    """Make the parser of a command; its docstring is the help text's first line."""
    return _Parser(prog=f"megabert {name}", description=command.__doc__, epilog=epilog, allow_abbrev=False)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on the terminal; nothing where there is none."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say(line: str) -> None:
    """Print a line for people, on stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def quote(value: str) -> str:
    """Quote a value for Hydra's grammar, whatever characters it holds."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def to_json(document: Any) -> str:
    """Write a document as JSON that people can read too."""
    return json.dumps(document, indent=2, ensure_ascii=False)
