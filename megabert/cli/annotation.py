"""The command `annotate`: documents in, the same documents with predicted entities and relations out."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError
from .console import log, new_parser, to_json

if TYPE_CHECKING:
    from ..inference import Predictor

EXAMPLES = """\
The output is a folder of shards with a ledger (a line a document), or one file where OUT ends like a format
(.jsonl, .pubtator, .parquet, ...). An interrupted command goes on with --resume and ends with the same bytes.

examples:
  megabert annotate pubmed/*.xml.gz --entities RUN -o mentions.parquet
  megabert annotate corpus.bioc.xml --entities CHEMICALS --entities GENES --relations CHEMPROT \\
      --pairs CHEMICAL:GENE -o annotated/ --format bioc
"""


def annotate(words: Sequence[str]) -> int:
    """Annotate documents in bulk: megabert annotate INPUT... --entities RUN -o OUT."""
    arguments = _parse(words)
    if not arguments.entities and not arguments.relations:
        raise ConfigError("Nothing is to be predicted. Give --entities RUN, --relations RUN, or both.")
    from ..annotate.job import AnnotateChunks, Inputs, run_job
    from ..annotate.shard_formats import shard_format
    from ..annotate.shards import ShardWriter, claim, shard_lines
    from ..formats.documents.registry import format_by_ending
    from ..formats.documents.training_examples import PairOptions
    from ..storage import folder_lock

    output: Path = arguments.output
    by_ending = format_by_ending(output) if output.suffix else None
    shards = shard_format(arguments.format or (by_ending.name if by_ending else "jsonl"))
    folder = output if by_ending is None else output.with_name(f"{output.name}.shards")
    if by_ending is not None and output.exists():
        raise ConfigError(f"{output} exists. Remove it, or name another file.")
    part, num_parts = arguments.part
    if num_parts > 1:
        folder = folder / f"part-{part + 1}-of-{num_parts}"
    inputs = Inputs(
        tuple(arguments.input),
        arguments.input_format,
        arguments.offsets,
        arguments.id_column,
        arguments.text_column,
        arguments.lines,
        arguments.on_error == "skip",
        arguments.part,
    )
    runs = {name: [_load(path, arguments) for path in getattr(arguments, name)] for name in ("entities", "relations")}
    predictors = [predictor for kind in runs.values() for predictor in kind]
    pairs = PairOptions(
        scope=arguments.scope,
        negative_label=_negative_label(runs["relations"]),
        pair_types=frozenset(arguments.pairs),
    )
    if runs["relations"] and not arguments.pairs:
        raise ConfigError("--relations needs the types of the entities: --pairs HEAD:TAIL, for example CHEMICAL:GENE.")
    job = {
        "inputs": list(arguments.input),
        "format": shards.form.name,
        "shard_size": arguments.shard_size,
        "runs": {name: [predictor.digest for predictor in kind] for name, kind in runs.items()},
        **{
            name: getattr(arguments, name)
            for name in ("existing", "scope", "abbreviations", "on_error", "part", "max_seq_length", "precision")
        },
        "pairs": sorted(map(":".join, arguments.pairs)),
    }
    job = json.loads(json.dumps(job))
    work = AnnotateChunks(
        runs["entities"],
        runs["relations"],
        pairs,
        arguments.existing,
        arguments.abbreviations,
        inputs.skip_faults,
        shards,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder) as is_free:
        if is_free is False:
            raise InputError(f"another process annotates to {folder}. Wait for it, or name another folder.")
        ledger = claim(folder, job, shards, resume=arguments.resume)
        if ledger.documents:
            log(f"Resuming behind {ledger.documents:,} documents in {ledger.shards:,} shards.")
        writer = ShardWriter(folder, shards, arguments.shard_size, ledger)
        start, before = time.monotonic(), ledger.documents
        sessions = [predictor.session for predictor in predictors]
        with _progress() as progress:
            losses = run_job(inputs, work, sessions, writer, _num_workers(arguments, predictors), progress)
        seconds = time.monotonic() - start
        for line in losses.lines(shards.form.name):
            log(line)
        if by_ending is not None and num_parts == 1:
            shards.join(folder, shard_lines(folder), output)
            log(f"Wrote {output}; its ledger is in {folder}.")
        else:
            log(f"Wrote {ledger.shards:,} shards and ledger.jsonl in {folder}.")
        speed = (ledger.documents - before) / max(seconds, 1e-9)
        log(f"{ledger.documents - before:,} documents in {seconds:.1f} s, {speed:.1f} a second.")
    print(to_json(ledger.summary()))
    return 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("annotate", annotate, EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "input", nargs="+", help="files, folders or quoted globs, compressed or not; - is standard input"
    )
    parser.add_argument(
        "--entities", type=Path, action="append", default=[], metavar="RUN", help="token classification run"
    )
    parser.add_argument(
        "--relations", type=Path, action="append", default=[], metavar="RUN", help="relation extraction run"
    )
    parser.add_argument(
        "--pairs",
        type=_pair,
        action="append",
        default=[],
        metavar="HEAD:TAIL",
        help="types between which --relations are classified",
    )
    parser.add_argument(
        "--scope",
        choices=("sentence", "document"),
        default="sentence",
        help="relations between mentions of a sentence, or identifiers of a document",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="file or new folder")
    parser.add_argument(
        "--format",
        help="pubtator, bioc, bioc-json, brat, jsonl, conll, csv, parquet, doccano or label-studio (default: by OUT's ending, else jsonl)",
    )
    parser.add_argument("--input-format", help="default: by each file's ending and content")
    parser.add_argument(
        "--offsets",
        default="code-points",
        help="what the input's offsets count: code-points, bytes, utf-16, crlf or lf",
    )
    parser.add_argument("--id-column", help="column of tables with the documents' identifiers")
    parser.add_argument("--text-column", help="column of tables with the texts")
    parser.add_argument("--lines", action="store_true", help="plain text has a document a line, not a file")
    parser.add_argument(
        "--existing",
        choices=("keep", "replace", "use"),
        default="keep",
        help="annotations of the input: kept, removed, or the only entities of relations",
    )
    parser.add_argument(
        "--abbreviations", action="store_true", help="keep the abbreviations that a document defines, as infon"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="skip: list faults and failed documents in the ledger and go on",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted command")
    parser.add_argument(
        "--shard",
        type=_part,
        default=(0, 1),
        dest="part",
        metavar="I/N",
        help="annotate the I-th of N parts, on N machines",
    )
    parser.add_argument(
        "--shard-size", type=int, default=1000, help="documents of a shard of the output (default: 1000)"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that tokenize and decode (default: 0 on a CPU, else up to 8)"
    )
    parser.add_argument(
        "--max_seq_length", type=int, help="tokens of a window (default: the most that the network takes)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, help="token budget of a batch: so many windows (default: 32)"
    )
    parser.add_argument("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")
    return parser.parse_args(list(words))


def _pair(word: str) -> tuple[str, str]:
    head, colon, tail = word.partition(":")
    if not (head and colon and tail):
        raise argparse.ArgumentTypeError(f"{word!r} is no pair of types HEAD:TAIL")
    return head, tail


def _part(word: str) -> tuple[int, int]:
    number, _, total = word.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise argparse.ArgumentTypeError(f"{word!r} is no part I/N with 1 <= I <= N")
    return int(number) - 1, int(total)


def _load(path: Path, arguments: argparse.Namespace) -> "Predictor":
    """Load a run with windows as long as its network takes; as an inference object."""
    from dataclasses import replace

    from ..build import load_run

    predictor = load_run(path, accelerator=arguments.accelerator, precision=arguments.precision)
    positions = predictor.session.model.encoder.config.max_positions
    length = min(arguments.max_seq_length or positions, positions)
    predictor.task.settings.model.dataset.max_seq_length = length
    return replace(predictor, batch_size=arguments.batch_size)


def _negative_label(runs: "Sequence[Predictor]") -> str:
    labels = {predictor.task.settings.model.dataset.negative_label for predictor in runs} or {"false"}
    if len(labels) > 1:
        raise ConfigError(f"the relation runs have different negative labels: {', '.join(sorted(labels))}.")
    return str(labels.pop())


def _num_workers(arguments: argparse.Namespace, predictors: "Sequence[Predictor]") -> int:
    if arguments.workers is not None:
        return max(int(arguments.workers), 0)
    if all(predictor.session.device.type == "cpu" for predictor in predictors):
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
