"""Quantization to 8-bit floating point in Triton: row-major and transposed copies in one pass over memory.

Hopper's FP8 matmuls need both operands contiguous along the reduction dim, and the three matmuls of a layer reduce over
three dims. Therefore each tensor is needed in both layouts: a tile is read once and written twice. The GELU or its
gradient is fused (an epilogue of the matmul before it), so that its output is written in 8 bits only, and so are the
sums of the bias gradients.

Shape legend: T tokens (or rows of a weight), K their width, P T padded to a multiple of 16, B blocks of rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gelu import gelu_of, gelu_slope

MULTIPLE = 16
TILES: dict[str, Any] = {"TILE_ROWS": 64, "TILE_COLUMNS": 64, "num_warps": 4}


@triton.jit
def _values(
    source, hidden, rows, columns, num_rows, width,
    GELU: tl.constexpr, IS_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Load a tile and apply the GELU or its gradient; 0 outside of the tensor."""
    at = rows[:, None] * width + columns[None, :]
    is_there = (rows < num_rows)[:, None] & (columns < width)[None, :]
    values = tl.load(source + at, mask=is_there, other=0.0).to(tl.float32)
    if GELU is not None:
        if IS_GRADIENT:
            values *= gelu_slope(tl.load(hidden + at, mask=is_there, other=0.0).to(tl.float32), GELU)
        else:
            values = gelu_of(values, GELU)
    return values


