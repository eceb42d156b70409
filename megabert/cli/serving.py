"""The command `megabert serve`."""

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .annotation import add_link_options, link_rule, load_linker
from .console import log, new_parser

if TYPE_CHECKING:
    from ..annotate.entity_linker import EntityLinker
    from ..serve.server_parts import LoadedRun

KEY_VARIABLE = "MEGABERT_API_KEY"
EXAMPLES = """examples:
  megabert serve ner=RUN                       # http://127.0.0.1:8000 has the page
  megabert serve ner=RUN qa=RUN2 --port 9000
  megabert serve ner=RUN --link Disease=MEDIC.dict,RUN2    # identifiers of the entities that are found
  megabert serve --config serve.toml           # [models] name = "RUN", and options by their names

MEGABERT_API_KEY, or the file of --api-key-file, has the key that clients send: Authorization: Bearer KEY."""


def serve(words: Sequence[str]) -> None:
    """Serve runs over HTTP, with a page to look at: megabert serve NAME=RUN ..."""
    arguments = _parse(words)
    models = _models(arguments)
    require_uvicorn("serve")
    from ..serve.access_log import LogWriter
    from ..serve.admission import ServerLimits
    from ..serve.model_queue import CPU_BATCH_TOKENS, DEFAULT_BATCH_TOKENS
    from ..serve.server import check_address
    from ..serve.server import serve as serve_runs
    from ..serve.server_parts import ServeSettings

    digest = key_digest(arguments.api_key_file, os.environ)
    address = check_address(arguments.host, digest, arguments.allowed_host, is_open=arguments.no_key)
    runs: list[LoadedRun] = []
    for name, path in models.items():
        runs.append(_load(name, path, arguments))
        _share(runs[-1], runs[:-1])
    linkers = [load_linker(rule, arguments) for rule in arguments.links]
    _check_linkers(linkers, models)
    is_gpu = any("cuda" in str(getattr(run.predictor.session, "device", "")) for run in runs)
    processes = arguments.processes
    if processes is None:
        processes = max(min(8, len(os.sched_getaffinity(0)) - 2), 0) if is_gpu else 0
    tokens = arguments.batch_tokens or (DEFAULT_BATCH_TOKENS if is_gpu else CPU_BATCH_TOKENS)
    limits = ServerLimits(
        max_concurrent_requests=arguments.max_concurrent_requests,
        max_body_bytes=arguments.max_body_bytes,
        max_inputs=arguments.max_inputs,
        deadline_seconds=arguments.deadline,
    )
    settings = ServeSettings(
        **address, port=arguments.port, processes=processes, batch_tokens=tokens, key_digest=digest,
        access_log=arguments.access_log, limits=limits, linkers=linkers,
    )  # fmt: skip
    serve_runs(runs, settings, lambda where: log(f"Serving {', '.join(models)} at {where}; the page is there, too."))
    last = LogWriter("-")  # standard error may be a pipe that nobody reads
    last.write("The server has stopped; all admitted requests are answered.")
    last.close()


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = new_parser("serve", serve, EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("models", nargs="*", metavar="NAME=RUN", help="run folders under the names that clients use")
    add_link_options(parser)
    add("--config", type=Path, metavar="FILE", help="TOML file with [models], [links] and these options, _ for -")
    add("--host", default="127.0.0.1", help="address; others than loopback need a key; default: 127.0.0.1")
    add("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="name under which clients reach the server")
    add("--api-key-file", type=Path, metavar="FILE", help="file with the API key")
    add("--no-key", action="store_true", help="serve other machines without a key")
    add("--processes", type=int, help="processes that answer HTTP; default: 0, in one process; on a GPU up to 8")
    add("--batch-tokens", type=int, help="token budget of a batch; default: 16384, on a CPU 2048")
    add("--max-concurrent-requests", type=int, default=512, help="more are refused with 429; default: 512")
    add("--max-inputs", type=int, default=32, help="inputs of one request; default: 32")
    add("--max-body-bytes", type=int, default=2_000_000, help="default: 2000000")
    add("--deadline", type=float, default=30.0, metavar="SECONDS", help="longest time of a request; default: 30")
    add("--access-log", default="-", metavar="FILE", help="a JSON line a request, without texts; -: stderr; none")
    add("--accelerator", choices=("auto", "gpu", "cpu"), default="auto")
    add("--precision", choices=("auto", "32", "bf16", "16", "fp8"), default="auto")
    arguments = parser.parse_args(list(words))
    if arguments.config is not None:
        given = _read_config(arguments.config)
        known = set(vars(arguments)) - {"config"}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ConfigError(f"{arguments.config}: {unknown[0]} is no option: {', '.join(sorted(known))}.")
        parser.set_defaults(**{name: value for name, value in given.items() if name not in ("models", "links")})
        arguments = parser.parse_args(list(words))
        arguments.models = [*(f"{name}={path}" for name, path in given.get("models", {}).items()), *arguments.models]
        arguments.links = [
            *(link_rule(f"{name}={rule}") for name, rule in given.get("links", {}).items()),
            *arguments.links,
        ]
    return arguments


def _read_config(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML: {error}.") from None


def _models(arguments: argparse.Namespace) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for word in arguments.models:
        name, equals, path = word.partition("=")
        if not (
            equals and path and name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name.isascii()
        ):
            raise ConfigError(f"{word!r} is not NAME=RUN. A name has letters, digits, dots, - and _.")
        if name in models:
            raise ConfigError(f"{name} is the name of two models. Give each its own.")
        models[name] = Path(path)
    if not models:
        raise ConfigError("no model is given: megabert serve NAME=RUN ...")
    return models


def _check_linkers(linkers: "Sequence[EntityLinker]", models: Mapping[str, Path]) -> None:
    names = [item.type for item in linkers]
    twice = next((name for name in names if names.count(name) > 1 or name in models), None)
    if twice is not None:
        raise ConfigError(f"--link {twice}=...: {twice} is the name of another dictionary or model, too.")


def require_uvicorn(command: str) -> None:
    """Raise ConfigError where the extra serve is not installed."""
    try:
        import uvicorn  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"megabert {command} needs the extra serve: pip install 'megabert[serve]', or without PyTorch "
            "'megabert-runtime[serve]'."
        ) from None


def key_digest(file: Path | None, environment: Mapping[str, str]) -> bytes | None:
    """Return the SHA-256 of the API key in a file, else in the environment; None without one."""
    key = environment.get(KEY_VARIABLE, "")
    if file is not None:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the API key in {file} cannot be read: {error}.") from None
        if not key:
            raise ConfigError(f"{file} has no API key.")
    return hashlib.sha256(key.encode()).digest() if key else None


def _load(name: str, path: Path, arguments: argparse.Namespace) -> "LoadedRun":
    from ..load_predictor import load_predictor
    from ..serve.server_parts import LoadedRun

    predictor = load_predictor(path, accelerator=arguments.accelerator, precision=arguments.precision)
    for note in predictor.notes:
        log(f"{name}: {note}")
    dataset = predictor.task.settings.model.dataset
    if getattr(dataset, "long_texts", "windows") == "truncate":
        log(f"{name}: the run truncates long texts; the server reads them in windows.")
        dataset.long_texts = "windows"
    return LoadedRun(name, predictor)


def _share(run: "LoadedRun", others: "Sequence[LoadedRun]") -> None:
    """Let a run use the weights of others that are the same: of adapters on one base there is one base."""
    model, *rest = (getattr(item.predictor.session, "model", None) for item in (run, *others))
    if model is None:  # an exported folder, which needs no torch
        return
    from ..weights import share_weights

    if shared := share_weights(model, (item for item in rest if item is not None)):
        log(f"{run.name}: {shared / 1e6:.1f} MB of its weights are those of other models, and are held once.")
