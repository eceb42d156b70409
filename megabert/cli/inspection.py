"""The command that looks into checkpoints: inspect."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .console import log, new_parser, progress_bar, to_json

_SAMPLE = "-"


def inspect(words: Sequence[str]) -> int:
    """Say what a checkpoint is, what is in it and what is assumed: megabert inspect CHECKPOINT."""
    parser = new_parser(
        "inspect",
        inspect,
        "With --logits the network runs on the token ids of a safetensors file (input_ids and, if there are any, "
        "tokentype_ids and attention_mask, each [rows, tokens]) in float32, and lm_logits and binary_logits are "
        "written, the padded rows of the vocabulary included: compare them with those of the program that trained it.",
    )
    parser.add_argument(
        "checkpoint", help="checkpoint file or folder of any make, a run, or a name of `megabert models`"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; docs/checkpoints.md lists the keys")
    parser.add_argument("--quick", action="store_true", help="do not read the numbers (no search for NaN and the like)")
    parser.add_argument("--sha256", action="store_true", help="compute the SHA-256 of every file of the checkpoint")
    parser.add_argument(
        "--logits", nargs=2, type=Path, metavar=("INPUTS", "OUT"), help="safetensors files to read and to write"
    )
    parser.add_argument(
        "--check-language-model",
        nargs="?",
        const=_SAMPLE,
        metavar="TEXT_OR_FILE",
        help="find out by a text in which order the query-key-value rows lie (default: a text of ours, in English)",
    )
    parser.add_argument("--vocab-file", type=Path, metavar="FILE", help="the vocab.txt that it was trained with")
    parser.add_argument(
        "--bert_config", type=Path, metavar="FILE", help="sizes that the checkpoint does not hold, as JSON"
    )
    parser.add_argument("--qkv-layout", metavar="LAYOUT", help="order of the query-key-value rows, where it is known")
    arguments = parser.parse_args(list(words))
    opened = _open(arguments, arguments.qkv_layout)
    from ..diagnostics.checkpoint_report import describe, sums, to_text, write_logits

    if arguments.logits is not None:
        shapes = write_logits(opened.checkpoint, *arguments.logits)
        if arguments.json:
            print(to_json({name: list(shape) for name, shape in shapes.items()}))
        log(f"Wrote {', '.join(f'{name} {shape}' for name, shape in shapes.items())} to {arguments.logits[1]}.")
        return 0
    with progress_bar("reading") as progress:
        report = describe(
            opened.checkpoint, num_tokens=opened.num_tokens, values=not arguments.quick, progress=progress
        )
    if arguments.check_language_model is not None:
        report["language_model_check"] = _check(arguments, opened.checkpoint)
    if arguments.sha256:
        report["files"] = sums(Path(opened.checkpoint.source))
    print(to_json(report) if arguments.json else to_text(report))
    return 0


def _open(arguments: Any, qkv_layout: str | None) -> Any:
    from ..checkpoints.catalog import cache_home
    from ..checkpoints.source import open_named_source

    return open_named_source(
        arguments.checkpoint,
        home=cache_home(os.environ),
        config_file=arguments.bert_config,
        vocab_file=arguments.vocab_file,
        qkv_layout=qkv_layout,
    )


def _check(arguments: Any, checkpoint: Any) -> dict[str, Any]:
    from ..diagnostics.qkv_check import SAMPLE_TEXT, check

    given = arguments.check_language_model
    text = SAMPLE_TEXT if given == _SAMPLE else given
    if len(given) < 4096 and Path(given).is_file():
        try:
            text = Path(given).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{given} is not text in UTF-8: {error}. Give another.") from None
    result = check(checkpoint, lambda layout: _open(arguments, layout).checkpoint, text)
    if result.agrees is False:
        log(f"megabert: {result.verdict}")
    return result.to_dict()
