"""Encoder configuration: sizes and variants of an architecture, which a checkpoint must match; without torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import CheckpointError

CHOICES = {
    "norm_place": ("pre", "pre_residual_normed", "post"),
    "gelu": ("erf", "tanh"),
    "head_gelu": ("erf", "tanh"),
}
# Between the linear layers of a task's head.
ACTIVATIONS = ("relu", "gelu", "tanh", "silu")
# The output columns of a PretrainingHead, and the number of tokens that it returns where it has no targets.
LOSS, HAS_TARGET, IS_CORRECT, ORDER_LOSS, HAS_ORDER, IS_ORDER_CORRECT = range(6)
NUM_PREDICTIONS = 5

LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class EncoderConfig:
    """Configuration of an encoder; Megatron-BERT, BERT and GPT-2 differ in these fields only."""

    vocabulary_size: int
    """Rows of the word embedding."""
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    max_positions: int
    num_segments: int = 2
    """Rows of the segment embedding; 0: no segment embedding (GPT)."""
    is_causal: bool = False
    """Each token attends to itself and earlier tokens only (GPT)."""
    norm_place: str = "pre"
    """pre (Megatron-LM, GPT-2), pre_residual_normed (Megatron-LM's option), post (BERT)."""
    norm_epsilon: float = 1e-5
    gelu: str = "erf"
    """Variant in the MLPs."""
    head_gelu: str = "erf"
    """Variant in the language-model head."""
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Raise CheckpointError for impossible values."""
        for name in ("vocabulary_size", "num_layers", "hidden_size", "num_heads", "ffn_size", "max_positions"):
            if not 1 <= getattr(self, name) <= LARGEST_SIZE:
                raise CheckpointError(f"{name} is {getattr(self, name)}; expected 1 to {LARGEST_SIZE}.")
        if not 0 <= self.num_segments <= LARGEST_SIZE:
            raise CheckpointError(f"num_segments is {self.num_segments}; expected 0 to {LARGEST_SIZE}.")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; expected a probability from 0 to below 1.")
        if not 0 <= self.norm_epsilon < 1:
            raise CheckpointError(f"norm_epsilon is {self.norm_epsilon}; expected a small number such as 1e-12.")
        if self.hidden_size % self.num_heads:
            raise CheckpointError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}. "
                "Correct the model's configuration."
            )
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise CheckpointError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def is_post_norm(self) -> bool:
        """Whether layers normalize after the residual sum, as the original BERT does."""
        return self.norm_place == "post"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncoderConfig":
        """Build from plain values. Raises CheckpointError for unknown or missing fields and wrong types."""
        types = {field.name: field.type for field in fields(cls)}
        for name, value in values.items():
            if name not in types:
                raise CheckpointError(
                    f"{name!r} is not a field of an encoder configuration. Was this written by a later version?"
                )
            # JSON writes 1.0 as 1; a bool is no number.
            if type(value) is not types[name] and not (types[name] is float and type(value) is int):
                expected = getattr(types[name], "__name__", types[name])
                raise CheckpointError(f"encoder field {name} is {value!r}; expected {expected}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"the encoder configuration is incomplete: {error}") from None
