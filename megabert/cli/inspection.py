"""The command that reports on checkpoints: inspect."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .checkpoint_options import SOURCE_HELP, add_source_options, open_source
from .console import log, new_parser, progress_bar, show, to_json

if TYPE_CHECKING:
    from ..checkpoints.open import Checkpoint

_SAMPLE = "-"


def inspect(words: Sequence[str]) -> None:
    """Report what a checkpoint is, what it contains and what is assumed: megabert inspect CHECKPOINT."""
    arguments = _parser().parse_args(list(words))
    opened = open_source(arguments.checkpoint, arguments, arguments.qkv_layout)
    if arguments.logits is not None:
        _write_logits(arguments, opened.checkpoint)
        return
    from ..diagnostics.checkpoint_report import describe, hash_files, to_text

    with progress_bar("reading") as progress:
        report = describe(
            opened.checkpoint, num_tokens=opened.num_tokens, values=not arguments.quick, progress=progress
        )
    if arguments.check_language_model is not None:
        report["language_model_check"] = _check(arguments, opened.checkpoint)
    if arguments.sha256:
        report["files"] = hash_files(Path(opened.checkpoint.source))
    show(to_json(report) if arguments.json else to_text(report))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "inspect",
        inspect,
        "With --logits the network runs on the token ids of a safetensors file (input_ids and, if there are any, "
        "tokentype_ids and attention_mask, each [rows, tokens]) in float32, and lm_logits and binary_logits are "
        "written, including the padding rows of the vocabulary, to compare them with those of the original program.",
    )
    parser.add_argument("checkpoint", help=SOURCE_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON; docs/checkpoints.md lists the keys")
    parser.add_argument("--quick", action="store_true", help="do not read the tensors (no search for NaN and the like)")
    parser.add_argument("--sha256", action="store_true", help="compute the SHA-256 of every file of the checkpoint")
    parser.add_argument(
        "--logits", nargs=2, type=Path, metavar=("INPUTS", "OUT"), help="safetensors files to read and to write"
    )
    parser.add_argument(
        "--check-language-model",
        nargs="?",
        const=_SAMPLE,
        metavar="TEXT_OR_FILE",
        help="detect the query-key-value layout by the loss on a text (default: an English sample)",
    )
    add_source_options(parser)
    return parser


def _write_logits(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> None:
    from ..diagnostics.checkpoint_logits import write_logits

    shapes = write_logits(checkpoint, *arguments.logits)
    if arguments.json:
        show(to_json({name: list(shape) for name, shape in shapes.items()}))
    log(f"Wrote {', '.join(f'{name} {shape}' for name, shape in shapes.items())} to {arguments.logits[1]}.")


def _check(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> dict[str, Any]:
    from ..diagnostics.qkv_check import SAMPLE_TEXT, check_qkv_layout

    given = arguments.check_language_model
    text = SAMPLE_TEXT if given == _SAMPLE else given
    if len(given) < 4096 and Path(given).is_file():
        try:
            text = Path(given).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{given} is not text in UTF-8: {error}. Give another.") from None
    result = check_qkv_layout(
        checkpoint, lambda layout: open_source(arguments.checkpoint, arguments, layout).checkpoint, text
    )
    if result.agrees is False:
        log(f"megabert: {result.verdict}")
    return result.to_dict()
