"""Matrix products of an encoder's layers in 8-bit floating point: twice the rate of bfloat16 on GPUs that have them.

Weights and what flows forward are rounded to e4m3 (3 bits of fraction), gradients to e5m2 (2 bits, more range); sums
are float32, results bfloat16. A tensor is divided by its largest magnitude first, found anew each time, so there is no
history that a checkpoint would have to hold. Embeddings, norms, attention, residuals and heads know nothing of it.

Shape legend: T tokens, K width before a product, N behind it, F width of the MLP, P T rounded up to a multiple of 16.
Source: Micikevicius et al. 2022, FP8 formats for deep learning, arXiv:2209.05433.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .attention import HAS_TRITON
from .encoder import Encoder
from .layers import MLP, gelu

if HAS_TRITON:
    from ..kernels import fp8 as triton_fp8

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of this the sizes of 8-bit matrices must be
OLDEST = (8, 9)  # the first NVIDIA GPUs that have fp8


def check_hardware(device: torch.device) -> None:
    """Refuse devices without 8-bit products."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < OLDEST or not HAS_TRITON:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ConfigError(
            f"precision=fp8 needs an NVIDIA GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or later (Ada, Hopper) "
            f"and Triton; this is {name}. Use bf16, or 32 on a CPU."
        )


def use_fp8(encoder: Encoder) -> None:
    """Let the layers of an encoder, which is in bfloat16, multiply in 8 bits. Names of parameters stay."""
    config = encoder.config
    if config.hidden_size % MULTIPLE or config.ffn_size % MULTIPLE:
        raise ConfigError(
            f"precision=fp8 needs sizes that are multiples of {MULTIPLE}; this encoder has hidden_size "
            f"{config.hidden_size} and ffn_size {config.ffn_size}. Use bf16."
        )
    layers: Any = encoder.layers
    for layer in layers:
        layer.attention.qkv = Fp8Linear(layer.attention.qkv)
        layer.attention.out = Fp8Linear(layer.attention.out)
        layer.mlp = Fp8MLP(layer.mlp)


class Fp8Linear(nn.Module):
    """A linear map that multiplies in 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._frozen: _Weight | None = None

    def freeze(self) -> None:
        """Round the weight once, for it will not change any more."""
        with torch.no_grad():
            self._frozen = _Weight.of(self.weight)

    def rounded(self) -> "_Weight":
        """Give the weight in 8 bits."""
        return self._frozen or _Weight.of(self.weight)

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map [T, K] to [T, N]."""
        if torch.is_grad_enabled():
            return _Linear.apply(hidden_TK, self.weight, self.bias)
        return self.apply_only(hidden_TK, _largest(hidden_TK))

    def apply_only(self, hidden_TK: Tensor, largest: Tensor, gelu: str = "") -> Tensor:
        """Map without a thought to gradients; `hidden_TK` goes through the GELU first if its variant is given."""
        weight, unit = self.rounded(), _unit(largest, FORWARD)
        rows_PK = _quantize_rows(hidden_TK, unit, gelu)
        return _product(rows_PK, weight.rows_NK, unit, weight.unit, self.bias)[: len(hidden_TK)]


