"""Collect the added tokens of a Hugging Face folder from all of its files that list or name them.

Source: PreTrainedTokenizerBase._from_pretrained and TokenizersBackend of transformers 5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import CheckpointError
from .bpe import END_OF_TEXT
from .rules import AddedToken
from .wordpiece import SPECIAL_TOKENS

# Names and tokens that BertTokenizer and GPT2Tokenizer have where no file gives others
BERT_NAMES = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
GPT2_NAMES = {f"{name}_token": END_OF_TEXT for name in ("unk", "bos", "eos")}
REMEDY = "Give a vocabulary instead: model.tokenizer.vocab_file=FILE (--vocab-file FILE)."


class ListedTokens:
    """The added tokens of a folder's files, by content; a later file of this list counts more than an earlier one.

    added_tokens.json (only without the last), tokenizer.json, added_tokens_decoder of tokenizer_config.json.
    """

    def __init__(self, documents: Mapping[str, Mapping[str, Any]], folder: str) -> None:
        """`documents` are the JSON objects of the files, by name; empty where a file is not there."""
        self._folder = folder
        self._config_source = f"{folder}/tokenizer_config.json"
        config = documents["tokenizer_config.json"]
        decoder = config.get("added_tokens_decoder")
        self._named = {**config, **(documents["special_tokens_map.json"] if decoder is None else {})}
        listed: list[AddedToken] = []
        if decoder is None:
            listed += self._of_added_tokens_json(documents["added_tokens.json"], config)
        listed += self._of_tokenizer_json(documents["tokenizer.json"].get("added_tokens") or [])
        listed += self._of_decoder({} if decoder is None else decoder)
        self.listed: dict[str, AddedToken] = {}
        for token in listed:
            self._list(token)

    def _list(self, token: AddedToken) -> None:
        known = self.listed.get(token.content)
        if known is not None and known.id != token.id:
            raise CheckpointError(
                f"{self._folder}: the added token {token.content!r} has the ids {known.id} and {token.id} in different "
                "files of the tokenizer. Remove the file that is out of date."
            )
        self.listed[token.content] = token

    def check_names(self) -> None:
        """Raise CheckpointError if a special token of BERT has another name."""
        for name, token in BERT_NAMES.items():
            value = self._named.get(name)
            if value is not None and self._content(value, name)[0] != token:
                raise CheckpointError(
                    f"{self._config_source}: {name} is {str(value)[:80]!r}; only {token!r} can be read. {REMEDY}"
                )

    def all_tokens(self, vocabulary: list[str], standard: Mapping[str, str]) -> list[AddedToken]:
        """Return the tokens with an id in a file, and those that transformers adds: special tokens by name.

        `standard` are the names and tokens of the class.
        """
        tokens = dict(self.listed)
        ids = {token: index for index, token in enumerate(vocabulary)}
        free = max([len(ids), *(token.id + 1 for token in tokens.values())])
        for content, entry, is_default in self._special_tokens(standard, self._named):
            if content in tokens or (is_default and content not in ids):
                continue
            token_id = ids.get(content, free)
            free += token_id == free
            flags = {"normalized": False, **entry, "content": content, "special": True}
            tokens[content] = AddedToken.parse(token_id, flags, self._config_source)
        return list(tokens.values())

    def _special_tokens(
        self, standard: Mapping[str, str], named: Mapping[str, Any]
    ) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
        """Yield content, flags, and whether no file has it, of every special token that has a name."""
        for name, token in standard.items():
            value = named.get(name, token)
            if value is not None:
                yield *self._content(value, name), name not in named
        for name, value in named.items():
            if name.endswith("_token") and name not in standard and isinstance(value, str | dict):
                yield *self._content(value, name), False
        for name in ("additional_special_tokens", "extra_special_tokens"):
            values = named.get(name) or []
            if not isinstance(values, list | dict):
                raise CheckpointError(f"{self._config_source}: {name} is neither a list nor an object.")
            for value in values.values() if isinstance(values, dict) else values:
                yield *self._content(value, name), False

    def _content(self, value: object, name: str) -> tuple[str, Mapping[str, Any]]:
        entry = value if isinstance(value, dict) else {"content": value}
        content = entry.get("content")
        if not isinstance(content, str):
            raise CheckpointError(f"{self._config_source}: {name} is {str(value)[:80]!r}, which is no token.")
        return content, entry

    def _of_added_tokens_json(self, ids: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[AddedToken]:
        # As transformers 5 does: additional_special_tokens of special_tokens_map.json do not make a token special.
        named = dict(self._named) | {"additional_special_tokens": config.get("additional_special_tokens")}
        special = {content for content, _, _ in self._special_tokens({}, named)}
        for content, index in ids.items():
            entry = {"content": content, "special": content in special}
            yield AddedToken.parse(index, entry, f"{self._folder}/added_tokens.json")

    def _of_tokenizer_json(self, entries: object) -> Iterator[AddedToken]:
        source = f"{self._folder}/tokenizer.json"
        if not isinstance(entries, list):
            raise CheckpointError(f"{source}: added_tokens is not a list. {REMEDY}")
        for entry in entries:
            yield AddedToken.parse(entry.get("id") if isinstance(entry, dict) else None, entry, source)

    def _of_decoder(self, entries: object) -> Iterator[AddedToken]:
        if not isinstance(entries, dict):
            raise CheckpointError(f"{self._config_source}: added_tokens_decoder is no JSON object. {REMEDY}")
        for index, entry in entries.items():
            is_number = index.isascii() and index.isdecimal() and len(index) < 10
            yield AddedToken.parse(int(index) if is_number else None, entry, self._config_source)
