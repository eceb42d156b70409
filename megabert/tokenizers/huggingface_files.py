"""Read the tokenizer of a Hugging Face folder from its files: vocabulary, casing, added tokens and other rules.

In: the contents of tokenizer.json, tokenizer_config.json, added_tokens.json, special_tokens_map.json, vocab.txt,
vocab.json and merges.txt, as far as they are there. Out: vocab.txt, or vocab.json and merges.txt, and the rules.
Source: TokenizersBackend, BertTokenizer and GPT2Tokenizer of transformers 5.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CheckpointError
from ..json_documents import parse_json_object
from .bpe import MERGES_FILE, VOCABULARY_FILE
from .huggingface_added_tokens import BERT_NAMES, GPT2_NAMES, REMEDY, ListedTokens
from .rules import TokenizerRules, by_id, is_unicode, parse_flags
from .wordpiece import parse_vocabulary

_DOCUMENTS = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
FILES = (*_DOCUMENTS, "vocab.txt", VOCABULARY_FILE, MERGES_FILE)
# Classes that apply tokenizer.json as it stands; the others build its pipeline from tokenizer_config.json.
_GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
_BERT_CLASSES = (
    "BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer",
    "LxmertTokenizer", "MobileBertTokenizer", "RetriBertTokenizer", "SqueezeBertTokenizer",
)  # fmt: skip
_GPT2_CLASSES = ("GPT2Tokenizer",)

# What a tokenizer.json of BERT or GPT-2 must have: allowed values by part and key.
_PIPELINES: Mapping[str, Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    "WordPiece": {
        "model": {
            "unk_token": ("[UNK]",),
            "continuing_subword_prefix": ("##",),
            "max_input_chars_per_word": (100,),
        },
        "normalizer": {"type": ("BertNormalizer",), "clean_text": (True,)},
        "pre_tokenizer": {"type": ("BertPreTokenizer",)},
    },
    "BPE": {
        "model": {
            "dropout": (None, 0),
            "continuing_subword_prefix": (None, ""),
            "end_of_word_suffix": (None, ""),
            "byte_fallback": (None, False),
            "ignore_merges": (None, False),
        },
        "normalizer": {"type": (None,)},
        "pre_tokenizer": {"type": ("ByteLevel",), "add_prefix_space": (False,), "use_regex": (None, True)},
    },
}


@dataclass(frozen=True)
class StoredTokenizer:
    """A tokenizer as its files define it; `files` is empty where there is no vocabulary among them."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """vocab.txt, or vocab.json and merges.txt."""
    lower_case: bool | None = None
    """None where the files do not define it."""
    rules: TokenizerRules = field(default_factory=TokenizerRules)
    num_tokens: int | None = None
    """The tokens that have an id, added ones included."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Vocabulary:
    files: Mapping[str, bytes]
    tokens: list[str]
    is_bert: bool
    notes: tuple[str, ...] = ()


def parse_tokenizer(files: Mapping[str, bytes], folder: str) -> StoredTokenizer:
    """Parse the contents of `FILES`, by name, of a folder.

    Raises CheckpointError for a file that is malformed and for a tokenizer that is neither BERT's nor GPT-2's.
    """
    documents = {name: _parse_json(files, name, folder) for name in _DOCUMENTS}
    config, pipeline = documents["tokenizer_config.json"], documents["tokenizer.json"]
    vocabulary = _find_vocabulary(files, pipeline, folder)
    added = ListedTokens(documents, folder)
    if vocabulary is None:  # the rules serve a vocabulary that the user gives
        flags = parse_flags(config, f"{folder}/tokenizer_config.json")
        rules = TokenizerRules(**flags, added_tokens=by_id(added.listed.values(), folder))
        return StoredTokenizer(lower_case=_lower_case(config, folder), rules=rules)
    is_generic = _check_class(config, vocabulary, has_pipeline=bool(pipeline), folder=folder)
    lower_case, flags = _flags(config, pipeline, is_generic=is_generic, folder=folder)
    if vocabulary.is_bert:
        added.check_names()
    names = {} if is_generic else (BERT_NAMES if vocabulary.is_bert else GPT2_NAMES)
    tokens = by_id(added.all_tokens(vocabulary.tokens, names), folder)
    rules = TokenizerRules(**flags, added_tokens=tokens)
    new = [token.content for token in tokens if token.id >= len(vocabulary.tokens)]
    shown = ", ".join(map(repr, new[:6])) + (" ..." if len(new) > 6 else "")
    notes = (*vocabulary.notes, *([f"added tokens: {len(new)} ({shown})"] if new else []))
    return StoredTokenizer(vocabulary.files, lower_case, rules, len(vocabulary.tokens) + len(new), notes)


