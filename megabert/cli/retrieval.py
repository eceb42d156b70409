"""The commands of retrieval: embed, index build and info, search, and rerank."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, InputError
from .console import add_subcommand, log, new_parser, progress_bar, require_not_input, show, to_json

if TYPE_CHECKING:
    from ..inference import Predictor
    from ..retrieval.search_index import SearchIndex

_TEXTS = "lines id<TAB>text, or JSON lines with _id, title and text; compressed or not; or a BEIR folder"
_RUN = "run of text_embedding, folder of sentence-transformers, or other encoder, whose hidden states are averaged"
RERANK_BATCH, EMBED_BATCH = 64, 128


def _corpus(name: str) -> Path:
    from ..formats.passages import beir_file

    return beir_file(Path(name), "corpus")


def _queries(name: str | Path) -> Path:
    from ..formats.passages import beir_file

    return beir_file(Path(name), "queries")


def embed(words: Sequence[str]) -> None:
    """Embed texts to a folder of memory-mapped shards: megabert embed RUN FILE -o EMB."""
    parser = new_parser("embed", embed, "An interrupted command is resumed by --resume and ends with the same bytes.")
    parser.add_argument("model", metavar="RUN", help=_RUN)
    parser.add_argument("file", type=_corpus, help=_TEXTS)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="EMB", help="new folder")
    _add_store_options(parser)
    _add_device_options(parser, batch_size=EMBED_BATCH)
    parser.add_argument("--role", choices=("passage", "query"), default="passage", help="what the texts are")
    arguments = parser.parse_args(list(words))
    from ..formats.passages import iterate_texts

    next(iterate_texts(arguments.file))  # bad input ends before a network is loaded
    predictor = load_embedder(arguments.model, arguments)
    store = _write_store(arguments.output, arguments.file, predictor, arguments)
    show(to_json(_about(store.manifest, len(store))))


def index(words: Sequence[str]) -> None:
    """Build an index of passages, by words and by meaning: megabert index build COLLECTION -o INDEX."""
    parser = new_parser("index", index, "`megabert index VERB --help` describes the options.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    build = add_subcommand(verbs, "build", _build, "Index passages by words (BM25), and with --run by embeddings")
    build.add_argument("collection", type=_corpus, help=_TEXTS)
    build.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="new folder")
    build.add_argument("--run", dest="model", metavar="RUN", help=_RUN)
    build.add_argument("--approximate", action="store_true", help="add a graph for approximate search (usearch)")
    build.add_argument("--no-stems", action="store_true", help="index words as they are, not their stems (English)")
    build.add_argument(
        "--tune", nargs=2, type=Path, metavar=("QUERIES", "QRELS"), help="choose k1 and b on a dev split"
    )
    _add_store_options(build)
    _add_device_options(build, batch_size=EMBED_BATCH)
    info = add_subcommand(verbs, "info", _info, "Show what an index or a folder of embeddings holds")
    info.add_argument("index", type=Path, metavar="INDEX")
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def search(words: Sequence[str]) -> None:
    """Search passages for queries: megabert search INDEX QUERIES -o RUN.trec."""
    parser = new_parser("search", search, "Without -o the passages found are printed, a JSON object for each query.")
    parser.add_argument("index", type=Path, metavar="INDEX", help="of megabert index build, or embed")
    parser.add_argument("queries", help=f"{_TEXTS}; or a query itself")
    parser.add_argument("-o", "--output", type=Path, metavar="RUN.trec", help="ranking in TREC's format")
    parser.add_argument("--method", choices=("bm25", "dense", "hybrid"), help="default: all that the index has")
    parser.add_argument(
        "--approximate", action="store_true", help="search embeddings by the index's graph, not exactly"
    )
    parser.add_argument("--run", metavar="RUN", help="run that embedded the passages; default: where it was then")
    parser.add_argument("-k", type=int, default=100, help="passages for each query; default: 100")
    _add_device_options(parser)
    arguments = parser.parse_args(list(words))
    from ..formats.passages import read_queries
    from ..retrieval.search_index import SearchIndex

    if arguments.k < 1:
        raise ConfigError(f"-k {arguments.k}: give 1 or more.")
    require_not_input(arguments.output, [arguments.queries])
    opened = SearchIndex(arguments.index)
    method = opened.method(arguments.method)
    queries = read_queries(arguments.queries)
    embedder = None if method == "bm25" else _query_embedder(opened, arguments)
    searcher = None if method == "bm25" else _searcher(opened, embedder, is_approximate=arguments.approximate)
    start = time.monotonic()
    found = opened.search(queries, arguments.k, method=method, embedder=embedder, searcher=searcher)
    _write_rankings(found, len(queries), arguments.output, method)
    log(f"{len(queries):,} queries by {method} in {time.monotonic() - start:.1f} s.")


def rerank(words: Sequence[str]) -> None:
    """Rank the first passages of a ranking again by a cross-encoder: megabert rerank RUN RUNFILE -o OUT.trec ..."""
    parser = new_parser("rerank", rerank, "RUNFILE is a ranking in TREC's format, as megabert search writes it.")
    parser.add_argument("model", type=Path, metavar="RUN", help="run of text_ranking")
    parser.add_argument("runfile", type=Path, metavar="RUNFILE")
    parser.add_argument("--queries", type=_queries, required=True, help=_TEXTS)
    parser.add_argument("--collection", type=_corpus, required=True, help=_TEXTS)
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
    _add_device_options(parser)
    arguments = parser.parse_args(list(words))
    from ..formats.passages import read_texts
    from ..formats.relevance import check_documents, check_judged, read_qrels, read_run

    if arguments.k < 1:
        raise ConfigError(f"-k {arguments.k}: give 1 or more.")
    if arguments.tune and (arguments.output or arguments.fuse is not None):
        raise ConfigError("--tune only chooses -k and --fuse. Give it without --fuse and -o.")
    if not 0 <= (arguments.fuse or 0) <= 1:
        raise ConfigError(f"--fuse {arguments.fuse}: give a number from 0 to 1.")
    require_not_input(arguments.output, [arguments.runfile, arguments.queries, arguments.collection])
    rankings = read_run(arguments.runfile)
    queries, passages = read_texts(arguments.queries), read_texts(arguments.collection)
    check_documents(rankings, passages, arguments.runfile)
    qrels = read_qrels(arguments.tune) if arguments.tune else {}
    if qrels and (note := check_judged(qrels, rankings, passages, arguments.tune)):
        log(f"note: {note}")
    if unknown := sorted(rankings.keys() - queries.keys()):
        raise InputError(f"{arguments.runfile}: the query {unknown[0]!r} is not in {arguments.queries}.")
    predictor = _load_run(arguments.model, arguments)
    if predictor.task.name() != "text_ranking":
        raise ConfigError(
            f"{arguments.model} is a run of {predictor.task.name()}; rerank needs one of text_ranking. A cross-encoder "
            'of one label from elsewhere is marked by "sentence_transformers": {} in its config.json.'
        )
    new = _rescored(predictor, rankings, queries, passages, arguments.k)
    if qrels:
        from ..retrieval.fusion import choose_fusion

        chosen = choose_fusion(qrels, rankings, dict(new))
        show(to_json(chosen))
        log(f"Rank other queries with -k {chosen['k']} --fuse {chosen['weight']}.")
        return
    found = ((query, _reordered(rankings[query], scores, arguments.k, arguments.fuse)) for query, scores in new)
    _write_rankings(found, len(rankings), arguments.output, "rerank")


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", choices=("float32", "float16", "int8"), default="float16", help="default: float16")
    parser.add_argument("--dimensions", type=int, help="keep the first so many dimensions")
    parser.add_argument("--shard-size", type=int, default=65_536, help="texts of a shard; default: 65536")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted command")


def _add_device_options(parser: argparse.ArgumentParser, *, batch_size: int = 32) -> None:
    budget = f"token budget of a batch, in sequences; default: {batch_size}"
    parser.add_argument("--batch_size", type=int, default=batch_size, help=budget)
    parser.add_argument("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")


def _device_options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch_size {arguments.batch_size}: give 1 or more.")
    return {name: getattr(arguments, name) for name in ("accelerator", "precision", "batch_size")}


def _load_run(path: Path, arguments: argparse.Namespace) -> "Predictor":
    from ..load_predictor import load_predictor

    return load_predictor(path, **_device_options(arguments))


def load_embedder(name: str, arguments: argparse.Namespace, *, for_many: bool = True) -> "Predictor":
    """Load a run or an exported folder, or the encoder of any other name, and log its notes."""
    import os

    from ..checkpoints.catalog import cache_home
    from ..exported_folder import is_exported

    if is_exported(Path(name)):
        return _load_run(Path(name), arguments)
    from ..build import load_embedder as load

    predictor = load(name, home=cache_home(os.environ), for_many=for_many, **_device_options(arguments))
    for note in predictor.notes:
        log(f"note: {note}")
    return predictor


def _write_store(folder: Path, file: Path, predictor: "Predictor", arguments: argparse.Namespace) -> Any:
    """Embed a file's texts, with progress."""
    from ..formats.passages import unique_texts
    from ..retrieval.embedding_store import StoreOptions, write_store
    from ..storage import file_sha256

    role = getattr(arguments, "role", "passage")
    about = {"run": predictor.digest, "run_path": _run_path(arguments), "role": role, "source": file_sha256(file)}
    about["precision"] = getattr(predictor.session, "precision", "")
    options = StoreOptions(arguments.type, arguments.dimensions, arguments.shard_size)
    start = time.monotonic()
    with _counter("embedding") as progress:
        store = write_store(
            folder,
            unique_texts(file),
            lambda chunk: predictor.embed(chunk, role=role),
            about=about,
            options=options,
            resume=arguments.resume,
            progress=progress,
        )
    seconds = time.monotonic() - start
    log(f"{len(store):,} embeddings of {store.dimensions} dimensions in {seconds:.1f} s.")
    return store


