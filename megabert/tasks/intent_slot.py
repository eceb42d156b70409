"""Joint intents and slots: what an utterance wants, and which of its words say with what."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..config.schema import (
    DataSettings,
    HeadSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    TrainDataSettings,
    choice,
    linear_decay,
)
from ..data.packing import NO_TARGET, Batch, Features
from ..data.windows import WordWindow, word_logits, word_windows
from ..errors import ConfigError, InputError
from ..formats.json_lines import read_json_lines
from ..formats.utterances import Utterance, read_utterances, utterance_files
from ..metrics import classification, tagging
from ..model.config import EncoderConfig
from ..model.heads import ACTIVATIONS, Head, JointHead, TokenHead
from ..tokenizers.wordpiece import Tokenizer
from ..tokenizers.words import joined_words, split_words
from .tag_decoding import log_softmax
from .task import (
    LabelledTask,
    choice_of,
    class_probabilities,
    class_weights,
    constant,
    number_labels,
    require_length,
    text_of,
    unseen,
)
from .token_classification import Span, choose_tags, find_spans, to_iob2

OUTSIDE = "O"


@dataclass
class DatasetSettings:
    """How utterances become tokens, and what their intents are."""

    max_seq_length: int = 64
    """Tokens of an utterance with its special tokens; a longer one is read in windows that overlap."""
    multi_label: bool = False
    """Any number of intents an utterance, joined by # or commas in the data; false: what stands there is one intent."""
    constrained_decoding: bool = False
    """Answer with the likeliest valid sequence of slot tags."""


@dataclass
class PrefixedData:
    """Files by their prefix in model.data_dir, instead of `file`."""

    prefix: str | None = None
    """PREFIX.tsv and PREFIX_slots.tsv beside dict.intents.csv and dict.slots.csv (NeMo), or a folder PREFIX with
    seq.in, seq.out and label (ATIS, SNIPS)."""


@dataclass
class IntentDataSettings(DataSettings, PrefixedData):
    """One set of data: `file` (or folder), or a prefix in data_dir."""


@dataclass
class IntentTrainSettings(TrainDataSettings, PrefixedData):
    """The training data: `file` (or folder), or a prefix in data_dir."""

    batch_size: int = 32
    """Utterances in a micro-batch."""
    prefix: str | None = "train"
    """PREFIX.tsv and PREFIX_slots.tsv (NeMo), or a folder PREFIX with seq.in, seq.out and label."""


@dataclass
class IntentHeadSettings(HeadSettings):
    """Both heads: one reads an utterance's first token, the other each word's."""

    num_output_layers: int = 1
    """Linear maps of each. NeMo 1.x has 2, which costs slots."""
    fc_dropout: float = 0.1
    """Dropout on the heads' input."""
    activation: str = choice("tanh", *ACTIVATIONS)
    """Between linear maps."""


@dataclass
class IntentSlotModel(ModelSettings):
    """The network, its data and its optimizer."""

    data_dir: str | None = None
    """Folder of the prefixes."""
    intent_loss_weight: float = 0.3
    """Share of the intents in the loss, the slots have the rest. NeMo 1.x has 0.6, which costs slots."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: slots, and intents of which an utterance has one, count in the loss in inverse proportion to
    their numbers."""
    ignore_extra_tokens: bool = True
    """Learn a word's slot at its first token only; false: at each of them."""
    ignore_start_end: bool = True
    """Learn no slot at [CLS] and [SEP]; false: O."""
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    head: IntentHeadSettings = field(default_factory=IntentHeadSettings)
    train_ds: IntentTrainSettings = field(default_factory=IntentTrainSettings)
    validation_ds: IntentDataSettings = field(default_factory=IntentDataSettings)
    test_ds: IntentDataSettings = field(default_factory=IntentDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(5e-5))


@dataclass
class IntentSlotSettings(Settings):
    """All settings of a run."""

    model: IntentSlotModel = field(default_factory=IntentSlotModel)


@dataclass(frozen=True)
class Example:
    """An utterance, its words as [start, end) characters, its intents and the words' tags, None where unknown."""

    id: str
    text: str
    words: tuple[tuple[int, int], ...]
    intents: tuple[str, ...] | None
    tags: tuple[str, ...] | None
    place: str


@dataclass(frozen=True)
class Prediction:
    """The intents of an utterance with the probability of each, its slots, and the tags of its words."""

    id: str
    text: str
    intents: tuple[str, ...]
    probabilities: dict[str, float]
    tags: tuple[str, ...]
    slots: tuple[Span, ...]


