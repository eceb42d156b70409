"""The models of a server by name: requests in plain values, predictions out, through the Predictor of each run."""

import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotate.annotator import Annotator, EntityAnnotator, RelationAnnotator
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..formats.documents.training_examples import PairOptions
from ..inference import Predictor
from ..tasks.dialogue_state_tracking import DialogueStateTracking
from ..tasks.entity_linking import EntityLinking
from ..tasks.intent_slot import IntentSlotClassification
from ..tasks.multiple_choice import MultipleChoice
from ..tasks.punctuation_capitalization import PunctuationCapitalization
from ..tasks.question_answering import QuestionAnswering
from ..tasks.relation_extraction import RelationExtraction
from ..tasks.sequence_classification import SequenceClassificationTask
from ..tasks.task import Task
from ..tasks.text_ranking import TextRanking
from ..tasks.token_classification import TokenClassification
from ..tasks.zero_shot import ZeroShot
from .hosted_linkers import HostedLinker
from .model_queue import ComputeQueue, Work
from .queued_session import STATES, QueuedSession
from .refusals import Refusal, invalid, too_large
from .request_fields import json_name

RELEVANT = ("relevant", "entailment", "equivalent", "duplicate", "yes", "true", "1")
"""Labels whose probability ranks pairs, in this order; else the second of two."""
MAX_PAUSE_SECONDS = 0.1
ENTITIES, RELATIONS, ANSWERS, CLASSES = "entities", "relations", "answers", "classes"
ROUTES: Mapping[type, str] = {
    TokenClassification: ENTITIES,
    RelationExtraction: RELATIONS,
    QuestionAnswering: ANSWERS,
    SequenceClassificationTask: CLASSES,
    IntentSlotClassification: "intents",
    PunctuationCapitalization: "punctuation",
    ZeroShot: "zero-shot",
    MultipleChoice: "choices",
    EntityLinking: "linking",
    DialogueStateTracking: "dialogues",
}
"""The route of a task's runs; a task of one's own has that of the task from which it inherits."""


@dataclass(frozen=True)
class Ranking:
    """How a run ranks pairs: the fields of a pair, and by what (score, value, or the probability of a label)."""

    first: str
    second: str
    by: str


def route_of(task: Task[Any, Any]) -> str:
    """Return the name of a task's route; predict, which takes any, without another."""
    return next((ROUTES[kind] for kind in type(task).__mro__ if kind in ROUTES), "predict")


def ranking_of(task: Task[Any, Any]) -> Ranking | None:
    """Return how a task ranks pairs of texts, if it does."""
    if isinstance(task, TextRanking):
        return Ranking("query", "passage", "score")
    if not isinstance(task, SequenceClassificationTask) or isinstance(task, RelationExtraction):
        return None
    if task.is_regression:
        return Ranking("text", "text_b", "value")
    label = next((item for item in RELEVANT if item in task.labels), None)
    if label is None and len(task.labels) == 2:
        label = task.labels[1]
    return None if label is None else Ranking("text", "text_b", label)


