"""Dialogues and schemas of Schema-Guided Dialogue (SGD), read from and written to the dataset's own JSON.

A split is a folder of dialogues_NNN.json, lists of dialogues, and schema.json, a list of services. SGD-X's schemas name
and describe the same services, slots and intents in other words, in the same order. Source: Rastogi et al. 2020,
arXiv:2002.01359; Lee et al. 2022, arXiv:2110.06800; the dataset's README.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .json_lines import read_json, read_json_lines
from .rows import Row

NO_INTENT, DONT_CARE = "NONE", "dontcare"
SCHEMA_FILE = "schema.json"
Schema = Mapping[str, Mapping[str, Any]]
"""Services as in schema.json, by name."""


@dataclass(frozen=True)
class Dialogue:
    """A dialogue: its turns as in the file, the schema of its services, and that in the words that a model reads."""

    id: str
    services: tuple[str, ...]
    turns: Sequence[Mapping[str, Any]]
    schema: Schema
    shown: Schema
    location: str
    file: str = ""
    is_training: bool = False
    """Whether it is one of the training data, of which questions without a right answer are left out."""
    given: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)

    def user_turns(self) -> list[int]:
        """Return the numbers of the user's turns."""
        return [number for number, turn in enumerate(self.turns) if turn["speaker"] == "USER"]

    @property
    def text(self) -> str:
        """The utterances, a line each."""
        return "\n".join(turn["utterance"] for turn in self.turns)

    @property
    def is_labelled(self) -> bool:
        """Whether each of the user's frames has a state."""
        return all("state" in frame for number in self.user_turns() for frame in self.turns[number]["frames"])

    def to_json(self, turns: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Return the dialogue as in the dataset, with other turns if given."""
        return {"dialogue_id": self.id, "services": list(self.services), "turns": list(turns or self.turns)}


def dialogue_files(path: Path) -> list[Path]:
    """List the files of dialogues that a folder stands for; a file stands for itself."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.startswith("dialogues_") and ".json" in file.suffixes)
    files = [file for file in files if not file.name.startswith("dialogues_and_metrics")]
    if not files:
        raise InputError(f"{path} is a folder without files dialogues_*.json. Give one of the dataset, such as dev.")
    return files


def read_dialogues(path: Path, *, schema_file: Path | None = None, known: Schema | None = None) -> list[Dialogue]:
    """Read a file of dialogues or all of a folder: JSON as in the dataset, or JSON lines, a dialogue a line.

    Services are those of schema.json beside the file, of a dialogue's own `schema`, or of `known`; `schema_file` has
    their names and descriptions in other words. Raises InputError with the place of what is malformed.
    """
    dialogues: list[Dialogue] = []
    shown = None if schema_file is None else read_schema(schema_file)
    for file in dialogue_files(path):
        beside = file.with_name(SCHEMA_FILE)
        schema = read_schema(beside) if beside.is_file() else shown or known or {}
        dialogues += [dialogue_of(row, schema, shown) for row in dialogue_rows(file)]
    _require_unique([(item.id, item.location) for item in dialogues], "dialogue_id")
    return dialogues


def dialogue_rows(file: Path) -> list[Row]:
    """Read the objects of a file's dialogues, which are a list; those of JSON lines; or by id, as the scorer takes."""
    if ".jsonl" in file.suffixes:
        return read_json_lines(file)
    content = read_json(file)
    if isinstance(content, dict) and "turns" not in content:
        content = list(content.values())
    items = [content] if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise InputError(f"{file} holds a JSON {type(items).__name__}; expected a list of dialogues.")
    if not items:
        raise InputError(f"{file} holds no dialogues.")
    rows = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(f"{file}: [{number}] is a JSON {type(item).__name__}; expected a dialogue, an object.")
        rows.append(Row(item, f"{file}: [{number}] (dialogue_id {str(item.get('dialogue_id'))[:40]!r})"))
    return rows


def dialogue_of(row: Row, schema: Schema, shown: Schema | None = None) -> Dialogue:
    """Make a dialogue from its object; without a schema the names of slots and intents are not checked."""
    if row.values.get("schema") is not None:
        schema = schema_of(row.values["schema"], f"{row.location}, schema")
    name, services, turns = row.string("dialogue_id"), row.strings("services"), row.get("turns")
    unknown = [service for service in services if schema and service not in schema]
    if unknown:
        raise InputError(
            f"{row.location}: the service {unknown[0]!r} is not in the schema ({', '.join(list(schema)[:5])} ...). Put "
            f"the {SCHEMA_FILE} of these dialogues beside the file."
        )
    if not isinstance(turns, list) or not turns:
        raise InputError(f"{row.location}: 'turns' is {str(turns)[:40]!r}; expected a list that is not empty.")
    for number, turn in enumerate(turns):
        _check_turn(turn, services, schema, f"{row.location}, turn {number}")
    own = {service: schema[service] for service in services} if schema else {}
    words = own if shown is None else _in_other_words(schema, services, shown)
    file = Path(row.location.partition(": [")[0]).name
    given = row.others("dialogue_id", "services", "turns", "schema")
    return Dialogue(name, services, turns, own, words, row.location, file, given=given)


def _check_turn(turn: Any, services: Sequence[str], schema: Schema, place: str) -> None:
    if not isinstance(turn, dict):
        raise InputError(f"{place} is a JSON {type(turn).__name__}; expected an object.")
    if turn.get("speaker") not in ("USER", "SYSTEM"):
        raise InputError(f"{place}: the speaker is {turn.get('speaker')!r:.40}; expected USER or SYSTEM.")
    if not isinstance(turn.get("utterance"), str):
        raise InputError(f"{place}: the utterance is {turn.get('utterance')!r:.40}; expected a string.")
    seen: set[str] = set()
    for frame in _objects(turn.get("frames"), f"{place}: 'frames'"):
        service = str(frame.get("service"))
        if service not in services:
            raise InputError(f"{place}: a frame's service is {service!r:.40}; expected one of {', '.join(services)}.")
        if service in seen:
            raise InputError(f"{place}: two frames of {service}. Leave one of them out.")
        seen.add(service)
        _check_frame(frame, turn, schema.get(service), f"{place}, frame of {service}")


def _check_frame(
    frame: Mapping[str, Any], turn: Mapping[str, Any], service: Mapping[str, Any] | None, place: str
) -> None:
    slots = None if service is None else {slot["name"] for slot in service["slots"]}
    length = len(turn["utterance"])
    for span in _objects(frame.get("slots", []), f"{place}: 'slots'"):
        _require_known(span.get("slot"), slots, f"{place}: a marked span's slot")
        edges: list[Any] = [span.get("start"), span.get("exclusive_end")]
        if not all(type(edge) is int for edge in edges) or not 0 <= edges[0] < edges[1] <= length:
            raise InputError(
                f"{place}: the span of {span['slot']} is {edges[0]!r:.20} to {edges[1]!r:.20}; expected start and "
                f"exclusive_end within the utterance's {length} characters."
            )
    for action in _objects(frame.get("actions", []), f"{place}: 'actions'"):
        _strings(action.get("values", []), f"{place}: an action's values")
        _require_known(action.get("slot", ""), None, f"{place}: an action's slot")  # also "count" and "intent"
    if "state" not in frame:
        return
    state = frame["state"]
    if not isinstance(state, dict) or not isinstance(state.get("slot_values"), dict):
        raise InputError(f"{place}: the state is {str(state)[:40]!r}; expected an object with slot_values, an object.")
    intents = None if service is None else {NO_INTENT, *(intent["name"] for intent in service["intents"])}
    _require_known(state.get("active_intent"), intents, f"{place}: active_intent")
    for name in _strings(state.get("requested_slots"), f"{place}: requested_slots"):
        _require_known(name, slots, f"{place}: a requested slot")
    for name, values in state["slot_values"].items():
        _require_known(name, slots, f"{place}: a slot of slot_values")
        if not _strings(values, f"{place}: the values of {name}"):
            raise InputError(f"{place}: {name} has no value. Give it one, or leave the slot out.")


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{what} is {str(value)[:40]!r}; expected a list of objects.")
    return value


def _strings(value: Any, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{what} is {str(value)[:40]!r}; expected a list of strings.")
    return value


def _require_known(name: Any, known: set[str] | None, what: str) -> None:
    if not isinstance(name, str) or (known is not None and name not in known):
        names = "a string" if known is None else f"one of the schema's: {', '.join(sorted(known))[:200]}"
        raise InputError(f"{what} is {name!r:.40}; expected {names}.")


def _require_unique(places: Iterable[tuple[str, str]], what: str) -> None:
    seen: dict[str, str] = {}
    for name, place in places:
        if name in seen:
            raise InputError(f"{place}: the {what} is that of {seen[name]}, too. Give each its own.")
        seen[name] = place


def read_schema(path: Path) -> dict[str, Mapping[str, Any]]:
    """Read the services of schema.json, by name."""
    return schema_of(read_json(path), str(path))


def schema_of(content: Any, place: str) -> dict[str, Mapping[str, Any]]:
    """Check a schema, a list of services."""
    services = _objects(content, place)
    for number, item in enumerate(services):
        row = Row(item, f"{place}: [{number}] (service {str(item.get('service_name'))[:40]!r})")
        row.string("service_name")
        row.string("description")
        for name in ("slots", "intents"):
            parts = [
                Row(part, f"{row.location}, {name}[{index}]")
                for index, part in enumerate(_objects(item.get(name), f"{row.location}, {name}"))
            ]
            _require_unique([(part.string("name"), part.location) for part in parts], "name")
            for part in parts:
                part.string("description")
                (_check_slot if name == "slots" else _check_intent)(part, {slot["name"] for slot in item["slots"]})
    _require_unique([(item["service_name"], f"{place}: [{n}]") for n, item in enumerate(services)], "service_name")
    if not services:
        raise InputError(f"{place} holds no services.")
    return {item["service_name"]: item for item in services}


def _check_slot(slot: Row, names: set[str]) -> None:
    if not isinstance(slot.get("is_categorical"), bool):
        raise InputError(f"{slot.location}: is_categorical is {slot.get('is_categorical')!r:.20}; expected a boolean.")
    values = _strings(slot.values.get("possible_values", []), f"{slot.location}: possible_values")
    if slot.values["is_categorical"] and not (values and all(map(str.strip, values))):
        raise InputError(f"{slot.location}: a categorical slot without possible_values, or a blank one. List them.")


def _check_intent(intent: Row, names: set[str]) -> None:
    required, optional = intent.values.get("required_slots", []), intent.values.get("optional_slots", {})
    _strings(required, f"{intent.location}: required_slots")
    if not isinstance(optional, dict | list):
        raise InputError(f"{intent.location}: optional_slots is {str(optional)[:40]!r}; expected an object.")
    for name in (*required, *optional):
        _require_known(name, names, f"{intent.location}: a slot")


def _in_other_words(schema: Schema, services: Sequence[str], shown: Schema) -> Schema:
    """Return services by their names in `schema` as another schema words them, matched by their places."""
    if all(name in shown for name in services):
        return {name: _require_alike(schema[name], shown[name]) for name in services}
    if len(shown) != len(schema):
        raise InputError(f"the other schema has {len(shown)} services for {len(schema)}. Give that of the same split.")
    pairs = dict(zip(schema, shown.values(), strict=True))
    return {name: _require_alike(schema[name], pairs[name]) for name in services}


def _require_alike(service: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    for kind in ("slots", "intents"):
        shapes = [
            [(item.get("is_categorical"), len(item.get("possible_values", ()))) for item in own[kind]]
            for own in (service, other)
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{other['service_name']} of the other schema has not the {kind} of {service['service_name']} in their "
                "order. Give a variant of the same split's schema, as in SGD-X."
            )
    return other


def to_dialogues(dialogues: Iterable[Mapping[str, Any]]) -> str:
    """Format dialogues as a file of the dataset."""
    return json.dumps(list(dialogues), ensure_ascii=False, indent=2) + "\n"
