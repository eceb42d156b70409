"""The commands for learning from corrections: select (what to correct next), review (correct it), suspects (labels)."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .annotation import load_annotating_run
from .console import log, new_parser, show, to_json

if TYPE_CHECKING:
    from ..formats.documents.document import Document

MEASURES = ("entropy", "margin", "least-confidence", "random")


def select(words: Sequence[str]) -> int:
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
    excluded = {document.id for document in read_documents(arguments.exclude)} if arguments.exclude else ()
    predictor = load_annotating_run(arguments.run, arguments)
    if predictor.task.name() != "token_classification":
        raise ConfigError(f"{arguments.run} is a run of {predictor.task.name()}. Give one of token_classification.")
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
    mean = sum(found.scores) / max(len(found.scores), 1)
    summary = {
        "documents": found.num_documents, "excluded": found.num_excluded, "selected": len(chosen),
        "words": sum(len(document.text().split()) for document in chosen),
        "entities": sum(len(document.entities) for document in chosen), "by": arguments.by,
        "uncertainty": {"all": round(found.mean_score, 6), "selected": round(mean, 6)},
    }  # fmt: skip
    show(to_json(summary))
    return 0


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
    add("--max_seq_length", type=int, help="tokens of a window; default: the most that the network takes")
    add("--batch_size", type=int, default=32, help="token budget of a batch, in windows; default: 32")
    add("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    add("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")
    return parser.parse_args(list(words))
