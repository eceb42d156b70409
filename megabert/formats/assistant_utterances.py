"""Utterances in the files of voice assistants: Snips' and Rasa's, each in pieces of text that may fill a slot.

Snips: {"INTENT": [{"data": [{"text", "entity"}]}]}, a file an intent (Coucke et al. 2018, arXiv:1805.10190), and Snips
NLU's {"intents": {"INTENT": {"utterances": [{"data": [{"text", "slot_name"}]}]}}}. Rasa: {"rasa_nlu_data":
{"common_examples": [{"text", "intent", "entities": [{"start", "end", "entity"}]}]}}, and its YAML and Markdown, lists
of `- fly to [Paris](city)` by intent (rasa.com/docs/rasa/training-data-format).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .data_files import data_suffix
from .json_lines import is_list, read_json
from .rows import Row
from .text_lines import blank_split, data_lines, read_lines, read_text

Piece = tuple[str, str | None]
"""A text, and the slot that it fills."""
_INTENT = re.compile(r"#+ *intent *: *(.+)")
_MARKED = re.compile(r"\[([^\]]+)\](?:\(([^)]+)\)|(\{[^}]*\}))")


@dataclass(frozen=True)
class Pieces:
    """The pieces of an utterance, with its intent."""

    pieces: tuple[Piece, ...]
    intent: str
    location: str

    def words_and_tags(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Split the pieces into words with tags in IOB2."""
        return words_and_tags(self.pieces)


