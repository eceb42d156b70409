"""The commands for learning from corrections: select (what to correct next), review (correct it), suspects (labels)."""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parser import quote
from ..errors import ConfigError
from .annotation import add_prediction_options, load_annotating_run
from .console import log, new_parser, require_not_input, show, to_json
from .serving import key_digest, require_uvicorn
from .training import train_once

if TYPE_CHECKING:
    from ..formats.documents.document import Document

MEASURES = ("entropy", "margin", "least-confidence", "random")
REVIEW_FORMATS = ("pubtator", "brat", "jsonl", "bioc", "bioc-json", "doccano", "label-studio")


def select(words: Sequence[str]) -> None:
    """Choose the documents to correct next, with suggestions: megabert select RUN DOCUMENTS --count 100 -o OUT."""
    arguments = _parse_select(words)
    if arguments.count < 1 or arguments.candidates < 1:
        raise ConfigError("--count and --candidates must be at least 1.")
    from ..annotate.annotator import EntityAnnotator, annotate, without_annotations
    from ..correction.selection import SelectionOptions, split_into_sentences
    from ..correction.selection import select as select_documents
    from ..formats.documents.convert_documents import read_documents, write_documents
    from ..formats.documents.losses import Losses
    from .document_import import format_of

    form = arguments.format or format_of(arguments.output)
    require_not_input(arguments.output, [*arguments.documents, *arguments.exclude])
    excluded = {document.id for document in read_documents(arguments.exclude)} if arguments.exclude else ()
    predictor = load_annotating_run(arguments.run, arguments)
    documents: Iterable[Document] = read_documents(arguments.documents, log=log)
    if arguments.sentences:
        documents = split_into_sentences(documents)
    if arguments.existing == "replace":
        documents = map(without_annotations, documents)
    options = SelectionOptions(
        arguments.count, arguments.by, arguments.total, arguments.candidates, frozenset(excluded), arguments.seed
    )
    found = select_documents(predictor, documents, options)
    chosen = [item.document for item in annotate([EntityAnnotator(predictor)], found.documents)]
    losses = Losses()
    write_documents(chosen, arguments.output, form, losses)
    for line in losses.lines(form):
        log(line)
    log(f"Wrote {len(chosen):,} of {found.num_documents:,} documents to {arguments.output}.")
    summary: dict[str, Any] = {
        "documents": found.num_documents, "excluded": found.num_excluded, "selected": len(chosen),
        "words": sum(len(document.text().split()) for document in chosen),
        "entities": sum(len(document.entities) for document in chosen), "by": arguments.by,
    }  # fmt: skip
    if arguments.by != "random":
        mean = sum(found.scores) / max(len(found.scores), 1)
        summary["uncertainty"] = {"all": round(found.mean_score, 6), "selected": round(mean, 6)}
    show(to_json(summary))


def review(words: Sequence[str]) -> None:
    """Correct documents on a page in the browser: megabert review DOCUMENTS -o OUT."""
    arguments = _parse_review(words)
    require_uvicorn("review")
    from ..correction.review_store import ReviewStore
    from ..formats.documents.convert_documents import read_documents
    from ..serve.review_routes import serve_review
    from ..serve.server import check_address
    from ..serve.server_parts import ServeSettings
    from .document_import import format_of

    form = arguments.format or format_of(arguments.output)
    documents = list(read_documents(arguments.documents, log=log))
    types = dict.fromkeys(entity.type for document in documents for entity in document.entities)
    if arguments.run is not None:
        from ..annotate.annotator import EntityAnnotator, annotate

        predictor = load_annotating_run(arguments.run, arguments)
        types |= dict.fromkeys(tag[2:] for tag in predictor.labels.get("tag", ()) if tag[:2] in ("B-", "I-"))
        documents = [item.document for item in annotate([EntityAnnotator(predictor)], documents)]
    names = [name.strip() for name in arguments.types.split(",") if name.strip()] or sorted(types)
    if not names:
        raise ConfigError("No type of entity is known. Name them: --types Disease,Chemical.")
    digest = key_digest(arguments.api_key_file, os.environ)
    address = check_address(arguments.host, digest, arguments.allowed_host, is_open=False)
    store = ReviewStore(documents, arguments.output, form, keeps_time=not arguments.no_time)
    settings = ServeSettings(**address, port=arguments.port, key_digest=digest, access_log=arguments.access_log)
    serve_review(store, names, settings, lambda where: log(f"Reviewing {len(documents):,} documents at {where}"))
    store.close()
    finished = sum(states[-1].is_finished for states in store.history)
    for line in store.losses.lines(form):
        log(line)
    log(f"{finished:,} of {len(documents):,} documents are finished, in {store.output}; the log is {store.log_path}.")


