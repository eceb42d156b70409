"""The command that converts checkpoints: convert."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

from .checkpoint_options import SOURCE_HELP, add_source_options, open_source
from .console import log, new_parser, progress_bar


def convert(words: Sequence[str]) -> None:
    """Write a checkpoint in another format or layout: megabert convert SOURCE DEST --to FORMAT."""
    parser = new_parser(
        "convert",
        convert,
        "The result is compared with the source, bit for bit. Padding of the vocabulary is removed where its true size "
        "is known (vocab.txt beside the weights, or --vocab-file), and added as the target's layout needs it. "
        "Megatron-LM's and NeMo's formats get the tensor names of v2.1 to v2.6, megatron-core those of megatron.core.",
    )
    formats = ("megabert", "huggingface", "megatron", "megatron-core", "nemo")
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument("dest", type=Path, help="folder to write (for nemo: file); it must not exist yet")
    parser.add_argument("--to", required=True, choices=formats, help="format to write")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="shards of each layer (default 1)")
    parser.add_argument("--pipeline-parallel", type=int, default=1, metavar="N", help="pipeline stages (default 1)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as in the source")
    add_source_options(parser)
    arguments = parser.parse_args(list(words))
    _return_freed_memory()
    from ..checkpoints.convert import DTYPES, Target
    from ..checkpoints.convert import convert as convert_checkpoint
    from ..checkpoints.megatron.write_megatron import ModelParallelLayout

    opened = open_source(arguments.source, arguments, arguments.qkv_layout)
    source = opened.checkpoint
    for line in (f"format: {source.format}", *source.notes):
        log(line)
    if opened.num_tokens is None:
        log("vocabulary: its true size is not known (--vocab-file FILE), so all rows are kept")
    layout = ModelParallelLayout(arguments.tensor_parallel, arguments.pipeline_parallel)
    target = Target(arguments.to, layout, None if arguments.dtype is None else DTYPES[arguments.dtype])
    with progress_bar("converting") as progress:
        notes = convert_checkpoint(source, arguments.dest, target, num_tokens=opened.num_tokens, progress=progress)
    for note in notes:
        log(note)
    log(f"Wrote {arguments.dest}: every tensor reads back bit for bit.")


def _return_freed_memory() -> None:
    """Make glibc return every large block of memory to the system as soon as it is freed.

    By default it keeps blocks below 32 MB in fragmented arenas: converting 1.3 billion parameters into 8 shards of
    0.3 GB took 2.6 GB. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    try:
        ctypes.CDLL(None).mallopt(-3, 2**20)
    except (OSError, AttributeError, TypeError):  # another C library
        return
