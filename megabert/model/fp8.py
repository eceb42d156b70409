"""FP8 matmuls (GEMMs) for an encoder's linear layers: twice the rate of bfloat16 on GPUs that support them.

Weights and activations are quantized to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits, more range); accumulation
is float32, outputs bfloat16. Scaling is per tensor and current: by the largest magnitude, computed each time, so that
checkpoints hold no history of scales. Frozen for inference, scales are constants: inputs are outputs of layer norms, or
bounded by those. Embeddings, norms, attention, residuals and heads stay in bfloat16.

Shape legend: T tokens, K width of inputs, N of outputs, F of the MLP, P T padded to a multiple of 16.
Source: Micikevicius et al. 2022, FP8 formats for deep learning, arXiv:2209.05433.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .attention import HAS_TRITON
from .encoder import Encoder
from .layers import MLP, Attention, gelu
from .lora import merge_lora

if HAS_TRITON:
    from ..kernels import fp8 as triton_fp8

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the sizes of 8-bit matrices must be multiples
OLDEST = (8, 9)  # compute capability of the first NVIDIA GPUs with FP8


def check_hardware(device: torch.device) -> None:
    """Raise ConfigError for devices without FP8 matmuls."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < OLDEST or not HAS_TRITON:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            f"precision=fp8 needs an NVIDIA GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or later (Ada, Hopper) "
            f"and Triton; this is {name}. Use bf16, or 32 on a CPU."
        )


def use_fp8(encoder: Encoder) -> None:
    """Replace the linear layers of a bfloat16 encoder by FP8 ones, with the same parameter names."""
    merge_lora(encoder)  # adapters would be lost; inference alone gets here with them
    config = encoder.config
    if config.hidden_size % MULTIPLE or config.ffn_size % MULTIPLE:
        raise ConfigError(
            f"precision=fp8 needs sizes that are multiples of {MULTIPLE}; this encoder has hidden_size "
            f"{config.hidden_size} and ffn_size {config.ffn_size}. Use bf16."
        )
    layers: Any = encoder.layers
    before: Any = encoder.embeddings.norm  # of a post-norm layer's input
    for layer in layers:
        norms = (before, layer.attention_norm) if config.is_post_norm else (layer.attention_norm, layer.mlp_norm)
        inputs, before = [_NormOutput(norm) for norm in norms], layer.mlp_norm
        layer.attention.qkv = Fp8Linear(layer.attention.qkv, inputs[0])
        layer.attention.out = Fp8Linear(layer.attention.out, _AttentionOutput(inputs[0], layer.attention))
        layer.mlp = Fp8MLP(layer.mlp, inputs[1])


class _NormOutput(NamedTuple):
    """Bounds of a layer norm's output, for any input: a standardized row of width K has the 2-norm sqrt(K)."""

    norm: nn.LayerNorm

    def largest(self) -> Tensor:
        """Bound the magnitude of an element."""
        return self._largest_scaled() + self.norm.bias.float().abs().amax()

    def largest_row_norm(self) -> Tensor:
        """Bound the 2-norm of a token's row."""
        return self._largest_scaled() + self.norm.bias.float().norm()

    def _largest_scaled(self) -> Tensor:
        return math.sqrt(self.norm.weight.numel()) * self.norm.weight.float().abs().amax()


class _AttentionOutput(NamedTuple):
    """Bounds of attention's output, whose rows are means of values."""

    source: _NormOutput
    attention: Attention

    def largest(self) -> Tensor:
        """Bound the magnitude of an element."""
        qkv = self.attention.qkv
        value_NK = qkv.weight.unflatten(0, (-1, 3, self.attention.head_dim))[:, 2].flatten(0, 1)
        return self.source.largest_row_norm() * _max_row_norm(value_NK) + qkv.bias.float().abs().amax()


