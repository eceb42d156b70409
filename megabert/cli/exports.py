"""The command `export`: a trained run in a format that runs elsewhere."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError
from .console import log, new_parser


def export(words: Sequence[str]) -> int:
    """Write a trained run for use elsewhere, and prove it: megabert export RUN -o FOLDER --to FORMAT."""
    parser = new_parser("export", export, "The logits of the result are compared with those of the run.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run folder, or one of its checkpoint folders")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write; it must not exist yet")
    add("--to", required=True, choices=tuple(FORMATS), help="format to write")
    add("--file", type=Path, metavar="DEV", help="data file with labels: the score before and after")
    add("--task", metavar="FILE", help="Python file of the task, if the run is of your own task")
    arguments = parser.parse_args(list(words))
    if arguments.output.exists():
        raise ConfigError(f"{arguments.output} exists. Remove it, or name another folder.")
    for line in FORMATS[arguments.to](arguments):
        log(line)
    log(f"Wrote {arguments.output}.")
    return 0


def _to_onnx(arguments: argparse.Namespace) -> Iterable[str]:
    raise NotImplementedError


def _to_huggingface(arguments: argparse.Namespace) -> Iterable[str]:
    from ..export.huggingface_export import export_huggingface

    return export_huggingface(arguments.run, arguments.output, arguments.file)


FORMATS: Mapping[str, Callable[[argparse.Namespace], Iterable[str]]] = {
    "onnx": _to_onnx,
    "huggingface": _to_huggingface,
}
"""Functions that write `arguments.output`, and yield lines for the user."""
