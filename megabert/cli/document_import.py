"""The command `import documents`: convert documents between PubTator, BioC, brat, PubMed XML and other formats."""

import argparse
import dataclasses
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .console import add_subcommand, log, require_not_input

SHOWN_FAULTS = 20
TRACKED_DOCUMENTS = 2**21  # identifiers that are compared, about 150 MB


def add_document_import(formats: Any) -> None:
    """Add the command's parser."""
    from ..formats.documents.document_formats import READABLE, WRITABLE
    from ..formats.documents.offsets import UNITS

    parser = add_subcommand(
        formats,
        "documents",
        _import_documents,
        "Documents with annotations -> another format of documents",
        "Convert documents. Reads " + ", ".join(READABLE) + "; writes " + ", ".join(WRITABLE) + ".",
    )
    parser.add_argument("inputs", nargs="+", help="files, folders, quoted globs, or - for standard input")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="file (.gz and the like compress), folder, or -"
    )
    parser.add_argument("--format", choices=WRITABLE, help="format to write (default: by the output's ending)")
    parser.add_argument("--input-format", choices=READABLE, help="format to read (default: by ending and content)")
    parser.add_argument("--offsets", choices=UNITS, default="code-points", help="what the input's offsets count")
    parser.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="skip: leave out what is wrong, and report it"
    )
    parser.add_argument("--report", type=Path, help="file for all lines of what was skipped")
    parser.add_argument(
        "--entity-types",
        type=_entity_types,
        default={},
        metavar="OLD:NEW,...",
        help="types of entities to keep, and their new names; * is any other: SpecificDisease:Disease,*:Other",
    )
    add_reading_options(parser)


def _entity_types(text: str) -> dict[str, str]:
    """Read OLD:NEW,...; raises ArgumentTypeError."""
    pairs = [pair.partition(":") for pair in text.split(",")]
    if not all(old and new for old, _, new in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form OLD:NEW,OLD:NEW")
    return {old: new for old, _, new in pairs}


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about tables and plain text."""
    parser.add_argument("--id-column", help="column of the documents' identifiers in tables (default: id)")
    parser.add_argument("--text-column", help="column of their texts (default: text)")
    parser.add_argument("--lines", action="store_true", help="plain text: each line is a document, not each file")


def _import_documents(arguments: argparse.Namespace) -> None:
    from ..formats.documents.convert_documents import read_documents, write_documents
    from ..formats.documents.losses import Losses
    from ..formats.documents.offsets import complete_relations
    from ..formats.documents.sources import Faults, ReadOptions
    from ..formats.documents.training_examples import TypeRule

    name = arguments.format or format_of(arguments.output)
    for output in (arguments.output, arguments.report):
        require_not_input(output, arguments.inputs)
    losses, seen, repeated, left_out = Losses(), set[int](), set[str](), Counter[str]()
    with ExitStack() as stack:
        faults = Faults(_reporter(arguments.report, stack) if arguments.on_error == "skip" else None)
        options = ReadOptions(faults, arguments.id_column, arguments.text_column, arguments.lines)
        documents = read_documents(
            arguments.inputs, options, format_name=arguments.input_format, unit=arguments.offsets, log=log
        )

        def counted() -> Any:
            for document in documents:
                if arguments.entity_types:
                    document = TypeRule(arguments.entity_types).chosen(document, left_out)
                    relations = complete_relations(document, document.entities, lambda _: None)
                    document = dataclasses.replace(document, relations=relations)
                key = hash(document.id)
                if key in seen:
                    repeated.add(document.id)
                elif len(seen) < TRACKED_DOCUMENTS:
                    seen.add(key)
                yield document

        count = write_documents(counted(), arguments.output, name, losses)
    for line in losses.lines(name):
        log(line)
    for what, number in left_out.items():
        if number:
            log(f"{number:,} {what}.")
    if repeated:
        log(f"{len(repeated):,} identifiers name several documents, such as {min(repeated)}.")
    if faults.count:
        log(f"{faults.count:,} faults were skipped." + (f" See {arguments.report}." if arguments.report else ""))
    log(f"Wrote {count:,} documents to {arguments.output}.")


def format_of(output: Path) -> str:
    """Return the format that an output's ending names; raises ConfigError if it is none that is written."""
    from ..formats.documents.document_formats import WRITABLE, format_by_ending

    found = format_by_ending(output)
    if found is None or found.name not in WRITABLE:
        raise ConfigError(f"The ending of {output} names no format that can be written. Give --format.")
    return found.name


def _reporter(report: Path | None, stack: ExitStack) -> Any:
    """Return a function that writes faults to the report, and the first ones to the terminal."""
    from ..storage import atomic_file

    file = stack.enter_context(atomic_file(report)) if report else None
    count = 0

    def write(message: str) -> None:
        nonlocal count
        count += 1
        if file is not None:
            file.write(message.encode(errors="replace") + b"\n")
        if count <= SHOWN_FAULTS:
            log(f"Skipped: {message}")
        elif count == SHOWN_FAULTS + 1:
            log("Further faults are counted only" + (f"; they are in {report}." if report else ": --report FILE."))

    return write
