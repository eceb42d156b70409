"""The command `import`: convert data of other formats to those that the tasks read."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..storage import atomic_write
from .console import add_subcommand, log, new_parser, require_not_input
from .document_import import add_document_import


def import_data(words: Sequence[str]) -> None:
    """Convert data of another format to that of a task: megabert import FORMAT ..."""
    parser = new_parser("import", import_data, "`megabert import FORMAT --help` describes the options.")
    formats = parser.add_subparsers(metavar="FORMAT", required=True)
    iob = add_subcommand(formats, "iob", _import_iob, "Columns of words and tags -> text_NAME.txt, labels_NAME.txt")
    iob.add_argument("--data_file", type=Path, required=True, help="word in the first column, tag in the last")
    iob.add_argument("--max_length", type=int, default=-1, help="truncate sentences to so many words; -1: never")
    _add_output_arguments(iob)
    marks = add_subcommand(
        formats, "punctuation", _import_punctuation, "Punctuated text -> text_NAME.txt, labels_NAME.txt"
    )
    marks.add_argument("-s", "--source_file", type=Path, required=True, help="one sentence or paragraph per line")
    marks.add_argument("-p", "--marks", default=".,?", help="punctuation marks to predict (default: .,?)")
    marks.add_argument(
        "--all_capitals", action="store_true", help="label words in capitals (A) apart from capitalized words (U)"
    )
    _add_output_arguments(marks)
    chemprot = add_subcommand(formats, "chemprot", _import_chemprot, "ChemProt -> JSON lines for relation_extraction")
    chemprot.add_argument("--abstracts", type=Path, required=True, help="chemprot_*_abstracts*.tsv")
    chemprot.add_argument("--entities", type=Path, required=True, help="chemprot_*_entities*.tsv")
    chemprot.add_argument("--relations", type=Path, help="chemprot_*_relations*.tsv; default: pairs without labels")
    chemprot.add_argument("--output", type=Path, required=True, help="JSON lines file to write")
    add_document_import(formats)
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output_dir", type=Path, help="folder to write to (default: that of the input)")
    parser.add_argument("--name", help="NAME in text_NAME.txt and labels_NAME.txt (default: that of the input)")


def _import_iob(arguments: argparse.Namespace) -> None:
    from ..formats.columns import read_columns

    sentences = read_columns(arguments.data_file)
    if sentences[0].tags is None:
        raise InputError(f"{arguments.data_file} has one column, the words. Give a file with words and tags.")
    for item in sentences:
        blank = next((word for word in item.words if " " in word or "\t" in word), None)
        if blank is not None:
            raise InputError(f"{item.location}: the word {blank!r} has a blank, which NeMo's text file cannot hold.")
    limit = None if arguments.max_length < 0 else arguments.max_length
    pairs = [(" ".join(item.words[:limit]), " ".join((item.tags or ())[:limit])) for item in sentences]
    _write_pairs(arguments, arguments.data_file, pairs)
    num_truncated = sum(len(item.words) > (limit or len(item.words)) for item in sentences)
    if num_truncated:
        log(f"{num_truncated} sentences were truncated to {limit} words.")


def _import_punctuation(arguments: argparse.Namespace) -> None:
    from ..formats.punctuation import ALL_CAPITALS, CAPITALIZED, find_words
    from ..formats.text_lines import read_lines

    pairs = []
    for line in read_lines(arguments.source_file):
        words = find_words(line, arguments.marks)
        cases = [word.case for word in words]
        if not arguments.all_capitals:
            cases = [CAPITALIZED if case == ALL_CAPITALS else case for case in cases]
        labels = " ".join(word.mark + case for word, case in zip(words, cases, strict=True))
        if words:
            pairs.append((" ".join(line[word.start : word.end].lower() for word in words), labels))
    if not pairs:
        raise InputError(f"{arguments.source_file} contains no words.")
    _write_pairs(arguments, arguments.source_file, pairs)


def _write_pairs(arguments: argparse.Namespace, source: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Write lines of words and lines of labels as NeMo's two parallel files."""
    folder = arguments.output_dir or source.parent
    name = arguments.name or source.stem
    folder.mkdir(parents=True, exist_ok=True)
    for kind, column in (("text", 0), ("labels", 1)):
        require_not_input(folder / f"{kind}_{name}.txt", [source])
        atomic_write(folder / f"{kind}_{name}.txt", "".join(f"{pair[column]}\n" for pair in pairs))
    num_words = sum(len(line.split()) for line, _ in pairs)
    log(f"Wrote {len(pairs)} lines of {num_words} words: {folder}/text_{name}.txt and {folder}/labels_{name}.txt.")


def _import_chemprot(arguments: argparse.Namespace) -> None:
    from ..formats.chemprot import read_chemprot

    files = (arguments.abstracts, arguments.entities, arguments.relations)
    require_not_input(arguments.output, files)
    corpus = read_chemprot(*files)
    atomic_write(arguments.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in corpus.rows))
    for note in corpus.notes:
        log(note)
    log(f"Wrote {arguments.output}.")
