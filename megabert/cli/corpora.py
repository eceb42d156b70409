"""The commands that prepare pre-training data from raw text: corpus and vocabulary."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..storage import atomic_write
from .console import add_subcommand, log, new_parser, progress_bar, require_not_input, show, to_json

_INPUTS = "files or folders: *.txt (documents separated by blank lines), *.jsonl, PubMed *.xml; also as .gz and .xz"


def corpus(words: Sequence[str]) -> None:
    """Tokenize documents into Megatron-LM's .bin and .idx files: megabert corpus build INPUT -o PREFIX ..."""
    parser = new_parser("corpus", corpus, "`megabert corpus VERB --help` describes the options.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    builder = add_subcommand(
        verbs,
        "build",
        _build,
        "Text, JSON lines or PubMed XML -> PREFIX.bin and PREFIX.idx",
        "Split documents into sentences, tokenize them and write Megatron-LM's token files. Duplicate documents are "
        "dropped. Repeat the same command to resume an interrupted build.",
    )
    builder.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=_INPUTS)
    builder.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PREFIX", help="path without .bin and .idx"
    )
    builder.add_argument(
        "--vocab_file", required=True, help="WordPiece vocabulary, one token per line, or GPT-2's vocab.json"
    )
    builder.add_argument("--merges_file", help="GPT-2's merges.txt (default: the one beside vocab.json)")
    builder.add_argument("--case", choices=("lower", "keep"), help="default: according to the vocabulary")
    builder.add_argument(
        "--by",
        choices=("sentence", "document"),
        help="what becomes a sequence: sentences for BERT (default), documents for GPT (default with vocab.json)",
    )
    builder.add_argument(
        "--append_end",
        action="store_true",
        default=None,
        help="append the end-of-text token to each document, for GPT (default with vocab.json)",
    )
    _add_document_options(builder)
    builder.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    viewer = add_subcommand(
        verbs, "info", _info, "Count documents, sequences and tokens of a corpus, and check all tokens"
    )
    viewer.add_argument("prefix", type=Path, help="path without .bin and .idx")
    viewer.add_argument("--vocab_file", type=Path, help="compare all tokens with it, and print the first document")
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def _add_document_options(parser: argparse.ArgumentParser) -> None:
    from ..formats.corpus_documents import LONGEST_DOCUMENT_MB

    parser.add_argument("--json_key", default="text", help="key of the text in JSON lines (default: text)")
    parser.add_argument(
        "--max_document_mb",
        type=float,
        default=LONGEST_DOCUMENT_MB,
        help=f"a longer line or document is an error (default: {LONGEST_DOCUMENT_MB})",
    )


def _build(arguments: argparse.Namespace) -> None:
    from ..pretraining.corpus_builder import BuildSettings, build

    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: at least one process is needed.")
    is_gpt = arguments.vocab_file.endswith(".json")
    settings = BuildSettings(
        vocab_file=arguments.vocab_file,
        merges_file=arguments.merges_file,
        lower_case={"lower": True, "keep": False}.get(arguments.case or ""),
        by_sentence=(arguments.by or ("document" if is_gpt else "sentence")) == "sentence",
        append_end=is_gpt if arguments.append_end is None else arguments.append_end,
        json_key=arguments.json_key,
        max_document_mb=arguments.max_document_mb,
    )
    with progress_bar("tokenizing") as progress:
        report = build(arguments.inputs, arguments.output, settings, workers=arguments.workers, progress=progress)
    show(to_json(dataclasses.asdict(report)))
    log(f"Wrote {arguments.output}.bin and {arguments.output}.idx.")


def _info(arguments: argparse.Namespace) -> None:
    import numpy as np

    from ..pretraining.indexed_dataset import IndexedDataset
    from ..tokenizers.load import read_tokenizer

    dataset = IndexedDataset(arguments.prefix)
    tokenizer = None
    if arguments.vocab_file is not None:
        tokenizer = read_tokenizer(arguments.vocab_file, None, lower_case=None)
    largest = dataset.check_tokens(None if tokenizer is None else len(tokenizer))
    ends = np.concatenate([[0], np.cumsum(dataset.lengths, dtype=np.int64)])
    lengths = {"document": np.diff(ends[dataset.documents]), "sequence": dataset.lengths}
    counts = {
        "documents": dataset.num_documents,
        "sequences": len(dataset),
        "tokens": dataset.num_tokens,
        "token_type": str(dataset.dtype),
        "largest_token": largest,
    }
    spread = {
        f"tokens_of_a_{unit}": {"median": float(np.median(values)), "largest": int(values.max())}
        for unit, values in lengths.items()
    }
    show(to_json(counts | spread))
    if tokenizer is not None:
        for sequence in dataset.document(0):
            show(tokenizer.decode(sequence.tolist()))


def vocabulary(words: Sequence[str]) -> None:
    """Train a WordPiece vocabulary: megabert vocabulary train INPUT --size 30000 -o vocab.txt."""
    parser = new_parser("vocabulary", vocabulary, "`megabert vocabulary train --help` describes the options.")
    trainer = add_subcommand(
        parser.add_subparsers(metavar="VERB", required=True),
        "train",
        _train_vocabulary,
        "Train a vocabulary on documents",
        "Train a WordPiece vocabulary as BERT's: special tokens first, then characters, then subwords.",
    )
    trainer.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help=_INPUTS)
    trainer.add_argument("--size", type=int, required=True, help="number of tokens, for example 30000")
    trainer.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="vocab.txt to write")
    trainer.add_argument("--case", choices=("lower", "keep"), default="lower", help="default: lower")
    _add_document_options(trainer)
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def _train_vocabulary(arguments: argparse.Namespace) -> None:
    from ..formats.corpus_documents import corpus_files, read_documents
    from ..tokenizers.train import train_wordpiece

    if arguments.size < 100:
        raise ConfigError(f"--size {arguments.size}: a vocabulary has at least 100 tokens.")
    files = corpus_files(arguments.inputs)
    require_not_input(arguments.output, files)
    documents = (
        document
        for file in files
        for document in read_documents(file, arguments.json_key, max_mb=arguments.max_document_mb)
    )
    tokens = train_wordpiece(
        documents, arguments.size, lower_case=arguments.case == "lower", show_progress=sys.stderr.isatty()
    )
    atomic_write(arguments.output, "".join(f"{token}\n" for token in tokens))
    log(f"Wrote {len(tokens)} tokens to {arguments.output}.")
