"""The commands that make what pre-training needs of text: corpus and vocabulary."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, InputError
from ..storage import atomic_write
from .console import new_parser, progress_bar, say, to_json


def corpus(words: Sequence[str]) -> int:
    """Make Megatron-LM's token files of text, or look into them: megabert corpus build|info ...."""
    parser = new_parser("corpus", corpus, "`megabert corpus build --help` says more.")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=type(parser))
    builder = verbs.add_parser(
        "build",
        help="text, JSON lines or PubMed XML to PREFIX.bin and PREFIX.idx",
        description="Cut documents into sentences, tokenize them and write Megatron-LM's files; documents whose text "
        "came before are left out. A build that was stopped goes on where it was with the same command.",
    )
    builder.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files or folders: *.txt (a blank line "
                         "between documents), *.jsonl, *.xml of PubMed; also .gz and .xz")  # fmt: skip
    builder.add_argument("-o", "--output", type=Path, required=True, metavar="PREFIX")
    builder.add_argument(
        "--vocab_file", required=True, help="WordPiece vocabulary, a token a line, or GPT-2's vocab.json"
    )
    builder.add_argument("--merges_file", help="GPT-2's merges.txt (default: the one beside vocab.json)")
    builder.add_argument("--case", choices=("lower", "keep"), help="default: as the vocabulary says")
    builder.add_argument(
        "--by",
        choices=("sentence", "document"),
        help="what a sequence is: sentences for BERT (default), documents for GPT (default with vocab.json)",
    )
    builder.add_argument(
        "--append_end",
        action="store_true",
        default=None,
        help="end each document with the end-of-text token, as GPT is trained (default with vocab.json)",
    )
    builder.add_argument("--json_key", default="text", help="where JSON lines have the text (default: text)")
    builder.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    builder.set_defaults(function=_build)
    viewer = verbs.add_parser("info", help="what a pair of files holds", description="Say what a pair of files holds.")
    viewer.add_argument("prefix", type=Path, help="the files' path without .bin and .idx")
    viewer.add_argument("--vocab_file", type=Path, help="show the first document as text")
    viewer.set_defaults(function=_info)
    arguments = parser.parse_args(list(words))
    arguments.function(arguments)
    return 0


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
    )
    with progress_bar("tokenizing") as show:
        report = build(arguments.inputs, arguments.output, settings, workers=arguments.workers, progress=show)
    print(to_json(dataclasses.asdict(report)))
    say(f"Wrote {arguments.output}.bin and {arguments.output}.idx.")


def _info(arguments: argparse.Namespace) -> None:
    import numpy as np

    from ..pretraining.indexed_dataset import IndexedDataset
    from ..tokenizers.load import read_tokenizer

    tokens = IndexedDataset(arguments.prefix)
    lengths = np.diff(np.concatenate([[0], np.cumsum(tokens.lengths, dtype=np.int64)])[tokens.documents])
    print(
        to_json(
            {
                "documents": tokens.num_documents,
                "sequences": len(tokens),
                "tokens": tokens.num_tokens,
                "token_type": str(tokens.dtype),
                "tokens_of_a_document": {"median": float(np.median(lengths)), "largest": int(lengths.max())},
                "tokens_of_a_sequence": {
                    "median": float(np.median(tokens.lengths)),
                    "largest": int(tokens.lengths.max()),
                },
            }
        )
    )
    if arguments.vocab_file is not None:
        tokenizer = read_tokenizer(arguments.vocab_file, None, lower_case=None)
        for sequence in tokens.document(0):
            if len(sequence) and int(sequence.max()) >= len(tokenizer):
                raise InputError(
                    f"{arguments.prefix} has tokens beyond the {len(tokenizer)} of {arguments.vocab_file}."
                )
            print(tokenizer.decode(sequence.tolist()))


def vocabulary(words: Sequence[str]) -> int:
    """Make a WordPiece vocabulary of text: megabert vocabulary train INPUT --size 30000 --output vocab.txt."""
    parser = new_parser("vocabulary", vocabulary, "")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=type(parser))
    trainer = verbs.add_parser(
        "train",
        help="learn the pieces that words are made of",
        description="Learn a WordPiece vocabulary as BERT's: special tokens first, then letters, then pieces of words.",
    )
    trainer.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="as those of `megabert corpus build`")
    trainer.add_argument("--size", type=int, required=True, help="tokens of the vocabulary, for example 30000")
    trainer.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="vocab.txt to write")
    trainer.add_argument(
        "--case", choices=("lower", "keep"), default="lower", help="lower-case the text (default) or not"
    )
    trainer.add_argument("--json_key", default="text", help="where JSON lines have the text (default: text)")
    arguments = parser.parse_args(list(words))
    _train_vocabulary(arguments)
    return 0


def _train_vocabulary(arguments: argparse.Namespace) -> None:
    import sys

    from ..formats.corpus_documents import corpus_files, read_documents
    from ..tokenizers.train import train_wordpiece

    if arguments.size < 100:
        raise ConfigError(f"--size {arguments.size}: a vocabulary has at least 100 tokens.")
    files = corpus_files(arguments.inputs)
    documents = (text for file in files for text in read_documents(file, arguments.json_key))
    tokens = train_wordpiece(
        documents, arguments.size, lower_case=arguments.case == "lower", show_progress=sys.stderr.isatty()
    )
    atomic_write(arguments.output, "".join(f"{token}\n" for token in tokens))
    say(f"Wrote {len(tokens)} tokens to {arguments.output}.")