class Fp8Linear(nn.Module):
    """A linear layer with FP8 matmuls. Without the origin of its input, the scale of the input is always computed."""

    def __init__(self, linear: nn.Linear, source: _NormOutput | _AttentionOutput | None = None) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._source = (source,)  # in a tuple, so that its parameters are not those of this module
        self._frozen: _FrozenWeight | None = None
        self._input_unit: Tensor | None = None

    def freeze(self) -> None:
        """Quantize the weight and compute the scale of the input once, for inference."""
        (source,) = self._source
        with torch.no_grad():
            self._frozen = _FrozenWeight.of(self.weight)
            self._input_unit = _unit(source.largest(), FORWARD) if source else None

    def quantized_weight(self) -> "_FrozenWeight":
        """Return the weight in 8 bits."""
        return self._frozen or _FrozenWeight.of(self.weight)

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map [T, K] to [T, N]."""
        if torch.is_grad_enabled():
            return _Fp8LinearFunction.apply(hidden_TK, self.weight, self.bias)
        return self.infer(
            hidden_TK, _unit(_largest(hidden_TK), FORWARD) if self._input_unit is None else self._input_unit
        )

    def infer(self, hidden_TK: Tensor, unit: Tensor, gelu: str = "") -> Tensor:
        """Map without gradients, after the GELU of a variant if given; `unit` is the scale of the input."""
        weight = self.quantized_weight()
        rows_PK = _quantize_rows(hidden_TK, unit, gelu)
        return _matmul(rows_PK, weight.rows_NK, unit, weight.unit, self.bias)[: len(hidden_TK)]


class Fp8MLP(nn.Module):
    """The MLP of a layer with FP8 matmuls; the output of its GELU is written in 8 bits only."""

    def __init__(self, mlp: MLP, source: _NormOutput | None = None) -> None:
        super().__init__()
        self.gelu = mlp.gelu
        self.up, self.down = Fp8Linear(mlp.up, source), Fp8Linear(mlp.down)
        self._source = (source,)
        self._active_unit: Tensor | None = None

    def freeze(self) -> None:
        """Compute the scale of the GELU's output once, for inference."""
        (source,) = self._source
        if source:
            with torch.no_grad():
                bound = _bound(source.largest_row_norm(), _max_row_norm(self.up.weight), self.up.bias)
                self._active_unit = _unit(bound, FORWARD)

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map [T, K] to [T, K]."""
        up, down = self.up, self.down
        if torch.is_grad_enabled():
            return _Fp8MLPFunction.apply(hidden_TK, up.weight, up.bias, down.weight, down.bias, self.gelu)
        inner_TF, unit = up(hidden_TK), self._active_unit
        if unit is None:
            unit = _unit(_bound(_max_row_norm(hidden_TK), up.quantized_weight().max_row_norm, up.bias), FORWARD)
        return down.infer(inner_TF, unit, self.gelu)


class _FrozenWeight(NamedTuple):
    """A weight quantized for inference."""

    rows_NK: Tensor
    unit: Tensor
    max_row_norm: Tensor

    @classmethod
    def of(cls, weight_NK: Tensor) -> "_FrozenWeight":
        unit = _unit(_largest(weight_NK), FORWARD)
        return cls(_quantize_rows(weight_NK, unit, ""), unit, _max_row_norm(weight_NK))


class _Quantized(NamedTuple):
    """A tensor in 8 bits, row-major and transposed; `unit` is the scale."""

    rows_PK: Tensor
    columns_KP: Tensor
    unit: Tensor


class _Fp8LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TK: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
        hidden, weight = _quantize_forward(hidden_TK), _quantize_forward(weight_NK)
        ctx.save_for_backward(*hidden[1:], *weight[1:])
        return _matmul(hidden.rows_PK, weight.rows_PK, hidden.unit, weight.unit, bias_N)[: len(hidden_TK)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_KP, hidden_unit, weight_KN, weight_unit = ctx.saved_tensors
        (d_output_TN,) = gradients
        d_output, d_bias_N = _quantize_backward(d_output_TN, _unit(_largest(d_output_TN), BACKWARD))
        return (
            _matmul(d_output.rows_PK, weight_KN, d_output.unit, weight_unit)[: len(d_output_TN)],
            _matmul_over_tokens(d_output.columns_KP, hidden_KP, d_output.unit, hidden_unit),
            d_bias_N,
        )


class _Fp8MLPFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TK: Tensor, up_FK: Tensor, up_bias_F: Tensor, down_KF: Tensor, down_bias_K: Tensor, gelu: str
    ) -> Tensor:
        hidden, up, down = _quantize_forward(hidden_TK), _quantize_forward(up_FK), _quantize_forward(down_KF)
        inner_TF = _matmul(hidden.rows_PK, up.rows_PK, hidden.unit, up.unit, up_bias_F)[: len(hidden_TK)]
        unit = _unit(_bound(_max_row_norm(hidden_TK), _max_row_norm(up_FK), up_bias_F), FORWARD)
        active = _Quantized(*_quantize(inner_TF, unit, gelu), unit)
        ctx.gelu = gelu
        ctx.save_for_backward(*hidden[1:], *up[1:], *down[1:], inner_TF, *active[1:])
        return _matmul(active.rows_PK, down.rows_PK, active.unit, down.unit, down_bias_K)[: len(hidden_TK)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        hidden_KP, hidden_unit, up_KF, up_unit, down_FK, down_unit, inner_TF, active_FP, active_unit = ctx.saved_tensors
        (d_output_TK,) = gradients
        num_tokens, width = d_output_TK.shape
        largest = _largest(d_output_TK)
        d_output, d_down_bias_K = _quantize_backward(d_output_TK, _unit(largest, BACKWARD))
        d_active_TF = _matmul(d_output.rows_PK, down_FK, d_output.unit, down_unit)[:num_tokens]
        # An upper bound, since the maximum would need a pass over the widest tensors: a sum of `width` products, and
        # the GELU's slope is at most 1.13. e5m2 spans 32 powers of two, so a bound 2^13 times too large loses nothing.
        bound = 1.5 * width * largest.float() * down_unit * torch.finfo(FORWARD).max
        d_inner, d_up_bias_F = _quantize_backward(d_active_TF, _unit(bound, BACKWARD), inner_TF, ctx.gelu)
        return (
            _matmul(d_inner.rows_PK, up_KF, d_inner.unit, up_unit)[:num_tokens],
            _matmul_over_tokens(d_inner.columns_KP, hidden_KP, d_inner.unit, hidden_unit),
            d_up_bias_F,
            _matmul_over_tokens(d_output.columns_KP, active_FP, d_output.unit, active_unit),
            d_down_bias_K,
            None,
        )


def _matmul(
    first_PK: Tensor, second_NK: Tensor, first_unit: Tensor, second_unit: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """Compute first @ second.T + bias: [P, N]."""
    return torch._scaled_mm(
        first_PK, second_NK.t(), first_unit, second_unit, bias_N, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _matmul_over_tokens(first_NP: Tensor, second_KP: Tensor, first_unit: Tensor, second_unit: Tensor) -> Tensor:
    """Compute first @ second.T, summed over all tokens, for which fast accumulation, with 14 bits, is too inexact."""
    return torch._scaled_mm(first_NP, second_KP.t(), first_unit, second_unit, out_dtype=torch.bfloat16)


def _unit(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the scale that maps `largest` to the dtype's largest number; never 0."""
    return largest.float().clamp(min=1e-30) / torch.finfo(dtype).max


