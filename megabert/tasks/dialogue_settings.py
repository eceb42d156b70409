"""Settings of dialogue state tracking, under NeMo 1.x's names, and which of the dataset's files they name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schema import (
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Settings,
    TrainDataSettings,
    choice,
    linear_decay,
)
from ..metrics.dialogue_state import SIMILARITIES
from .dialogue_tracker import TRACKERS

# NeMo's parts of the dataset: the numbers of each split's last files of dialogues about one service.
SINGLE_DOMAIN = {"train": 43, "dev": 7, "test": 11}
TASK_NAMES = ("sgd_all", "sgd_single_domain", "sgd_multi_domain", "sgd_all_single", "debug_sample")


@dataclass
class DialogueSettings:
    """Which dialogues are read, how they become questions, and answers states."""

    max_seq_length: int = 128
    """Tokens of a question: description, both utterances (of longer ones the end) and three special tokens."""
    data_dir: str | None = None
    """The dataset's folder, with train, dev and test."""
    task_name: str = choice("sgd_all", *TASK_NAMES)
    """Files of data_dir, as in NeMo: all, dialogues about one service (single), others (multi), the first (debug)."""
    schema_file: str | None = None
    """A schema.json that names and describes the same services in other words, as SGD-X's; the model reads these."""
    state_tracker: str = choice("carry_over", *TRACKERS)
    """Source of values that neither utterance has: system's turns, then other services; system's turns; none."""
    subsample: bool = False
    """Train on as many empty as filled slots of a turn only."""
    use_fuzzy_match: bool = True
    """Count similar values of slots in part, as the official scorer does; else only equal ones."""
    joint_acc_across_turn: bool = False
    """Joint accuracies of all services of a turn together, as for MultiWOZ."""
    similarity: str = choice("levenshtein", *SIMILARITIES)
    """How similar values are: as the official scorer with python-Levenshtein, or without it (difflib)."""


@dataclass
class DialogueEncoderSettings:
    """What stands between network and outputs."""

    dropout: float = 0.1
    """Dropout on the last hidden states."""


@dataclass
class DialogueDataSettings(DataSettings):
    """A set of dialogues: `file`, or splits in data_dir."""

    ds_item: Any = None
    """A split's folder in data_dir, or a list of them."""


@dataclass
class DialogueTrainSettings(TrainDataSettings):
    """The training data: `file`, or splits in data_dir."""

    batch_size: int = 128
    """Questions in a micro-batch."""
    ds_item: Any = "train"
    """A split's folder in data_dir, or a list of them."""


def _dev_split() -> DialogueDataSettings:
    return DialogueDataSettings(batch_size=128, ds_item="dev")


@dataclass
class DialogueModel(ModelSettings):
    """The network, its data and its optimizer."""

    dataset: DialogueSettings = field(default_factory=DialogueSettings)
    encoder: DialogueEncoderSettings = field(default_factory=DialogueEncoderSettings)
    train_ds: DialogueTrainSettings = field(default_factory=DialogueTrainSettings)
    validation_ds: DialogueDataSettings = field(default_factory=_dev_split)
    test_ds: DialogueDataSettings = field(default_factory=DialogueDataSettings)
    optim: OptimizerSettings = field(default_factory=linear_decay(1e-4))


@dataclass
class DialogueStateSettings(Settings):
    """All settings of a run."""

    model: DialogueModel = field(default_factory=DialogueModel)


def is_of_part(task_name: str, split: str, file: Path) -> bool:
    """Whether NeMo reads a split's file for a task name."""
    number = int("".join(filter(str.isdigit, file.name.partition(".")[0])) or 0)
    if task_name == "debug_sample":
        return number == 1
    last = SINGLE_DOMAIN.get(split)
    if task_name == "sgd_all" or last is None or (task_name == "sgd_all_single" and split == "train"):
        return True
    return (number > last) == (task_name == "sgd_multi_domain")
