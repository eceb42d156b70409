"""Options of commands that open a checkpoint: its vocabulary, its configuration and its query-key-value layout."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..checkpoints.model_source import OpenedSource

SOURCE_HELP = (
    "checkpoint file or folder of any supported format, a run, a name of `megabert models`, or of the Hugging Face hub"
)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a checkpoint."""
    parser.add_argument("--vocab-file", type=Path, metavar="FILE", help="the vocab.txt that it was trained with")
    parser.add_argument(
        "--bert_config", type=Path, metavar="FILE", help="sizes that the checkpoint does not hold, as JSON"
    )
    parser.add_argument("--qkv-layout", metavar="LAYOUT", help="layout of the query-key-value rows, where it is known")
    parser.add_argument(
        "--ignore-argument",
        action="append",
        default=[],
        metavar="NAME",
        help="argument of the checkpoint that is refused, but has no effect on this network",
    )


def open_source(source: str, arguments: argparse.Namespace, qkv_layout: str | None) -> "OpenedSource":
    """Open a published name or a path with the options of the command line."""
    from ..checkpoints.catalog import cache_home
    from ..checkpoints.model_source import open_named_source

    return open_named_source(
        source,
        home=cache_home(os.environ),
        config_file=arguments.bert_config,
        vocab_file=arguments.vocab_file,
        qkv_layout=qkv_layout,
        ignored=arguments.ignore_argument,
    )