def _largest(tensor_TK: Tensor) -> Tensor:
    """Compute the largest magnitude of a tensor."""
    width = tensor_TK.shape[1]
    while width > 1024 and width % 2 == 0:
        width //= 2
    # Row maxima first: the compiler fuses them into the norm that computes the rows. It reduces short rows at the rate
    # of memory, long ones at half of it.
    return tensor_TK.reshape(-1, width).abs().amax(1).amax()


def _bound(max_norm: Tensor, max_row_norm: Tensor, bias_N: Tensor) -> Tensor:
    """Bound the magnitudes of a linear layer's output and of the GELU after it, from the largest row norms.

    `max_norm` is that of the inputs, `max_row_norm` that of the weight.

    The maximum would need a pass over the widest tensor. A dot product is at most the product of the norms (Cauchy and
    Schwarz), and 8-bit numbers are as precise some powers of two below the bound as at it: e4m3 spans 18.
    """
    # Rounding increases a number by 1 / 16 at most; the minimum of GELU is -0.17.
    return (1.13 * max_norm * max_row_norm + bias_N.abs().amax()).clamp(min=0.17)


def _max_row_norm(rows_NK: Tensor) -> Tensor:
    return rows_NK.float().square().sum(1).amax().sqrt()


def _quantize_forward(tensor_TK: Tensor) -> _Quantized:
    unit = _unit(_largest(tensor_TK), FORWARD)
    return _Quantized(*_quantize(tensor_TK, unit, ""), unit)


def _quantize_backward(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None = None, gelu: str = ""
) -> tuple[_Quantized, Tensor]:
    """Quantize a gradient, after the derivative of the GELU if `hidden_TK` is given; also sum it over the tokens."""
    rows_PK, columns_KP, sums_BK = _quantize_gradient(gradient_TK, unit, hidden_TK, gelu)
    return _Quantized(rows_PK, columns_KP, unit), sums_BK.sum(0).to(gradient_TK.dtype)


def _quantize(source_TK: Tensor, unit: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    if source_TK.is_cuda:
        return triton_fp8.quantize(source_TK, unit, variant)
    return plain_quantize(source_TK, unit, variant)


def _quantize_gradient(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, variant: str
) -> tuple[Tensor, Tensor, Tensor]:
    if gradient_TK.is_cuda:
        return triton_fp8.quantize_gradient(gradient_TK, unit, hidden_TK, variant)
    return plain_quantize_gradient(gradient_TK, unit, hidden_TK, variant)


def _quantize_rows(source_TK: Tensor, unit: Tensor, variant: str) -> Tensor:
    if source_TK.is_cuda:
        return triton_fp8.quantize_rows(source_TK, unit, variant)
    return plain_quantize(source_TK, unit, variant)[0]


def plain_quantize(source_TK: Tensor, unit: Tensor, variant: str) -> tuple[Tensor, Tensor]:
    """Reference of triton_fp8.quantize in PyTorch."""
    values_TK = source_TK.float()
    return _to_fp8(gelu(values_TK, variant) if variant else values_TK, unit, FORWARD)


def plain_quantize_gradient(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, variant: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Reference of triton_fp8.quantize_gradient in PyTorch, with one block."""
    values_TK = gradient_TK.float()
    if hidden_TK is not None:
        with torch.enable_grad():
            leaf_TK = hidden_TK.detach().float().requires_grad_()
            (values_TK,) = torch.autograd.grad(gelu(leaf_TK, variant), leaf_TK, values_TK)
    return (*_to_fp8(values_TK, unit, BACKWARD), values_TK.sum(0, keepdim=True))


def _to_fp8(values_TK: Tensor, unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    limit = torch.finfo(dtype).max
    padded_PK = F.pad(values_TK * (1.0 / unit), (0, 0, 0, -len(values_TK) % MULTIPLE))
    rows_PK = padded_PK.clamp(-limit, limit).to(dtype)
    return rows_PK, rows_PK.t().contiguous()
