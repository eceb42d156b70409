"""Sums over the rows of a tall matrix in Triton: gradients of biases and norms from partial sums of other kernels.

Deterministic: each column is summed by one program, always in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 32


@triton.jit
def _sum_kernel(source, sums, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = (columns < num_columns)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, num_rows, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        total += tl.load(source + at, mask=(rows < num_rows)[:, None] & is_column, other=0.0).to(tl.float32)
    tl.store(sums + columns, tl.sum(total, 0).to(sums.dtype.element_ty), mask=columns < num_columns)


def column_sums(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum a contiguous tensor over its first dim, in float32; returns the other dims in `dtype`."""
    sums = torch.empty(source.shape[1:], device=source.device, dtype=dtype)
    grid = (triton.cdiv(sums.numel(), COLUMNS),)
    _sum_kernel[grid](source, sums, len(source), sums.numel(), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)
    return sums