def words_and_tags(pieces: Iterable[Piece]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split pieces into words with tags in IOB2; a word does not reach over the border of two pieces."""
    words: list[str] = []
    tags: list[str] = []
    for text, slot in pieces:
        own = blank_split(text)
        words += own
        tags += [f"{'I' if index else 'B'}-{slot}" if slot else "O" for index in range(len(own))]
    return tuple(words), tuple(tags)


def is_assistant(path: Path) -> bool:
    """Return whether a file is one of Snips or Rasa: YAML, Markdown with intents, or one object of many utterances."""
    suffix = data_suffix(path)
    if suffix == ".md":
        return any(_INTENT.match(line) for line in data_lines(path))
    if suffix != ".json":
        return suffix in (".yml", ".yaml")
    if is_list(path):  # perhaps on a single line, which would not fit into memory
        return False
    first = next(line for line in data_lines(path) if line.strip())
    try:
        values = json.loads(first)
    except (ValueError, RecursionError):
        return first.lstrip().startswith("{")  # an object on several lines
    if not isinstance(values, dict) or not values.keys().isdisjoint(("tokens", "words", "text", "annot_utt")):
        return False
    return any(isinstance(values.get(name), dict) for name in ("rasa_nlu_data", "intents")) or all(
        isinstance(value, list | dict) for value in values.values()
    )


def read_assistant(path: Path) -> list[Pieces]:
    """Read a file of Snips or Rasa; utterances without words are left out. Raises InputError for another file."""
    suffix = data_suffix(path)
    if suffix == ".json":
        found = _json(path, read_json(path))
    else:
        found = _rasa_markdown(path) if suffix == ".md" else _rasa_yaml(path)
    utterances = [item for item in found if item.words_and_tags()[0]]
    if not utterances:
        raise InputError(f"{path} holds no utterances of an intent.")
    return utterances


def _json(path: Path, content: Any) -> Iterator[Pieces]:
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("rasa_nlu_data"), dict):
        for number, item in enumerate(content["rasa_nlu_data"].get("common_examples", ())):
            location = f"{path}: common_examples[{number}]"
            if not isinstance(item, dict):
                raise InputError(f"{location}: a JSON {type(item).__name__}; expected an object with text and intent.")
            yield _rasa_example(Row(item, location))
        return
    intents = content.get("intents", content)
    if not isinstance(intents, dict) or not intents:
        raise InputError(
            f"{path} has no utterances as Snips or Rasa write them. Give JSON lines: tokens, tags, intent."
        )
    for intent, item in intents.items():
        utterances = item.get("utterances") if isinstance(item, dict) else item
        if not isinstance(utterances, list):
            raise InputError(f'{path}: {intent} has no utterances; expected {{"INTENT": [{{"data": [...]}}]}} (Snips).')
        for number, utterance in enumerate(utterances):
            location = f"{path}: {intent}[{number}]"
            data = utterance.get("data") if isinstance(utterance, dict) else None
            if not isinstance(data, list) or not all(isinstance(piece, dict) for piece in data):
                raise InputError(f"{location}: expected an object with data, a list of pieces with text and entity.")
            yield Pieces(tuple(_snips_piece(piece, location) for piece in data), intent, location)


def _snips_piece(piece: Mapping[str, Any], location: str) -> Piece:
    text, slot = piece.get("text"), piece.get("slot_name", piece.get("entity"))
    if not isinstance(text, str) or not isinstance(slot, str | None):
        raise InputError(f"{location}: a piece is {str(piece)[:60]}; expected text and, if it fills a slot, entity.")
    return text, slot


def _rasa_example(row: Row) -> Pieces:
    text, pieces, done = row.string("text"), list[Piece](), 0
    places: list[Any] = [
        tuple(entity.get(name) for name in ("start", "end", "entity")) if isinstance(entity, dict) else ()
        for entity in row.values.get("entities") or ()
    ]
    if not all(map(_is_place, places)):
        raise InputError(f"{row.location}: entities are {str(places)[:80]}; expected objects with start, end, entity.")
    for start, end, slot in sorted(places):
        if not done <= start < end <= len(text):
            raise InputError(
                f"{row.location}: the {slot} at {start} to {end} has no characters of its own in the text."
            )
        pieces += [(text[done:start], None), (text[start:end], slot)]
        done = end
    return Pieces((*pieces, (text[done:], None)), row.string("intent"), row.location)


def _is_place(place: tuple[Any, ...]) -> bool:
    return [type(item) for item in place] == [int, int, str]


def _rasa_yaml(path: Path) -> Iterator[Pieces]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {str(error)[:200]}") from None
    items = content.get("nlu") if isinstance(content, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{path} has no list `nlu` of intents with examples, as Rasa's training data have.")
    for item in items:
        if "intent" not in item:  # synonyms, lookup tables and regular expressions
            continue
        examples = item.get("examples")
        given = examples.splitlines() if isinstance(examples, str) else examples if isinstance(examples, list) else []
        for number, example in enumerate(given, start=1):
            text = example.get("text") if isinstance(example, dict) else example
            place = f"{path}: example {number} of {item['intent']}"
            yield _marked(str(text or "").strip().removeprefix("- "), str(item["intent"]), place)


def _rasa_markdown(path: Path) -> Iterator[Pieces]:
    intent = None
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("#"):  # also of synonyms, lookup tables and regular expressions
            heading = _INTENT.match(line)
            intent = heading[1].strip() if heading else None
        elif intent and line.lstrip()[:2] in ("- ", "* "):
            yield _marked(line.lstrip()[2:], intent, f"{path}:{number}")


def _marked(line: str, intent: str, location: str) -> Pieces:
    """Split a line at its marks, [Paris](city), [Paris](city:value) or [Paris]{"entity": "city"}."""
    pieces, done = list[Piece](), 0
    for mark in _MARKED.finditer(line):
        slot = (mark[2] or "").partition(":")[0]
        if mark[3]:
            try:
                slot = str(json.loads(mark[3])["entity"])
            except (ValueError, KeyError):
                raise InputError(f'{location}: {mark[0][:60]} has no {{"entity": "TYPE"}} in JSON.') from None
        pieces += [(line[done : mark.start()], None), (mark[1], slot)]
        done = mark.end()
    return Pieces((*pieces, (line[done:], None)), intent, location)
