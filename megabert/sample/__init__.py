"""A small question answering data set in SQuAD's format, shipped with the package for demos and tests.

`README.md` in this folder describes its contents and licence.
"""

from pathlib import Path
from typing import Literal


def squad_file(split: Literal["train", "dev"]) -> Path:
    """Return the path of one split, a file in the JSON format of SQuAD 1.1."""
    return Path(__file__).with_name(f"squad_{split}.json")