def _parse_json(files: Mapping[str, bytes], name: str, folder: str) -> dict[str, Any]:
    """Parse a JSON object; empty if the file is not there."""
    if name not in files:
        return {}
    return parse_json_object(files[name], f"{folder}/{name}", hint=REMEDY)


# --- The vocabulary ---


def _find_vocabulary(files: Mapping[str, bytes], pipeline: Mapping[str, Any], folder: str) -> _Vocabulary | None:
    """Take the vocabulary of tokenizer.json, or else of the files without a pipeline."""
    plain = _plain_vocabulary(files, folder, is_needed=not pipeline)
    if "tokenizer.json" not in files:
        return plain
    source = f"{folder}/tokenizer.json"
    model = pipeline.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{source} is no tokenizer of Hugging Face's: it has no model. {REMEDY}")
    # Files of the first versions do not name the type.
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)
    if not isinstance(kind, str) or kind not in _PIPELINES:
        raise CheckpointError(
            f"{source}: the model is {str(kind)[:80]!r}; {' and '.join(_PIPELINES)} can be read. {REMEDY}"
        )
    for part, keys in _PIPELINES[kind].items():
        _check_part(pipeline.get(part) or {}, part, keys, source)
    found = _wordpiece_vocabulary(model, source) if kind == "WordPiece" else _byte_pair_vocabulary(model, source)
    if plain is None or plain.is_bert != found.is_bert:
        return found
    if plain.tokens == found.tokens:
        return plain
    note = f"WARNING: {next(iter(plain.files))} and tokenizer.json have different tokens; tokenizer.json counts."
    return replace(found, notes=(*found.notes, note))


def _check_part(part: object, name: str, keys: Mapping[str, tuple[Any, ...]], source: str) -> None:
    if not isinstance(part, dict):
        raise CheckpointError(f"{source}: {name} is no JSON object. {REMEDY}")
    for key, allowed in keys.items():
        # clean_text and the like may be missing, a type may not.
        value = part.get(key, None if key == "type" else allowed[0])
        if value not in allowed:
            raise CheckpointError(f"{source}: {name}.{key} is {str(value)[:80]!r}, not {allowed[0]!r}. {REMEDY}")


def _plain_vocabulary(files: Mapping[str, bytes], folder: str, *, is_needed: bool) -> _Vocabulary | None:
    """Read vocab.txt, or vocab.json with merges.txt; None if not there, or malformed and not needed."""
    try:
        if "vocab.txt" in files:
            data = files["vocab.txt"]
            return _Vocabulary({"vocab.txt": data}, parse_vocabulary(data, f"{folder}/vocab.txt"), is_bert=True)
        if VOCABULARY_FILE in files and MERGES_FILE in files:
            ids = _parse_json(files, VOCABULARY_FILE, folder)
            own = {name: files[name] for name in (VOCABULARY_FILE, MERGES_FILE)}
            return _Vocabulary(own, _by_id(ids, f"{folder}/{VOCABULARY_FILE}"), is_bert=False)
    except CheckpointError:
        if is_needed:
            raise
    return None


def _wordpiece_vocabulary(model: Mapping[str, Any], source: str) -> _Vocabulary:
    tokens, notes = _fill_gaps(model.get("vocab"), source)
    wrong = next((token for token in tokens if "\n" in token or token.endswith("\r")), None)
    if wrong is not None:
        raise CheckpointError(f"{source}: the token {wrong[:80]!r} has a line end in it. {REMEDY}")
    content = "".join(f"{token}\n" for token in tokens).encode()
    return _Vocabulary({"vocab.txt": content}, tokens, is_bert=True, notes=notes)


