"""A transformer layer as one function with a written gradient, of matmuls and Triton kernels, across layers' borders.

Between two matmuls is one kernel: attention, GELU, or bias, dropout, residual sum and the next norm, which is the next
layer's. The backward kernels also sum the gradients of the biases and norms, so that no tensor is read for them alone.
Numbers agree with `layers.Layer` to rounding; dropout has other masks of the same distribution. Biases of keys have a
gradient of exactly 0 here, in `layers.Layer` of rounding errors alone: they add a constant to a query's scores.

Shape legend: T tokens, D hidden, F width of the MLP, H heads, K head dim.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .attention import HAS_TRITON, PackedSequences, has_kernel
from .config import EncoderConfig
from .encoder import Encoder
from .fused_embeddings import TokenIds, embed, has_plain_embeddings
from .key_value_cache import KeyValueCache
from .layers import MLP, Attention, Layer

if HAS_TRITON:
    from ..kernels import attention, gelu, linear_gelu
    from ..kernels import residual_norm as norms
    from ..kernels.column_sums import qkv_column_sums

WIDEST = 8192  # the kernel of the norm holds a row in registers
MOST_SEGMENTS = 8  # the kernel of the embeddings sums their gradients in registers
NUM_INPUTS = 5  # of a layer, before its parameters


def fuse_layers(encoder: Encoder) -> bool:
    """Let an encoder on a GPU run its layers by these functions; False where its modules or sizes do not allow it."""
    config = encoder.config
    is_fusible = (
        HAS_TRITON
        and _is_plain(encoder)
        and encoder.embeddings.word.weight.is_cuda
        and config.hidden_size <= WIDEST
        and config.num_segments <= MOST_SEGMENTS
        and has_kernel(encoder.embeddings.word.weight.dtype, config.head_dim)
    )
    if is_fusible:
        encoder.encode = partial(_encode, encoder)  # type: ignore[method-assign]
    return is_fusible


def _is_plain(encoder: Encoder) -> bool:
    return has_plain_embeddings(encoder.embeddings) and all(_is_plain_layer(layer) for layer in encoder.layers)


def _is_plain_layer(layer: nn.Module) -> bool:
    """Whether nothing has replaced the layer's parts: no sharded, 8-bit or adapted linear map."""
    if type(layer) is not Layer or type(layer.mlp) is not MLP or type(layer.attention) is not Attention:
        return False
    linears = (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down)
    return all(type(linear) is nn.Linear for linear in linears) and not layer.dropout.stream


def _encode(
    encoder: Encoder, token_ids_T: Tensor, position_ids_T: Tensor, segment_ids_T: Tensor,
    documents: PackedSequences | KeyValueCache,
) -> Tensor:  # fmt: skip
    ids = TokenIds(token_ids_T, position_ids_T, segment_ids_T)
    if isinstance(documents, PackedSequences) and token_ids_T.is_cuda:
        return encode_fused(encoder, ids, documents)
    return Encoder.encode(encoder, *ids, documents)


def encode_fused(encoder: Encoder, ids: TokenIds, documents: PackedSequences) -> Tensor:
    """Compute the embeddings, the layers and the final norm: [T, D]."""
    assert _is_plain(encoder), "a layer or an embedding was changed after it had been fused"
    config = encoder.config
    layers: list[Any] = list(encoder.layers)
    dropouts = (config.attention_dropout, config.hidden_dropout) if encoder.training else (0.0, 0.0)
    # All seeds at once, on the device, so that each replay of a captured CUDA graph has new ones.
    seeds = torch.randint(2**31, (len(layers) + 1, 3), device=ids.token_ids_T.device)
    residual_TD, normed_TD = embed(encoder, ids, seeds[-1, :1], dropouts[1])
    tiles_4S = attention.tile_table(*documents[:1], len(normed_TD), documents.max_seqlen, normed_TD.dtype)
    settings = _Settings(*dropouts, config, documents.max_seqlen, tiles_4S)
    if config.is_post_norm:
        ends = [layer.mlp_norm for layer in layers]
        middles = [layer.attention_norm for layer in layers]
    else:
        ends = [*(layer.attention_norm for layer in layers[1:]), encoder.final_norm]
        middles = [layer.mlp_norm for layer in layers]
    if residual_TD is not None and not torch.is_grad_enabled() and dropouts == (0.0, 0.0):
        return _infer(settings, documents, residual_TD, normed_TD, list(zip(layers, middles, ends, strict=True)))
    for layer, middle, end, seeds_3 in zip(layers, middles, ends, seeds[:-1], strict=True):
        inputs = settings, seeds_3, documents.cu_seqlens_N1, residual_TD, normed_TD, *_parameters(layer, middle, end)
        outputs = _FusedLayer.apply(*inputs) if torch.is_grad_enabled() else _run_layer(*inputs)[0]
        residual_TD, normed_TD = outputs if residual_TD is not None else (None, outputs)
    return normed_TD


