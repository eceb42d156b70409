"""The questions of NeMo's SGD-QA on each turn of a dialogue and service, as token sequences that are made on access.

A question is `[CLS] name description [SEP] system's utterance, user's utterance [SEP]`: is this the intent, is this
slot requested, is it filled anew, is this its value, which characters are. Source: arXiv:2105.08049; NeMo 1.x.
"""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.packing import Features, LazyFeatures
from ..formats.dialogues import DONT_CARE, NO_INTENT, Dialogue
from ..tokenizers.wordpiece import Encoded, Tokenizer
from .answer_spans import ContextWindow, best_spans, target_span, word_edges
from .dialogue_tracker import CARRIED, FrameAnswer, FrameLabels, label_frames, turn_text

# Kinds of questions. A free slot's value is a span of the text, a categorical one's is one of the schema's.
INTENT, REQUESTED, CATEGORICAL, VALUE, FREE = range(5)
NUM_KINDS, SPAN = 5, 5
"""SPAN is a part of FREE, with a loss of its own."""
OFF, ACTIVE, INDIFFERENT = range(3)
"""Status of a slot: not filled anew, filled, filled by "dontcare"."""
NO_LABEL = -1
# Columns of the logits. A sequence's first token has those of intent, requested and value, and the three of status.
COLUMNS = {INTENT: 0, REQUESTED: 1, VALUE: 2}
STATUS, SPANS = slice(3, 6), slice(6, 8)
ANSWER_COLUMNS = (1, 1, 1, 3)
"""Of each kind of answer from the first token, in order."""
MAX_VALUE_TOKENS = 30
_NO_EDGES = np.zeros((0, 2), dtype=np.bool_)


class TurnQuestion(NamedTuple):
    """A question on a frame, its label (NO_LABEL if unknown), and the characters of the value if it has some."""

    kind: int
    name: str
    """Of the intent or slot."""
    value: str
    text: str
    label: int
    span: tuple[int, int] | None


class Note(NamedTuple):
    """What a sequence is about, for decoding: the number of the dialogue, the turn, the service, the question."""

    example: int
    turn: int
    service: str
    question: TurnQuestion
    text: str
    window: ContextWindow


def state_slots(service: Mapping[str, Any]) -> set[str]:
    """Return the names of the slots that a state may have: those that an intent takes."""
    return {
        name
        for intent in service["intents"]
        for name in (*intent.get("required_slots", ()), *intent.get("optional_slots", ()))
    }


def frame_questions(
    service: Mapping[str, Any], shown: Mapping[str, Any], labels: FrameLabels | None
) -> Iterator[TurnQuestion]:
    """Ask for a service's intents, slots and values; `shown` has the words that the model reads."""
    answer = None if labels is None else labels.answer
    intents = [(NO_INTENT, f"{NO_INTENT} none")]
    intents += [(a["name"], _words(b)) for a, b in zip(service["intents"], shown["intents"], strict=True)]
    for name, text in intents:
        yield TurnQuestion(INTENT, name, "", text, NO_LABEL if answer is None else int(answer.intent == name), None)
    in_state = state_slots(service)
    for slot, other in zip(service["slots"], shown["slots"], strict=True):
        name = slot["name"]
        yield TurnQuestion(
            REQUESTED, name, "", _words(other), NO_LABEL if answer is None else int(name in answer.requested), None
        )
        if name not in in_state:
            continue
        status, value = NO_LABEL, CARRIED
        if answer is not None:
            value = answer.updates.get(name)
            is_filled = name in answer.updates
            status = OFF if not is_filled else INDIFFERENT if value == DONT_CARE else ACTIVE
        if not slot["is_categorical"]:
            span = labels.spans.get(name) if labels is not None else None
            yield TurnQuestion(FREE, name, "", _words(other), status, span)
            continue
        yield TurnQuestion(CATEGORICAL, name, "", _words(other), status, None)
        for own, word in zip(slot["possible_values"], other["possible_values"], strict=True):
            # Which value is right has an answer only if the slot is filled, by a value of the schema.
            has_label = status == ACTIVE and value in slot["possible_values"]
            text = sys.intern(f"{other['name']} {word}")
            yield TurnQuestion(VALUE, name, own, text, int(value == own) if has_label else NO_LABEL, None)


