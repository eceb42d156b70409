"""The command of re-ranking: rerank."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, InputError
from .console import log, new_parser, require_not_input, show, to_json
from .retrieval import TEXTS, add_device_options, corpus_file, load_run, queries_file, write_rankings

if TYPE_CHECKING:
    from ..inference import Predictor

BATCH = 64  # queries


def rerank(words: Sequence[str]) -> None:
    """Rank the first passages of a ranking again by a cross-encoder: megabert rerank RUN RUNFILE -o OUT.trec ..."""
    arguments = _parse(words)
    from ..formats.passages import read_texts
    from ..formats.relevance import check_documents, check_judged, read_qrels, read_run

    rankings = read_run(arguments.runfile)
    queries, passages = read_texts(arguments.queries), read_texts(arguments.collection)
    check_documents(rankings, passages, arguments.runfile)
    qrels = read_qrels(arguments.tune) if arguments.tune else {}
    if qrels and (note := check_judged(qrels, rankings, passages, arguments.tune)):
        log(f"note: {note}")
    if unknown := sorted(rankings.keys() - queries.keys()):
        raise InputError(f"{arguments.runfile}: the query {unknown[0]!r} is not in {arguments.queries}.")
    new = _rescored(_load_ranker(arguments), rankings, queries, passages, arguments.k)
    if qrels:
        _report_fusion(qrels, rankings, dict(new), arguments.model)
        return
    found = ((query, _reordered(rankings[query], scores, arguments.k, arguments.fuse)) for query, scores in new)
    write_rankings(found, len(rankings), arguments.output, "rerank")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("rerank", rerank, "")
    parser.add_argument("model", type=Path, metavar="RUN", help="run of text_ranking")
    parser.add_argument("runfile", type=Path, metavar="RUNFILE", help="ranking of megabert search, in TREC's format")
    parser.add_argument("--queries", type=queries_file, required=True, help=TEXTS)
    parser.add_argument("--collection", type=corpus_file, required=True, help=TEXTS)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.trec", help="default: print JSON")
    parser.add_argument(
        "-k", type=int, default=100, help="first passages that are ranked again, before the others; default: 100"
    )
    parser.add_argument(
        "--fuse",
        type=float,
        nargs="?",
        const=0.2,
        metavar="WEIGHT",
        help="fuse both by their scores; weight of the new ones, 0 to 1; default: 0.2",
    )
    tune = "only choose -k and --fuse, on judged queries that RUN has not seen"
    parser.add_argument("--tune", type=Path, metavar="QRELS", help=tune)
    add_device_options(parser)
    arguments = parser.parse_args(list(words))
    if arguments.k < 1:
        raise ConfigError(f"-k {arguments.k}: give 1 or more.")
    if arguments.tune and (arguments.output or arguments.fuse is not None):
        raise ConfigError("--tune only chooses -k and --fuse. Give it without --fuse and -o.")
    if not 0 <= (arguments.fuse or 0) <= 1:
        raise ConfigError(f"--fuse {arguments.fuse}: give a number from 0 to 1.")
    require_not_input(arguments.output, [arguments.runfile, arguments.queries, arguments.collection])
    return arguments


def _load_ranker(arguments: argparse.Namespace) -> "Predictor":
    """Load the cross-encoder. Raises ConfigError for a run of another task."""
    predictor = load_run(arguments.model, arguments)
    if predictor.task.name() != "text_ranking":
        raise ConfigError(
            f"{arguments.model} is a run of {predictor.task.name()}; rerank needs one of text_ranking. A cross-encoder "
            'of one label from elsewhere is marked by "sentence_transformers": {} in its config.json.'
        )
    return predictor


def _report_fusion(
    qrels: Mapping[str, Mapping[str, int]],
    rankings: Mapping[str, Mapping[str, float]],
    new: Mapping[str, Mapping[str, float]],
    model: Path,
) -> None:
    """Print the depth and weight that are best on judged queries."""
    from ..retrieval.fusion import choose_fusion

    chosen = choose_fusion(qrels, rankings, new)
    show(to_json(chosen))
    best = f"Rank other queries with -k {chosen['k']} --fuse {chosen['weight']}."
    log(best if chosen["weight"] else f"{model} improves nothing here: keep the ranking as it is.")


def _rescored(
    predictor: "Predictor",
    rankings: Mapping[str, Mapping[str, float]],
    queries: Mapping[str, str],
    passages: Mapping[str, str],
    depth: int,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each query with the network's scores of its first passages."""
    from ..metrics.retrieval import ranked
    from ..tasks.retrieval_data import RetrievalExample

    names = list(rankings)
    for start in range(0, len(names), BATCH):
        examples = []
        for name in names[start : start + BATCH]:
            first = tuple(ranked(rankings[name])[:depth])
            examples.append(RetrievalExample(name, queries[name], tuple(passages[own] for own in first), first))
        for item, prediction in zip(examples, predictor.predict_examples(examples), strict=True):
            yield item.id, prediction.scores


def _reordered(
    first: Mapping[str, float], new: Mapping[str, float], depth: int, weight: float | None
) -> list[tuple[str, float]]:
    """Order the first passages by their new scores, or fused with those that they had; the others follow."""
    from ..metrics.retrieval import ranked
    from ..retrieval.fusion import fuse_scores

    names = ranked(first)
    top = {name: first[name] for name in names[:depth]}
    best = (
        sorted(new.items(), key=lambda pair: (-pair[1], pair[0])) if weight is None else fuse_scores(top, new, weight)
    )
    lowest = min((score for _, score in best), default=0.0)
    return [*best, *((name, lowest - n) for n, name in enumerate(names[depth:], 1))]
