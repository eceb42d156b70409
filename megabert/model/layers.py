"""The parts of an encoder: embeddings, attention, MLP and one layer of them, for packed token batches.

Shape legend: B rows, L tokens a row, D hidden, H heads, K head dim, V vocabulary.
Sources: Devlin et al. 2018 (arXiv:1810.04805) for the post-norm layer; Shoeybi et al. 2019 (arXiv:1909.08053),
figure 7, for the pre-norm one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shape import EncoderConfig


def attention_mask(document_ids_BL: Tensor, *, is_causal: bool) -> Tensor:
    """Say which tokens see which, as a boolean [B, 1, L, L] with True for "row sees column".

    Two tokens see each other if they belong to one document (equal ids, not 0), in a causal network only
    backwards. A padding token sees itself and nothing else: a row without any key would make softmax NaN.
    """
    num_tokens = document_ids_BL.shape[1]
    same_document = document_ids_BL[:, :, None] == document_ids_BL[:, None, :]
    sees = same_document & (document_ids_BL != 0)[:, None, :]
    if is_causal:
        sees = sees.tril()
    itself = torch.eye(num_tokens, dtype=torch.bool, device=document_ids_BL.device)
    return (sees | itself)[:, None]


def gelu(hidden: Tensor, variant: str) -> Tensor:
    """Apply GELU, exact (`erf`) or in the `tanh` approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return F.gelu(hidden, approximate="tanh" if variant == "tanh" else "none")


class Embeddings(nn.Module):
    """Sum of word, position and segment vectors; a post-norm network (BERT) normalizes it, Megatron-LM does not."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.position = nn.Embedding(config.max_positions, config.hidden_size)
        self.segment = nn.Embedding(config.num_segments, config.hidden_size) if config.num_segments else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon) if config.is_post_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, token_ids_BL: Tensor, position_ids_BL: Tensor, segment_ids_BL: Tensor) -> Tensor:
        """Look the vectors up and sum them: [B, L, D]."""
        hidden_BLD = self.word(token_ids_BL) + self.position(position_ids_BL)
        if self.segment is not None:
            hidden_BLD = hidden_BLD + self.segment(segment_ids_BL)
        if self.norm is not None:
            hidden_BLD = self.norm(hidden_BLD)
        return self.dropout(hidden_BLD)


class Attention(nn.Module):
    """Multi-head self-attention with one fused product for query, key and value."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        # Rows are ordered [heads, 3, dim] so that a contiguous shard holds whole heads: tensor parallelism
        # then needs no shuffle, and Megatron-LM (checkpoint version >= 2) stores the same order.
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Mix each token with those that it sees: [B, L, D]."""
        # -1 is "the heads I have": under tensor parallelism a shard has only some of them.
        qkv_BLH3K = self.qkv(hidden_BLD).unflatten(-1, (-1, 3, self.head_dim))
        query_BHLK, key_BHLK, value_BHLK = qkv_BLH3K.permute(3, 0, 2, 1, 4).unbind(0)
        mixed_BHLK = F.scaled_dot_product_attention(
            query_BHLK,
            key_BHLK,
            value_BHLK,
            attn_mask=mask_B1LL,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(mixed_BHLK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gelu = config.gelu
        self.up = nn.Linear(config.hidden_size, config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """Transform each token for itself: [B, L, D]."""
        return self.down(gelu(self.up(hidden_BLD), self.gelu))


class Layer(nn.Module):
    """Attention, then MLP, each with dropout, a residual connection and a layer norm.

    Where the norm stands is the difference between the families (`EncoderConfig.norm_place`): before each part
    (pre), before it with the residual taken behind the norm (pre_residual_normed, Megatron-LM's
    --apply-residual-connection-post-layernorm), or after the sum (post, the original BERT).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_place = config.norm_place
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        if self.norm_place == "post":
            hidden_BLD = self.attention_norm(hidden_BLD + self.dropout(self.attention(hidden_BLD, mask_B1LL)))
            return self.mlp_norm(hidden_BLD + self.dropout(self.mlp(hidden_BLD)))
        normed_BLD = self.attention_norm(hidden_BLD)
        hidden_BLD = self._residual(hidden_BLD, normed_BLD) + self.dropout(self.attention(normed_BLD, mask_B1LL))
        normed_BLD = self.mlp_norm(hidden_BLD)
        return self._residual(hidden_BLD, normed_BLD) + self.dropout(self.mlp(normed_BLD))

    def _residual(self, hidden_BLD: Tensor, normed_BLD: Tensor) -> Tensor:
        return normed_BLD if self.norm_place == "pre_residual_normed" else hidden_BLD
