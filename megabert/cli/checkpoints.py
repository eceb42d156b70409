"""The commands about checkpoint files: models."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .console import new_parser, to_json


def models(words: Sequence[str]) -> int:
    """List the published checkpoints that are known by name: megabert models."""
    from ..checkpoint.catalog import cache_home, describe

    parser = new_parser("models", models, "Files are kept in $MEGABERT_HOME, by default in the user's cache folder.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    home = cache_home(os.environ)
    rows = describe(home)
    if arguments.json:
        print(to_json(rows))
        return 0
    for row in rows:
        print("\n    ".join(_lines_of_model(row)))
    print(f"\nCache folder: {home}")
    return 0


def _lines_of_model(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield row["summary"]
    if shape := row["architecture"]:
        yield (
            f"{shape['num_layers']} layers x {shape['hidden_size']} x {shape['num_attention_heads']} heads, "
            f"{shape['max_position_embeddings']} positions, {row['parameters'] / 1e6:.0f} million parameters"
        )
    words = row["vocabulary"]
    yield f"vocabulary {words['name']}: {words['size']:,} tokens, {'cased' if words['is_cased'] else 'uncased'}"
    yield f"licence: {row['licence']}"
    size = "no weights of its own" if row["size"] is None else f"about {row['size'] / 1e6:.0f} MB"
    yield f"{size}, {'in the cache' if row['in_cache'] else 'not in the cache'}; {row['page']}"
    if row["note"]:
        yield row["note"]