def _run_path(arguments: argparse.Namespace) -> str:
    name = str(arguments.model)
    return str(Path(name).resolve()) if Path(name).exists() else name  # that of a published encoder is no path


@contextmanager
def _counter(title: str) -> Iterator[Callable[[int], None] | None]:
    """Show how many texts are done, if stderr is a terminal."""
    with progress_bar(title) as update:
        yield None if update is None else lambda done: update(done, done)


def _about(manifest: Mapping[str, Any], rows: int) -> dict[str, Any]:
    return {"rows": rows, **{name: value for name, value in manifest.items() if name != "shards"}}


def _build(arguments: argparse.Namespace) -> None:
    from ..formats.passages import read_texts
    from ..retrieval.bm25 import build_bm25
    from ..retrieval.search_index import DENSE, INDEX_FILE, WORDS, write_index

    folder: Path = arguments.output
    if (folder / INDEX_FILE).exists() or (folder.exists() and any(folder.iterdir()) and not arguments.resume):
        raise InputError(
            f"{folder} exists. Remove it, name another folder, or resume an interrupted build by --resume."
        )
    if arguments.approximate and not arguments.model:
        raise ConfigError("--approximate is of embeddings. Give the run that makes them, too: --run RUN.")
    passages = read_texts(arguments.collection)
    document: dict[str, Any] = {"passages": len(passages), "parts": [WORDS]}
    if arguments.tune:
        from ..formats.relevance import check_judged, read_qrels

        queries, qrels = read_texts(_queries(arguments.tune[0])), read_qrels(arguments.tune[1])
        if note := check_judged(qrels, queries, passages, arguments.tune[1]):
            log(f"note: {note}")
    predictor = load_embedder(arguments.model, arguments) if arguments.model else None
    bm25 = build_bm25(folder / WORDS, passages.values(), stems=not arguments.no_stems)
    if arguments.tune:
        from ..retrieval.tuning import tune

        with progress_bar("tuning") as progress:
            document["bm25"], document["tuned_ndcg@10"] = tune(bm25, list(passages), queries, qrels, progress)
    if predictor is not None:
        store = _write_store(folder / DENSE, arguments.collection, predictor, arguments)
        document |= {"parts": [WORDS, DENSE], "dense": _about(store.manifest, len(store))}
        if arguments.approximate:
            from ..retrieval.approximate_search import build_graph

            document["approximate"] = build_graph(folder, store)
    write_index(folder, list(passages), document)
    show(to_json(document))


