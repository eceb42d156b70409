"""What a training step asks for, however it is laid out: texts, a network's weights, floating-point operations.

Products count 2 m n k, attention 2 x 2 pairs x hidden a layer, as Narayanan et al. 2021 (arXiv:2104.04473) count them.
No torch in here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..model.config import EncoderConfig

# Side of the attention kernel's tiles (model/triton_attention.py).
TILE = 64
# Pre-training asks for so many of a text's tokens, and one more a text; a causal network's for all.
ASKED_SHARE = 0.15
# Weights that FSDP gathers at once: four layers of Megatron-BERT 345M, less than one of the 3.9B.
FSDP_UNIT_SIZE = 50_000_000
WIDTHS = {"bf16": 2, "16": 2, "32": 4}


@dataclass(frozen=True)
class Texts:
    """The texts of one micro-batch: their number, tokens, and pairs of tokens that attention computes."""

    num_texts: float
    num_tokens: float
    num_pairs: float
    """Row by column, each text filled up to whole tiles."""
    num_true_pairs: float
    """Sum of squared lengths."""

    @classmethod
    def of_lengths(cls, lengths: Iterable[int]) -> "Texts":
        """Count texts of these lengths."""
        lengths = list(lengths)
        tiles = sum((-(-length // TILE) * TILE) ** 2 for length in lengths)
        return cls(len(lengths), sum(lengths), tiles, sum(length**2 for length in lengths))

    @classmethod
    def alike(cls, num_texts: int, length: int) -> "Texts":
        """Count texts of one length."""
        one = cls.of_lengths([length])
        return cls(num_texts, num_texts * length, num_texts * one.num_pairs, num_texts * one.num_true_pairs)


@dataclass(frozen=True)
class Work:
    """What is trained: a network, how precisely, with the vocabulary's head (pre-training) or a small one."""

    shape: EncoderConfig
    precision: str = "bf16"
    is_pretraining: bool = True

    def num_asked(self, texts: Texts) -> float:
        """Count the tokens whose logits are computed."""
        if not self.is_pretraining:
            return 0.0
        if self.shape.is_causal:
            return texts.num_tokens
        return min(texts.num_tokens, ASKED_SHARE * texts.num_tokens + texts.num_texts)

    @property
    def width(self) -> int:
        """Bytes of a number that flows between layers."""
        return WIDTHS[self.precision]


@dataclass(frozen=True)
class Parameters:
    """Weights of a network by where they lie; for tensor parallelism those of one process."""

    layer: float
    """One layer's."""
    rest: float
    """Embeddings, final norm and heads."""
    num_layers: int

    @property
    def total(self) -> float:
        """Sum them up."""
        return self.layer * self.num_layers + self.rest


def count_parameters(work: Work, tensor: int = 1) -> Parameters:
    """Count the weights that one of `tensor` processes holds, cut as Megatron-LM does; the tied matrix counts once."""
    shape, hidden, ffn = work.shape, work.shape.hidden_size, work.shape.ffn_size
    cut = 3 * hidden * (hidden + 1) + hidden**2 + ffn * (hidden + 1) + hidden * ffn
    whole = 2 * hidden + 4 * hidden  # biases of what is summed over processes, two norms
    rows = -(-shape.vocabulary_size // tensor)
    # A norm after the embeddings (post) or after the last layer (pre): one in either case.
    rest = (rows + shape.max_positions + shape.num_segments + 2) * hidden
    if work.is_pretraining and not shape.is_causal:
        # The language model's dense, norm and bias; the sentence order's pooler and two classes.
        rest += hidden**2 + 3 * hidden + rows + hidden**2 + hidden + 2 * hidden + 2
    return Parameters(cut / tensor + whole, rest, shape.num_layers)


def forward_flops(work: Work, texts: Texts) -> float:
    """Count a forward pass as benchmarks do: products with weights, attention, logits of the tokens asked for."""
    shape, hidden = work.shape, work.shape.hidden_size
    weights = shape.num_layers * (4 * hidden**2 + 2 * hidden * shape.ffn_size)
    pairs = texts.num_true_pairs / (2 if shape.is_causal else 1)
    transform = 0 if shape.is_causal else hidden**2
    head = work.num_asked(texts) * (transform + hidden * shape.vocabulary_size)
    return 2 * weights * texts.num_tokens + 4 * shape.num_layers * hidden * pairs + 2 * head