def _words(item: Mapping[str, Any]) -> str:
    return sys.intern(f"{item['name']} {item['description']}")  # one string for all turns


def training_questions(questions: Sequence[TurnQuestion], *, subsample: bool, seed: str) -> list[TurnQuestion]:
    """Leave out questions without a label; with `subsample` keep of the slots of a kind as many empty as filled ones.

    At least one empty slot of each kind is kept. Source: NeMo 1.x.
    """
    kept = [item for item in questions if item.label != NO_LABEL]
    if not subsample:
        return kept
    dropped = set()
    for kind in (CATEGORICAL, FREE):
        empty = [item.name for item in kept if item.kind == kind and item.label == OFF]
        num_filled = sum(item.kind == kind and item.label != OFF for item in kept)
        chosen = random.Random(f"{seed} {kind}").sample(empty, min(max(num_filled, 1), len(empty)))  # noqa: S311
        dropped |= {(kind, name) for name in set(empty) - set(chosen)}
    return [item for item in kept if (item.kind, item.name) not in dropped]


def dialogue_questions(dialogue: Dialogue, *, subsample: bool = False) -> Iterator[tuple[int, str, list[TurnQuestion]]]:
    """Ask all questions of a dialogue's frames; those with labels only if it is one of the training data."""
    labels = label_frames(dialogue) if dialogue.is_labelled else {}
    for number in dialogue.user_turns():
        for frame in dialogue.turns[number]["frames"]:
            name = frame["service"]
            questions = list(frame_questions(dialogue.schema[name], dialogue.shown[name], labels.get((number, name))))
            if dialogue.is_training:
                seed = f"{dialogue.id} {number} {name}"
                questions = training_questions(questions, subsample=subsample, seed=seed)
            yield number, name, questions


def loss_weights(dialogues: Sequence[Dialogue], *, subsample: bool) -> list[float]:
    """Weigh kinds of questions, and spans, so that each kind has the same share of the loss, start and end two.

    As in NeMo's mean of seven losses, over all training data where NeMo takes the means of batches.
    """
    counts = np.zeros(NUM_KINDS + 1)
    for dialogue in dialogues:
        for _, _, questions in dialogue_questions(dialogue, subsample=subsample):
            for item in questions:
                counts[item.kind] += item.label != NO_LABEL
                counts[SPAN] += item.kind == FREE and item.label == ACTIVE
    shares = np.where(counts > 0, [1, 1, 1, 1, 1, 2], 0)
    weights = counts[:NUM_KINDS].sum() * shares / shares.sum() / np.maximum(counts, 1)
    return [float(weight) for weight in weights]


class _Frame(NamedTuple):
    example: int
    turn: int
    service: str
    text: int
    """The number of its text."""