class IntentSlotClassification(LabelledTask[Example, Prediction]):
    r"""Find the intent of an utterance and the slots that its words fill.

        megabert train intent_slot model.data_dir=atis model.validation_ds.prefix=dev \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=atis/test output_dir=OUT
        megabert predict RUN text="wake me at six tomorrow"

    Data, by `model.data_dir` and a prefix, or by `file`: a folder with seq.in, seq.out and label (ATIS and SNIPS as
    they are passed around); NeMo's PREFIX.tsv and PREFIX_slots.tsv with dict.intents.csv and dict.slots.csv; JSON
    lines with `tokens`, `tags` and `intent`. Slots without B- and I- are taken so that equal neighbours are one slot.
    With `model.dataset.multi_label=true` an utterance has any number of intents, joined by # or commas. Unlike in NeMo
    1.x nothing is validated on the test set unless the settings name it.

    Answers: the intent with its probability and those of all; each slot with type, probability and characters of the
    untouched text; the tags of all words.

    Scores: `intent_accuracy`; `slot_f1`, `slot_precision` and `slot_recall` of whole slots as conlleval counts
    entities; `exact_match`, the share of utterances with all of it right; with several intents `intent_f1` too.
    """

    settings_type = IntentSlotSettings
    main_score = "exact_match"

    def __init__(self, settings: IntentSlotSettings) -> None:
        super().__init__(settings)
        self.model = settings.model
        self.dataset = settings.model.dataset
        self.intents: list[str] = []
        self.intent_weights: list[float] = []
        self.mean_words = 1.0
        if not 0 <= self.model.intent_loss_weight <= 1:
            raise ConfigError(f"model.intent_loss_weight={self.model.intent_loss_weight}; it lies between 0 and 1.")
        require_length(self.dataset.max_seq_length)

    @property
    def row_length(self) -> int:
        """Tokens of a window."""
        return self.dataset.max_seq_length

    def state(self) -> dict[str, Any]:
        """Give slots, intents, their weights and the mean number of words."""
        own = {"intents": self.intents, "intent_weights": self.intent_weights, "mean_words": self.mean_words}
        return super().state() | own

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        super().restore_state(state)
        self.intents, self.intent_weights = list(state["intents"]), list(state["intent_weights"])
        self.mean_words = state["mean_words"]

    def files(self, data: Any) -> list[str]:
        """Give `file` or the files of the prefix."""
        if data.file is not None:
            return utterance_files(Path(data.file))
        if data.prefix is None or self.model.data_dir is None:
            return []
        return utterance_files(Path(self.model.data_dir) / data.prefix)

    def read_files(self, files: Sequence[str]) -> list[Example]:
        """Read one file, the three of a folder, or NeMo's four."""
        found = read_utterances([Path(file) for file in files])
        return [self._example(utterance, number) for number, utterance in enumerate(found, start=1)]

    def read(self, path: Path) -> list[Example]:
        """Read a folder with seq.in, NeMo's PREFIX.tsv, JSON lines, or texts alone, one a line."""
        return self.read_files(utterance_files(path))

    def _raw(self, text: str, name: str, place: str) -> Example:
        return Example(name, text, split_words(text), None, None, place)

    def _example(self, utterance: Utterance, number: int) -> Example:
        name, place = utterance.id or str(number), utterance.place
        if isinstance(utterance.words, str):
            return self._raw(utterance.words, name, place)
        intents, tags, words = utterance.intents, utterance.tags, utterance.words
        if intents is not None and self.dataset.multi_label:
            parts = [part.strip() for intent in intents for part in re.split("[#,]", intent)]
            intents = tuple(dict.fromkeys(part for part in parts if part))
        elif intents is not None and len(intents) > 1:
            raise InputError(
                f"{place}: {len(intents)} intents where one is expected. Set model.dataset.multi_label=true."
            )
        if tags is not None:
            if len(tags) != len(words):
                raise InputError(f"{place}: {len(tags)} slots for {len(words)} words. Give each word one, O for none.")
            are_entities = all(tag == OUTSIDE or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags)
            tags = to_iob2(tags if are_entities else _of_runs(tags), OUTSIDE, place)
        return Example(name, " ".join(words), joined_words(words), intents, tags, place)

    def example(self, **fields: Any) -> Example:
        """Make an example from `text`."""
        return self._raw(text_of(fields), str(fields.get("id", "text")), "the text")

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List slots (O first) and intents alphabetically; weigh them if that is asked for."""
        tags = Counter(tag for example in examples for tag in example.tags or ())
        intents = Counter(intent for example in examples for intent in example.intents or ())
        if not tags or not intents:
            raise InputError("the training data lack intents or slots. Add them to each utterance.")
        balancing = self.model.class_balancing
        self.take_labels([OUTSIDE, *sorted(set(tags) - {OUTSIDE})], tags, balancing)
        self.intents = sorted(intents)
        self.intent_weights = class_weights(self.intents, intents, balancing)
        self.mean_words = sum(tags.values()) / len(examples)

    def unseen_labels(self, examples: Sequence[Example]) -> dict[str, str]:
        """List slots and intents that were not trained."""
        slots = unseen(self.labels, ((item.tags or (), item.place) for item in examples))
        return slots | unseen(self.intents, ((item.intents or (), item.place) for item in examples))

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize words, long utterances in several windows that count as one together."""
        texts = [[item.text[start:end] for start, end in item.words] for item in examples]
        windows = list(word_windows(texts, tokenizer, self.dataset.max_seq_length))
        counts = Counter(window.text for window in windows)
        numbers = [self._numbers(item) for item in examples] if with_targets else None
        edge = NO_TARGET if self.model.ignore_start_end else 0
        features = []
        for window in windows:
            if numbers is None:
                features.append(window.features())
                continue
            chosen, tags = numbers[window.text]
            targets = window.targets(tags, first_only=self.model.ignore_extra_tokens, edge=edge)
            share = 1 / counts[window.text]
            own = {"intents": chosen, "share": np.float32(share)}
            features.append(window.features(own, {"slot": targets}, share))
        return features

    def _numbers(self, example: Example) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Give 1 for each intent that holds, [I], and the words' slots [W]."""
        if example.tags is None or example.intents is None:
            raise InputError(f"{example.place}: the utterance has no intent or no slots. Add them, or predict instead.")
        return choice_of(self.intents, example.intents), number_labels(self.labels, example.tags)

    def head(self, config: EncoderConfig) -> Head:
        """Score slots and intents at each token; an utterance's intents are those of its first."""
        settings = self.model.head
        common: dict[str, Any] = {
            "num_layers": settings.num_output_layers,
            "dropout": settings.fc_dropout,
            "activation": settings.activation,
        }
        return JointHead(
            slots=TokenHead(config.hidden_size, len(self.labels), **common),
            intents=TokenHead(config.hidden_size, len(self.intents), **common),
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the utterances' losses: of intents w, of slots 1 - w, where w is model.intent_loss_weight.

        A slot's cross-entropy is divided by the training data's mean number of words, so that both are means.
        """
        num_slots = len(self.labels)
        starts_N = batch.cu_seqlens_N1[:-1].clamp(max=len(logits) - 1)
        intents_NI = logits[:, num_slots:].index_select(0, starts_N)
        shares_N = batch.targets["share"].nan_to_num()
        chosen_NI = batch.targets["intents"].nan_to_num()
        if self.dataset.multi_label:
            losses_N = F.binary_cross_entropy_with_logits(intents_NI, chosen_NI, reduction="none").mean(1)
        else:
            weights_I = constant(tuple(self.intent_weights), logits.device)
            losses_N = -(chosen_NI * weights_I * torch.log_softmax(intents_NI, dim=1)).sum(1)
        weights_C = constant(tuple(self.weights), logits.device) if self.model.class_balancing else None
        slots = F.cross_entropy(logits[:, :num_slots], batch.token_targets["slot"], weight=weights_C, reduction="sum")
        share = self.model.intent_loss_weight
        return share * (losses_N * shares_N).sum() + (1 - share) * slots / self.mean_words

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Choose intents by the first tokens of an utterance's windows, and each word's slot by its first token."""
        num_slots = len(self.labels)
        windows: list[WordWindow] = [feature.notes for feature in features]
        intents: list[list[NDArray[np.float64]]] = [[] for _ in examples]
        for window, scores in zip(windows, logits, strict=True):
            own = scores[0, num_slots:].astype(np.float64)
            intents[window.text].append(class_probabilities(own, is_multi_label=self.dataset.multi_label))
        counts = [len(example.words) for example in examples]
        slots = word_logits(windows, [scores[:, :num_slots] for scores in logits], counts)
        return [
            self._predict(example, np.mean(found, axis=0), log_softmax(scores))
            for example, found, scores in zip(examples, intents, slots, strict=True)
        ]

    def _predict(
        self, example: Example, intents_I: NDArray[np.float64], log_probabilities_WC: NDArray[np.float64]
    ) -> Prediction:
        tags, scores = choose_tags(log_probabilities_WC, self.labels, constrained=self.dataset.constrained_decoding)
        best: tuple[str, ...] = (self.intents[int(intents_I.argmax())],)
        if self.dataset.multi_label:
            best = tuple(name for name, value in zip(self.intents, intents_I, strict=True) if value >= 0.5) or best
        probabilities = dict(zip(self.intents, intents_I.tolist(), strict=True))
        slots = find_spans(example.text, example.words, tags, scores)
        return Prediction(example.id, example.text, best, probabilities, tags, slots)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score intents, slots, and whole utterances."""
        gold = [_known(example) for example in examples]
        found = [(item.intents, item.tags) for item in predictions]
        return _scores(gold, found, is_multi_label=self.dataset.multi_label)

    def label_pairs(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Give each word's slot, and each utterance's intent where it has one, beside the predicted ones."""
        golds = [_known(example) for example in examples]
        pairs = list(zip(golds, predictions, strict=True))
        found = {"slot": [pair for (_, tags), item in pairs for pair in zip(tags, item.tags, strict=True)]}
        if not self.dataset.multi_label:
            found["intent"] = [(intents[0], item.intents[0]) for (intents, _), item in pairs]
        return found

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Give the intents with their probabilities, the slots with their characters, and the tags."""
        plain: dict[str, Any] = {"id": prediction.id, "text": prediction.text, "intents": list(prediction.intents)}
        if not self.dataset.multi_label:
            plain |= {"intent": prediction.intents[0], "probability": prediction.probabilities[prediction.intents[0]]}
        slots = [vars(slot) for slot in prediction.slots]
        return plain | {"slots": slots, "tags": list(prediction.tags), "probabilities": prediction.probabilities}

    @classmethod
    def score_files(cls, gold: Path, predictions: Path) -> dict[str, Any]:
        """Score JSON lines as `megabert predict` writes them."""
        task = cls(cls.settings_type())
        rows = read_json_lines(predictions)
        task.dataset.multi_label = any("intent" not in row.values for row in rows)
        expected = [_known(example) for example in task.read(gold)]
        found = [(row.texts("intents"), row.texts("tags")) for row in rows]
        if [len(tags) for _, tags in expected] != [len(tags) for _, tags in found]:
            raise InputError(f"{predictions} has other utterances or words than {gold}. Predict the same file.")
        return _scores(expected, found, is_multi_label=task.dataset.multi_label)


def _of_runs(tags: Sequence[str]) -> tuple[str, ...]:
    """Turn slots without B- and I- into IOB2: equal neighbours are one slot."""
    before = [OUTSIDE, *tags[:-1]]
    return tuple(
        tag if tag == OUTSIDE else f"{'I' if tag == last else 'B'}-{tag}"
        for tag, last in zip(tags, before, strict=True)
    )


_Answer = tuple[tuple[str, ...], tuple[str, ...]]


def _known(example: Example) -> _Answer:
    if example.tags is None or example.intents is None:
        raise InputError(f"{example.place}: the utterance has no intent or no slots to score against. Add them.")
    return example.intents, example.tags


def _scores(gold: Sequence[_Answer], found: Sequence[_Answer], *, is_multi_label: bool) -> dict[str, float]:
    right = [set(a[0]) == set(b[0]) for a, b in zip(gold, found, strict=True)]
    whole = [same and a[1] == b[1] for same, a, b in zip(right, gold, found, strict=True)]
    slots = tagging.entity_scores([tags for _, tags in gold], [tags for _, tags in found])
    scores = {"exact_match": 100.0 * sum(whole) / len(gold), "intent_accuracy": 100.0 * sum(right) / len(gold)}
    if is_multi_label:
        intents = classification.multi_label_scores([set(a) for a, _ in gold], [set(b) for b, _ in found])
        scores |= {"intent_f1": intents["f1"], "intent_macro_f1": intents["macro_f1"]}
    names = {name: f"slot_{name}" for name in ("f1", "precision", "recall", "macro_f1")}
    scores |= {new: slots[name] for name, new in names.items()}
    return scores | {name: value for name, value in slots.items() if "/" in name} | {"total": len(gold)}
