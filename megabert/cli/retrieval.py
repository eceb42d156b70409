"""The commands of retrieval: embed, index build and info, and search."""

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

TEXTS = "lines id<TAB>text, or JSON lines with _id, title and text; compressed or not; or a BEIR folder"
_RUN = "run of text_embedding, folder of sentence-transformers, or other encoder, whose hidden states are averaged"
EMBED_BATCH = 128


def corpus_file(name: str) -> Path:
    """Return the file of a corpus: itself, or that of a BEIR folder."""
    from ..formats.passages import beir_file

    return beir_file(Path(name), "corpus")


def queries_file(name: str | Path) -> Path:
    """Return the file of queries: itself, or that of a BEIR folder."""
    from ..formats.passages import beir_file

    return beir_file(Path(name), "queries")


def embed(words: Sequence[str]) -> None:
    """Embed texts to a folder of memory-mapped shards: megabert embed RUN FILE -o EMB."""
    parser = new_parser("embed", embed, "An interrupted command is resumed by --resume and ends with the same bytes.")
    parser.add_argument("model", metavar="RUN", help=_RUN)
    parser.add_argument("file", type=corpus_file, help=TEXTS)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="EMB", help="new folder")
    _add_store_options(parser)
    add_device_options(parser, batch_size=EMBED_BATCH)
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
    build.add_argument("collection", type=corpus_file, help=TEXTS)
    build.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="new folder")
    build.add_argument("--run", dest="model", metavar="RUN", help=_RUN)
    build.add_argument("--approximate", action="store_true", help="add a graph for approximate search (usearch)")
    build.add_argument("--no-stems", action="store_true", help="index words as they are, not their stems (English)")
    build.add_argument(
        "--tune", nargs=2, type=Path, metavar=("QUERIES", "QRELS"), help="choose k1 and b on a dev split"
    )
    _add_store_options(build)
    add_device_options(build, batch_size=EMBED_BATCH)
    info = add_subcommand(verbs, "info", _info, "Show what an index or a folder of embeddings holds")
    info.add_argument("index", type=Path, metavar="INDEX")
    arguments = parser.parse_args(list(words))
    arguments.run(arguments)


def search(words: Sequence[str]) -> None:
    """Search passages for queries: megabert search INDEX QUERIES -o RUN.trec."""
    parser = new_parser("search", search, "Without -o the passages found are printed, a JSON object for each query.")
    parser.add_argument("index", type=Path, metavar="INDEX", help="of megabert index build, or embed")
    parser.add_argument("queries", help=f"{TEXTS}; or a query itself")
    parser.add_argument("-o", "--output", type=Path, metavar="RUN.trec", help="ranking in TREC's format")
    parser.add_argument("--method", choices=("bm25", "dense", "hybrid"), help="default: all that the index has")
    parser.add_argument(
        "--approximate", action="store_true", help="search embeddings by the index's graph, not exactly"
    )
    parser.add_argument("--run", metavar="RUN", help="run that embedded the passages; default: where it was then")
    parser.add_argument("-k", type=int, default=100, help="passages for each query; default: 100")
    add_device_options(parser)
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
    write_rankings(found, len(queries), arguments.output, method)
    log(f"{len(queries):,} queries by {method} in {time.monotonic() - start:.1f} s.")


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", choices=("float32", "float16", "int8"), default="float16", help="default: float16")
    parser.add_argument("--dimensions", type=int, help="keep the first so many dimensions")
    parser.add_argument("--shard-size", type=int, default=65_536, help="texts of a shard; default: 65536")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted command")


def add_device_options(parser: argparse.ArgumentParser, *, batch_size: int = 32) -> None:
    """Add the options of a network's device, precision and batches."""
    budget = f"token budget of a batch, in sequences; default: {batch_size}"
    parser.add_argument("--batch_size", type=int, default=batch_size, help=budget)
    parser.add_argument("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    parser.add_argument("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")


def _device_options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch_size {arguments.batch_size}: give 1 or more.")
    return {name: getattr(arguments, name) for name in ("accelerator", "precision", "batch_size")}


def load_run(path: Path, arguments: argparse.Namespace) -> "Predictor":
    """Load a run or an exported folder with the options of its device."""
    from ..load_predictor import load_predictor

    return load_predictor(path, **_device_options(arguments))


def load_embedder(name: str, arguments: argparse.Namespace, *, for_many: bool = True) -> "Predictor":
    """Load a run or an exported folder, or the encoder of any other name, and log its notes."""
    import os

    from ..checkpoints.catalog import cache_home
    from ..exported_folder import is_exported

    if is_exported(Path(name)):
        return load_run(Path(name), arguments)
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

        queries, qrels = read_texts(queries_file(arguments.tune[0])), read_qrels(arguments.tune[1])
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


def write_rankings(
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
