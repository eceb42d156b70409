"""The command `annotate`: documents in, the same documents with predicted entities and relations out."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError
from .console import log, new_parser, to_json

if TYPE_CHECKING:
    from ..annotate.entity_linker import EntityLinker
    from ..annotate.job import AnnotateChunks
    from ..annotate.shards import ShardWriter
    from ..inference import Predictor, Session

EXAMPLES = """\
The output is a folder of shards with a ledger (a line a document), or one file where OUT ends like a format
(.jsonl, .pubtator, .parquet, ...). An interrupted command is resumed by --resume and ends with the same bytes.

examples:
  megabert annotate pubmed/*.xml.gz --entities RUN -o mentions.parquet
  megabert annotate corpus.bioc.xml --entities CHEMICALS --entities GENES --relations CHEMPROT \\
      --pairs CHEMICAL:GENE -o annotated/ --format bioc
  megabert annotate corpus.pubtator --entities RUN --link Disease=MEDIC.dict -o linked.pubtator
"""


def annotate(words: Sequence[str]) -> None:
    """Annotate documents in bulk: megabert annotate INPUT... --entities RUN -o OUT."""
    arguments = _parse(words)
    if not arguments.entities and not arguments.relations and not arguments.links:
        raise ConfigError(
            "Nothing is to be predicted. Give --entities RUN, --link TYPE=DICT, --relations RUN, or more."
        )
    if arguments.relations and not arguments.pairs:
        raise ConfigError("--relations needs the types of the entities: --pairs HEAD:TAIL, for example CHEMICAL:GENE.")
    from ..annotate.shard_formats import shard_format
    from ..annotate.shards import ShardWriter, claim, shard_lines
    from ..formats.documents.document_formats import format_by_ending
    from ..storage import folder_lock

    output, (part, num_parts) = arguments.output, arguments.part
    by_ending = format_by_ending(output) if output.suffix else None
    shards = shard_format(arguments.format or (by_ending.name if by_ending else "jsonl"))
    if by_ending is not None and output.exists():
        raise ConfigError(f"{output} exists. Remove it, or name another file.")
    folder = output if by_ending is None else output.with_name(f"{output.name}.shards")
    if num_parts > 1:
        folder /= f"part-{part + 1}-of-{num_parts}"
    work, sessions = _load_work(arguments, shards.form.name)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder) as is_free:
        if is_free is False:
            raise InputError(f"another process annotates to {folder}. Wait for it, or name another folder.")
        ledger = claim(folder, _describe(arguments, work), shards, resume=arguments.resume)
        writer = ShardWriter(folder, shards, arguments.shard_size, ledger)
        _run(arguments, writer, work, sessions)
        if by_ending is not None and num_parts == 1:
            shards.join(folder, shard_lines(folder), output)
            log(f"Wrote {output}; its ledger is in {folder}.")
        else:
            log(f"Wrote {ledger.shards:,} shards and ledger.jsonl in {folder}.")
    summary = ledger.summary()
    if missing := {item.type for item in work.linkers} - summary["entities"].keys():
        there = ", ".join(summary["entities"]) or "none"
        log(f"note: no entity has the type {' or '.join(sorted(missing))} that --link names. Types: {there}.")
    print(to_json(summary))


def _run(
    arguments: argparse.Namespace, writer: "ShardWriter", work: "AnnotateChunks", sessions: "Sequence[Session]"
) -> None:
    """Annotate what the writer's ledger does not have yet, and report speed and losses."""
    from ..annotate.job import Inputs, run_job

    skips_faults = arguments.on_error == "skip"
    inputs = Inputs(
        tuple(arguments.input),
        arguments.input_format,
        arguments.offsets,
        arguments.id_column,
        arguments.text_column,
        arguments.lines,
        skips_faults,
        arguments.part,
    )
    before, start = writer.ledger.documents, time.monotonic()
    if before:
        log(f"Resuming behind {before:,} documents in {writer.ledger.shards:,} shards.")
    workers, process = _num_workers(arguments, [*work.entity_runs, *work.relation_runs]), None
    if arguments.ray:
        from ..annotate.ray_actors import process_chunks_by_ray

        load = partial(_load_work, arguments, writer.output.form.name)
        workers, process = 0, partial(process_chunks_by_ray, load=load, num_actors=arguments.ray)
    with _progress() as progress:
        losses = run_job(inputs, work, sessions, writer, workers, progress, process)
    for line in losses.lines(writer.output.form.name):
        log(line)
    done, seconds = writer.ledger.documents - before, time.monotonic() - start
    log(f"{done:,} documents in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} a second.")


def _load_work(arguments: argparse.Namespace, form: str) -> "tuple[AnnotateChunks, list[Session]]":
    """Load what is done with each chunk, and the networks."""
    from ..annotate.job import AnnotateChunks
    from ..annotate.shard_formats import shard_format
    from ..formats.documents.training_examples import PairOptions

    entity_runs, relation_runs = (
        [load_annotating_run(path, arguments) for path in paths] for paths in (arguments.entities, arguments.relations)
    )
    linkers = [load_linker(rule, arguments) for rule in arguments.links]
    pairs = PairOptions(arguments.scope, _negative_label(relation_runs), pair_types=frozenset(arguments.pairs))
    options = arguments.existing, arguments.abbreviations, arguments.on_error == "skip"
    work = AnnotateChunks(entity_runs, relation_runs, pairs, *options, shard_format(form), linkers)
    sessions = [run.session for run in (*entity_runs, *relation_runs)]
    return work, [*sessions, *(session for item in linkers for session in item.linker.sessions)]


def _describe(arguments: argparse.Namespace, work: "AnnotateChunks") -> dict[str, Any]:
    """Return all on which the output depends, as plain values: what a resumed command must have, too."""
    names = (
        "input", "input_format", "offsets", "id_column", "text_column", "lines", "existing", "scope", "abbreviations",
        "on_error", "part", "shard_size", "max_seq_length", "batch_size", "precision",
    )  # fmt: skip
    job = {name: getattr(arguments, name) for name in names} | {
        "format": work.output.form.name,
        "pairs": sorted(map(":".join, arguments.pairs)),
        "entities": [predictor.digest for predictor in work.entity_runs],
        "relations": [predictor.digest for predictor in work.relation_runs],
        "cpu_precisions": _cpu_precisions([*work.entity_runs, *work.relation_runs]),
        "link": [[item.type, item.linker.digest] for item in work.linkers],
        "species": arguments.species,
    }
    values: dict[str, Any] = json.loads(json.dumps(job))  # tuples as the file has them
    return values


def _cpu_precisions(runs: "Sequence[Predictor]") -> list[str]:
    """List the precisions of runs on a CPU, where some are not float32: another processor has others."""
    sessions = [run.session for run in runs if str(getattr(run.session, "device", "")) == "cpu"]
    precisions = [str(getattr(session, "precision", "32")) for session in sessions]
    return precisions if set(precisions) - {"32"} else []


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("annotate", annotate, EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("input", nargs="+", help="files, folders or quoted globs, compressed or not; - is standard input")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="file or new folder")
    runs: dict[str, Any] = {"type": Path, "action": "append", "default": [], "metavar": "RUN"}
    add("--entities", **runs, help="run of token_classification; several are applied one after the other")
    add("--relations", **runs, help="run of relation_extraction")
    add_link_options(parser)
    pair: dict[str, Any] = {"type": _pair, "action": "append", "default": [], "metavar": "HEAD:TAIL"}
    add("--pairs", **pair, help="types of entities between which --relations are classified; may be repeated")
    add(
        "--scope",
        choices=("sentence", "document"),
        default="sentence",
        help="relations of mentions in one sentence, or of identifiers in one document",
    )
    add(
        "--format",
        help="pubtator, bioc, bioc-json, brat, jsonl, conll, csv, parquet, ...; default: by OUT's ending, else jsonl",
    )
    add("--input-format", help="default: by the ending and the content of each file")
    add("--offsets", default="code-points", help="unit of the input's offsets: code-points, bytes, utf-16, crlf or lf")
    add("--id-column", help="column of tables with the documents' identifiers")
    add("--text-column", help="column of tables with the texts")
    add("--lines", action="store_true", help="plain text has a document a line, not a file")
    add(
        "--existing",
        choices=("keep", "replace", "use"),
        default="keep",
        help="annotations of the input: kept, removed, or the only arguments of relations",
    )
    add("--abbreviations", action="store_true", help="keep the abbreviations that each document defines, as infon")
    add("--on-error", choices=("stop", "skip"), default="stop", help="skip: list faults and failures in the ledger")
    add("--resume", action="store_true", help="resume an interrupted command")
    add("--shard", type=_part, default=(0, 1), dest="part", metavar="I/N", help="annotate the I-th of N parts")
    add("--shard-size", type=int, default=1000, help="documents of a shard of the output; default: 1000")
    add("--workers", type=int, help="processes that tokenize and decode; default: 0 on a CPU, else up to 8")
    add("--ray", type=int, default=0, metavar="N", help="N actors of Ray instead, each with the networks (extra ray)")
    add_prediction_options(parser)
    return parser.parse_args(list(words))


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of runs that annotate."""
    add = parser.add_argument
    add("--max_seq_length", type=int, help="tokens of a window; default: the most that the network takes")
    add("--batch_size", type=int, default=32, help="token budget of a batch, in windows; default: 32")
    add("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    add("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of dictionaries."""
    parser.add_argument(
        "--link",
        type=link_rule,
        action="append",
        default=[],
        dest="links",
        metavar="TYPE=DICT[,RUN[,READER]]",
        help="give entities of a type identifiers of a dictionary, by n-grams, the run's embeddings, and a run of "
        "text_ranking that reads their sentences (TYPE=DICT,,READER without embeddings)",
    )
    parser.add_argument(
        "--species", type=int, action="append", default=[], help="taxon (NCBI) of genes where a document names none"
    )


def _pair(word: str) -> tuple[str, str]:
    head, colon, tail = word.partition(":")
    if not (head and colon and tail):
        raise argparse.ArgumentTypeError(f"{word!r} is no pair of types HEAD:TAIL")
    return head, tail


LinkRule = tuple[str, Path, Path | None, Path | None]


def link_rule(word: str) -> LinkRule:
    """Parse TYPE=DICT, TYPE=DICT,RUN or TYPE=DICT,RUN,READER."""
    kind, equals, rest = word.partition("=")
    folder, run, reader, *more = [*rest.split(","), "", ""]
    if not (kind and equals and folder) or len(more) > 2:
        raise argparse.ArgumentTypeError(f"{word!r} is no rule TYPE=DICT, TYPE=DICT,RUN or TYPE=DICT,RUN,READER")
    return kind, Path(folder), Path(run) if run else None, Path(reader) if reader else None


def load_linker(rule: LinkRule, arguments: argparse.Namespace) -> "EntityLinker":
    """Load a rule's dictionary, with the embeddings of its run and a run that reads sentences."""
    from ..annotate.entity_linker import EntityLinker
    from ..linking import open_linker

    kind, folder, run, reader = rule
    options = {"accelerator": arguments.accelerator, "precision": arguments.precision}
    linker = open_linker.load_linker(folder, run, reader=reader, **options)
    species = [taxon for taxon in arguments.species if taxon in linker.dictionary.taxa]
    return EntityLinker(kind, linker, tuple(species))


def _part(word: str) -> tuple[int, int]:
    number, _, total = word.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{word!r} is no part I/N with 1 <= I <= N")
    return int(number) - 1, int(total)


def load_annotating_run(path: Path, arguments: argparse.Namespace) -> "Predictor":
    """Load a run, or an exported one, for inference only; windows are as long as its network and the options allow."""
    from dataclasses import replace

    from ..load_predictor import load_predictor

    predictor = load_predictor(path, accelerator=arguments.accelerator, precision=arguments.precision)
    for note in predictor.notes:
        log(f"note: {note}")
    positions = predictor.session.max_positions
    length = min(arguments.max_seq_length or positions, positions)
    predictor.task.settings.model.dataset.max_seq_length = length
    session = getattr(predictor.session, "captured", lambda: predictor.session)()
    return replace(predictor, session=session, batch_size=arguments.batch_size)


def _negative_label(runs: "Sequence[Predictor]") -> str:
    labels = {predictor.task.settings.model.dataset.negative_label for predictor in runs} or {"false"}
    if len(labels) > 1:
        raise ConfigError(f"the relation runs have different negative labels: {', '.join(sorted(labels))}.")
    return str(labels.pop())


def _num_workers(arguments: argparse.Namespace, predictors: "Sequence[Predictor]") -> int:
    if arguments.workers is not None:
        return max(int(arguments.workers), 0)
    if all(str(getattr(predictor.session, "device", "cpu")) == "cpu" for predictor in predictors):
        return 0
    return max(min(8, len(os.sched_getaffinity(0)) - 2), 0)


@contextmanager
def _progress() -> Iterator[Callable[[Any, int], None]]:
    """Show documents and documents a second on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("annotating")
        first: list[int] = []

        def update(ledger: Any, waiting: int) -> None:
            done = ledger.documents + waiting
            first[:] = first or [ledger.documents]
            speed = (done - first[0]) / max(time.monotonic() - start, 1e-9)
            bar.update(task, description=f"{done:,} documents, {speed:,.0f} a second, {ledger.faults:,} faults")

        yield update