def _parse_review(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(
        "review",
        review,
        "Each decision is saved before it is shown: OUT has the finished documents, which are training data as they "
        "are, OUT.unfinished those that were begun (before the ending of the name), OUT.decisions.jsonl a line for "
        "each decision. The same command goes on with a review. MEGABERT_API_KEY, or --api-key-file, has the key "
        "that the page requires.",
    )
    add = parser.add_argument
    add("documents", nargs="+", metavar="DOCUMENTS", help="documents with suggestions, as megabert select writes them")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="file, or folder of brat")
    add("--format", choices=REVIEW_FORMATS, help="default: by OUT's ending")
    add("--types", default="", metavar="A,B", help="types of entities; default: those of the documents and the run")
    add("--run", type=Path, metavar="RUN", help="run of token_classification that suggests entities")
    add("--no-time", action="store_true", help="keep no times of decisions")
    add("--host", default="127.0.0.1", help="address; others than loopback need a key; default: 127.0.0.1")
    add("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="name under which the server is reached")
    add("--api-key-file", type=Path, metavar="FILE", help="file with the API key")
    add("--access-log", default="none", metavar="FILE", help="a JSON line a request, without texts; -: stderr")
    add_prediction_options(parser)
    return parser.parse_args(list(words))


def _parse_select(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(
        "select",
        select,
        "A document's uncertainty is the mean over its words: the entropy of the tags' probabilities; the margin "
        "between the two largest (one minus it); least confidence, the negative log of the largest. random is the "
        "baseline to compare with. The output has the run's suggestions, least certain documents first.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run of token_classification, or an exported one")
    add("documents", nargs="+", metavar="DOCUMENTS", help="files, folders or quoted globs of documents")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="file, or folder of brat")
    add("--count", type=int, default=100, metavar="N", help="documents to choose; default: 100")
    add("--by", choices=MEASURES, default=MEASURES[0], help=f"measure of uncertainty; default: {MEASURES[0]}")
    add("--total", action="store_true", help="add up the words' uncertainties: prefers long documents")
    spread = "diversity: a k-center, by embeddings, of the N x COUNT least certain; 1: none; default: 2"
    add("--candidates", type=float, default=2, metavar="N", help=spread)
    add("--sentences", action="store_true", help="choose single sentences, each as a document of its own")
    add("--exclude", action="append", default=[], metavar="FILE", help="documents that are corrected already, by id")
    add("--existing", choices=("keep", "replace"), default="keep", help="annotations of the documents")
    add("--seed", type=int, default=0, help="of --by random; default: 0")
    add("--format", help="default: by OUT's ending")
    add_prediction_options(parser)
    return parser.parse_args(list(words))


def suspects(words: Sequence[str]) -> None:
    """Rank likely label errors by cross-validation: megabert suspects TASK key=value ... -o FOLDER."""
    parser = new_parser(
        "suspects",
        suspects,
        "Trains one run for each fold, on all others, with the settings of `megabert train`; each predicts what it did "
        "not train on. Labels that contradict the prediction are listed, those of the largest loss first and kinds of "
        "errors of entities in turn, in suspects.tsv and suspects.html. --runs takes runs that were trained before, "
        "one for each model.train_ds.held_out_fold=I/N. An interrupted command goes on where it was.",
    )
    add = parser.add_argument
    add("task", nargs="?", help="task name, for example token_classification")
    add("overrides", nargs="*", metavar="key=value", help="settings of the trainings")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the runs and the reports")
    add("--config", type=Path, metavar="FILE", help="YAML file of settings; key=value takes precedence")
    add("--folds", type=int, default=5, metavar="N", help="parts of the data; default: 5")
    add("--runs", nargs="+", type=Path, default=[], metavar="RUN", help="runs of a cross-validation, instead of TASK")
    add("--limit", type=int, default=200, metavar="N", help="suspects on the page; default: 200")
    add("--json", action="store_true", help="print JSON")
    add("--accelerator", choices=("auto", "gpu", "cpu"), default="auto", help="of the predictions")
    add("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")
    arguments = parser.parse_intermixed_args(list(words))
    if (arguments.task is None) == (not arguments.runs) or arguments.folds < 2:
        raise ConfigError("Give a task with its settings, or --runs; --folds must be at least 2.")
    from ..analysis.error_cases import cases
    from ..analysis.error_report import costliest, in_turn, summarize, to_page, to_text, to_tsv
    from ..analysis.judgments import PREDICTIONS
    from ..correction.suspects import out_of_fold_rows
    from ..formats.json_lines import to_json_lines
    from ..storage import atomic_write

    runs = arguments.runs or _train_folds(arguments)
    rows = out_of_fold_rows(runs, accelerator=arguments.accelerator, precision=arguments.precision, log=log)
    found, folder = cases(rows), arguments.output
    order = in_turn if any("losses" in row for row in rows) else costliest
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / PREDICTIONS, to_json_lines(rows))
    atomic_write(folder / "suspects.tsv", to_tsv(found, order))
    atomic_write(folder / "suspects.html", to_page(found, str(folder), arguments.limit, "Suspect labels of", order))
    summary = summarize(found)
    show(to_json(summary) if arguments.json else to_text(summary))
    log(f"Wrote suspects.html, suspects.tsv and {PREDICTIONS} in {folder}.")


def _train_folds(arguments: argparse.Namespace) -> list[Path]:
    """Train a run for each fold, or what is missing of them."""
    from ..analysis.run_records import RUN_JSON, read_run

    runs = []
    for number in range(1, arguments.folds + 1):
        runs.append(arguments.output / f"fold-{number}-of-{arguments.folds}")
        own = (
            f"model.train_ds.held_out_fold={number}/{arguments.folds}",
            f"exp_manager.explicit_log_dir={quote(str(runs[-1]))}",
            "exp_manager.resume_if_exists=true",
        )
        if (runs[-1] / RUN_JSON).is_file() and read_run(runs[-1]).is_complete:
            continue
        log(f"Fold {number} of {arguments.folds}:")
        train_once(arguments.task, [*arguments.overrides, *own], file=arguments.config)
    return runs