class Fp8MLP(nn.Module):
    """The MLP of a layer, multiplying in 8 bits; what its GELU gives is written in 8 bits only."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.gelu = mlp.gelu
        self.up, self.down = Fp8Linear(mlp.up), Fp8Linear(mlp.down)

    def forward(self, hidden_TK: Tensor) -> Tensor:
        """Map [T, K] to [T, K]."""
        up, down = self.up, self.down
        if torch.is_grad_enabled():
            return _MLP.apply(hidden_TK, up.weight, up.bias, down.weight, down.bias, self.gelu)
        inner_TF = up(hidden_TK)
        return down.apply_only(inner_TF, _bound(hidden_TK, up.rounded().longest_row, up.bias), self.gelu)


class _Weight(NamedTuple):
    """A weight as networks need it that do not learn."""

    rows_NK: Tensor
    unit: Tensor
    longest_row: Tensor

    @classmethod
    def of(cls, weight_NK: Tensor) -> "_Weight":
        unit = _unit(_largest(weight_NK), FORWARD)
        return cls(_quantize_rows(weight_NK, unit, ""), unit, _longest_row(weight_NK))


class _Rounded(NamedTuple):
    """A tensor in 8 bits, in both orders; `unit` is what 1 stands for."""

    rows_PK: Tensor
    columns_KP: Tensor
    unit: Tensor


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TK: Tensor, weight_NK: Tensor, bias_N: Tensor) -> Tensor:
        hidden, weight = _forward_rounded(hidden_TK), _forward_rounded(weight_NK)
        ctx.save_for_backward(*hidden[1:], *weight[1:])
        return _product(hidden.rows_PK, weight.rows_PK, hidden.unit, weight.unit, bias_N)[: len(hidden_TK)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_KP, hidden_unit, weight_KN, weight_unit = ctx.saved_tensors
        (of_mapped_TN,) = gradients
        of_mapped, of_bias_N = _backward_rounded(of_mapped_TN, _unit(_largest(of_mapped_TN), BACKWARD))
        return (
            _product(of_mapped.rows_PK, weight_KN, of_mapped.unit, weight_unit)[: len(of_mapped_TN)],
            _long_product(of_mapped.columns_KP, hidden_KP, of_mapped.unit, hidden_unit),
            of_bias_N,
        )


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TK: Tensor, up_FK: Tensor, up_bias_F: Tensor, down_KF: Tensor, down_bias_K: Tensor, gelu: str
    ) -> Tensor:
        hidden, up, down = _forward_rounded(hidden_TK), _forward_rounded(up_FK), _forward_rounded(down_KF)
        inner_TF = _product(hidden.rows_PK, up.rows_PK, hidden.unit, up.unit, up_bias_F)[: len(hidden_TK)]
        unit = _unit(_bound(hidden_TK, _longest_row(up_FK), up_bias_F), FORWARD)
        active = _Rounded(*_quantize(inner_TF, unit, gelu), unit)
        ctx.gelu = gelu
        ctx.save_for_backward(*hidden[1:], *up[1:], *down[1:], inner_TF, *active[1:])
        return _product(active.rows_PK, down.rows_PK, active.unit, down.unit, down_bias_K)[: len(hidden_TK)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        hidden_KP, hidden_unit, up_KF, up_unit, down_FK, down_unit, inner_TF, active_FP, active_unit = ctx.saved_tensors
        (of_mapped_TK,) = gradients
        num_tokens, width = of_mapped_TK.shape
        largest = _largest(of_mapped_TK)
        of_mapped, of_down_bias_K = _backward_rounded(of_mapped_TK, _unit(largest, BACKWARD))
        of_active_TF = _product(of_mapped.rows_PK, down_FK, of_mapped.unit, down_unit)[:num_tokens]
        # Not measured, which would take a pass over the widest tensors, but bounded: a sum of `width` products, and
        # the GELU's slope is at most 1.13. e5m2 spans 32 powers of two, so a bound 2^13 times too large costs nothing.
        bound = 1.5 * width * largest.float() * down_unit * torch.finfo(FORWARD).max
        of_inner, of_up_bias_F = _backward_rounded(of_active_TF, _unit(bound, BACKWARD), inner_TF, ctx.gelu)
        return (
            _product(of_inner.rows_PK, up_KF, of_inner.unit, up_unit)[:num_tokens],
            _long_product(of_inner.columns_KP, hidden_KP, of_inner.unit, hidden_unit),
            of_up_bias_F,
            _long_product(of_mapped.columns_KP, active_FP, of_mapped.unit, active_unit),
            of_down_bias_K,
            None,
        )


def _product(
    first_PK: Tensor, second_NK: Tensor, first_unit: Tensor, second_unit: Tensor, bias_N: Tensor | None = None
) -> Tensor:
    """Multiply by the transpose of `second_NK`: [P, N]."""
    return torch._scaled_mm(
        first_PK, second_NK.t(), first_unit, second_unit, bias_N, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _long_product(first_NP: Tensor, second_KP: Tensor, first_unit: Tensor, second_unit: Tensor) -> Tensor:
    """Multiply where the sum is over all tokens: the fast way would keep 14 bits of it."""
    return torch._scaled_mm(first_NP, second_KP.t(), first_unit, second_unit, out_dtype=torch.bfloat16)


def _unit(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Give what 1 stands for if `largest` is to become the type's largest number; not 0 where all is 0."""
    return largest.float().clamp(min=1e-30) / torch.finfo(dtype).max


