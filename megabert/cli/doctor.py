"""The command `doctor`: what is installed, what is missing for what, and what prevents work."""

import os
from collections.abc import Sequence
from pathlib import Path

from .console import new_parser, show, to_json


def doctor(words: Sequence[str]) -> int:
    """Describe the installation: versions, GPUs, cache, disk, what is missing for what: megabert doctor."""
    parser = new_parser(
        "doctor",
        doctor,
        "Exit codes: 0 if megabert can work (an extra may be missing), 64 if a needed package is missing or too old, "
        "73 if the cache or working folder cannot be written, 74 if the disk is full.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(list(words))
    from ..checkpoints.catalog import cache_home
    from ..diagnostics.installation import examine, to_text

    found = examine(cache_home(os.environ), Path.cwd())
    show(to_json(found.to_document()) if arguments.json else to_text(found))
    return found.exit_code
