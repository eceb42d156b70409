"""GPT-2's byte-level byte-pair encoding, on Hugging Face's `tokenizers` (Rust).

Source of the format of vocab.json and merges.txt: encoder.py of https://github.com/openai/gpt-2.
"""

from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from ..errors import CheckpointError, ConfigError
from ..json_documents import parse_json_object
from .rules import TokenizerRules, add_tokens, all_tokens
from .wordpiece import DEFAULT_RULES, Tokenizer

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE by a vocab.json and a merges.txt: every string has token ids, and decoding them restores it.

    It has no [CLS], [SEP] and [MASK]: their ids raise ConfigError.
    """

    def __init__(
        self,
        vocabulary: bytes,
        merges: bytes,
        *,
        rules: TokenizerRules = DEFAULT_RULES,
        source: str = "vocab.json",
    ) -> None:
        """Raise CheckpointError if the files do not have GPT-2's format."""
        try:
            ids = parse_json_object(vocabulary, source)
            lines = merges.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"vocab.json or merges.txt does not have GPT-2's format: {error}") from None
        if not all(type(index) is int for index in ids.values()):
            raise CheckpointError(f"{source} does not give each token a number.")
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        wrong = next((pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys()), None)
        if wrong is not None:
            raise CheckpointError(
                f"merges.txt merges {wrong}, which are not all in vocab.json. Give two files of one tokenizer."
            )
        by_id = sorted(ids, key=lambda token: ids[token])
        if [ids[token] for token in by_id] != list(range(len(ids))):
            raise CheckpointError(f"{source} does not number its {len(ids)} tokens from 0 on without gaps.")
        self.tokens = all_tokens(by_id, rules, source)
        self.source, self.rules, self.lower_case, self.is_uncased = source, rules, False, False
        self._files = {VOCABULARY_FILE: vocabulary.decode("utf-8"), MERGES_FILE: merges.decode("utf-8")}
        self._has_end = END_OF_TEXT in self.tokens
        self.pad_id = self.tokens.index(END_OF_TEXT) if self._has_end else 0
        self._rust = RustTokenizer(BPE(ids, [(pair[0], pair[1]) for pair in pairs]))
        self._rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        self._rust.decoder = ByteLevelDecoder()
        add_tokens(self._rust, rules)
        self._are_words_apart = False  # a word's tokens depend on the blank before it

    def edges(self) -> tuple[list[int], list[int]]:
        """Return no ids: GPT-2 has neither [CLS] nor [SEP]."""
        return [], []

    def __getattr__(self, name: str) -> Any:
        """Raise ConfigError for the special tokens that only BERT's vocabularies have."""
        if name in ("cls_id", "sep_id", "mask_id", "unknown_id"):
            raise ConfigError(
                f"{self.source} is a vocabulary of GPT-2, which has no {name.removesuffix('_id')} token. This "
                "task needs a vocab.txt: model.tokenizer.vocab_file=FILE, and a model that was trained with it."
            )
        raise AttributeError(name)

    @property
    def end_id(self) -> int:
        """The token that ends a document."""
        if not self._has_end:
            raise ConfigError(f"{self.source} has no {END_OF_TEXT}, which must end documents.")
        return self.pad_id

    def to_fast_json(self) -> str:
        """Return a tokenizer.json of Hugging Face's tokenizers."""
        return str(self._rust.to_str(pretty=True))

    def files(self) -> dict[str, str]:
        """Return vocab.json and merges.txt unchanged, content by file name."""
        return dict(self._files)
