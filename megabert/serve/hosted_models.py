"""The models of a server by name: requests in plain values, predictions out, through the Predictor of each run."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..annotate.annotator import Annotator, EntityAnnotator, RelationAnnotator
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..formats.documents.training_examples import PairOptions
from ..inference import Predictor
from .model_queue import ComputeQueue, Work
from .queued_session import STATES, QueuedSession
from .refusals import Refusal, invalid, too_large

RELEVANT = ("relevant", "entailment", "equivalent", "duplicate", "yes", "true", "1")
"""Labels whose probability ranks pairs, in this order; else the second of two."""
ENTITIES, RELATIONS, ANSWERS = "token_classification", "relation_extraction", "question_answering"


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
        windows = self._windows(examples, features)
        predictions = predictor.predict_examples(examples, features=features)
        rows = []
        for number, prediction in enumerate(predictions):
            row = {**self.task.to_json(prediction), "windows": windows[number]}
            cut = self._cut_question(inputs[number])
            rows.append({**row, "truncated": cut} if cut else row)
        return list(zip(rows, predictions, strict=True))

    def _windows(self, examples: Sequence[Any], features: Sequence[Features]) -> list[int]:
        """Count the sequences of each example, by the example's index in their notes."""
        indices = [getattr(item.notes, "example", item.notes) for item in features]
        if all(isinstance(index, int | np.integer) and index < len(examples) for index in indices):
            counts = Counter(map(int, indices))
            return [counts[number] for number in range(len(examples))]
        tokenizer = self.predictor.tokenizer  # a task that numbers its sequences otherwise
        return [len(self.task.features([example], tokenizer, with_targets=False)) for example in examples]

    def _example(self, fields: Mapping[str, Any], number: int) -> Any:
        place = f"inputs[{number}]"
        for name, value in fields.items():
            kind = self.fields.get(name, str if name == "id" else None)
            if self.fields and kind is None:
                raise invalid(f"{place}.{name} is no field of {self.task.name()}: {', '.join(self.fields)}.", name)
            if kind is str and not isinstance(value, str):
                raise invalid(f"{place}.{name} is a {type(value).__name__}; expected a string.", name)
            if kind is list and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise invalid(f"{place}.{name} is not a list of strings.", name)
        try:
            return self.task.example(**{"id": str(number + 1), **fields})
        except (InputError, ConfigError) as error:
            missing = next((name for name in self.fields if f"{name} is" in str(error)), None)
            raise invalid(f"{place}: {error}", missing) from None

    def _cut_question(self, fields: Mapping[str, Any]) -> dict[str, int] | None:
        """Count the tokens of a question that are not read: only contexts have windows."""
        if self.task.name() != ANSWERS:
            return None
        limit = self.task.settings.model.dataset.max_query_length
        extra = len(self.predictor.tokenizer.encode_ids([fields["question"].strip()])[0]) - limit
        return {"question": extra} if extra > 0 else None

    def embed(self, texts: Sequence[str], work: Work) -> NDArray[np.float32]:
        """Compute a vector of each text: [N, D]."""
        try:
            return self.queued(work).embed(texts)
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

    def score_pairs(self, query: str, texts: Sequence[str], work: Work) -> list[float]:
        """Compute the probability, or the value, by which texts are ranked for a query."""
        if "text_b" not in self.fields:
            raise invalid(f"{self.name} ({self.task.name()}) does not score pairs of texts.", "model")
        inputs = [{"text": query, "text_b": text} for text in texts]
        return [_relevance(prediction, self.name) for _, prediction in self.predictions(inputs, work)]

    def annotator(self, work: Work, pairs: PairOptions) -> Annotator:
        """Return the model's part of annotating documents."""
        predictor = self.queued(work)
        if self.task.name() == ENTITIES:
            return EntityAnnotator(predictor)
        if self.task.name() == RELATIONS:
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


def _relevance(prediction: Any, name: str) -> float:
    value = getattr(prediction, "value", None)
    if value is None:
        value = getattr(prediction, "score", None)
    if value is not None:
        return float(value)
    probabilities: Mapping[str, float] = prediction.probabilities
    label = next((item for item in RELEVANT if item in probabilities), None)
    if label is None and len(probabilities) == 2:
        label = list(probabilities)[1]
    if label is None:
        raise invalid(f"{name} has labels {', '.join(probabilities)}: none of them is relevance.", "model")
    return float(probabilities[label])


def logit(probability: float) -> float:
    """Return log(p / (1 - p)), finite for 0 and 1."""
    clipped = min(max(probability, 1e-12), 1 - 1e-12)
    return math.log(clipped / (1 - clipped))


class ModelCatalog:
    """The models of a server, and the threads that compute requests."""

    def __init__(self, models: Sequence[HostedModel], *, host_threads: int) -> None:
        self.models = {model.name: model for model in models}
        self._host = threading.Semaphore(host_threads)

    def find(self, name: Any, tasks: Collection[str] = (), suits: Callable[[HostedModel], bool] | None = None) -> Any:
        """Return the model of a name, or without one the only that suits; raises Refusal otherwise."""
        possible = [
            model
            for model in self.models.values()
            if (not tasks or model.task.name() in tasks) and (suits is None or suits(model))
        ]
        if name is None or name == "":
            if len(possible) == 1:
                return possible[0]
            names = ", ".join(model.name for model in possible)
            raise invalid(f"several models can do this: {names}. Name one." if names else _no_model(tasks), "model")
        if not isinstance(name, str) or name not in self.models:
            raise Refusal(404, f"there is no such model; there are {', '.join(self.models)}.", field="model")
        if self.models[name] not in possible:
            raise invalid(f"{name} is of the task {self.models[name].task.name()}. {_no_model(tasks)}", "model")
        return self.models[name]

    def work(self) -> Work:
        """Start to account for a request."""
        return Work(self._host)

    def perform(self, function: Callable[[Work], Any], work: Work) -> Any:
        """Compute a request in the calling thread, with no more others than there are host threads."""
        work.check()
        with self._host:
            work.check()
            return function(work)


def _no_model(tasks: Collection[str]) -> str:
    return f"This needs a run of {' or '.join(tasks)}." if tasks else "No model of this server can do this."
