"""A small question answering data set that comes with the package: something to run before you have data.

`README.md` in this folder says what it holds and under which licence.
"""

from pathlib import Path
from typing import Literal


def squad_file(split: Literal["train", "dev"]) -> Path:
    """Return the path of one split, a file in the JSON format of SQuAD 1.1."""
    return Path(__file__).with_name(f"squad_{split}.json")
