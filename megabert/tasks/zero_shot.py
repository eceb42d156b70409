"""Zero-shot classification: labels that no training has shown, by a network that tells what follows from a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.schema import Settings
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..metrics import classification
from ..tokenizers.wordpiece import Tokenizer
from .text_classification import ClassifierModel, Example, Prediction, TextClassification, TextSettings, known_labels


@dataclass
class DatasetSettings(TextSettings):
    """How texts become tokens, and labels hypotheses."""

    candidate_labels: list[str] = field(default_factory=list)
    """The labels to choose among; none: those of the file that is evaluated."""
    hypothesis_template: str = "This example is {}."
    """What a label says of a text; {} stands for the label."""
    multi_label: bool = False
    """Judge each label by itself (any number may hold) instead of against the others."""
    entailment_label: str = "entailment"
    """The training data's label of what follows."""
    contradiction_label: str = "contradiction"
    """The training data's label of what cannot be; it may have none."""


@dataclass
class ZeroShotModel(ClassifierModel):
    """The network, its data and its optimizer."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)


@dataclass
class ZeroShotSettings(Settings):
    """All settings of a run."""

    model: ZeroShotModel = field(default_factory=ZeroShotModel)


@dataclass(frozen=True)
class Query(Example):
    """A text and the labels to choose among."""

    candidates: tuple[str, ...] = ()
    template: str = "{}"


class ZeroShot(TextClassification):
    r"""Classify texts under labels that are given only when asked: intents, topics.

        megabert train zero_shot model.train_ds.file=MNLI/train.tsv model.validation_ds.file=MNLI/dev_matched.tsv \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN text="set an alarm for six" labels="alarm,weather,music"
        megabert evaluate RUN file=topics.tsv model.dataset.hypothesis_template="This text is about {}."

    Training data: pairs of natural-language inference, premise and hypothesis with a label: GLUE's MNLI or RTE files
    as distributed, tab-separated with a header, or JSON lines. To answer, each label becomes a hypothesis by
    `model.dataset.hypothesis_template`, and the label whose hypothesis follows most surely from the text is chosen.
    With `model.dataset.multi_label=true` each label is judged by itself.

    Answers: the best label and the probability of each.

    Scores: `accuracy` on pairs; on a file of texts with labels, accuracy and each label's F1 without any training on
    them.

    Source: Yin, Hay and Roth 2019, arXiv:1909.00161; NeMo 1.5's zero-shot intent recognition.
    """

    settings_type = ZeroShotSettings
    main_score = "accuracy"

    def __init__(self, settings: ZeroShotSettings) -> None:
        super().__init__(settings)
        _check_template(self.dataset.hypothesis_template)

    @property
    def problem(self) -> str:
        """One label a pair."""
        return "single_label"

    def example(self, **fields: Any) -> Example:
        """Make a query from `text`, `labels` (separated by commas, or a list) and `template`."""
        labels, template = fields.pop("labels", None), fields.pop("template", self.dataset.hypothesis_template)
        plain = super().example(**fields)
        if plain.pair is not None:
            return plain
        items = labels.split(",") if isinstance(labels, str) else labels or self.dataset.candidate_labels
        candidates = tuple(dict.fromkeys(str(item).strip() for item in items if str(item).strip()))
        if not candidates:
            raise InputError(
                "There are no labels to choose among. Give labels=a,b,c or model.dataset.candidate_labels."
            )
        _check_template(template)
        return Query(plain.id, plain.text, None, None, plain.place, candidates, template)

    def read(self, path: Any) -> list[Example]:
        """Read pairs, or texts whose labels are not those of inference."""
        examples = super().read(path)
        if any(example.pair is not None for example in examples):
            lonely = next((example for example in examples if example.pair is None), None)
            if lonely is not None:
                raise InputError(f"{lonely.place}: there is no hypothesis, as other rows have one. Add it.")
            return examples
        found = dict.fromkeys(label for example in examples for label in example.labels or ())
        candidates = tuple(self.dataset.candidate_labels or sorted(found))
        if not candidates:
            raise ConfigError(f"{path} names no labels. Give them: model.dataset.candidate_labels=[a,b,c].")
        template = self.dataset.hypothesis_template
        return [Query(item.id, item.text, None, item.labels, item.place, candidates, template) for item in examples]

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize pairs; a query is one pair a label."""
        lonely = next((item for item in examples if isinstance(item, Query)), None)
        if with_targets and lonely is not None:
            raise InputError(f"{lonely.place}: training needs pairs of premise and hypothesis. Add the second text.")
        return super().features(_pairs(examples), tokenizer, with_targets=with_targets)

    def decode(
        self, examples: Sequence[Example], features: Sequence[Features], logits: Sequence[NDArray[np.float32]]
    ) -> list[Prediction]:
        """Choose each pair's label, or the label that follows most surely from a query's text."""
        if not any(isinstance(item, Query) for item in examples):
            return super().decode(examples, features, logits)
        found: list[list[NDArray[np.float64]]] = [[] for _ in _pairs(examples)]
        for feature, scores in zip(features, logits, strict=True):
            found[feature.notes].append(scores.astype(np.float64))
        rows = iter([np.mean(windows, axis=0) for windows in found])
        return [self._choose(item, np.array([next(rows) for _ in _pairs([item])])) for item in examples]

    def _choose(self, query: Example, logits_NC: NDArray[np.float64]) -> Prediction:
        if not isinstance(query, Query):
            return self._predict(query, self._probabilities(logits_NC[0]))
        entailment, contradiction = self._places()
        follows_N = logits_NC[:, entailment]
        if not self.dataset.multi_label:
            probabilities_N = np.exp(follows_N - follows_N.max())
            probabilities_N /= probabilities_N.sum()
        else:
            others_N = (
                np.delete(logits_NC, entailment, axis=1) if contradiction is None else logits_NC[:, [contradiction]]
            )
            largest_N = np.maximum(others_N.max(axis=1), follows_N)
            weights_N = np.exp(follows_N - largest_N)
            probabilities_N = weights_N / (weights_N + np.exp(others_N - largest_N[:, None]).sum(axis=1))
        pairs = sorted(zip(query.candidates, probabilities_N.tolist(), strict=True), key=lambda pair: -pair[1])
        return Prediction(query.id, query.text, (pairs[0][0],), dict(pairs))

    def _places(self) -> tuple[int, int | None]:
        """Find the outputs of entailment and, if there is one, of contradiction."""
        wanted = self.dataset.entailment_label
        if wanted not in self.labels:
            raise ConfigError(
                f"The run's labels are {', '.join(self.labels)}: which of them says that a hypothesis follows? "
                "Set model.dataset.entailment_label."
            )
        other = self.dataset.contradiction_label
        return self.labels.index(wanted), self.labels.index(other) if other in self.labels else None

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score pairs as text classification does, queries by the label that was chosen."""
        queries = [item for item in examples if isinstance(item, Query)]
        if not queries:
            return super().score(examples, predictions)
        gold = [known_labels(item)[0] for item in examples]
        labels = list(dict.fromkeys([*queries[0].candidates, *gold]))
        return classification.classification_scores(gold, [item.labels[0] for item in predictions], labels)


def _pairs(examples: Sequence[Example]) -> list[Example]:
    """Give a pair as it is, and a query as one pair a label."""
    pairs: list[Example] = []
    for item in examples:
        if isinstance(item, Query):
            plain = Example(item.id, item.text, None, None, item.place)
            pairs += [replace(plain, pair=item.template.replace("{}", label)) for label in item.candidates]
        else:
            pairs.append(item)
    return pairs


def _check_template(template: str) -> None:
    if "{}" not in template:
        raise ConfigError(f"The hypothesis template {template!r} has no {{}} where the label stands.")
