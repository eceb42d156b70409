"""Sums over the rows of a tall matrix in Triton: gradients of biases, and of norms from partial sums.

Deterministic: first chunks of rows are summed, then their sums, each by one program in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 32
# Of the first pass over a tall matrix: rows of an iteration, of a program, and columns of a program.
TALL_ROWS, TALL_CHUNK, TALL_COLUMNS, TALL_STAGES = 4, 128, 1024, 3


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


@triton.jit
def _chunks_kernel(
    source, sums, num_rows, num_columns,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum a chunk of rows of a block of columns."""
    num_blocks = tl.cdiv(num_columns, COLUMNS)
    chunk = tl.program_id(0) // num_blocks
    columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    is_column = columns < num_columns
    total = tl.zeros([COLUMNS], tl.float32)
    for first in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = chunk * CHUNK + first + tl.arange(0, ROWS)
        at = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        is_there = (rows < num_rows)[:, None] & is_column[None, :]
        total += tl.sum(tl.load(source + at, mask=is_there, other=0.0).to(tl.float32), 0)
    tl.store(sums + chunk.to(tl.int64) * num_columns + columns, total, mask=is_column)


def column_sums(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum a contiguous tensor over its first dim, in float32; returns the other dims in `dtype`."""
    sums = torch.empty(source.shape[1:], device=source.device, dtype=dtype)
    width = sums.numel()
    if len(source) > 8 * TALL_CHUNK:
        num_chunks = triton.cdiv(len(source), TALL_CHUNK)
        partial = torch.empty(num_chunks, width, device=source.device, dtype=torch.float32)
        _chunks_kernel[(num_chunks * triton.cdiv(width, TALL_COLUMNS),)](
            source, partial, len(source), width,
            ROWS=TALL_ROWS, CHUNK=TALL_CHUNK, COLUMNS=TALL_COLUMNS, STAGES=TALL_STAGES, num_warps=4,
        )  # fmt: skip
        source = partial
    _sum_kernel[(triton.cdiv(width, COLUMNS),)](
        source, sums, len(source), width, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )
    return sums
