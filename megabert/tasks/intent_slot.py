"""Joint intent and slot filling: what an utterance asks for, and which of its words fill the slots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    TrainDataSettings,
    choice,
    linear_decay,
)
from ..data.packing import Batch, Features
from ..data.word_windows import WordWindow
from ..errors import ConfigError, InputError
from ..formats.data_files import expand_names
from ..formats.record_streams import derived
from ..formats.rows import Row
from ..formats.tag_schemes import TagScheme, add_prefixes, find_scheme, to_iob2
from ..formats.utterances import Utterance, read_utterances, utterance_files
from ..metrics import classification, tagging
from ..model.config import EncoderConfig
from .head_settings import IntentHeadSettings, head_options
from .iob_tags import Span, decode_tags, find_spans
from .labels import LabelKind, class_probabilities, device_constant, multi_hot, require_labels
from .task import Logits
from .word_labeling import (
    RawTextSettings,
    WordExample,
    WordLabelingTask,
    WordTargetSettings,
    require_word_labels,
    standard_rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.heads import Head


@dataclass
class UtteranceSettings(RawTextSettings):
    """How utterances become tokens, and their intents labels."""

    max_seq_length: int = 64
    """Tokens of an utterance with its special tokens; a longer one is read in overlapping windows."""
    multi_label: bool = False
    """An utterance has any number of intents, a list or joined by # or commas; false: exactly one."""
    constrained_decoding: bool = False
    """Predict the most likely valid sequence of slot tags."""


@dataclass
class IntentDataSettings(DataSettings):
    """One set of data: `file` (or folder), or a prefix in data_dir."""

    prefix: str | None = None
    """PREFIX.tsv and PREFIX_slots.tsv beside dict.intents.csv and dict.slots.csv (NeMo), or a folder PREFIX with
    seq.in, seq.out and label (ATIS, SNIPS)."""


@dataclass
class IntentTrainSettings(TrainDataSettings):
    """The training data: `file` (or folder), or a prefix in data_dir."""

    batch_size: int = 32
    """Utterances in a micro-batch."""
    prefix: str | None = "train"
    """PREFIX.tsv and PREFIX_slots.tsv (NeMo), or a folder PREFIX with seq.in, seq.out and label."""


@dataclass
class IntentSlotModel(ModelSettings, WordTargetSettings):
    """The network, its data and its optimizer."""

    data_dir: str | None = None
    """Folder of the prefixes."""
    intent_loss_weight: float = 0.3
    """Weight of the intent loss; the slot loss has 1 minus it. NeMo 1.x has 0.6, with lower slot F1."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: weight slots, and intents unless multi_label, in the loss in inverse proportion to their
    numbers."""
    dataset: UtteranceSettings = field(default_factory=UtteranceSettings)
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
class Example(WordExample):
    """An utterance, its words, its intents and the words' tags, None where they are unknown."""

    intents: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """The intents of an utterance with the probability of each, the tags of its words, and its slots."""

    id: str
    text: str
    intents: tuple[str, ...]
    probabilities: dict[str, float]
    tags: tuple[str, ...]
    slots: tuple[Span, ...]
    windows: int = 1
    """Number of windows that were read."""


