"""A transformer layer for inference on a CPU in bfloat16: packed weights, GELU and residual sums inside the matmuls.

PyTorch's linear layer brings weights into oneDNN's layout at each call, and activations are read and written once more
for GELU and for the residual sum. In float32 that made no difference that could be measured.

Shape legend: T tokens, D hidden, F width of the MLP, H heads, K head dim.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attention import PackedSequences, attend
from .encoder import Encoder
from .key_value_cache import KeyValueCache
from .layers import MLP, Attention, Layer

USUAL_TOKENS = 1024
"""Of a batch: what the layout of the weights is made for; others are computed, too."""


def pack_layers(encoder: Encoder) -> bool:
    """Let an encoder on a CPU run its layers so; False where its modules, or this PyTorch, do not allow it."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    layers: list[Any] = list(encoder.layers)
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators) or not all(map(_is_plain, layers)):
        return False
    packed = [_PackedLayer(layer) for layer in layers]
    encoder.run_layers = partial(_run_layers, encoder, packed)  # type: ignore[method-assign]
    return True


def _is_plain(layer: nn.Module) -> bool:
    """Whether nothing has replaced the layer's parts, such as adapters."""
    if type(layer) is not Layer or type(layer.mlp) is not MLP or type(layer.attention) is not Attention:
        return False
    return all(
        type(part) is nn.Linear for part in (layer.attention.qkv, layer.attention.out, layer.mlp.up, layer.mlp.down)
    )


def _run_layers(
    encoder: Encoder, packed: "list[_PackedLayer]", hidden_TD: Tensor, documents: PackedSequences | KeyValueCache
) -> Tensor:
    if isinstance(documents, KeyValueCache) or torch.is_grad_enabled():
        return Encoder.run_layers(encoder, hidden_TD, documents)
    for layer in packed:
        hidden_TD = layer(hidden_TD, documents)
    return hidden_TD if encoder.final_norm is None else encoder.final_norm(hidden_TD)


class _PackedLinear:
    """A linear layer whose weight is packed once."""

    def __init__(self, linear: nn.Linear) -> None:
        self.bias = linear.bias.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), USUAL_TOKENS)

    def __call__(self, hidden: Tensor, activation: str = "none", variant: str = "") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, activation, [], variant)

    def plus(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Return the sum of the layer's result and a residual."""
        return torch.ops.mkldnn._linear_pointwise.binary(hidden, residual, self.weight, self.bias, "add")


class _PackedLayer:
    """`Layer`, without dropout."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.head_dim = layer, layer.attention.head_dim
        self.gelu = "tanh" if layer.mlp.gelu == "tanh" else "none"
        self.qkv, self.out = _PackedLinear(layer.attention.qkv), _PackedLinear(layer.attention.out)
        self.up, self.down = _PackedLinear(layer.mlp.up), _PackedLinear(layer.mlp.down)

    def __call__(self, hidden_TD: Tensor, documents: PackedSequences) -> Tensor:
        layer = self.layer
        is_post = layer.norm_place == "post"
        inner_TD = hidden_TD if is_post else layer.attention_norm(hidden_TD)
        qkv_TH3K = self.qkv(inner_TD).unflatten(-1, (-1, 3, self.head_dim))
        context_THK = attend(qkv_TH3K, documents, dropout=0.0, is_causal=layer.attention.is_causal)
        hidden_TD = self.out.plus(context_THK.flatten(1), layer._residual(hidden_TD, inner_TD))
        inner_TD = (layer.attention_norm if is_post else layer.mlp_norm)(hidden_TD)
        residual_TD = inner_TD if is_post else layer._residual(hidden_TD, inner_TD)
        hidden_TD = self.down.plus(self.up(inner_TD, "gelu", self.gelu), residual_TD)
        return layer.mlp_norm(hidden_TD) if is_post else hidden_TD
