"""Zero-shot classification: labels without training examples, by a network trained on natural-language inference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..config.schema import Settings
from ..data.packing import Features
from ..errors import ConfigError, InputError
from ..metrics import classification
from ..tokenizers.wordpiece import Tokenizer
from .labels import require_labels
from .sequence_classification import Example, Prediction, SequenceClassificationTask
from .sequence_settings import SequenceClassifierModel, SequenceSettings
from .task import Logits, by_example


@dataclass
class HypothesisSettings(SequenceSettings):
    """How examples become tokens, and labels hypotheses."""

    candidate_labels: list[str] = field(default_factory=list)
    """The labels to choose from; none: those of the file that is evaluated."""
    hypothesis_template: str = "This example is {}."
    """The hypothesis of a label; {} stands for the label."""
    multi_label: bool = False
    """Compute the probability of each label by itself (any number may hold) instead of among all labels."""
    entailment_label: str = "entailment"
    """The training data's label of hypotheses that follow."""
    contradiction_label: str = "contradiction"
    """The training data's label of hypotheses that contradict; they may have none."""


@dataclass
class ZeroShotModel(SequenceClassifierModel):
    """The network, its data and its optimizer."""

    dataset: HypothesisSettings = field(default_factory=HypothesisSettings)


@dataclass
class ZeroShotSettings(Settings):
    """All settings of a run."""

    model: ZeroShotModel = field(default_factory=ZeroShotModel)


@dataclass(frozen=True)
class Query(Example):
    """A text and the labels to choose from."""

    candidates: tuple[str, ...] = ()
    template: str = "{}"

    def pairs(self) -> list[Example]:
        """Make a pair of premise and hypothesis for each label."""
        hypotheses = [self.template.replace("{}", label) for label in self.candidates]
        return [Example(self.id, self.text, hypothesis, None, self.location) for hypothesis in hypotheses]


