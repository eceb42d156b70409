"""Workload of a training step, whatever its layout: sequences, parameter counts, floating-point operations.

Matmuls count 2 m n k, attention 2 x 2 pairs x hidden a layer, as in Narayanan et al. 2021 (arXiv:2104.04473). Without
torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..model.config import EncoderConfig

# Tile size of the attention kernel (kernels/attention.py).
TILE = 64
# Share of a sequence's tokens with a pre-training target, besides one more for each sequence; causal models have all.
MASKED_SHARE = 0.15
# Parameters of an FSDP unit: four layers of Megatron-BERT 345M, less than one of the 3.9B.
FSDP_UNIT_SIZE = 50_000_000
WIDTHS = {"bf16": 2, "16": 2, "32": 4}


@dataclass(frozen=True)
class MicroBatch:
    """Numbers of sequences, tokens and query-key pairs of one micro-batch."""

    num_sequences: float
    num_tokens: float
    num_tiled_pairs: float
    """Query-key pairs that the attention kernel computes, with lengths rounded up to full tiles."""
    num_pairs: float
    """Sum of squared lengths."""

    @classmethod
    def from_lengths(cls, lengths: Iterable[int]) -> "MicroBatch":
        """Count sequences of these lengths."""
        lengths = list(lengths)
        tiled = sum((-(-length // TILE) * TILE) ** 2 for length in lengths)
        return cls(len(lengths), sum(lengths), tiled, sum(length**2 for length in lengths))

    @classmethod
    def uniform(cls, count: int, length: int) -> "MicroBatch":
        """Count sequences of one length."""
        one = cls.from_lengths([length])
        return cls(count, count * length, count * one.num_tiled_pairs, count * one.num_pairs)


@dataclass(frozen=True)
class Workload:
    """The model of a training, its precision, and whether it has the pre-training heads or a small head."""

    shape: EncoderConfig
    precision: str = "bf16"
    is_pretraining: bool = True
    adapter_rank: int = 0
    """Rank of adapters on all linear layers, with frozen weights; 0: all weights are trained."""

    def num_targets(self, batch: MicroBatch) -> float:
        """Count the tokens whose logits are computed."""
        if not self.is_pretraining:
            return 0.0
        if self.shape.is_causal:
            return batch.num_tokens
        return min(batch.num_tokens, MASKED_SHARE * batch.num_tokens + batch.num_sequences)

    @property
    def width(self) -> int:
        """Bytes of an element of weights and activations."""
        return WIDTHS[self.precision]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; under tensor parallelism those of one process."""

    layer: float
    rest: float
    """Embeddings, final norm and heads."""
    num_layers: int

    @property
    def total(self) -> float:
        """All parameters."""
        return self.layer * self.num_layers + self.rest


def count_parameters(workload: Workload, tensor: int = 1) -> ParameterCounts:
    """Count the parameters of one of `tensor` processes, sharded as in Megatron-LM; tied weights count once."""
    shape, hidden, ffn = workload.shape, workload.shape.hidden_size, workload.shape.ffn_size
    sharded = 3 * hidden * (hidden + 1) + hidden**2 + ffn * (hidden + 1) + hidden * ffn
    replicated = 2 * hidden + 4 * hidden  # biases of row-parallel layers, two norms
    rows = -(-shape.vocabulary_size // tensor)
    # One norm: after the embeddings (post) or after the last layer (pre).
    rest = (rows + shape.max_positions + shape.num_segments + 2) * hidden
    if workload.is_pretraining and not shape.is_causal:
        # The language-model head's dense, norm and bias; the sentence-order head's pooler and two classes.
        rest += hidden**2 + 3 * hidden + rows + hidden**2 + hidden + 2 * hidden + 2
    return ParameterCounts(sharded / tensor + replicated, rest, shape.num_layers)


def count_adapter_parameters(workload: Workload, tensor: int = 1) -> float:
    """Count the adapters' parameters in one of `tensor` processes, which share A of row- and B of column-parallel."""
    return workload.adapter_rank * workload.shape.num_layers * count_adapted_units(workload, tensor)


def count_adapted_units(workload: Workload, tensor: int = 1) -> float:
    """Count the inputs and outputs of a layer's four linear maps in one of `tensor` processes, for each token."""
    hidden, ffn = workload.shape.hidden_size, workload.shape.ffn_size
    return (3 * hidden + hidden + 2 * ffn) / tensor + 4 * hidden


def forward_flops(workload: Workload, batch: MicroBatch) -> float:
    """Count FLOP of a forward pass: matmuls with weights, attention, logits of the tokens with targets."""
    shape, hidden = workload.shape, workload.shape.hidden_size
    weights = shape.num_layers * (4 * hidden**2 + 2 * hidden * shape.ffn_size)
    pairs = batch.num_pairs / (2 if shape.is_causal else 1)
    transform = 0 if shape.is_causal else hidden**2
    head = workload.num_targets(batch) * (transform + hidden * shape.vocabulary_size)
    return 2 * weights * batch.num_tokens + 4 * shape.num_layers * hidden * pairs + 2 * head
