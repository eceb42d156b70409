"""Text classification: one label for each text or pair of texts, several labels, or a number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..config.schema import Settings, choice
from ..formats.pubmedqa import PMID
from ..formats.rows import Row
from .sequence_classification import Example, Prediction, SequenceClassificationTask
from .sequence_settings import SequenceClassifierModel, SequenceSettings

MAIN_SCORES = {"single_label": "accuracy", "multi_label": "f1", "regression": "pearson"}


@dataclass
class LabelledTextSettings(SequenceSettings):
    """How examples become tokens, and what a label is."""

    problem: str = choice("single_label", *MAIN_SCORES)
    """One label for each text; any number of labels (separated by commas, or a JSON list); a number."""


@dataclass
class TextClassificationModel(SequenceClassifierModel):
    """The network, its data and its optimizer."""

    dataset: LabelledTextSettings = field(default_factory=LabelledTextSettings)


@dataclass
class TextClassificationSettings(Settings):
    """All settings of a run."""

    model: TextClassificationModel = field(default_factory=TextClassificationModel)


class TextClassification(SequenceClassificationTask):
    r"""Classify texts or pairs of texts: one label, several, or a number.

        megabert train text_classification model.train_ds.file=train.tsv model.validation_ds.file=dev.tsv \
            model.language_model.pretrained_model_name=megatron-bert-345m-uncased
        megabert evaluate RUN file=test.tsv output_dir=OUT
        megabert predict RUN text="..."
        megabert predict RUN text="..." text_b="..."

    Data: tab-separated `text<TAB>label`, or CSV (*.csv); or with a header that names the columns: `text` or `sentence`;
    `sentence1` and `sentence2` (or `text_a` and `text_b`, `premise` and `hypothesis`) for pairs; `label`; `id`; or JSON
    lines (*.jsonl) with the same names; or NeMo's lines of words separated by blanks, with an integer label at the end.
    Columns of other names: `model.dataset.columns.text=review model.dataset.columns.label=sentiment`; without a header
    their numbers. Labels are words or numbers, learnt from the training data and kept with the run; 1 and 1.0 are one.
    Pairs with the label `-` or -1, as in SNLI, have none. PubMedQA's JSON is read as pairs of question and contexts;
    `output_dir` then gets `pubmedqa.json`, the answers by PMID, which `megabert score` scores as its authors do
    (accuracy and macro F1; each PMID must have one answer). `model.dataset.problem` is
    `single_label`, `multi_label` (labels separated by commas, or a JSON list) or `regression` (a number).

    A text longer than `max_seq_length` is read in windows that overlap by half; they have the weight of one example
    together, and their probabilities are averaged, or their logits pooled (`model.dataset.window_pooling`); `windows`
    in predictions is their number. Of a pair the longer text is cut; the shorter one is part of each
    window, truncated to half of it. `model.dataset.long_texts=truncate` reads the first tokens only, of a pair the
    longer text cut first. Truncated examples are counted and reported.

    Predictions: the label with its probability and those of all classes; of several labels those of probability 0.5
    and more; of a number its value.

    Metrics: `accuracy`, precision, recall and F1 of each class, their macro and weighted means, Matthews' correlation;
    several labels: micro and macro F1 and the share of texts with exactly the right ones; a number: Pearson's and
    Spearman's correlation.

    The head is BERT's pooler and classifier, and starts from the checkpoint's pooler where it has one; after `megabert
    convert RUN DEST --to huggingface` transformers computes the same probabilities. NeMo 1.x has relu in it.
    """

    settings_type: ClassVar[type[Settings]] = TextClassificationSettings
    can_distil = True

    def __init__(self, settings: TextClassificationSettings) -> None:
        super().__init__(settings, settings.model.dataset.problem)
        self.main_score = MAIN_SCORES[self.problem]

    def write_predictions(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Mapping[str, str]:
        """Return pubmedqa.json, the answers as PubMedQA's evaluation takes them, if the data are PubMedQA's."""
        if not examples or not self.is_single or not all(PMID in item.given for item in examples):
            return {}
        answers = {item.id: item.labels[0] for item in predictions}
        return {"pubmedqa.json": json.dumps(answers, indent=1) + "\n"}

    @classmethod
    def inferred_settings(cls, rows: Sequence[Row]) -> list[str]:
        """Infer the problem from the keys of the predictions: value, labels or label."""
        names = rows[0].values if rows else {"label": ""}
        if "label" in names:
            return []
        problem = {"value": "regression", "labels": "multi_label"}
        return [f"model.dataset.problem={problem[name]}" for name in problem if name in names][:1]
