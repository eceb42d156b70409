"""Embeddings and the first norm as one function with a written gradient, of Triton kernels.

From token ids to the residual stream and the first layer's input, which `fused_layers.py` takes. Numbers agree with
`layers.Embeddings` to rounding: the sum is rounded once. Dropout has other masks of the same distribution. The tables'
gradients are sums in float32, the same for the same inputs.

Shape legend: T tokens, D hidden.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .attention import HAS_TRITON
from .encoder import Encoder
from .layers import Embedding, Embeddings

if HAS_TRITON:
    from ..kernels import embeddings as kernels
    from ..kernels.embedding_gradient import embedding_gradient


class TokenIds(NamedTuple):
    """The rows of the embedding tables that belong to each token, [T] each."""

    token_ids_T: Tensor
    position_ids_T: Tensor
    segment_ids_T: Tensor


def has_plain_embeddings(embeddings: nn.Module) -> bool:
    """Whether nothing has replaced the parts of the embeddings: no sharded table, no dropout of sharded tokens."""
    if type(embeddings) is not Embeddings or embeddings.dropout.stream:
        return False
    tables = (embeddings.word, embeddings.position, embeddings.segment)
    return all(table is None or type(table) is Embedding for table in tables)


def embed(encoder: Encoder, ids: TokenIds, seed_1: Tensor, dropout: float) -> tuple[Tensor | None, Tensor]:
    """Compute the residual stream and the first layer's input, [T, D] each.

    Without a residual stream of its own, it is None: the input itself is the residual (post, pre_residual_normed).
    """
    embeddings, config = encoder.embeddings, encoder.config
    first: Any = encoder.layers[0]
    norm = first.attention_norm if embeddings.norm is None else embeddings.norm
    segment = None if embeddings.segment is None else embeddings.segment.weight
    tables = (embeddings.word.weight, embeddings.position.weight, segment)
    settings = _EmbeddingSettings(config.norm_epsilon, dropout, config.is_post_norm, config.norm_place == "pre")
    arguments = settings, ids, seed_1, *tables, norm.weight, norm.bias
    if torch.is_grad_enabled():
        outputs = _FusedEmbeddings.apply(*arguments)
        return outputs if settings.has_residual else (None, outputs)
    total_TD, normed_TD, _ = _embed(*arguments)
    return total_TD if settings.has_residual else None, normed_TD


class _EmbeddingSettings(NamedTuple):
    epsilon: float
    dropout: float
    drops_norm: bool
    has_residual: bool


def _embed(
    settings: _EmbeddingSettings, ids: TokenIds, seed_1: Tensor, word_VD: Tensor, position_PD: Tensor,
    segment_SD: Tensor | None, weight_D: Tensor, shift_D: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the sum of the embeddings, its norm, and what the norm's gradient needs besides."""
    return kernels.embedding_norm(
        ids, kernels.EmbeddingTables(word_VD, position_PD, segment_SD), weight_D, shift_D, settings.epsilon,
        seed_1, settings.dropout, drops_norm=settings.drops_norm,
    )  # fmt: skip


class _FusedEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _EmbeddingSettings, ids: TokenIds, seed_1: Tensor, *parameters: Any) -> Any:
        total_TD, normed_TD, statistics_2T = _embed(settings, ids, seed_1, *parameters)
        ctx.settings, ctx.num_rows = settings, [0 if table is None else len(table) for table in parameters[:3]]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*ids, seed_1, total_TD, statistics_2T, parameters[3])
        return (total_TD, normed_TD) if settings.has_residual else normed_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        token_ids_T, position_ids_T, segment_ids_T, seed_1, total_TD, statistics_2T, weight_D = ctx.saved_tensors
        settings = ctx.settings
        num_words, num_positions, num_segments = ctx.num_rows
        d_embedding_TD, d_norm_2D, d_segment_SD = kernels.embedding_norm_backward(
            gradients[0] if settings.has_residual else None, gradients[-1], total_TD, statistics_2T, weight_D,
            segment_ids_T, num_segments, seed_1, settings.dropout, drops_norm=settings.drops_norm,
        )  # fmt: skip
        needs_word, needs_position = ctx.needs_input_grad[3:5]
        d_word_VD = embedding_gradient(d_embedding_TD, token_ids_T, num_words) if needs_word else None
        d_position_PD = embedding_gradient(d_embedding_TD, position_ids_T, num_positions) if needs_position else None
        return None, None, None, d_word_VD, d_position_PD, d_segment_SD if num_segments else None, *d_norm_2D
