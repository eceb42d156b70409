"""Find the tokenizer's files beside a checkpoint."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import CheckpointError
from .files.json_object import read_json_object

# File names by the name that megabert uses, for each kind of tokenizer
_TOKENIZERS = (
    {"vocab.txt": "vocab.txt"},
    {"vocab.json": "vocab.json", "merges.txt": "merges.txt"},
    {"vocab.json": "gpt2-vocab.json", "merges.txt": "gpt2-merges.txt"},
)
_LARGEST_FILE = 2**26


def find_tokenizer(folders: Iterable[Path]) -> tuple[str, dict[str, bytes]]:
    """Read the tokenizer's files from the first folder that has them; returns (source, files by name) or ("", {})."""
    for folder in folders:
        for files in _TOKENIZERS:
            if all((folder / file).is_file() for file in files.values()):
                source = str(folder / next(iter(files.values())))
                return source, {name: _read_small(folder / file) for name, file in files.items()}
    return "", {}


def read_lower_case(folder: Path) -> bool | None:
    """Read do_lower_case from tokenizer_config.json; None if it is not set."""
    file = folder / "tokenizer_config.json"
    value = read_json_object(file).get("do_lower_case") if file.is_file() else None
    return value if isinstance(value, bool) else None


def folders_of_megatron(path: Path) -> Iterator[Path]:
    """Yield the folder of a Megatron-LM checkpoint, and the folders that contain its rank, iteration or release."""
    folder = path if path.is_dir() else path.parent
    yield folder
    while folder.name.startswith(("mp_rank_", "iter_")) or folder.name == "release":
        folder = folder.parent
        yield folder


def _read_small(file: Path) -> bytes:
    size = file.stat().st_size
    if size > _LARGEST_FILE:
        raise CheckpointError(f"{file} has {size} bytes, which is no vocabulary; at most {_LARGEST_FILE} are read.")
    return file.read_bytes()