@triton.jit
def _round_pairs(even, odd, IS_GRADIENT: tl.constexpr):
    """Round to 8 bits, e4m3 or for gradients e5m2, and pack two values into 16 bits, `odd` in the upper ones.

    Saturates. In PTX, since Triton 3.6's own conversion rounds some tiles wrongly.
    """
    if IS_GRADIENT:
        pairs = tl.inline_asm_elementwise(
            "{ .reg .b16 both; cvt.rn.satfinite.e5m2x2.f32 both, $1, $2; cvt.u32.u16 $0, both; }",
            "=r,f,f", args=[odd, even], dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        pairs = tl.inline_asm_elementwise(
            "{ .reg .b16 both; cvt.rn.satfinite.e4m3x2.f32 both, $1, $2; cvt.u32.u16 $0, both; }",
            "=r,f,f", args=[odd, even], dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip
    return pairs.to(tl.uint16)


@triton.jit
def _store_rows(rounded, as_rows, rows, columns, num_padded, width):
    is_written = (rows < num_padded)[:, None] & (columns < width)[None, :]
    tl.store(as_rows + rows[:, None] * width + columns[None, :], rounded, mask=is_written)


@triton.jit
def _quantize_kernel(
    source, hidden, unit, as_rows, as_columns, sums, num_rows, num_padded, num_pairs, width,
    GELU: tl.constexpr, IS_GRADIENT: tl.constexpr, HAS_COLUMNS: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Quantize one tile; padding rows, up to `num_padded`, become 0.

    Even and odd rows are separate tiles, because the instruction rounds two values at once: in the transposed layout
    the values of two rows are one 16-bit number.
    """
    num_blocks = tl.cdiv(width, TILE_COLUMNS)  # of columns; one axis, since the others of a grid end at 65,535
    block = tl.program_id(0) // num_blocks
    pairs = block * (TILE_ROWS // 2) + tl.arange(0, TILE_ROWS // 2)
    columns = tl.program_id(0) % num_blocks * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    even = _values(source, hidden, 2 * pairs, columns, num_rows, width, GELU, IS_GRADIENT)
    odd = _values(source, hidden, 2 * pairs + 1, columns, num_rows, width, GELU, IS_GRADIENT)
    if IS_GRADIENT:
        tl.store(sums + block * width + columns, tl.sum(even + odd, 0), mask=columns < width)
    scale = 1.0 / tl.load(unit)
    both = _round_pairs(even * scale, odd * scale, IS_GRADIENT)
    _store_rows((both & 0xFF).to(tl.uint8), as_rows, 2 * pairs, columns, num_padded, width)
    _store_rows((both >> 8).to(tl.uint8), as_rows, 2 * pairs + 1, columns, num_padded, width)
    if HAS_COLUMNS:
        at = columns[:, None] * num_pairs + pairs[None, :]
        is_written = (columns < width)[:, None] & (pairs < num_pairs)[None, :]
        tl.store(as_columns + at, tl.trans(both), mask=is_written)


def _launch(
    source_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, gelu: str, dtype: torch.dtype,
    *, is_gradient: bool = False, has_columns: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    source_TK = source_TK.contiguous()
    assert source_TK.numel() < 2**31, "the kernel indexes in 32 bits"
    rows_PK, columns_KP, sums_BK = _empty(source_TK, dtype)
    num_rows, width = source_TK.shape
    grid = (triton.cdiv(width, TILES["TILE_COLUMNS"]) * len(sums_BK),)
    _quantize_kernel[grid](
        source_TK, source_TK if hidden_TK is None else hidden_TK.contiguous(), unit, rows_PK.view(torch.uint8),
        columns_KP.view(torch.uint16), sums_BK, num_rows, len(rows_PK), len(rows_PK) // 2, width,
        GELU=gelu or None, IS_GRADIENT=is_gradient, HAS_COLUMNS=has_columns, **TILES,
    )  # fmt: skip
    return rows_PK, columns_KP, sums_BK


def _empty(source_TK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, width = source_TK.shape
    padded = (num_rows + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    blocks = (padded + TILES["TILE_ROWS"] - 1) // TILES["TILE_ROWS"]
    return (
        source_TK.new_empty((padded, width), dtype=dtype),
        source_TK.new_empty((width, padded), dtype=dtype),
        source_TK.new_empty((blocks, width), dtype=torch.float32),
    )


@torch.library.custom_op("megabert::quantize", mutates_args=())
def quantize(source_TK: Tensor, unit: Tensor, gelu: str) -> tuple[Tensor, Tensor]:
    """Quantize source / unit, or gelu(source) / unit, to e4m3: rows [P, K] and columns [K, P], the transpose.

    unit: the scale, one float32 on the device. gelu: `erf`, `tanh`, or empty for none.
    """
    rows_PK, columns_KP, _ = _launch(source_TK, unit, None, gelu, torch.float8_e4m3fn)
    return rows_PK, columns_KP


@quantize.register_fake
def _(source_TK: Tensor, unit: Tensor, gelu: str) -> tuple[Tensor, Tensor]:
    rows_PK, columns_KP, _ = _empty(source_TK, torch.float8_e4m3fn)
    return rows_PK, columns_KP


@torch.library.custom_op("megabert::quantize_rows", mutates_args=())
def quantize_rows(source_TK: Tensor, unit: Tensor, gelu: str) -> Tensor:
    """Quantize to rows only, for inference."""
    rows_PK, _, _ = _launch(source_TK, unit, None, gelu, torch.float8_e4m3fn, has_columns=False)
    return rows_PK


@quantize_rows.register_fake
def _(source_TK: Tensor, unit: Tensor, gelu: str) -> Tensor:
    return _empty(source_TK, torch.float8_e4m3fn)[0]


@torch.library.custom_op("megabert::quantize_gradient", mutates_args=())
def quantize_gradient(
    gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, gelu: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize gradient / unit to e5m2, rows and columns; also return its sums over blocks of tokens, float32 [B, K].

    With `hidden_TK`, the input of the GELU, the gradient is first multiplied by the derivative of the GELU.
    """
    return _launch(gradient_TK, unit, hidden_TK, gelu, torch.float8_e5m2, is_gradient=True)


@quantize_gradient.register_fake
def _(gradient_TK: Tensor, unit: Tensor, hidden_TK: Tensor | None, gelu: str) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(gradient_TK, torch.float8_e5m2)