def _largest(tensor_TK: Tensor) -> Tensor:
    """Give the largest magnitude."""
    width = tensor_TK.shape[1]
    while width > 1024 and width % 2 == 0:
        width //= 2
    # Row by row first: where rows are made by a norm, the compiler then finds the maxima on the way. It reads short
    # rows at the memory's rate, long ones at half of it.
    return tensor_TK.reshape(-1, width).abs().amax(1).amax()


def _bound(hidden_TK: Tensor, longest_row: Tensor, bias_N: Tensor) -> Tensor:
    """Bound the magnitudes of a product with a weight whose longest row is given, and of GELU behind it.

    To measure them would take a pass over the widest tensor. No sum is larger than its two vectors are long (Cauchy
    and Schwarz), and 8-bit numbers are as precise some powers of two below the bound as at it: e4m3 spans 18.
    """
    longest = hidden_TK.float().square().sum(1).amax().sqrt()
    # Rounding makes a number larger by 1 / 16 at most; GELU falls to -0.17.
    return (1.13 * longest * longest_row + bias_N.abs().amax()).clamp(min=0.17)


def _longest_row(weight_NK: Tensor) -> Tensor:
    return weight_NK.float().square().sum(1).amax().sqrt()


def _forward_rounded(tensor_TK: Tensor) -> _Rounded:
    unit = _unit(_largest(tensor_TK), FORWARD)
    return _Rounded(*_quantize(tensor_TK, unit, ""), unit)


def _backward_rounded(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None = None, gelu: str = ""
) -> tuple[_Rounded, Tensor]:
    """Round a gradient, taken through the GELU first if `hidden_TK` is given; also sum it over the tokens."""
    rows_PK, columns_KP, sums_BK = _quantize_gradient(gradient_TK, unit, hidden_TK, gelu)
    return _Rounded(rows_PK, columns_KP, unit), sums_BK.sum(0).to(gradient_TK.dtype)


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
    """Do what triton_fp8.quantize does, in plain PyTorch."""
    values_TK = source_TK.float()
    return _rounded(gelu(values_TK, variant) if variant else values_TK, unit, FORWARD)


def plain_quantize_gradient(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, variant: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what triton_fp8.quantize_gradient does, in plain PyTorch, with one block."""
    values_TK = gradient_TK.float()
    if hidden_TK is not None:
        with torch.enable_grad():
            leaf_TK = hidden_TK.detach().float().requires_grad_()
            (values_TK,) = torch.autograd.grad(gelu(leaf_TK, variant), leaf_TK, values_TK)
    return (*_rounded(values_TK, unit, BACKWARD), values_TK.sum(0, keepdim=True))


def _rounded(values_TK: Tensor, unit: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    limit = torch.finfo(dtype).max
    padded_PK = F.pad(values_TK * (1.0 / unit), (0, 0, 0, -len(values_TK) % MULTIPLE))
    rows_PK = padded_PK.clamp(-limit, limit).to(dtype)
    return rows_PK, rows_PK.t().contiguous()