@dataclass(frozen=True)
class HostedModel:
    """A run under its name. All methods but `description` compute, in the thread of a request."""

    name: str
    predictor: Predictor
    queue: ComputeQueue
    part_tokens: int

    @property
    def task(self) -> Any:
        """The run's task."""
        return self.predictor.task

    @cached_property
    def route(self) -> str:
        """The name of its task's route."""
        return route_of(self.task)

    @cached_property
    def ranking(self) -> Ranking | None:
        """How it ranks pairs of texts."""
        return ranking_of(self.task)

    @property
    def fields(self) -> Mapping[str, type]:
        """The fields of one input."""
        return self.task.input_fields

    def description(self) -> dict[str, Any]:
        """Describe the model for clients."""
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "megabert",
            "task": self.task.name(),
            "fields": {name: "list" if kind is list else "string" for name, kind in self.fields.items()},
            "labels": self.predictor.labels,
            "route": self.route,
            "ranked_by": self.ranking and self.ranking.by,
            "max_input_length": self.task.row_length,
            "sha256": self.predictor.digest,
        }

    def queued(self, work: Work, **options: Any) -> Predictor:
        """Return the predictor with its sequences in the queue, for one request."""
        session = QueuedSession(
            self.queue, self.name, work, self.part_tokens, self.predictor.session.max_positions, **options
        )
        return replace(self.predictor, session=session)

    def predict(self, inputs: Sequence[Mapping[str, Any]], work: Work) -> list[dict[str, Any]]:
        """Predict inputs; each row has the number of windows that its input was read in."""
        return [row for row, _ in self.predictions(inputs, work)]

    def predictions(self, inputs: Sequence[Mapping[str, Any]], work: Work) -> list[tuple[dict[str, Any], Any]]:
        """Predict inputs: rows of plain values, and the task's own predictions."""
        examples = [self._example(fields, number) for number, fields in enumerate(inputs)]
        predictor = self.queued(work)
        features = self.task.features(examples, predictor.tokenizer, with_targets=False)
        own = self._by_example(examples, features)
        predictions = predictor.predict_examples(examples, features=features)
        rows = []
        for number, prediction in enumerate(predictions):
            cut = sum(item.num_cut for item in own[number])
            # A task that makes several sequences of a window, one for each label or choice, counts windows itself.
            row = self.task.to_json(prediction)
            row.setdefault("windows", len(own[number]))
            rows.append({**row, "truncated": cut} if cut else row)
        return list(zip(rows, predictions, strict=True))

    def _by_example(self, examples: Sequence[Any], features: Sequence[Features]) -> list[list[Features]]:
        """Group sequences by their examples, by the example's index in their notes."""
        indices = [getattr(item.notes, "example", item.notes) for item in features]
        if all(isinstance(index, int | np.integer) and index < len(examples) for index in indices):
            found: list[list[Features]] = [[] for _ in examples]
            for index, item in zip(indices, features, strict=True):
                found[int(index)].append(item)
            return found
        tokenizer = self.predictor.tokenizer  # a task that numbers its sequences otherwise
        return [list(self.task.features([example], tokenizer, with_targets=False)) for example in examples]

    def _example(self, fields: Mapping[str, Any], number: int) -> Any:
        place = f"inputs[{number}]"
        for name, value in fields.items():
            kind = self.fields.get(name, str if name == "id" else None)
            if self.fields and kind is None:
                raise invalid(f"{place}.{name} is no field of {self.task.name()}: {', '.join(self.fields)}.", name)
            if kind is str and not isinstance(value, str):
                raise invalid(f"{place}.{name} is a {json_name(value)}; expected a string.", name)
            if kind is list and not isinstance(value, list):
                raise invalid(f"{place}.{name} is no list.", name)
        try:
            return self.task.example(**{"id": str(number + 1), **fields})
        except (InputError, ConfigError) as error:
            missing = next((name for name in self.fields if f"{name} is" in str(error)), None)
            raise invalid(f"{place}: {error}", missing) from None

    def embed(self, texts: Sequence[str], work: Work, role: str = "passage") -> NDArray[np.float32]:
        """Compute a vector of each text, in a role (query, passage) that may have a prompt: [N, D]."""
        try:
            return self.queued(work).embed(texts, role=role)
        except InputError as error:
            raise invalid(str(error), "inputs") from None

    def token_states(self, texts: Sequence[str], work: Work) -> list[NDArray[np.float32]]:
        """Compute the hidden states of each text's tokens, the special ones included: [T, D] each."""
        if not getattr(self.predictor.session, "has_states", hasattr(self.predictor.session, "token_states")):
            raise Refusal(424, f"{self.name} has no hidden states of tokens.", kind="Backend")
        tokenizer, features = self.predictor.tokenizer, []
        for ids in tokenizer.encode_ids(list(texts)):
            if len(ids) + 2 > self.task.row_length:
                raise too_large(f"a text has {len(ids)} tokens, more than one sequence holds; add truncate.", "inputs")
            token_ids = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]).astype(np.int64)
            features.append(Features(token_ids, np.zeros_like(token_ids)))
        session = self.queued(work, kind=STATES).session
        return session.run(features, batch_size=1, max_length=self.task.row_length, pad_id=tokenizer.pad_id).logits

    def score_pairs(self, query: str, texts: Sequence[str], work: Work, *, is_raw: bool = False) -> list[float]:
        """Compute the probability, or its logit, by which texts are ranked for a query; of a regression the value."""
        ranking = self.ranking
        if ranking is None:
            raise invalid(f"{self.name} ({self.task.name()}) does not score pairs of texts.", "model")
        inputs = [{ranking.first: query, ranking.second: text} for text in texts]
        return [_relevance(prediction, ranking.by, is_raw=is_raw) for _, prediction in self.predictions(inputs, work)]

    def annotator(self, work: Work, pairs: PairOptions) -> Annotator:
        """Return the model's part of annotating documents."""
        predictor = self.queued(work)
        if self.route == ENTITIES:
            return EntityAnnotator(predictor)
        if self.route == RELATIONS:
            return RelationAnnotator(predictor, pairs)
        raise invalid(f"{self.name} ({self.task.name()}) does not annotate documents.", "models")

    def cut(self, text: str, direction: str) -> tuple[str, int]:
        """Cut a text to one sequence on a client's request; also returns how many tokens were cut."""
        encoded = self.predictor.tokenizer.encode([text])[0]
        room, count = self.task.row_length - 2, len(encoded.token_ids)
        if count <= room:
            return text, 0
        if direction.lower() == "left":
            return text[int(encoded.offsets[count - room][0]) :], count - room
        return text[: int(encoded.offsets[room - 1][1])], count - room


