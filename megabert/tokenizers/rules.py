"""Rules of a tokenizer that its vocabulary file does not hold: added tokens, accents, Chinese characters.

Runs store them in their tokenizer.json, and only where they differ from the defaults.
Source: AddedToken of https://github.com/huggingface/tokenizers, BertTokenizer of transformers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import tokenizers

from ..errors import CheckpointError

_MAX_ADDED_TOKENS = 100_000
_FLAGS = ("strip_accents", "tokenize_chinese_chars", "split_special_tokens")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a string before the string is split into words.

    `normalized` matches it after lower-casing and stripping of accents, of string and token alike. `single_word`
    matches it only between word boundaries; `lstrip` and `rstrip` include the blanks before and after it.
    """

    id: int
    content: str
    special: bool = False
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @classmethod
    def parse(cls, token_id: object, entry: object, source: str) -> "AddedToken":
        """Parse a JSON entry with transformers' keys and defaults. Raises CheckpointError if it is malformed."""
        if not isinstance(entry, dict):
            raise CheckpointError(f"{source}: an added token is {str(entry)[:80]!r}, not a JSON object.")
        content = entry.get("content")
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise CheckpointError(f"{source}: the added token {str(content)[:80]!r} has no id, a number from 0 on.")
        if not isinstance(content, str) or not content or not is_unicode(content):
            raise CheckpointError(f"{source}: the added token with id {token_id} has no content, a Unicode string.")
        flags = {"special": False, "normalized": not entry.get("special", False)}
        flags |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        flags |= {flag: entry[flag] for flag in flags if flag in entry}
        wrong = next((flag for flag, value in flags.items() if not isinstance(value, bool)), None)
        if wrong is not None:
            raise CheckpointError(f"{source}: {wrong} of the added token {content[:80]!r} is neither true nor false.")
        return cls(token_id, content, **flags)

    def to_document(self) -> dict[str, Any]:
        """Return a JSON entry that `parse` reads, with all flags."""
        return asdict(self)


@dataclass(frozen=True)
class TokenizerRules:
    """Rules of a tokenizer beside its vocabulary and its casing; the defaults are those of Google's BERT."""

    strip_accents: bool | None = None
    """None: exactly where text is lower-cased."""
    tokenize_chinese_chars: bool = True
    """Make each Chinese character a word."""
    split_special_tokens: bool = False
    """Read special tokens in a string like any other characters."""
    added_tokens: tuple[AddedToken, ...] = ()
    """By id."""

    def to_document(self) -> dict[str, Any]:
        """Return the rules that differ from the defaults, for JSON."""
        default = TokenizerRules()
        flags = {name: getattr(self, name) for name in _FLAGS}
        document = {name: value for name, value in flags.items() if value != getattr(default, name)}
        if self.added_tokens:
            document["added_tokens"] = [token.to_document() for token in self.added_tokens]
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any], source: str) -> "TokenizerRules":
        """Parse what `to_document` returned; keys that are missing have their default, others are ignored."""
        added = document.get("added_tokens", [])
        if not isinstance(added, list):
            raise CheckpointError(f"{source}: added_tokens is not a list.")
        tokens = [
            AddedToken.parse(entry.get("id") if isinstance(entry, dict) else None, entry, source) for entry in added
        ]
        return cls(**parse_flags(document, source), added_tokens=by_id(tokens, source))


def parse_flags(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Take the rules that are true or false, or null for the default, from a JSON object that has some of them."""
    flags = {}
    for name in _FLAGS:
        value = document.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{source}: {name} is {str(value)[:80]!r}, which is neither true nor false.")
        if value is not None:
            flags[name] = value
    return flags


def by_id(added_tokens: Iterable[AddedToken], source: str) -> tuple[AddedToken, ...]:
    """Sort added tokens. Raises CheckpointError if there are too many, or if an id or a content occurs twice."""
    tokens = sorted(added_tokens, key=lambda token: token.id)
    if len(tokens) > _MAX_ADDED_TOKENS:
        raise CheckpointError(f"{source} has {len(tokens)} added tokens; at most {_MAX_ADDED_TOKENS} are read.")
    for token, following in pairwise(tokens):
        if token.id == following.id:
            raise CheckpointError(
                f"{source}: the added tokens {token.content!r} and {following.content!r} both have the id {token.id}."
            )
    seen: set[str] = set()
    for token in tokens:
        if token.content in seen:
            raise CheckpointError(f"{source}: the added token {token.content!r} has two ids. Keep one.")
        seen.add(token.content)
    return tuple(tokens)


def all_tokens(vocabulary: Sequence[str], rules: TokenizerRules, source: str) -> list[str]:
    """Return the tokens by id: the vocabulary, then the added tokens that are not in it.

    Raises CheckpointError if the ids of the added tokens do not continue those of the vocabulary.
    """
    tokens = list(vocabulary)
    ids = {token: index for index, token in enumerate(tokens)}
    for added in rules.added_tokens:
        expected = ids.setdefault(added.content, len(tokens))
        if added.id != expected:
            raise CheckpointError(
                f"{source}: the added token {added.content!r} has the id {added.id}, but with this vocabulary of "
                f"{len(vocabulary)} tokens it must be {expected}. Give the vocabulary that the added tokens belong to."
            )
        if expected == len(tokens):
            tokens.append(added.content)
    return tokens


def add_tokens(rust: tokenizers.Tokenizer, rules: TokenizerRules) -> None:
    """Make a tokenizer match the added tokens."""
    names = ("special", "normalized", "single_word", "lstrip", "rstrip")
    rust.add_tokens(
        [
            tokenizers.AddedToken(token.content, **{name: getattr(token, name) for name in names})
            for token in rules.added_tokens
        ]
    )
    rust.encode_special_tokens = rules.split_special_tokens
    wrong = [token.content for token in rules.added_tokens if rust.token_to_id(token.content) != token.id]
    assert not wrong, f"the library numbers added tokens otherwise: {wrong[:6]}"


_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded: JSON may hold half a surrogate pair."""
    return text.isascii() or _SURROGATE.search(text) is None
