"""Find the tokenizer's files beside a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from ..tokenizers.huggingface_files import FILES, StoredTokenizer, parse_tokenizer

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


def read_huggingface_tokenizer(folder: Path) -> tuple[str, StoredTokenizer]:
    """Read the tokenizer of a Hugging Face folder; returns its main file, "" if there is no vocabulary, and it.

    Raises CheckpointError for files that are malformed or too large, and for a tokenizer that cannot be read.
    """
    files = {name: _read_small(folder / name) for name in FILES if (folder / name).is_file()}
    tokenizer = parse_tokenizer(files, str(folder))
    if not tokenizer.files:
        source, others = find_tokenizer([folder])  # gpt2-vocab.json and gpt2-merges.txt
        return source, replace(tokenizer, files=others)
    main = next(iter(tokenizer.files))
    return str(folder / (main if files.get(main) == tokenizer.files[main] else "tokenizer.json")), tokenizer


def folders_of_megatron(path: Path) -> Iterator[Path]:
    """Yield the folder of a Megatron-LM checkpoint, and the folders that contain its rank, iteration or release."""
    folder = path if path.is_dir() else path.parent
    yield folder
    while folder.name.startswith(("mp_rank_", "iter_")) or folder.name == "release":
        folder = folder.parent
        yield folder


def _read_small(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _LARGEST_FILE:
            raise CheckpointError(f"{file} has {size} bytes, which is no vocabulary; at most {_LARGEST_FILE} are read.")
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
