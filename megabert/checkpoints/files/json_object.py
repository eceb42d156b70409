"""JSON objects of checkpoints, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from ...errors import CheckpointError


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError if the file is unreadable or holds another JSON value."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{file} holds no JSON object.")
    return document
