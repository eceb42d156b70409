"""The command `import`: data of other formats to those that the tasks read."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..storage import atomic_write
from .console import new_parser, say


def import_data(words: Sequence[str]) -> int:
    """Turn data of another format into what a task reads: megabert import KIND ...."""
    parser = new_parser("import", import_data, "`megabert import KIND --help` says more.")
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=type(parser))
    for name, kind in KINDS.items():
        own = kinds.add_parser(name, description=f"{kind.help}.", help=kind.help)
        own.set_defaults(function=kind.run)
        kind.add_arguments(own)
    arguments = parser.parse_args(list(words))
    arguments.function(arguments)
    return 0


def _iob_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_file", type=Path, required=True, help="word in the first column, tag in the last")
    parser.add_argument("--max_length", type=int, default=-1, help="cut sentences after so many words; -1: never")
    _output_arguments(parser)


def _punctuation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s", "--source_file", type=Path, required=True, help="plain text, a paragraph or sentence a line"
    )
    parser.add_argument("-p", "--marks", default=".,?", help="the marks to learn (default: .,?)")
    parser.add_argument(
        "--all_capitals", action="store_true", help="tell words in capitals (A) from capitalized ones (U)"
    )
    _output_arguments(parser)


def _chemprot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--abstracts", type=Path, required=True, help="chemprot_*_abstracts*.tsv")
    parser.add_argument("--entities", type=Path, required=True, help="chemprot_*_entities*.tsv")
    parser.add_argument("--relations", type=Path, help="chemprot_*_relations*.tsv; none: pairs without labels")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output_dir", type=Path, help="folder to write into (default: that of the data)")
    parser.add_argument("--name", help="the NAME in text_NAME.txt and labels_NAME.txt (default: that of the data)")


def _iob(arguments: argparse.Namespace) -> None:
    from ..formats.columns import read_columns

    sentences = read_columns(arguments.data_file)
    if sentences[0].tags is None:
        raise InputError(f"{arguments.data_file} has one column, the words. Give a file with their tags.")
    cut = None if arguments.max_length < 0 else arguments.max_length
    pairs = [(" ".join(item.words[:cut]), " ".join((item.tags or ())[:cut])) for item in sentences]
    num_cut = sum(len(item.words) > (cut or len(item.words)) for item in sentences)
    _write_pairs(arguments, arguments.data_file, pairs)
    if num_cut:
        say(f"{num_cut} sentences were cut to {cut} words.")


def _punctuation(arguments: argparse.Namespace) -> None:
    from ..formats.punctuation import ALL_CAPITALS, CAPITALIZED, find_words
    from ..formats.text_lines import read_lines

    pairs = []
    for line in read_lines(arguments.source_file):
        found = find_words(line, arguments.marks)
        cases = [word.case for word in found]
        if not arguments.all_capitals:
            cases = [CAPITALIZED if case == ALL_CAPITALS else case for case in cases]
        labels = " ".join(word.mark + case for word, case in zip(found, cases, strict=True))
        if found:
            pairs.append((" ".join(line[word.start : word.end].lower() for word in found), labels))
    if not pairs:
        raise InputError(f"{arguments.source_file} holds no words.")
    _write_pairs(arguments, arguments.source_file, pairs)


def _write_pairs(arguments: argparse.Namespace, source: Path, pairs: Sequence[tuple[str, str]]) -> None:
    folder = arguments.output_dir or source.parent
    name = arguments.name or source.stem
    folder.mkdir(parents=True, exist_ok=True)
    for kind, place in (("text", 0), ("labels", 1)):
        atomic_write(folder / f"{kind}_{name}.txt", "".join(f"{pair[place]}\n" for pair in pairs))
    num_words = sum(len(text.split()) for text, _ in pairs)
    say(f"Wrote {len(pairs)} lines of {num_words} words: {folder}/text_{name}.txt and {folder}/labels_{name}.txt.")


def _chemprot(arguments: argparse.Namespace) -> None:
    from ..formats.chemprot import read_chemprot

    corpus = read_chemprot(arguments.abstracts, arguments.entities, arguments.relations)
    atomic_write(arguments.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in corpus.rows))
    for note in corpus.notes:
        say(note)
    say(f"Wrote {arguments.output}.")


@dataclass(frozen=True)
class _Kind:
    """What an import is called in the help, what it asks for, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


KINDS = {
    "iob": _Kind("columns of words and tags (CoNLL) -> NeMo's text_NAME.txt and labels_NAME.txt", _iob_arguments, _iob),
    "punctuation": _Kind(
        "plain text -> text_NAME.txt and labels_NAME.txt for punctuation_capitalization",
        _punctuation_arguments,
        _punctuation,
    ),
    "chemprot": _Kind(
        "ChemProt's abstracts, entities and relations -> JSON lines for relation_extraction",
        _chemprot_arguments,
        _chemprot,
    ),
}