def _parameters(layer: Layer, middle: nn.LayerNorm, end: nn.LayerNorm) -> Iterator[Tensor]:
    for module in (layer.attention.qkv, layer.attention.out, middle, layer.mlp.up, layer.mlp.down, end):
        yield module.weight
        yield module.bias


class _Settings(NamedTuple):
    attention_dropout: float
    hidden_dropout: float
    config: EncoderConfig
    max_seqlen: int
    tiles_4S: Tensor | None

    @property
    def attention(self) -> tuple[int, float, bool, Tensor | None]:
        """Return the last arguments of the attention kernels."""
        return self.max_seqlen, self.attention_dropout, self.config.is_causal, self.tiles_4S


def _run_layer(
    settings: _Settings, seeds_3: Tensor, cu_seqlens_N1: Tensor, residual_TD: Tensor | None, normed_TD: Tensor,
    *parameters: Tensor,
) -> tuple[Any, tuple[Tensor, ...]]:  # fmt: skip
    """Compute a layer's outputs, and what its gradient needs besides the inputs."""
    qkv_w, qkv_b, out_w, out_b, middle_w, middle_b, up_w, up_b, down_w, down_b, end_w, end_b = parameters
    config, dropout, seeds = settings.config, settings.hidden_dropout, seeds_3.split(1)
    qkv_TH3K = F.linear(normed_TD, qkv_w, qkv_b).unflatten(-1, (-1, 3, config.head_dim))
    context_THK, lse_HT = attention.varlen_attention_forward(qkv_TH3K, cu_seqlens_N1, seeds[0], *settings.attention)
    branch_TD = F.linear(context_THK.flatten(1), out_w)
    middle = norms.residual_norm(
        normed_TD if residual_TD is None else residual_TD, branch_TD, out_b, middle_w, middle_b,
        config.norm_epsilon, seeds[1], dropout,
    )  # fmt: skip
    inner_TF = F.linear(middle.normed_TD, up_w)
    active_TF = gelu.gelu(inner_TF, up_b, config.gelu)
    branch_TD = F.linear(active_TF, down_w)
    end = norms.residual_norm(
        middle.normed_TD if residual_TD is None else middle.total_TD, branch_TD, down_b, end_w, end_b,
        config.norm_epsilon, seeds[2], dropout,
    )  # fmt: skip
    outputs = end.normed_TD if residual_TD is None else (end.total_TD, end.normed_TD)
    kept = (qkv_TH3K, context_THK, lse_HT, *middle, inner_TF, active_TF, end.total_TD, end.statistics_2T)
    return outputs, kept


def _infer(
    settings: _Settings, documents: PackedSequences, total_TD: Tensor, normed_TD: Tensor,
    layers: list[tuple[Layer, nn.LayerNorm, nn.LayerNorm]],
) -> Tensor:  # fmt: skip
    """Compute what `_run_layer` computes in all layers, pre-norm without dropout; overwrites the residual stream.

    Matmuls add to the stream, in which the biases are left out: norms add their sum so far, and need not write.
    """
    config, seed_1 = settings.config, documents.cu_seqlens_N1[:1]
    biases = torch.stack([linear.bias for layer, _, _ in layers for linear in (layer.attention.out, layer.mlp.down)])
    offsets = iter(biases.float().cumsum(0))
    for layer, middle, end in layers:
        qkv_TH3K = F.linear(normed_TD, layer.attention.qkv.weight, layer.attention.qkv.bias)
        context_THK, _ = attention.varlen_attention_forward(
            qkv_TH3K.unflatten(-1, (-1, 3, config.head_dim)), documents.cu_seqlens_N1, seed_1, *settings.attention
        )
        total_TD.addmm_(context_THK.flatten(1), layer.attention.out.weight.t())
        normed_TD = norms.offset_norm(total_TD, next(offsets), middle.weight, middle.bias, config.norm_epsilon)
        total_TD.addmm_(_activate(normed_TD, layer.mlp.up, config.gelu), layer.mlp.down.weight.t())
        normed_TD = norms.offset_norm(total_TD, next(offsets), end.weight, end.bias, config.norm_epsilon)
    return normed_TD


