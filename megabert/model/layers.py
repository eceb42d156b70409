"""Modules of an encoder for packed sequences: embeddings, attention, MLP and the transformer layer.

Shape legend: T tokens, D hidden, H heads, K head dim, V vocabulary.
Sources: Devlin et al. 2018 (arXiv:1810.04805) for the post-norm layer; Shoeybi et al. 2019 (arXiv:1909.08053),
figure 7, for the pre-norm one.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import PackedSequences, attend
from .config import EncoderConfig
from .dropout import Dropout
from .key_value_cache import LayerCache


def gelu(hidden: Tensor, variant: str) -> Tensor:
    """Apply GELU, exact (`erf`) or in the `tanh` approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return F.gelu(hidden, approximate="tanh" if variant == "tanh" else "none")


class Embedding(nn.Embedding):
    """PyTorch's embedding without initialization on the meta device, which would import the compiler: a second."""

    def reset_parameters(self) -> None:
        """Initialize weights, unless on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings; post-norm models (BERT) normalize it, Megatron-LM does not."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = Embedding(config.vocabulary_size, config.hidden_size)
        self.position = Embedding(config.max_positions, config.hidden_size)
        self.segment = Embedding(config.num_segments, config.hidden_size) if config.num_segments else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon) if config.is_post_norm else None
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, token_ids_T: Tensor, position_ids_T: Tensor, segment_ids_T: Tensor) -> Tensor:
        """Look up the embeddings and sum them: [T, D]."""
        hidden_TD = self.word(token_ids_T) + self.position(position_ids_T)
        if self.segment is not None:
            hidden_TD = hidden_TD + self.segment(segment_ids_T)
        if self.norm is not None:
            hidden_TD = self.norm(hidden_TD)
        return self.dropout(hidden_TD)


class Attention(nn.Module):
    """Multi-head self-attention with a fused query-key-value matmul."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.is_causal = config.is_causal
        self.stream = 0  # dropout stream, see `attend`
        # Rows are ordered [heads, 3, dim] so that a contiguous shard holds whole heads: tensor parallelism
        # then needs no shuffle, and Megatron-LM (checkpoint version >= 2) stores the same order.
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_TD: Tensor, documents: PackedSequences | LayerCache) -> Tensor:
        """Compute self-attention over the tokens of the same document: [T, D]."""
        # -1 heads: under tensor parallelism a shard has some of them only.
        qkv_TH3K = self.qkv(hidden_TD).unflatten(-1, (-1, 3, self.head_dim))
        if isinstance(documents, LayerCache):
            return self.out(documents.attend(qkv_TH3K).flatten(1))
        dropout = self.dropout if self.training else 0.0
        context_THK = attend(qkv_TH3K, documents, dropout=dropout, is_causal=self.is_causal, stream=self.stream)
        return self.out(context_THK.flatten(1))


class MLP(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gelu = config.gelu
        self.up = nn.Linear(config.hidden_size, config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Map [T, D] to [T, D], position-wise."""
        return self.down(gelu(self.up(hidden_TD), self.gelu))


class Layer(nn.Module):
    """Attention, then MLP, each with dropout, a residual connection and a layer norm.

    `EncoderConfig.norm_place` is the position of the norms: before attention and MLP (pre), the same with the residual
    taken after the norm (pre_residual_normed, Megatron-LM's --apply-residual-connection-post-layernorm), or after the
    residual sum (post, the original BERT).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_place = config.norm_place
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, hidden_TD: Tensor, documents: PackedSequences | LayerCache) -> Tensor:
        """Map [T, D] to [T, D]."""
        if self.norm_place == "post":
            hidden_TD = self.attention_norm(hidden_TD + self.dropout(self.attention(hidden_TD, documents)))
            return self.mlp_norm(hidden_TD + self.dropout(self.mlp(hidden_TD)))
        normed_TD = self.attention_norm(hidden_TD)
        hidden_TD = self._residual(hidden_TD, normed_TD) + self.dropout(self.attention(normed_TD, documents))
        normed_TD = self.mlp_norm(hidden_TD)
        return self._residual(hidden_TD, normed_TD) + self.dropout(self.mlp(normed_TD))

    def _residual(self, hidden_TD: Tensor, normed_TD: Tensor) -> Tensor:
        return normed_TD if self.norm_place == "pre_residual_normed" else hidden_TD
