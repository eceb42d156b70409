"""The commands of entity linking: dictionary build, info, embed, learn and tune; link; score linking."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .console import add_subcommand, log, new_parser, progress_bar, require_not_input, show, to_json

if TYPE_CHECKING:
    from ..formats.dictionaries.gold_mentions import GoldMention
    from ..linking.linker import Linker, LinkQuery

BATCH = 256
EXAMPLES = """\
examples:
  megabert link "breast ca" "TNF-alpha" --dict MEDIC.dict -k 5
  megabert link --mentions dev.pubtator --dict MEDIC.dict --run RUN -k 20 -o LINKS.jsonl
"""
_TYPES = "type of mentions to read, may be repeated; default: all"
_MENTIONS = "annotated documents with identifiers, or lines id||name"


def dictionary(words: Sequence[str]) -> None:
    """Build a dictionary of concepts to link to: megabert dictionary build FILE... -o DICT."""
    parser = new_parser("dictionary", dictionary, "`megabert dictionary VERB --help` describes the options.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_build(verbs)
    info = add_subcommand(verbs, "info", _info, "Show what a dictionary holds, and what was left out of it")
    info.add_argument("dictionary", type=Path, metavar="DICT")
    embed = add_subcommand(
        verbs,
        "embed",
        _embed,
        "Embed the names by a run, to link by meaning, too",
        "Embed the names by a run of entity_linking, or any other. Repeat the command to resume it.",
    )
    embed.add_argument("dictionary", type=Path, metavar="DICT")
    embed.add_argument("network", type=Path, metavar="RUN")
    embed.add_argument("--dtype", choices=("float16", "int8"), default="float16", help="of the vectors")
    _add_device(embed)
    for name, function, line, text in (
        (
            "learn",
            _learn,
            "Learn from annotated mentions how candidates are ordered",
            "Learn from mentions with gold identifiers how the candidates of a dictionary (and a run, which should not "
            "be trained on them) are ordered; the result is kept with it. The dictionary may have these mentions, too.",
        ),
        (
            "pairs",
            _pairs,
            "Write annotated mentions with their candidates, to train a reader",
            "Write JSON lines of mentions in their sentences with right and wrong candidates, for text_ranking.",
        ),
        (
            "tune",
            _tune,
            "Fit the weight of embeddings and the threshold of NIL on gold mentions",
            "Fit the linker of a dictionary (and a run) on mentions with gold identifiers that nothing was trained on; "
            "the result is kept with it.",
        ),
    ):
        fitter = add_subcommand(verbs, name, function, line, text)
        fitter.add_argument("dictionary", type=Path, metavar="DICT")
        fitter.add_argument("--run", type=Path, dest="network", metavar="RUN", help="run whose embeddings DICT has")
        fitter.add_argument("--mentions", nargs="+", type=Path, required=True, metavar="FILE", help=_MENTIONS)
        fitter.add_argument("--type", action="append", default=[], dest="types", metavar="TYPE", help=_TYPES)
        if name == "pairs":
            fitter.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="new file")
        _add_device(fitter)
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "32", "bf16", "16"), default="auto")


def _add_build(verbs: Any) -> None:
    parser = add_subcommand(
        verbs,
        "build",
        _build,
        "Files of concepts -> a dictionary",
        "Build a dictionary of OBO, UMLS MRCONSO.RRF, MeSH XML and ASCII, CTD, NCBI Gene and Taxonomy, BioSyn's lists, "
        "tables (identifier, name, ...) and the mentions of annotated documents; several files become one. Repeat the "
        "command to resume it.",
    )
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="compressed or not")
    add("-o", "--output", type=Path, required=True, metavar="DICT", help="new folder")
    add(
        "--format",
        help="obo, rrf, mesh-xml, mesh-ascii, ctd, gene, taxonomy, biosyn, table or mentions; default: by content",
    )
    add("--prefix", help="prefix of identifiers that have none and do not show their vocabulary, such as ncbitaxon")
    add("--prefer", metavar="PREFIX", help="name concepts by their identifier of this prefix, such as mesh")
    add("--source", action="append", default=[], dest="sources", metavar="SAB", help="UMLS: vocabulary; default: all")
    add("--language", action="append", default=[], dest="languages", metavar="LAT", help="UMLS: language; default: ENG")
    add("--species", action="append", type=int, default=[], help="read the concepts of this taxon (NCBI); default: all")
    add("--type", action="append", default=[], dest="types", metavar="TYPE", help=f"documents: {_TYPES}")


def _build(arguments: argparse.Namespace) -> None:
    from ..linking.dictionary_builder import BuildOptions, build_dictionary

    options = BuildOptions(
        arguments.format,
        arguments.prefix,
        tuple(arguments.sources),
        tuple(arguments.languages or ["ENG"]),
        tuple(arguments.types),
        tuple(arguments.species),
        arguments.prefer,
    )
    with progress_bar("indexing names") as progress:
        meta = build_dictionary(arguments.files, arguments.output, options, progress or (lambda *_: None))
    for source in meta["sources"]:
        for reason, count in source["dropped"].items():
            log(f"{source['file']}: {count:,} {reason} left out.")
    log(f"Wrote {meta['concepts']:,} concepts with {meta['names']:,} names to {arguments.output}.")


def _info(arguments: argparse.Namespace) -> None:
    from ..linking.dictionary import Dictionary

    opened = Dictionary.open(arguments.dictionary)
    tuned = [json.loads(file.read_bytes()) for file in sorted(arguments.dictionary.glob("calibration-*.json"))]
    learned = sorted(file.stem.partition("-")[2] for file in arguments.dictionary.glob("ranker-*.json"))
    embedded = sorted(file.name.partition("-")[2] for file in arguments.dictionary.glob("vectors-*"))
    show(to_json({**opened.meta, "embedded_by_runs": embedded, "calibrations": tuned, "learned_with": learned}))


def _embed(arguments: argparse.Namespace) -> None:
    from ..linking.dense import embed_names
    from ..linking.dictionary import Dictionary

    opened = Dictionary.open(arguments.dictionary)
    with progress_bar("embedding names") as progress:
        folder = embed_names(
            opened,
            arguments.network,
            dtype=arguments.dtype,
            accelerator=arguments.accelerator,
            precision=arguments.precision,
            progress=progress or (lambda *_: None),
        )
    log(f"Wrote the vectors of {len(opened):,} names to {folder}.")


def _learn(arguments: argparse.Namespace) -> None:
    from ..linking.open_linker import write_calibration, write_ranker
    from ..linking.ranker_fitting import fit_ranker

    linker, mentions, digest = _to_fit(arguments)
    ranker, calibration, report = fit_ranker(linker, mentions)
    report["files"] = [file.name for file in arguments.mentions]
    write_ranker(linker.dictionary, digest, ranker, report)
    write_calibration(linker.dictionary, digest, calibration, report)
    show(to_json(report))


def _pairs(arguments: argparse.Namespace) -> None:
    from ..linking.cross_encoder import candidate_pairs
    from ..linking.ranker_fitting import examples_of
    from ..storage import atomic_write

    linker, mentions, _ = _to_fit(arguments)
    rows = candidate_pairs(linker.dictionary, examples_of(linker, mentions))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    atomic_write(arguments.output, "".join(lines).encode())
    log(f"Wrote {len(lines):,} mentions with their candidates to {arguments.output}.")


def _to_fit(arguments: argparse.Namespace) -> "tuple[Linker, list[GoldMention], str]":
    """Return a linker, the gold mentions to fit it on, and the digest of its run, "" without one."""
    from ..formats.dictionaries.gold_mentions import read_gold

    linker = _load(arguments, arguments.dictionary)
    dropped = Counter[str]()
    mentions = list(read_gold(arguments.mentions, arguments.types, dropped=dropped))
    _log_counts(dropped)
    return linker, mentions, linker.dense.run_digest if linker.dense is not None else ""


def _tune(arguments: argparse.Namespace) -> None:
    from ..linking.linker_tuning import tune
    from ..linking.open_linker import write_calibration

    linker, mentions, digest = _to_fit(arguments)
    calibration, report = tune(linker, mentions)
    report["files"] = [file.name for file in arguments.mentions]
    write_calibration(linker.dictionary, digest, calibration, report)
    show(to_json(vars(calibration) | report))


def _load(arguments: argparse.Namespace, folder: Path) -> "Linker":
    from ..linking.open_linker import load_linker

    return load_linker(
        folder,
        arguments.network,
        reader=getattr(arguments, "reader", None),
        accelerator=arguments.accelerator,
        precision=arguments.precision,
    )


def _log_counts(dropped: Counter[str]) -> None:
    for reason, count in sorted(dropped.items()):
        log(f"{count:,} {reason} left out.")


def link(words: Sequence[str]) -> None:
    """Link names to the concepts of a dictionary: megabert link NAME... --dict DICT."""
    parser = new_parser("link", link, EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="names; - reads standard input, a name a line")
    add("--mentions", nargs="+", type=Path, default=[], metavar="FILE", help=f"link the mentions of {_MENTIONS}")
    add("--type", action="append", default=[], dest="types", metavar="TYPE", help=_TYPES)
    add("--dict", type=Path, required=True, dest="dictionary", metavar="DICT", help="dictionary to link to")
    add("--run", type=Path, dest="network", metavar="RUN", help="run whose embeddings DICT has; default: n-grams alone")
    add("--reader", type=Path, metavar="RUN", help="run of text_ranking that reads mentions in their sentences")
    add("-k", type=int, default=5, help="candidates that are shown; default: 5")
    add("--species", action="append", type=int, default=[], help="taxon (NCBI) of the concepts, such as 9606")
    add("-o", "--output", type=Path, metavar="FILE", help="write JSON lines; default: print them")
    _add_device(parser)
    arguments = parser.parse_args(list(words))
    if bool(arguments.names) == bool(arguments.mentions) or arguments.k < 1:
        raise ConfigError("Give either names or --mentions FILE, and -k of at least 1.")
    if file := next(filter(os.path.isfile, arguments.names), None):
        raise ConfigError(
            f"{file!r} is a file, no name. Give its lines: megabert link - < {file} (or --mentions {file})."
        )
    require_not_input(arguments.output, arguments.mentions)
    linker = _load(arguments, arguments.dictionary)
    lines = (f"{json.dumps(row, ensure_ascii=False)}\n" for row in _rows(linker, arguments))
    if arguments.output is None:
        for line in lines:
            show(line, end="")
        return
    from ..storage import atomic_file

    count = 0
    with atomic_file(arguments.output) as file:
        for line in lines:
            file.write(line.encode())
            count += 1
    log(f"Wrote {count:,} links to {arguments.output}.")


def _rows(linker: "Linker", arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Link in batches, and describe each link."""
    queries = _queries(arguments)
    while batch := tuple(islice(queries, BATCH)):
        links = linker.link([query for _, query in batch], k=arguments.k, species=arguments.species)
        for (fields, _), found in zip(batch, links, strict=True):
            yield {**fields, "mention": found.text, **found.described()}


def _queries(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], "LinkQuery"]]:
    from ..formats.dictionaries.gold_mentions import read_gold
    from ..linking.linker import LinkQuery

    if not arguments.mentions:
        names: Iterable[str] = arguments.names
        names = (line.rstrip("\r\n") for line in sys.stdin) if arguments.names == ["-"] else names
        yield from (({}, LinkQuery(name)) for name in names if name.strip())
        return
    dropped = Counter[str]()
    for item in read_gold(arguments.mentions, arguments.types, dropped=dropped):
        query = LinkQuery(item.text, item.definitions, context=item.context)
        yield {"id": item.id, "type": item.type}, query
    _log_counts(dropped)
