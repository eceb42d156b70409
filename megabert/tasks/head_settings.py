"""Settings of fully connected heads, under the names that NeMo 1.x gives them in each task."""

from dataclasses import dataclass
from typing import Any

from ..config.schema import HeadSettings, choice
from ..model.config import ACTIVATIONS


@dataclass
class FullyConnectedSettings:
    """A head: dropout, then linear layers with an activation between them."""

    fc_dropout: float = 0.1
    """Dropout on the head's input."""
    activation: str = choice("relu", *ACTIVATIONS)
    """Between linear layers."""


@dataclass
class TokenHeadSettings(FullyConnectedSettings):
    """A head that reads each token."""

    num_fc_layers: int = 1
    """Number of linear layers."""


@dataclass
class OutputHeadSettings(FullyConnectedSettings):
    """A head that reads a sequence's first token."""

    num_output_layers: int = 2
    """Number of linear layers."""
    activation: str = choice("tanh", *ACTIVATIONS)
    """Between linear layers; with two of them tanh makes BERT's pooler and classifier."""


@dataclass
class TagHeadSettings(TokenHeadSettings, HeadSettings):
    """The head that scores each token."""


@dataclass
class IntentHeadSettings(OutputHeadSettings, HeadSettings):
    """Both heads: one reads an utterance's first token, the other each word's."""

    num_output_layers: int = 1
    """Number of linear layers of each. NeMo 1.x has 2, with which slot F1 is lower."""


def head_options(settings: Any) -> dict[str, Any]:
    """Return a head's settings under the names of the arguments of `TokenHead` and `SequenceHead`."""
    names = {"num_fc_layers": "num_layers", "num_output_layers": "num_layers", "fc_dropout": "dropout"}
    options = {names.get(name, name): value for name, value in vars(settings).items()}
    return {name: options[name] for name in ("num_layers", "dropout", "activation")}