def _byte_pair_vocabulary(model: Mapping[str, Any], source: str) -> _Vocabulary:
    tokens, notes = _fill_gaps(model.get("vocab"), source)
    merges = model.get("merges")
    lines = ["#version: 0.2"]
    for merge in merges if isinstance(merges, list) else [None]:
        line = " ".join(merge) if isinstance(merge, list) and all(isinstance(item, str) for item in merge) else merge
        if not isinstance(line, str) or line.count(" ") != 1 or "\n" in line or not is_unicode(line):
            raise CheckpointError(f"{source}: merges has {str(merge)[:80]!r}, which is no pair of tokens. {REMEDY}")
        lines.append(line)
    vocabulary = json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False)
    files = {VOCABULARY_FILE: vocabulary.encode(), MERGES_FILE: "".join(f"{line}\n" for line in lines).encode()}
    return _Vocabulary(files, tokens, is_bert=False, notes=notes)


def _fill_gaps(ids: object, source: str) -> tuple[list[str], tuple[str, ...]]:
    """Sort the tokens of tokenizer.json; returns them and notes.

    An id without a token is that of the first of two equal lines of the vocab.txt from which transformers made the
    file. It gets a name that no string is split into.
    """
    largest = max((index for index in ids.values() if type(index) is int), default=-1) if isinstance(ids, dict) else -1
    if not isinstance(ids, dict) or not len(ids) <= largest + 1 <= 2 * len(ids):
        return _by_id(ids, source), ()
    gaps = sorted(set(range(largest + 1)) - {index for index in ids.values() if type(index) is int})
    tokens = _by_id(ids | {f"[gap{index}]": index for index in gaps}, source)
    shown = ", ".join(map(str, gaps[:6])) + (" ..." if len(gaps) > 6 else "")
    return tokens, (f"ids without a token in tokenizer.json: {shown}",) if gaps else ()


def _by_id(ids: object, source: str) -> list[str]:
    """Sort the tokens of a JSON object of ids. Raises CheckpointError if the ids are not 0, 1, 2, ..."""
    if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
        raise CheckpointError(f"{source}: the vocabulary is no JSON object of tokens and their ids. {REMEDY}")
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise CheckpointError(f"{source} does not number its {len(tokens)} tokens from 0 on without gaps. {REMEDY}")
    if not all(map(is_unicode, tokens)):
        raise CheckpointError(f"{source}: the vocabulary has a token that is no Unicode string. {REMEDY}")
    return tokens


# --- Casing and the other rules ---


def _check_class(config: Mapping[str, Any], vocabulary: _Vocabulary, *, has_pipeline: bool, folder: str) -> bool:
    """Whether the class of the tokenizer applies tokenizer.json as it stands.

    Raises CheckpointError if it splits words in another way, as BertJapaneseTokenizer does.
    """
    source = f"{folder}/tokenizer_config.json"
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    known = _BERT_CLASSES if vocabulary.is_bert else _GPT2_CLASSES
    if name and name not in (*known, *_GENERIC_CLASSES):
        raise CheckpointError(f"{source}: tokenizer_class is {name[:80]!r}; {known[0]} can be read. {REMEDY}")
    is_generic = has_pipeline and name in _GENERIC_CLASSES
    if config.get("add_prefix_space") and not vocabulary.is_bert and not is_generic:
        raise CheckpointError(f"{source}: add_prefix_space is true; only false can be read. {REMEDY}")
    return is_generic


def _lower_case(config: Mapping[str, Any], folder: str) -> bool | None:
    value = config.get("do_lower_case")
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: do_lower_case is {str(value)[:80]!r}, which is neither true nor false."
        )
    return value


def _flags(
    config: Mapping[str, Any], pipeline: Mapping[str, Any], *, is_generic: bool, folder: str
) -> tuple[bool | None, dict[str, Any]]:
    """Return lower_case and the flags of the rules: tokenizer_config.json's, else those of tokenizer.json."""
    normalizer = pipeline.get("normalizer") or {}
    written = {
        "do_lower_case": normalizer.get("lowercase"),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
    }
    given = {key: config[key] for key in (*written, "split_special_tokens") if config.get(key) is not None}
    # A strip_accents of null in tokenizer_config.json is a value too.
    if "strip_accents" in config and not is_generic:
        written["strip_accents"] = None
    merged = (given | written) if is_generic else (written | given)
    return _lower_case(merged, folder), parse_flags(merged, f"{folder}/tokenizer_config.json")
