"""Dialogue states from the answers of single turns, with values carried over from the system and other services.

Source: NeMo 1.x's state tracker ("nemotracker"), SGD-QA, arXiv:2105.08049.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..formats.dialogues import DONT_CARE, NO_INTENT, Dialogue

TRACKERS = ("carry_over", "nemotracker", "baseline")
# The value of a slot that the user fills without a word for it, such as "yes, that one".
CARRIED = None
Relations = Mapping[str, Sequence[Sequence[str]]]
"""Of a service's slot, named "service slot": slots of other services that its values came from, most frequent first."""


@dataclass(frozen=True)
class FrameAnswer:
    """What a turn of the user says about a service: the intent, requested slots, and slots that are filled anew."""

    intent: str = NO_INTENT
    requested: tuple[str, ...] = ()
    updates: Mapping[str, str | None] = field(default_factory=dict)
    """Values, or CARRIED, by slot."""


@dataclass
class DialogueTracker:
    """The states of a dialogue's services, turn by turn."""

    tracker: str = TRACKERS[0]
    relations: Relations = field(default_factory=dict)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    offered: dict[str, dict[str, str]] = field(default_factory=dict)
    """The latest value that the system named, by service and slot."""

    def read_system(self, turn: Mapping[str, Any]) -> None:
        """Keep the values that a turn of the system names."""
        for frame in turn["frames"]:
            for action in frame.get("actions", ()):
                if action.get("slot") and action.get("values"):
                    self.offered.setdefault(frame["service"], {})[action["slot"]] = action["values"][0]

    def update(self, service: str, answer: FrameAnswer) -> dict[str, Any]:
        """Update a service's state by an answer, and return it as in the dataset."""
        state = self.states.setdefault(service, {})
        for slot, value in answer.updates.items():
            found = self._carried(service, slot) if value is CARRIED else value
            if found is not None:
                state[slot] = found
        return {
            "active_intent": answer.intent,
            "requested_slots": list(answer.requested),
            "slot_values": {slot: [value] for slot, value in state.items()},
        }

    def _carried(self, service: str, slot: str) -> str | None:
        """Find a value that is not in the last two utterances: one that the system named, or another service's."""
        if self.tracker == "baseline":
            return None
        if slot in self.offered.get(service, {}) or self.tracker == "nemotracker":
            return self.offered.get(service, {}).get(slot)
        same_name = [(other, slot) for other in reversed(self.states) if other != service]
        for other, name in (*self.relations.get(f"{service} {slot}", ()), *same_name):
            for values in (self.states, self.offered):
                found = values.get(other, {}).get(name)
                if found is not None and found != DONT_CARE:
                    return found
        return None


def track(dialogue: Dialogue, answers: Mapping[tuple[int, str], FrameAnswer], **options: Any) -> list[dict[str, Any]]:
    """Return a dialogue's turns with states from answers, by turn and service; marked spans are left out."""
    tracker = DialogueTracker(**options)
    turns: list[dict[str, Any]] = []
    for number, turn in enumerate(dialogue.turns):
        frames = turn["frames"]
        if turn["speaker"] == "SYSTEM":
            tracker.read_system(turn)
        else:
            frames = [
                {name: value for name, value in frame.items() if name not in ("slots", "state")}
                | {"state": tracker.update(frame["service"], answers[number, frame["service"]])}
                for frame in frames
            ]
        turns.append({**turn, "frames": frames})
    return turns


@dataclass(frozen=True)
class FrameLabels:
    """The right answer of a frame, and the characters of values in the text of system and user."""

    answer: FrameAnswer
    spans: Mapping[str, tuple[int, int]]


def turn_text(dialogue: Dialogue, number: int) -> tuple[str, int]:
    """Return the system's utterance and the user's after it, and the character at which the user's begins."""
    before = dialogue.turns[number - 1] if number else None
    system = before["utterance"] + " " if before is not None and before["speaker"] == "SYSTEM" else ""
    return system + dialogue.turns[number]["utterance"], len(system)


def label_frames(dialogue: Dialogue) -> dict[tuple[int, str], FrameLabels]:
    """Find the right answers of a labelled dialogue by turn and service: a slot is filled anew if its value changes."""
    before: dict[str, Mapping[str, Sequence[str]]] = {}
    labels = {}
    for number in dialogue.user_turns():
        for frame in dialogue.turns[number]["frames"]:
            service, state = frame["service"], frame["state"]
            slots = {slot["name"]: slot["is_categorical"] for slot in dialogue.schema[service]["slots"]}
            old, updates, spans = before.get(service, {}), {}, {}
            for name, values in state["slot_values"].items():
                if name in old and old[name][0] in values:
                    continue
                updates[name] = values[0]
                if not slots[name] and values[0] != DONT_CARE:
                    span = _find_value(dialogue, number, service, name, values)
                    if span is None:
                        updates[name] = CARRIED
                    else:
                        spans[name] = span
            before[service] = state["slot_values"]
            answer = FrameAnswer(state["active_intent"], tuple(state["requested_slots"]), updates)
            labels[number, service] = FrameLabels(answer, spans)
    return labels


def _find_value(
    dialogue: Dialogue, number: int, service: str, slot: str, values: Sequence[str]
) -> tuple[int, int] | None:
    """Find a value's characters: marked ones of the user, of the system, or where the text has it last."""
    text, start = turn_text(dialogue, number)
    for turn, shift in ((number, start), (number - 1, 0)) if start else ((number, 0),):
        for frame in dialogue.turns[turn]["frames"]:
            for span in frame.get("slots", ()) if frame["service"] == service else ():
                place = span["start"] + shift, span["exclusive_end"] + shift
                if span["slot"] == slot and text[slice(*place)] in values:
                    return place
    found = [(text.rfind(value), value) for value in values]
    first, value = max(found, key=lambda item: (item[0], len(item[1])))
    return (first, first + len(value)) if first >= 0 else None


def learn_relations(dialogues: Sequence[Dialogue]) -> dict[str, list[list[str]]]:
    """Find which slots of other services the carried-over values of slots came from, most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for dialogue in dialogues:
        tracker = DialogueTracker("nemotracker")
        labels = label_frames(dialogue)
        for number, turn in enumerate(dialogue.turns):
            if turn["speaker"] == "SYSTEM":
                tracker.read_system(turn)
                continue
            for frame in turn["frames"]:
                service, values = frame["service"], frame["state"]["slot_values"]
                answer = labels[number, service].answer
                for slot in (name for name, value in answer.updates.items() if value is CARRIED):
                    if tracker.offered.get(service, {}).get(slot) in values[slot]:
                        continue
                    counts.update({
                        (f"{service} {slot}", other, name)
                        for known in (tracker.states, tracker.offered)
                        for other, state in known.items() if other != service
                        for name, value in state.items() if value in values[slot]
                    })  # fmt: skip
                tracker.states[service] = {name: items[0] for name, items in values.items()}
    relations: dict[str, list[list[str]]] = {}
    for (target, other, name), _ in counts.most_common():
        relations.setdefault(target, []).append([other, name])
    return relations