def _relevance(prediction: Any, by: str, *, is_raw: bool) -> float:
    if by == "value":
        return float(prediction.value)
    if by == "score":  # a logit
        score = float(next(iter(prediction.scores.values())))
        return score if is_raw else (1 + math.tanh(score / 2)) / 2
    probability = float(prediction.probabilities[by])
    return logit(probability) if is_raw else probability


def logit(probability: float) -> float:
    """Return log(p / (1 - p)), finite for 0 and 1."""
    clipped = min(max(probability, 1e-12), 1 - 1e-12)
    return math.log(clipped / (1 - clipped))


class HostTurns:
    """Semaphore of the threads that tokenize and decode: more of them than cores would only slow the networks down.

    At each call to a socket the thread of the connections releases the interpreter's lock, and a thread that computes
    then keeps it for a switch interval: 1,000 answers would take a second. `pause` stops these threads meanwhile.
    """

    def __init__(self, count: int) -> None:
        self._turns, self._may_run = threading.Semaphore(count), threading.Event()
        self._may_run.set()

    def acquire(self) -> None:
        """Wait until fewer threads than the limit compute, and for the end of a pause."""
        self._turns.acquire()
        self._may_run.wait(MAX_PAUSE_SECONDS)

    def release(self) -> None:
        """Let another thread compute."""
        self._turns.release()

    def pause(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        """Let no further thread begin until an event loop has handled its ready events."""
        if self._may_run.is_set():
            self._may_run.clear()
            call_soon(self._may_run.set)


class ModelCatalog:
    """The models of a server, and the threads that compute requests."""

    def __init__(
        self, models: Sequence[HostedModel], linkers: Sequence[HostedLinker] = (), *, host_threads: int
    ) -> None:
        self.linkers = {linker.name: linker for linker in linkers}
        self.models = {model.name: model for model in models}
        self.host = HostTurns(host_threads)

    def find(self, name: Any, routes: Collection[str] = (), suits: Callable[[HostedModel], bool] | None = None) -> Any:
        """Return the model of a name, or without one the only that suits; raises Refusal otherwise."""
        possible = [
            model
            for model in self.models.values()
            if (not routes or model.route in routes) and (suits is None or suits(model))
        ]
        if name is None or name == "":
            if len(possible) == 1:
                return possible[0]
            names = ", ".join(model.name for model in possible)
            raise invalid(f"several models can do this: {names}. Name one." if names else _no_model(routes), "model")
        if not isinstance(name, str) or name not in self.models:
            raise Refusal(404, f"there is no such model; there are {', '.join(self.models)}.", field="model")
        if self.models[name] not in possible:
            raise invalid(f"{name} is of the task {self.models[name].task.name()}. {_no_model(routes)}", "model")
        return self.models[name]

    def find_linkers(self, names: Sequence[str] | None) -> list[HostedLinker]:
        """Return the dictionaries of names, all without any; raises Refusal for a name that there is not."""
        unknown = next((name for name in names or () if name not in self.linkers), None)
        if unknown is not None:
            raise Refusal(404, f"there is no such dictionary; there are {', '.join(self.linkers)}.", field="linkers")
        return list(self.linkers.values()) if names is None else [self.linkers[name] for name in names]

    def work(self) -> Work:
        """Start to account for a request."""
        return Work(self.host)

    def perform(self, function: Callable[[Work], Any], work: Work) -> Any:
        """Compute a request in the calling thread, with no more others than there are host threads."""
        work.check()
        self.host.acquire()
        try:
            work.check()
            return function(work)
        finally:
            self.host.release()


def _no_model(routes: Collection[str]) -> str:
    kinds = [kind for kind, route in ROUTES.items() if route in routes]
    # The class that several tasks share is no task by itself.
    tasks = ["text_classification" if kind is SequenceClassificationTask else kind.name() for kind in kinds]  # type: ignore[attr-defined]
    return f"This needs a run of {' or '.join(tasks)}." if tasks else "No model of this server can do this."
