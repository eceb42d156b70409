"""The commands about published checkpoints: models, fetch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from .console import log, new_parser, show, to_json


def models(words: Sequence[str]) -> None:
    """List the published checkpoints: megabert models."""
    from ..checkpoints.catalog import cache_home, describe

    parser = new_parser("models", models, "Files are kept in $MEGABERT_HOME, by default in the user's cache folder.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    home = cache_home(os.environ)
    rows = describe(home)
    if arguments.json:
        show(to_json(rows))
        return
    for row in rows:
        show("\n    ".join(_describe_model(row)))
    show(f"\nCache folder: {home}")


def fetch(words: Sequence[str]) -> None:
    """Download a published checkpoint into the cache: megabert fetch NAME."""
    parser = new_parser(
        "fetch", fetch, "Files in the cache are not downloaded again. `megabert models` lists the names."
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a name of `megabert models`")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="copy your own files, under any names; they are checked by their content",
    )
    parser.add_argument("--sha256", metavar="SUM", help="the SHA-256 that the weights must have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    from ..checkpoints import catalog

    if len(arguments.names) > 1 and (arguments.source is not None or arguments.sha256 is not None):
        raise ConfigError("--from and --sha256 apply to one model. Give one name.")
    home = catalog.cache_home(os.environ)
    files = {}
    for name in arguments.names:
        if arguments.source is not None:
            resolved = catalog.put(name, arguments.source, home)
        else:
            resolved = catalog.resolve(name, home=home)
        sha256 = None if resolved.weights is None else resolved.sha256[resolved.weights.name]
        if arguments.sha256 is not None and sha256 != arguments.sha256.lower():
            raise CheckpointError(
                f"{resolved.weights} has SHA-256 {sha256}; {arguments.sha256} is expected. Do not use this file."
            )
        files[name] = {
            "weights": None if resolved.weights is None else str(resolved.weights),
            "vocabulary": None if resolved.vocabulary is None else str(resolved.vocabulary),
            "sha256": resolved.sha256,
        }
        location = resolved.weights if resolved.published.is_shipped else home / resolved.published.name
        log(f"{name} is available: {location}")
    if arguments.json:
        show(to_json(files))


def _describe_model(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield row["summary"]
    if shape := row["architecture"]:
        yield (
            f"{shape['num_layers']} layers x {shape['hidden_size']} x {shape['num_attention_heads']} heads, "
            f"{shape['max_position_embeddings']} positions, {_parameters(row)}"
        )
    vocabulary = row["vocabulary"]
    size = "size unknown" if vocabulary["size"] is None else f"{vocabulary['size']:,} tokens"
    yield f"vocabulary {vocabulary['name']}: {size}, {'cased' if vocabulary['is_cased'] else 'uncased'}"
    yield f"licence: {row['licence']}"
    weights = "size unknown" if row["size"] is None else f"about {row['size'] / 1e6:.0f} MB"
    location = "included" if row["is_shipped"] else "in the cache" if row["in_cache"] else "not in the cache"
    yield f"{weights}, {location}; {row['page']}"
    if row["aliases"]:
        yield f"also called {', '.join(row['aliases'])}"
    if row["note"]:
        yield row["note"]


def _parameters(row: Mapping[str, Any]) -> str:
    count = row["parameters"]
    return "parameters by vocabulary" if count is None else f"{count / 1e6:.0f} million parameters"