class QuestionFeatures(LazyFeatures):
    """The sequences of all questions on dialogues, which share the tokens of utterances and of descriptions."""

    def __init__(
        self, dialogues: Sequence[Dialogue], tokenizer: Tokenizer, *, length: int, weights: Sequence[float],
        subsample: bool,
    ) -> None:  # fmt: skip
        """Tokenize utterances and descriptions; `length` is the most tokens of a sequence."""
        self.length, self.weights = length, weights
        self.cls, self.sep = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
        self.texts: list[str] = []
        user_starts: list[int] = []
        self.frames: list[_Frame] = []
        self.questions: list[tuple[int, TurnQuestion]] = []
        for example, dialogue in enumerate(dialogues):
            last = -1
            for turn, service, questions in dialogue_questions(dialogue, subsample=subsample):
                if turn != last:
                    text, start = turn_text(dialogue, turn)
                    self.texts.append(text)
                    user_starts.append(start)
                    last = turn
                self.frames.append(_Frame(example, turn, service, len(self.texts) - 1))
                self.questions += [(len(self.frames) - 1, item) for item in questions]
        self.tokens = tokenizer.encode(self.texts)
        # Of each text the first token of the user.
        self.user_tokens = [
            int(np.searchsorted(item.offsets[:, 0], start))
            for item, start in zip(self.tokens, user_starts, strict=True)
        ]
        descriptions = list({item.text: None for _, item in self.questions})
        self.descriptions = dict(zip(descriptions, tokenizer.encode_ids(descriptions), strict=True))
        self._lengths = np.array([self._length(number) for number in range(len(self.questions))], dtype=np.int64)

    def __len__(self) -> int:
        """Count the questions."""
        return len(self.questions)

    def lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each question's sequence."""
        return np.minimum(self._lengths, self.length)

    def num_cut(self) -> int:
        """Count the sequences that lack tokens of the utterances or of the description."""
        return int((self._lengths > self.length).sum())

    def _length(self, number: int) -> int:
        frame, question = self.questions[number]
        tokens = self.tokens[self.frames[frame].text]
        return len(self.descriptions[question.text]) + len(tokens.token_ids) - self._start(frame, question) + 3

    def _start(self, frame: int, question: TurnQuestion) -> int:
        """Return the first token of the utterances that is read: what is requested is in the user's only."""
        return self.user_tokens[self.frames[frame].text] if question.kind == REQUESTED else 0

    def sequence(self, index: int) -> Features:
        """Make the sequence of a question; of utterances that are too long the end is read."""
        number, question = self.questions[index]
        frame = self.frames[number]
        tokens: Encoded = self.tokens[frame.text]
        ids = self.descriptions[question.text][: self.length // 2]
        start = max(self._start(number, question), len(tokens.token_ids) - (self.length - 3 - len(ids)))
        context = len(ids) + 2
        token_ids = np.concatenate([self.cls, ids, self.sep, tokens.token_ids[start:], self.sep])
        offsets = tokens.offsets[start:]
        # Edges of words are found where a value is looked for.
        window = ContextWindow(frame.example, context, offsets, np.ones(len(offsets), dtype=np.int64), _NO_EDGES)
        first, last = target_span(window, question.span)
        has_label, has_span = question.label != NO_LABEL, question.kind == FREE and question.label == ACTIVE
        weight = self.weights[question.kind] if has_label else 0.0
        span_weight = self.weights[SPAN] if has_span else 0.0
        targets = {
            "kind": question.kind, "label": max(question.label, 0), "weight": np.float32(weight),
            "start": int(first), "end": int(last), "span_weight": np.float32(span_weight),
        }  # fmt: skip
        note = Note(frame.example, frame.turn, frame.service, question, self.texts[frame.text], window)
        segments = (np.arange(len(token_ids)) >= context).astype(np.int64)
        num_cut = max(int(self._lengths[index]) - self.length, 0)
        return Features(token_ids, segments, targets, weight=weight + span_weight, notes=note, num_cut=num_cut)


def answer_frame(rows: Sequence[tuple[Note, NDArray[np.float32]]]) -> FrameAnswer:
    """Choose a frame's intent, requested slots and values by the logits [T, 8] of its questions."""
    intents: dict[str, float] = {}
    requested, updates = [], {}
    values: dict[str, dict[str, float]] = {}
    for note, logits_T8 in rows:
        kind, name, first_8 = note.question.kind, note.question.name, logits_T8[0]
        if kind == INTENT:
            intents[name] = float(first_8[COLUMNS[INTENT]])
        elif kind == REQUESTED and first_8[COLUMNS[REQUESTED]] > 0:
            requested.append(name)
        elif kind == VALUE:
            values.setdefault(name, {})[note.question.value] = float(first_8[COLUMNS[VALUE]])
        elif kind in (CATEGORICAL, FREE):
            status = int(first_8[STATUS].argmax())
            if status != OFF:
                updates[name] = DONT_CARE if status == INDIFFERENT else CARRIED
            if status == ACTIVE and kind == FREE:
                updates[name] = _best_value(note, logits_T8[:, SPANS])
    for name, own in values.items():
        if name in updates and updates[name] is CARRIED:
            updates[name] = max(own, key=own.__getitem__)
    return FrameAnswer(max(intents, key=intents.__getitem__), tuple(requested), updates)


def _best_value(note: Note, logits_T2: NDArray[np.float32]) -> str | None:
    """Return the best span of whole words, or CARRIED if the first token, which stands for no span, is better."""
    window = replace(note.window, is_word_edge=word_edges(note.text, note.window.offsets))
    spans = best_spans(window, logits_T2, count=1, max_length=MAX_VALUE_TOKENS, whole_words=True)
    if not spans or spans[0][0] < logits_T2[0].sum():
        return CARRIED
    return note.text[slice(*spans[0][1:])]
