"""Load a tokenizer from vocabulary files: WordPiece from vocab.txt, byte-level BPE from vocab.json and merges.txt."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from .bpe import MERGES_FILE, VOCABULARY_FILE, BytePairTokenizer
from .wordpiece import Tokenizer


def load_tokenizer(files: Mapping[str, bytes], *, lower_case: bool | None, source: str) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint's files, content by name; None if there is no vocabulary among them.

    Raises CheckpointError if a vocabulary is malformed.
    """
    if "vocab.txt" in files:
        return Tokenizer.from_bytes(files["vocab.txt"], lower_case=lower_case, source=source)
    if VOCABULARY_FILE in files and MERGES_FILE in files:
        return BytePairTokenizer(files[VOCABULARY_FILE], files[MERGES_FILE], source=source)
    return None


def read_tokenizer(vocabulary: Path, merges: Path | None, *, lower_case: bool | None) -> Tokenizer:
    """Read a vocabulary from a path: vocab.txt, or vocab.json with its merges.txt (None: beside it)."""
    if vocabulary.suffix != ".json":
        return Tokenizer.from_file(vocabulary, lower_case=lower_case)
    merges = merges or vocabulary.with_name(MERGES_FILE)
    contents: list[bytes] = []
    for path in (vocabulary, merges):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read as a vocabulary: {error.strerror}.") from None
    return BytePairTokenizer(contents[0], contents[1], source=str(vocabulary))