def _info(arguments: argparse.Namespace) -> None:
    from ..retrieval.search_index import SearchIndex

    opened = SearchIndex(arguments.index)
    document: dict[str, Any] = opened.document | {"passages": len(opened.ids)}
    if opened.store is not None:
        document["dense"] = _about(opened.store.manifest, len(opened.store))
    show(to_json(document))


def _query_embedder(opened: "SearchIndex", arguments: argparse.Namespace) -> "Predictor":
    assert opened.store is not None
    path = arguments.run or opened.store.manifest.get("run_path")
    if not path:
        raise ConfigError(f"the run of {opened.folder} is not known. Give it: --run RUN.")
    predictor = load_embedder(path, arguments, for_many=False)
    opened.check_run(predictor)
    return predictor


def _searcher(opened: "SearchIndex", embedder: "Predictor | None", *, is_approximate: bool) -> Any:
    """Return a search by the graph or on the run's GPU, None for one on the CPU."""
    assert opened.store is not None and embedder is not None
    if is_approximate:
        from ..retrieval.approximate_search import ApproximateSearch

        return ApproximateSearch(opened.folder, opened.store)
    device = getattr(embedder.session, "device", None)  # that of torch; an exported network has none
    if device is None or device.type != "cuda":
        return None
    from ..retrieval.exact_search import GPU_BLOCK_ROWS, DeviceSearch

    return DeviceSearch(opened.store.blocks(GPU_BLOCK_ROWS), device)


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
    for start in range(0, len(names), RERANK_BATCH):
        examples = []
        for name in names[start : start + RERANK_BATCH]:
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


def _write_rankings(
    found: Iterator[tuple[str, list[tuple[str, float]]]], total: int, output: Path | None, tag: str
) -> None:
    """Write rankings as they come: to a file that is complete or not there, or as JSON to stdout."""
    from ..formats.relevance import run_lines
    from ..storage import atomic_file

    if output is None:
        for query, ranking in found:
            show(json.dumps({"query": query, "passages": [{"id": name, "score": score} for name, score in ranking]}))
        return
    with progress_bar("searching") as progress, atomic_file(output) as file:
        for number, (query, ranking) in enumerate(found, 1):
            lines = run_lines(query, [name for name, _ in ranking], [score for _, score in ranking], tag)
            file.write(lines.encode())
            if progress is not None:
                progress(number, total)
    log(f"Wrote {output}.")
