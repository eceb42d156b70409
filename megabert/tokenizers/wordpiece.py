"""BERT's WordPiece tokenizer with character offsets, on Hugging Face's `tokenizers` (Rust).

Offsets count characters of the original string, never of a normalized copy, so an answer is a slice of the original.
"""

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from ..errors import CheckpointError, InputError
from .characters import add_following_marks, require_characters
from .rules import TokenizerRules, add_tokens, all_tokens

DEFAULT_RULES = TokenizerRules()
MAX_WORDS_KEPT = 1 << 17
"""Words whose tokens are kept for later sentences; some 30 MB."""
MAX_WORD_KEPT = 64
"""Characters of a word that is kept: longer ones, such as sentences without blanks, hardly come again."""
MANY_CORES, MANY_TEXTS = 8, 256
"""So many strings are faster tokenized by all of so many cores than looked up word by word on one."""
runs_on_one_core: ContextVar[bool] = ContextVar("runs_on_one_core", default=False)
"""Whether other processes use the other cores."""
_WordIds = tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]
"""The tokens of words that were seen, lately and before."""
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Encoded:
    """A tokenized string: token ids [L], and offsets [L, 2], the start and end character of each token."""

    token_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]


class Tokenizer:
    """WordPiece with BERT's rules for white space, punctuation, Chinese characters and accents.

    `vocabulary` has the tokens that words are split into; `tokens` are these and the added ones of `rules`, by id.
    `lower_case` None lower-cases if the vocabulary has no capital letter. Accents are stripped where text is
    lower-cased, as Google's BERT does, unless `rules` say otherwise.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lower_case: bool | None = None,
        rules: TokenizerRules = DEFAULT_RULES,
        source: str = "vocabulary",
    ) -> None:
        self.source, self.rules = source, rules
        self._vocabulary = list(vocabulary)
        self.is_uncased = not any(map(_has_capital, vocabulary))
        self.lower_case = self.is_uncased if lower_case is None else lower_case
        ids = {token: index for index, token in enumerate(vocabulary)}
        _check(vocabulary, ids, source)
        self.tokens = all_tokens(vocabulary, rules, source)
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self._rust = RustTokenizer(WordPiece(ids, unk_token="[UNK]"))  # noqa: S106  (a token, no password)
        self._rust.normalizer = BertNormalizer(
            lowercase=self.lower_case,
            strip_accents=rules.strip_accents,
            handle_chinese_chars=rules.tokenize_chinese_chars,
        )
        self._rust.pre_tokenizer = BertPreTokenizer()
        self._rust.decoder = WordPieceDecoder()
        add_tokens(self._rust, rules)
        self._word_ids: _WordIds = {}, {}
        self._are_words_apart = all(len(token.content.split()) == 1 for token in rules.added_tokens)

    @classmethod
    def from_file(
        cls, path: Path, *, lower_case: bool | None = None, rules: TokenizerRules = DEFAULT_RULES
    ) -> "Tokenizer":
        """Read a vocabulary of one token a line. Raises CheckpointError if it is malformed."""
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(
                f"{path} cannot be read as a vocabulary: {reason}. Give the path of its vocab.txt "
                "(model.tokenizer.vocab_file=FILE; --vocab-file FILE)."
            ) from None
        return cls.from_bytes(data, lower_case=lower_case, rules=rules, source=str(path))

    @classmethod
    def from_bytes(
        cls, data: bytes, *, lower_case: bool | None = None, rules: TokenizerRules = DEFAULT_RULES, source: str
    ) -> "Tokenizer":
        """Parse a vocabulary file's content. Raises CheckpointError if it is malformed."""
        return cls(parse_vocabulary(data, source), lower_case=lower_case, rules=rules, source=source)

    def __len__(self) -> int:
        """Count the tokens, added ones included."""
        return len(self.tokens)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Tokenize strings in parallel, without special tokens.

        A token ends behind the combining marks and characters of zero width that follow it.
        """
        encodings = encode_batch(self._rust.encode_batch, texts)
        return [
            Encoded(
                np.array(item.ids, dtype=np.int64),
                add_following_marks(text, np.array(item.offsets, dtype=np.int64).reshape(-1, 2)),
            )
            for text, item in zip(texts, encodings, strict=True)
        ]

    def edges(self) -> tuple[list[int], list[int]]:
        """Return the ids that begin and end a sequence."""
        return [self.cls_id], [self.sep_id]

    def encode_ids(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Tokenize strings to the ids of `encode`, faster because without offsets."""
        ids, num_tokens = self.encode_joined(texts)
        ends = np.cumsum(num_tokens).tolist()
        return [ids[end - count : end] for end, count in zip(ends, num_tokens.tolist(), strict=True)]

    def encode_joined(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenize strings to the ids of `encode`, of one string after the other; and the number of tokens of each."""
        are_many = len(texts) >= MANY_TEXTS and (os.cpu_count() or 1) >= MANY_CORES and not runs_on_one_core.get()
        if are_many or not self._are_words_apart or isinstance(texts, str):
            rows = [encoding.ids for encoding in encode_batch(self._rust.encode_batch_fast, texts)]
            return _joined(rows)
        try:  # only at blanks: what else counts as white space is the library's concern
            words = [text.split(" ") for text in texts]
            ids, of_words = _joined(self._pieces(list(chain.from_iterable(words))))
        except InputError:
            require_characters(list(texts), "the text")  # with more of it than a word
            raise
        totals = np.concatenate([[0], np.cumsum(of_words)])
        return ids, np.diff(totals[np.cumsum([0, *map(len, words)])])

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Tokenize sentences given as words, to token ids [L] and the index of each token's word [L].

        The tokens of a word do not depend on its neighbours, so frequent words are looked up.
        """
        if isinstance(sentences, str) or any(isinstance(words, str) for words in sentences):
            raise _string_error(sentences, "a list of lists of words")
        words = list(chain.from_iterable(sentences))
        ids, num_tokens = _joined(self._pieces(words))
        encoded = []
        first_word = first = 0
        for sentence in sentences:
            counts = num_tokens[first_word : first_word + len(sentence)]
            own = np.repeat(np.arange(len(sentence)), counts)
            encoded.append((ids[first : first + len(own)], own))
            first_word, first = first_word + len(sentence), first + len(own)
        return encoded

    def _pieces(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokenize words, of which those that were seen before are looked up."""
        known, older = self._word_ids  # other threads may add words to the first
        new = [word for word in set(words) if word not in known]
        if 2 * (len(known) + len(new)) > MAX_WORDS_KEPT:
            known, older, new = {}, known, list(set(words))
        unseen = [word for word in new if word not in older]
        encodings = encode_batch(self._rust.encode_batch_fast, unseen) if unseen else []
        found = {word: older[word] for word in new if word in older}
        found.update(zip(unseen, (tuple(encoding.ids) for encoding in encodings), strict=True))
        kept = {word: ids for word, ids in found.items() if len(word) <= MAX_WORD_KEPT}
        known.update(kept)
        self._word_ids = known, older
        if len(kept) == len(found):
            return list(map(known.__getitem__, words))
        return [known[word] if word in known else found[word] for word in words]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Join tokens to a readable string. For display only: answers are slices of the original."""
        return str(self._rust.decode(list(token_ids), skip_special_tokens=False))

    @property
    def end_id(self) -> int:
        """The token that ends a document in causal language modeling."""
        return self.sep_id

    def files(self) -> dict[str, str]:
        """Return the vocabulary file, content by name: vocab.txt, one token a line, without added tokens."""
        return {"vocab.txt": "".join(f"{token}\n" for token in self._vocabulary)}

    def to_fast_json(self) -> str:
        """Return a tokenizer.json of Hugging Face's tokenizers, which adds the special tokens of one string or two."""
        fast = RustTokenizer.from_str(self._rust.to_str())
        fast.post_processor = BertProcessing(("[SEP]", self.sep_id), ("[CLS]", self.cls_id))
        # transformers cuts no string at a special token that is not an added one.
        added = {token.content for token in fast.get_added_tokens_decoder().values()}
        fast.add_special_tokens([name for name in SPECIAL_TOKENS if name not in added])
        return str(fast.to_str(pretty=True))

    def to_document(self) -> dict[str, Any]:
        """Return what a run stores beside the vocabulary file: the casing, and the rules that are not BERT's."""
        return {"lower_case": self.lower_case, **self.rules.to_document()}


def _joined(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Concatenate lists of ids; also returns the length of each."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum())), lengths


def encode_batch(method: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
    """Call a batch method of the Rust tokenizer.

    Raises TypeError if a string stands for the list, InputError for a lone surrogate, which is no character.
    """
    if isinstance(texts, str):
        raise _string_error(texts, "a list of strings")
    batch = list(texts)
    try:
        return method(batch, add_special_tokens=False)
    except TypeError:
        require_characters(batch, "the text")
        raise


def _string_error(given: Any, expected: str) -> TypeError:
    return TypeError(f"{given!r:.60} is given where {expected} is expected, such as {[given]!r:.60}.")


def parse_vocabulary(data: bytes, source: str) -> list[str]:
    """Parse a vocab.txt, one token a line. Raises CheckpointError if it is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source} cannot be read as a vocabulary: {error}") from None
    # split, not splitlines: U+2028 and its like may be tokens.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _has_capital(token: str) -> bool:
    # [CLS] and [unused1] do not count; uncased vocabularies may have Greek capitals (SciBERT).
    return not (token.startswith("[") and token.endswith("]")) and any("A" <= letter <= "Z" for letter in token)


def _check(tokens: Sequence[str], ids: dict[str, int], source: str) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise CheckpointError(
            f"{source} is not a BERT vocabulary: it has no {', '.join(missing)} among its {len(tokens)} lines. "
            "Give the vocab.txt of the checkpoint (model.tokenizer.vocab_file)."
        )
    if len(ids) != len(tokens):
        seen: set[str] = set()
        double = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        lines = [index + 1 for index, token in enumerate(tokens) if token == double]
        # The loaders of BERT, Megatron-LM and transformers let the last line win.
        raise CheckpointError(
            f"{source}: the token {double!r} is on lines {lines[:6]}. Rename all but the last to [unusedN], N a number "
            "that is free; do not delete a line, which would give every later token its neighbour's word vector."
        )
