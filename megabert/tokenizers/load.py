"""Load a tokenizer from vocabulary files: WordPiece from vocab.txt, byte-level BPE from vocab.json and merges.txt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .bpe import MERGES_FILE, VOCABULARY_FILE, BytePairTokenizer
from .rules import TokenizerRules, all_tokens
from .wordpiece import DEFAULT_RULES, Tokenizer, parse_vocabulary


def load_tokenizer(
    files: Mapping[str, bytes], *, lower_case: bool | None, rules: TokenizerRules = DEFAULT_RULES, source: str
) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint's files, content by name; None if there is no vocabulary among them.

    Raises CheckpointError if a vocabulary is malformed.
    """
    if "vocab.txt" in files:
        return Tokenizer.from_bytes(files["vocab.txt"], lower_case=lower_case, rules=rules, source=source)
    if VOCABULARY_FILE in files and MERGES_FILE in files:
        return BytePairTokenizer(files[VOCABULARY_FILE], files[MERGES_FILE], rules=rules, source=source)
    return None


def stored_tokenizer(documents: Mapping[str, Any], texts: Mapping[str, str], source: str) -> Tokenizer:
    """Load the tokenizer of a run or of an exported model from its document `tokenizer` and its text files.

    Raises CheckpointError if they are incomplete or malformed.
    """
    try:
        lower_case = documents["tokenizer"]["lower_case"]
        if not isinstance(lower_case, bool):
            raise CheckpointError(f"{source}: lower_case {lower_case!r:.40} is neither true nor false.")
        rules = TokenizerRules.from_document(documents["tokenizer"], source)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} lacks {error}. Is it a checkpoint of a training run?") from None
    files = {name: content.encode() for name, content in texts.items()}
    tokenizer = load_tokenizer(files, lower_case=lower_case, rules=rules, source=source)
    if tokenizer is None:
        raise CheckpointError(f"{source} lacks a vocabulary: vocab.txt, or vocab.json and merges.txt.")
    return tokenizer


def files_with_added_tokens(files: Mapping[str, bytes], rules: TokenizerRules) -> dict[str, bytes]:
    """Return vocabulary files that name the added tokens too, for programs that read only these."""
    files = dict(files)
    if not rules.added_tokens:
        return files
    if "vocab.txt" in files:
        tokens = parse_vocabulary(files["vocab.txt"], "vocab.txt")
        names = all_tokens(tokens, rules, "vocab.txt")[len(tokens) :]
        lines = [
            f"[added{number}]" if "\n" in name or name.endswith("\r") else name for number, name in enumerate(names)
        ]
        if lines:
            files["vocab.txt"] = "".join(f"{token}\n" for token in (*tokens, *lines)).encode()
    elif VOCABULARY_FILE in files:
        ids = json.loads(files[VOCABULARY_FILE])
        new = {token.content: token.id for token in rules.added_tokens if token.content not in ids}
        if new:
            files[VOCABULARY_FILE] = json.dumps(ids | new, ensure_ascii=False).encode()
    return files


def read_tokenizer(
    vocabulary: Path, merges: Path | None, *, lower_case: bool | None, rules: TokenizerRules = DEFAULT_RULES
) -> Tokenizer:
    """Read a vocabulary from a path: vocab.txt, or vocab.json with its merges.txt (None: beside it)."""
    if vocabulary.suffix != ".json":
        return Tokenizer.from_file(vocabulary, lower_case=lower_case, rules=rules)
    merges = merges or vocabulary.with_name(MERGES_FILE)
    contents: list[bytes] = []
    for path in (vocabulary, merges):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read as a vocabulary: {error.strerror}. Give the path of its file "
                "(model.tokenizer.vocab_file=FILE, model.tokenizer.merges_file=FILE)."
            ) from None
    return BytePairTokenizer(contents[0], contents[1], rules=rules, source=str(vocabulary))
