"""Bias and GELU and their gradient in Triton, the gradient in place and with the sums for the bias.

The widest tensors of a network pass through here: forward they are read and written once, backward two are read and one
is written, 12 bytes an element in 16 bits.

Shape legend: T tokens, F width, B blocks of tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .column_sums import column_sums

# ROWS of an iteration; a program of the backward pass sums over up to CHUNK rows, fewer where there would be fewer than
# PROGRAMS.
ROWS, COLUMNS, CHUNK, STAGES, PROGRAMS = 2, 1024, 128, 1, 1024


@triton.jit
def normal_cdf(hidden):
    """Compute the normal distribution's CDF, to 1e-7, and exp(-hidden^2 / 2).

    A third of the operations of erf, which would make these kernels compute-bound.
    Source: Abramowitz and Stegun 1964, 7.1.26.
    """
    decay = tl.exp2(hidden * hidden * -0.7213475204444817)
    root = tl.rsqrt(1.0 + 0.23164188 * tl.abs(hidden))  # 0.3275911 / sqrt(2); a division takes four times as long
    near = root * root
    tail = near * (-0.142248368 + near * (0.710706871 + near * (-0.7265760135 + near * 0.5307027145)))
    tail = near * (0.127414796 + tail) * decay
    return tl.where(hidden < 0.0, tail, 1.0 - tail), decay


@triton.jit
def gelu_of(hidden, VARIANT: tl.constexpr):
    """Apply GELU to float32 values."""
    if VARIANT == "tanh":
        return hidden * tl.sigmoid(1.5957691216057308 * (hidden + 0.044715 * hidden * hidden * hidden))
    share, _ = normal_cdf(hidden)
    return hidden * share


@triton.jit
def gelu_slope(hidden, VARIANT: tl.constexpr):
    """Compute the derivative of GELU."""
    if VARIANT == "tanh":
        # 0.5 (1 + tanh(z)) is sigmoid(2 z).
        half = tl.sigmoid(1.5957691216057308 * (hidden + 0.044715 * hidden * hidden * hidden))
        inner = 1.5957691216057308 * (1.0 + 0.134145 * hidden * hidden)
        return half + hidden * half * (1.0 - half) * inner
    share, decay = normal_cdf(hidden)
    return share + hidden * decay * 0.3989422804014327


@triton.jit
def _load_with_bias(hidden, at, is_there, bias, columns, is_column, HAS_BIAS: tl.constexpr):
    values = tl.load(hidden + at, mask=is_there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        values += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    return values


@triton.jit
def _forward_kernel(
    hidden, bias, result, num_rows, width,
    VARIANT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    num_blocks = tl.cdiv(width, COLUMNS)
    rows = tl.program_id(0) // num_blocks * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < width
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    is_there = (rows < num_rows)[:, None] & is_column[None, :]
    values = _load_with_bias(hidden, at, is_there, bias, columns, is_column, HAS_BIAS)
    tl.store(result + at, gelu_of(values, VARIANT).to(result.dtype.element_ty), mask=is_there)


@triton.jit
def _backward_kernel(
    gradient, hidden, bias, sums, num_rows, width,
    VARIANT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Overwrite a chunk of rows of a block of columns with the gradient of GELU's input, and sum over the rows."""
    num_blocks = tl.cdiv(width, COLUMNS)
    chunk = tl.program_id(0) // num_blocks
    columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < width
    total = tl.zeros([COLUMNS], tl.float32)
    for first in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = chunk * CHUNK + first + tl.arange(0, ROWS)
        at = rows.to(tl.int64)[:, None] * width + columns[None, :]
        is_there = (rows < num_rows)[:, None] & is_column[None, :]
        gradients = tl.load(gradient + at, mask=is_there, other=0.0)
        values = _load_with_bias(hidden, at, is_there, bias, columns, is_column, HAS_BIAS)
        slopes = gelu_slope(values, VARIANT)
        products = gradients.to(tl.float32) * slopes
        tl.store(gradient + at, products.to(gradients.dtype), mask=is_there)
        total += tl.sum(products, 0)
    tl.store(sums + chunk.to(tl.int64) * width + columns, total, mask=is_column)


def gelu(hidden_TF: Tensor, bias_F: Tensor | None, variant: str) -> Tensor:
    """Apply GELU, `erf` or `tanh`, to hidden + bias."""
    result_TF = torch.empty_like(hidden_TF)
    num_tokens, width = hidden_TF.shape
    if num_tokens:
        _forward_kernel[(triton.cdiv(num_tokens, ROWS) * triton.cdiv(width, COLUMNS),)](
            hidden_TF, hidden_TF if bias_F is None else bias_F, result_TF, num_tokens, width,
            VARIANT=variant, HAS_BIAS=bias_F is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
    return result_TF


def gelu_backward(gradient_TF: Tensor, hidden_TF: Tensor, bias_F: Tensor | None, variant: str) -> Tensor:
    """Overwrite the gradient of GELU's output with that of hidden + bias; returns its sum over tokens [F]."""
    assert gradient_TF.is_contiguous() and hidden_TF.is_contiguous()
    num_tokens, width = hidden_TF.shape
    num_blocks = triton.cdiv(width, COLUMNS)
    chunk = min(CHUNK, max(triton.next_power_of_2(num_tokens * num_blocks // PROGRAMS), ROWS, 16))
    num_chunks = triton.cdiv(num_tokens, chunk)
    sums_BF = torch.empty(num_chunks, width, device=hidden_TF.device, dtype=torch.float32)
    if num_tokens:
        _backward_kernel[(num_chunks * num_blocks,)](
            gradient_TF, hidden_TF, hidden_TF if bias_F is None else bias_F, sums_BF, num_tokens, width,
            VARIANT=variant, HAS_BIAS=bias_F is not None, ROWS=ROWS, COLUMNS=COLUMNS, CHUNK=chunk, STAGES=STAGES,
            num_warps=4,
        )  # fmt: skip
    return column_sums(sums_BF, gradient_TF.dtype)