def _activate(hidden_TD: Tensor, up: nn.Linear, variant: str) -> Tensor:
    """Apply the linear map of an MLP and GELU, without gradient."""
    if linear_gelu.has_linear_gelu(hidden_TD, up.weight):
        return linear_gelu.linear_gelu(hidden_TD, up.weight, up.bias, variant)
    return gelu.gelu(F.linear(hidden_TD, up.weight, up.bias), None, variant)


class _FusedLayer(torch.autograd.Function):
    """From a layer's normed input to the normed input of the next one.

    The residual stream is a tensor of its own (pre-norm) or None: the normed tensor itself.
    """

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, seeds_3: Tensor, cu_seqlens_N1: Tensor, residual_TD: Tensor | None,
        normed_TD: Tensor, *parameters: Tensor,
    ) -> Any:  # fmt: skip
        outputs, kept = _run_layer(settings, seeds_3, cu_seqlens_N1, residual_TD, normed_TD, *parameters)
        ctx.settings, ctx.has_residual = settings, residual_TD is not None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(seeds_3, cu_seqlens_N1, normed_TD, *kept, *parameters)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (
            seeds_3, cu_seqlens_N1, normed_TD, qkv_TH3K, context_THK, lse_HT, total_TD, middle_TD, statistics_2T,
            inner_TF, active_TF, end_TD, end_2T,
            qkv_w, _, out_w, _, middle_w, _, up_w, up_b, down_w, _, end_w, _,
        ) = ctx.saved_tensors  # fmt: skip
        settings, dropout, seeds = ctx.settings, ctx.settings.hidden_dropout, seeds_3.split(1)
        needs_qkv, needs_out, _, needs_up, needs_down, _ = ctx.needs_input_grad[NUM_INPUTS::2]
        end = norms.residual_norm_backward(
            gradients[0] if ctx.has_residual else None, gradients[-1], end_TD, end_2T, end_w, seeds[2], dropout
        )
        d_down_w = end.branch_TD.t() @ active_TF if needs_down else None
        d_inner_TF = end.branch_TD @ down_w
        d_up_b = gelu.gelu_backward(d_inner_TF, inner_TF, up_b, settings.config.gelu)
        d_up_w = d_inner_TF.t() @ middle_TD if needs_up else None
        middle = norms.residual_norm_backward(
            end.residual_TD if ctx.has_residual else None, _through(d_inner_TF, up_w, ctx, end), total_TD,
            statistics_2T, middle_w, seeds[1], dropout,
        )  # fmt: skip
        d_out_w = middle.branch_TD.t() @ context_THK.flatten(1) if needs_out else None
        d_context_THK = (middle.branch_TD @ out_w).view_as(context_THK)
        d_qkv_TO = attention.varlen_attention_backward(
            d_context_THK, qkv_TH3K, context_THK, lse_HT, cu_seqlens_N1, seeds[0], *settings.attention
        ).flatten(1)
        d_qkv_b = qkv_column_sums(d_qkv_TO, settings.config.head_dim, qkv_w.dtype)
        d_qkv_w = d_qkv_TO.t() @ normed_TD if needs_qkv else None
        d_residual_TD = middle.residual_TD if ctx.has_residual else None
        d_normed_TD = _through(d_qkv_TO, qkv_w, ctx, middle)
        (d_middle_w, d_middle_b, d_out_b), (d_end_w, d_end_b, d_down_b) = middle.sums_3D, end.sums_3D
        return (
            None, None, None, d_residual_TD, d_normed_TD, d_qkv_w, d_qkv_b, d_out_w, d_out_b,
            d_middle_w, d_middle_b, d_up_w, d_up_b, d_down_w, d_down_b, d_end_w, d_end_b,
        )  # fmt: skip


def _through(gradient_TO: Tensor, weight_OD: Tensor, ctx: Any, later: Any) -> Tensor:
    """Differentiate a linear map's input, which in a post-norm layer is also the residual of the `later` sum."""
    if ctx.has_residual:
        return gradient_TO @ weight_OD
    return later.residual_TD.addmm_(gradient_TO, weight_OD)  # last use of this tensor
