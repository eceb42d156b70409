"""The command that writes checkpoints of other makes: convert."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from .console import log, new_parser, progress_bar


def convert(words: Sequence[str]) -> int:
    """Write a checkpoint in another format or layout: megabert convert SOURCE DEST --to FORMAT."""
    parser = new_parser(
        "convert",
        convert,
        "The result is compared with the source, bit for bit, before the command says that it is done. Padding of the "
        "vocabulary is cut off where its true size is known (vocab.txt beside the weights, or --vocab-file), and made "
        "anew for the layout that is written. Megatron-LM's and NeMo's formats get the names of v2.1 to v2.6, "
        "megatron-core those of megatron.core.",
    )
    formats = ("megabert", "huggingface", "megatron", "megatron-core", "nemo")
    parser.add_argument("source", help="checkpoint file or folder of any make, a run, or a name of `megabert models`")
    parser.add_argument("dest", type=Path, help="folder to write (for nemo: file); it must not exist yet")
    parser.add_argument("--to", required=True, choices=formats, help="format to write")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="parts of each layer (default 1)")
    parser.add_argument("--pipeline-parallel", type=int, default=1, metavar="N", help="parts of the stack (default 1)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as in the source")
    parser.add_argument(
        "--vocab-file", type=Path, metavar="FILE", help="the vocab.txt that the source was trained with"
    )
    parser.add_argument("--bert_config", type=Path, metavar="FILE", help="sizes that the source does not hold, as JSON")
    parser.add_argument("--qkv-layout", metavar="LAYOUT", help="order of the query-key-value rows, where it is known")
    arguments = parser.parse_args(list(words))
    _give_memory_back()
    from ..checkpoints import convert as conversion
    from ..checkpoints.catalog import cache_home
    from ..checkpoints.megatron.write_megatron import ModelParallelLayout
    from ..checkpoints.source import open_named_source

    opened = open_named_source(
        arguments.source,
        home=cache_home(os.environ),
        config_file=arguments.bert_config,
        vocab_file=arguments.vocab_file,
        qkv_layout=arguments.qkv_layout,
    )
    source = opened.checkpoint
    for line in (f"format: {source.format}", *source.notes):
        log(line)
    if opened.num_tokens is None:
        log("vocabulary: its true size is not known (--vocab-file FILE), so all rows are kept")
    target = conversion.Target(
        arguments.to,
        ModelParallelLayout(arguments.tensor_parallel, arguments.pipeline_parallel),
        None if arguments.dtype is None else conversion.DTYPES[arguments.dtype],
    )
    with progress_bar("converting") as progress:
        notes = conversion.convert(source, arguments.dest, target, num_tokens=opened.num_tokens, progress=progress)
    for note in notes:
        log(note)
    log(f"Wrote {arguments.dest}: every tensor reads back bit for bit.")
    return 0


def _give_memory_back() -> None:
    """Have glibc return every large block to the system as soon as it is free.

    It keeps those below 32 MB otherwise, in holes between the tensors that stay: measured on 1.3 billion parameters,
    8 parts of 0.3 GB took 2.6 GB. Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    try:
        ctypes.CDLL(None).mallopt(-3, 2**20)
    except (OSError, AttributeError, TypeError):  # another C library, which has other habits
        return
