"""What the notebooks share: running megabert's commands in a cell, tables, and texts with highlighted entities."""

import contextlib
import html
import io
import os
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import megabert
from megabert.cli import main

# (background, text) of entity types, readable on light and dark pages
COLOURS = (("#cfe8ff", "#003a66"), ("#ffe0cc", "#6b2400"), ("#d9f2dd", "#0b4017"), ("#f3d9f2", "#4d0b49"))
PROGRESS = " elapsed, "


def new_folder() -> Path:
    """Create an empty folder and enter it, so that commands can use short names of files."""
    folder = Path(tempfile.mkdtemp(prefix="megabert-"))
    os.chdir(folder)
    return folder


def run(command: str) -> None:
    """Run `megabert COMMAND` in this process and print what it prints, without lines of progress.

    Raises RuntimeError if the command fails, so that a notebook stops there.
    """
    output, results = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(results), contextlib.redirect_stderr(output):
        code = main(shlex.split(command))
    package = str(Path(megabert.__file__).parent)
    printed = (output.getvalue() + results.getvalue()).replace(package, "megabert").replace(str(Path.cwd()), ".")
    print("".join(line for line in printed.splitlines(keepends=True) if PROGRESS not in line), end="")
    if code:
        raise RuntimeError(f"megabert {shlex.split(command)[0]} failed with exit code {code}.")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Show a table; floats get one decimal."""
    from IPython.display import Markdown, display

    lines = [headings, ["---"] * len(headings), *rows]
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in cells)))


def highlight(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """Write a text as HTML with spans (start, end, type) in colours; a type's colour depends on its name's order."""
    spans = sorted(spans)
    types = sorted({kind for *_, kind in spans})
    parts, position = [], 0
    for start, end, kind in spans:
        background, colour = COLOURS[types.index(kind) % len(COLOURS)]
        style = f"background:{background};color:{colour};padding:0 .25em;border-radius:.25em"
        label = f'<span style="font-size:.75em;opacity:.8"> {html.escape(kind)}</span>'
        parts += [
            html.escape(text[position:start]),
            f'<mark style="{style}">{html.escape(text[start:end])}{label}</mark>',
        ]
        position = end
    return "<p>" + "".join(parts) + html.escape(text[position:]) + "</p>"


def show(pages: Iterable[str]) -> None:
    """Show pieces of HTML below each other."""
    from IPython.display import HTML, display

    display(HTML("\n".join(pages)))