class IntentSlotClassification(WordLabelingTask[Example, Prediction]):
    r"""Find the intent of an utterance and the slots that its words fill.

        megabert train intent_slot model.data_dir=atis model.validation_ds.prefix=dev \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=atis/test output_dir=OUT
        megabert predict RUN text="wake me at six tomorrow"

    Data, by `model.data_dir` and a prefix, or by `file`: a folder with seq.in, seq.out and label (the usual format of
    ATIS and SNIPS); NeMo's PREFIX.tsv and PREFIX_slots.tsv with dict.intents.csv and dict.slots.csv; JSON lines with
    `tokens`, `tags` and `intent`; files of Snips and Rasa
    ([data formats](../formats.md#utterances-with-intents-and-slots-intent_slot)). Slots of all tag schemes are
    converted to IOB2; without one equal neighbours are one slot. With
    `model.dataset.multi_label=true` an utterance has any number of intents: a list of `intents`, or a string that # or
    commas join. Unlike in NeMo 1.x nothing is validated on the test set unless the settings name it.

    Predictions: the intent with its probability and those of all; each slot with type, probability and characters of
    the original text; the tags of all words.

    Metrics: `intent_accuracy`; `slot_f1`, `slot_precision` and `slot_recall` of whole slots as conlleval counts
    entities; `exact_match`, the share of utterances of which all is right; with several intents also `intent_f1`.
    """

    settings_type = IntentSlotSettings
    main_score = "exact_match"
    state_names = ("labels", "weights", "intents", "intent_weights", "mean_words", "cuts")
    example_type = Example

    def __init__(self, settings: IntentSlotSettings) -> None:
        self.model = settings.model
        self.dataset = settings.model.dataset
        self.intents: list[str] = []
        self.intent_weights: list[float] = []
        self.mean_words = 1.0
        slot = LabelKind("slot", "tags", first=self.dataset.pad_label)
        intent = LabelKind("intent", "intents", "intents", "intent_weights", is_set=self.dataset.multi_label)
        balancing = self.model.class_balancing
        super().__init__(settings, slot, target_settings=self.model, other_kinds=[intent], class_balancing=balancing)
        if not 0 <= self.model.intent_loss_weight <= 1:
            raise ConfigError(f"model.intent_loss_weight={self.model.intent_loss_weight}; expected 0 to 1.")

    def file_groups(self, data: Any) -> list[list[str]]:
        """Return those of `file` or of the prefix."""
        if data.file is not None:
            return [utterance_files(Path(name)) for name in expand_names(data.file)]
        if data.prefix is None or self.model.data_dir is None:
            return []
        return [utterance_files(Path(self.model.data_dir) / data.prefix)]

    def read_files(self, files: Sequence[str]) -> Sequence[Example]:
        """Read one file, the three of a folder, or NeMo's four."""
        utterances = read_utterances([Path(file) for file in files])
        outside = self.dataset.pad_label
        scheme = find_scheme((tag for utterance in utterances for tag in utterance.tags or ()), outside)
        return derived(utterances, lambda items: (self._example(item, scheme, n) for n, item in enumerate(items, 1)))

    def read(self, path: Path) -> Sequence[Example]:
        """Read a folder with seq.in, NeMo's PREFIX.tsv, JSON lines, or raw text, an utterance a line."""
        return self.read_files(utterance_files(path))

    def _example(self, utterance: Utterance, scheme: TagScheme | None, number: int) -> Example:
        name, location = utterance.id or str(number), utterance.location
        if isinstance(utterance.words, str):
            return self.unlabelled(utterance.words, name, location)
        tags, words, outside = utterance.tags, utterance.words, self.dataset.pad_label
        if tags is not None:
            if len(tags) != len(words):
                raise InputError(f"{location}: {len(tags)} slots for {len(words)} words. Give O to words without one.")
            tags = add_prefixes(tags, outside) if scheme is None else to_iob2(tags, scheme, outside, location)
        return replace(self.tokenized(words, name, location), intents=self._intents(utterance), tags=tags)

    def _intents(self, utterance: Utterance) -> tuple[str, ...] | None:
        """Return whole names, or the parts of a string in which # or commas join several."""
        intents = utterance.intents
        if isinstance(intents, str):
            parts = re.split("[#,]", intents) if self.dataset.multi_label else [intents]
            intents = tuple(dict.fromkeys(filter(None, map(str.strip, parts))))
        if intents is not None and len(intents) > 1 and not self.dataset.multi_label:
            raise InputError(
                f"{utterance.location}: {len(intents)} intents; expected one. Set model.dataset.multi_label=true."
            )
        return intents

    def learn_labels(self, examples: Sequence[Example]) -> None:
        """List slots (O first) and intents, and count the mean number of words."""
        super().learn_labels(examples)
        self.learn_word_cuts(examples)
        self.mean_words = sum(len(example.tags or ()) for example in examples) / len(examples)

    def window_features(
        self, window: WordWindow, example: Example, targets: dict[str, NDArray[np.int64]], share: float
    ) -> Features:
        """Make a window's features; the windows of an utterance have a weight of 1 together."""
        intents_I = multi_hot(self.intents, require_labels(example, "intents"))
        return window.features({"intents": intents_I, "share": np.float32(share)}, targets, share)

    def head(self, config: EncoderConfig) -> Head:
        """Score slots and intents at each token; an utterance's intents are those of its first."""
        from ..model.heads import JointHead, TokenHead

        options = head_options(self.model.head)
        return JointHead(
            slots=TokenHead(config.hidden_size, len(self.labels), **options),
            intents=TokenHead(config.hidden_size, len(self.intents), **options),
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum the utterances' losses: w times that of intents, 1 - w times that of slots (model.intent_loss_weight).

        The slots' cross-entropy is divided by the training data's mean number of words, so that both are means.
        """
        import torch
        from torch.nn import functional as F

        num_slots = len(self.labels)
        starts_N = batch.cu_seqlens_N1[:-1].clamp(max=len(logits) - 1)
        intents_NI = logits[:, num_slots:].index_select(0, starts_N)
        shares_N = batch.targets["share"].nan_to_num()
        targets_NI = batch.targets["intents"].nan_to_num()
        if self.dataset.multi_label:
            losses_N = F.binary_cross_entropy_with_logits(intents_NI, targets_NI, reduction="none").mean(1)
        else:
            weights_I = device_constant(tuple(self.intent_weights), logits.device)
            losses_N = -(targets_NI * weights_I * torch.log_softmax(intents_NI, dim=1)).sum(1)
        slots = self.word_loss(logits[:, :num_slots], batch, self.word_kinds[0])
        weight = self.model.intent_loss_weight
        return weight * (losses_N * shares_N).sum() + (1 - weight) * slots / self.mean_words

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Choose intents by the first tokens of an utterance's windows, and each word's slot by its first token."""
        num_slots = len(self.labels)
        intents: list[list[NDArray[np.float64]]] = [[] for _ in examples]
        for feature, window_logits in zip(features, logits, strict=True):
            logits_I = window_logits[0, num_slots:].astype(np.float64)
            probabilities_I = class_probabilities(logits_I, is_multi_label=self.dataset.multi_label)
            intents[feature.notes.example].append(probabilities_I)
        slots = self.word_logits(examples, features, [item[:, :num_slots] for item in logits])
        decoded = decode_tags(slots, self.labels, constrained=self.dataset.constrained_decoding)
        predictions = []
        for example, windows, (tags, scores) in zip(examples, intents, decoded, strict=True):
            spans = find_spans(example.text, example.words, tags, scores)
            probabilities = dict(zip(self.intents, np.mean(windows, axis=0).tolist(), strict=True))
            best: tuple[str, ...] = (max(probabilities, key=probabilities.__getitem__),)
            if self.dataset.multi_label:
                best = tuple(name for name, value in probabilities.items() if value >= 0.5) or best
            predictions.append(Prediction(example.id, example.text, best, probabilities, tags, spans))
        return self.with_windows(predictions, features)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score intents, slots, and whole utterances."""
        tags = [require_labels(example, "tags") for example in examples]
        gold = [set(require_labels(example, "intents")) for example in examples]
        predicted = [set(item.intents) for item in predictions]
        right = [a == b for a, b in zip(gold, predicted, strict=True)]
        whole = [same and a == item.tags for same, a, item in zip(right, tags, predictions, strict=True)]
        slots = tagging.entity_scores(tags, [item.tags for item in predictions])
        scores = {"exact_match": 100.0 * sum(whole) / len(gold), "intent_accuracy": 100.0 * sum(right) / len(gold)}
        if self.dataset.multi_label:
            intents = classification.multi_label_scores(gold, predicted)
            scores |= {"intent_f1": intents["f1"], "intent_macro_f1": intents["macro_f1"]}
        scores |= {f"slot_{name}": slots[name] for name in ("f1", "precision", "recall", "macro_f1")}
        return scores | {name: value for name, value in slots.items() if "/" in name} | {"total": len(gold)}

    def to_json(self, prediction: Prediction) -> dict[str, Any]:
        """Return the intents with their probabilities, the slots with their characters, and the tags."""
        values: dict[str, Any] = {"id": prediction.id, "text": prediction.text, "intents": list(prediction.intents)}
        if not self.dataset.multi_label:
            values |= {"intent": prediction.intents[0], "probability": prediction.probabilities[prediction.intents[0]]}
        slots = [vars(slot) for slot in prediction.slots]
        return values | {
            "slots": slots,
            "tags": list(prediction.tags),
            "probabilities": prediction.probabilities,
            "windows": prediction.windows,
        }

    def gold(self, example: Example) -> dict[str, Any]:
        """Return an utterance's intents, slots and tags, as far as they are known."""
        gold: dict[str, Any] = {}
        if example.intents is not None:
            gold["intents"] = list(example.intents)
            if not self.dataset.multi_label:
                gold["intent"] = example.intents[0]
        if example.tags is not None:
            slots = find_spans(example.text, example.words, example.tags, np.ones(len(example.tags)))
            gold |= {"slots": [vars(slot) for slot in slots], "tags": list(example.tags)}
        return gold

    def from_json(self, example: Example, row: Row) -> Prediction:
        """Read the intents of an utterance and the tags of its words."""
        tags = require_word_labels(example, row, row.strings("tags"))
        return Prediction(example.id, example.text, row.strings("intents"), {}, tags, ())

    @classmethod
    def read_predictions(cls, path: Path) -> list[Row]:
        """Read JSON lines as `megabert predict` writes them, with tags of any scheme."""
        return standard_rows(super().read_predictions(path))

    @classmethod
    def inferred_settings(cls, rows: Sequence[Row]) -> list[str]:
        """Infer multi_label: only where it is false have predictions an `intent`."""
        return [f"model.dataset.multi_label={any('intent' not in row.values for row in rows)}"]