class ZeroShot(SequenceClassificationTask):
    r"""Classify texts with labels that are given at prediction: intents, topics.

        megabert train zero_shot model.train_ds.file=MNLI/train.tsv model.validation_ds.file=MNLI/dev_matched.tsv \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert predict RUN text="set an alarm for six" labels="alarm,weather,music"
        megabert evaluate RUN file=topics.tsv 'model.dataset.hypothesis_template="This text is about {}."'

    Training data: pairs of natural-language inference, premise and hypothesis with a label: GLUE's MNLI or RTE files
    as distributed, tab-separated with a header, or JSON lines. For prediction `model.dataset.hypothesis_template` makes
    a hypothesis of each label, and the label whose hypothesis has the largest entailment logit is chosen. With
    `model.dataset.multi_label=true` the probability of each label is computed by itself.

    Predictions: the best label and the probability of each.

    Metrics: `accuracy` on pairs; on a file of texts with labels, accuracy and each label's F1 without any training on
    them.

    Source: Yin, Hay and Roth 2019, arXiv:1909.00161; NeMo 1.5's zero-shot intent recognition.
    """

    settings_type = ZeroShotSettings
    input_fields: ClassVar[Mapping[str, type]] = {
        **SequenceClassificationTask.input_fields,
        "labels": list,
        "template": str,
    }

    def __init__(self, settings: ZeroShotSettings) -> None:
        super().__init__(settings)
        _check_template(self.dataset.hypothesis_template)

    def example(self, **fields: Any) -> Example:
        """Make a query from `text`, `labels` (separated by commas, or a list) and `template`."""
        labels, template = fields.pop("labels", None), fields.pop("template", self.dataset.hypothesis_template)
        plain = super().example(**fields)
        if plain.pair is not None:
            return plain
        if isinstance(labels, str):  # of the command line: a,b or [a,b]
            labels = labels.strip().removeprefix("[").removesuffix("]").split(",")
        items = labels or self.dataset.candidate_labels
        candidates = tuple(dict.fromkeys(str(item).strip() for item in items if str(item).strip()))
        if not candidates:
            raise InputError("There are no labels to choose from. Give labels=a,b,c or model.dataset.candidate_labels.")
        _check_template(template)
        return Query(plain.id, plain.text, None, None, plain.location, candidates, template, given=plain.given)

    @property
    def known_labels(self) -> Sequence[str]:
        """The labels to choose from: those of texts are not the ones of the run, which relate pairs."""
        return self.dataset.candidate_labels

    def read(self, path: Path) -> Sequence[Example]:
        """Read pairs of premise and hypothesis, or texts with the labels to choose from."""
        examples = super().read(path)
        if any(example.pair is not None for example in examples):
            for example in examples:
                if example.pair is None:
                    raise InputError(f"{example.location}: there is no hypothesis, as other rows have one. Add it.")
            return examples
        labels = {label for example in examples for label in example.labels or ()}
        candidates = tuple(self.dataset.candidate_labels or sorted(labels))
        if not candidates:
            raise ConfigError(f"{path} has no labels. Give them: model.dataset.candidate_labels=[a,b,c].")
        template = self.dataset.hypothesis_template
        return [
            Query(item.id, item.text, None, item.labels, item.location, candidates, template, given=item.given)
            for item in examples
        ]

    def features(self, examples: Sequence[Example], tokenizer: Tokenizer, *, with_targets: bool) -> list[Features]:
        """Tokenize pairs; a query becomes one pair for each label."""
        for example in examples if with_targets else ():
            if isinstance(example, Query):
                raise InputError(
                    f"{example.location}: training needs pairs of premise and hypothesis. Add the second text."
                )
        return super().features(_all_pairs(examples), tokenizer, with_targets=with_targets)

    def decode(self, examples: Sequence[Example], features: Sequence[Features], logits: Logits) -> list[Prediction]:
        """Choose each pair's label, or the label of a query whose hypothesis has the largest entailment logit."""
        if not any(isinstance(item, Query) for item in examples):
            return super().decode(examples, features, logits)
        pairs = iter(by_example(len(_all_pairs(examples)), features, [item.astype(np.float64) for item in logits]))
        predictions = []
        for example in examples:
            windows = [next(pairs) for _ in _all_pairs([example])]
            chosen = self._choose(example, np.array([np.mean(items, axis=0) for items in windows]))
            predictions.append(replace(chosen, windows=max(map(len, windows))))
        return predictions

    def _choose(self, query: Example, logits_NC: NDArray[np.float64]) -> Prediction:
        if not isinstance(query, Query):
            return self.predict(query, self.outputs(logits_NC[0]))
        entailment, contradiction = self._entailment_outputs()
        entailment_N = logits_NC[:, entailment]
        if not self.dataset.multi_label:
            probabilities_N = np.exp(entailment_N - entailment_N.max())
            probabilities_N /= probabilities_N.sum()
        else:
            others_N = (
                np.delete(logits_NC, entailment, axis=1) if contradiction is None else logits_NC[:, [contradiction]]
            )
            largest_N = np.maximum(others_N.max(axis=1), entailment_N)
            weights_N = np.exp(entailment_N - largest_N)
            probabilities_N = weights_N / (weights_N + np.exp(others_N - largest_N[:, None]).sum(axis=1))
        pairs = sorted(zip(query.candidates, probabilities_N.tolist(), strict=True), key=lambda pair: -pair[1])
        return Prediction(query.id, query.text, (pairs[0][0],), dict(pairs))

    def _entailment_outputs(self) -> tuple[int, int | None]:
        """Return the indices of the outputs for entailment and, if there is one, for contradiction."""
        entailment, contradiction = self.dataset.entailment_label, self.dataset.contradiction_label
        if entailment not in self.labels:
            raise ConfigError(
                f"The run's labels are {', '.join(self.labels)}; model.dataset.entailment_label={entailment} is none "
                "of them. Set it to the label of hypotheses that follow."
            )
        index = self.labels.index
        return index(entailment), index(contradiction) if contradiction in self.labels else None

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Score pairs as text classification does, queries by the label that was chosen."""
        queries = [item for item in examples if isinstance(item, Query)]
        if not queries:
            return super().score(examples, predictions)
        gold = [require_labels(item, "labels")[0] for item in examples]
        labels = list(dict.fromkeys([*queries[0].candidates, *gold]))
        return classification.classification_scores(gold, [item.labels[0] for item in predictions], labels)


def _all_pairs(examples: Sequence[Example]) -> list[Example]:
    """Replace each query by its pairs."""
    return [pair for item in examples for pair in (item.pairs() if isinstance(item, Query) else [item])]


def _check_template(template: str) -> None:
    if "{}" not in template:
        raise ConfigError(f"The hypothesis template {template!r} has no {{}} where the label stands.")
