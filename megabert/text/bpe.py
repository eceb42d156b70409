"""GPT-2's byte-level byte-pair encoding: text to token ids.

The work is done by Hugging Face's `tokenizers` (Rust).
Source of the files' format: encoder.py of https://github.com/openai/gpt-2.
"""

import json

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from ..errors import CheckpointError


class BytePairTokenizer:
    """Text to ids by a vocab.json and a merges.txt; every text has ids, and they give it back."""

    def __init__(self, vocabulary: bytes, merges: bytes) -> None:
        """Raise CheckpointError if the files' contents are none of GPT-2's make."""
        try:
            ids = {str(token): int(index) for token, index in json.loads(vocabulary).items()}
            lines = merges.decode("utf-8").split("\n")
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"vocab.json or merges.txt is not of GPT-2's make: {error}") from None
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        wrong = next((pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys()), None)
        if wrong is not None:
            raise CheckpointError(
                f"merges.txt joins {wrong}, of which not all are in vocab.json. Give a pair of files."
            )
        self._rust = RustTokenizer(BPE(ids, [(pair[0], pair[1]) for pair in pairs]))
        self._rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self._rust.decoder = ByteLevelDecoder()

    def encode(self, text: str) -> list[int]:
        """Tokenize a text."""
        return list(self._rust.encode(text).ids)

    def decode(self, token_ids: list[int]) -> str:
        """Give the text back."""
        return str(self._rust.decode(token_ids))

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        return int(self._rust.get_vocab_size())
