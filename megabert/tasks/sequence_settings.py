"""Settings of tasks that classify sequences or pairs: how examples become tokens, and the head for whole sequences."""

from dataclasses import dataclass, field
from typing import Any

from ..config.schema import ModelSettings, OptimizerSettings, choice, linear_decay
from ..data.windows import POOLED_LOGITS
from .head_settings import OutputHeadSettings


@dataclass
class SequenceSettings:
    """How examples become tokens."""

    max_seq_length: int = 256
    """Tokens of a text or pair with its special tokens."""
    long_texts: str = choice("windows", "windows", "truncate")
    """windows: read longer texts in overlapping windows; truncate: keep the first tokens, of a pair cut the longer."""
    window_pooling: str = choice("probabilities", "probabilities", *POOLED_LOGITS)
    """What windows give together: the mean of their probabilities, the mean of their logits, or the largest logits."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Names of the data's columns text, text_b, label and id, or, without a header, their numbers from 1."""
    class_balancing: str | None = choice(None, "weighted_loss")
    """weighted_loss: weight a class in the loss in inverse proportion to its number of examples, where each has one."""


@dataclass
class SequenceClassifierModel(ModelSettings):
    """The network with a head for whole sequences, its data and its optimizer."""

    dataset: SequenceSettings = field(default_factory=SequenceSettings)
    classifier_head: OutputHeadSettings = field(default_factory=OutputHeadSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(2e-5))
