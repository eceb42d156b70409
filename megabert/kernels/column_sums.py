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
def _is_summed(columns, num_columns, KEY_DIM: tl.constexpr):
    """Whether columns are read: those inside, without keys' if a head's query, key and value have KEY_DIM each."""
    if KEY_DIM:
        return (columns < num_columns) & (columns // KEY_DIM % 3 != 1)
    return columns < num_columns


@triton.jit
def _sum_kernel(
    source, sums, num_rows, num_columns, KEY_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = _is_summed(columns, num_columns, KEY_DIM)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, num_rows, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        total += tl.load(source + at, mask=(rows < num_rows)[:, None] & is_column, other=0.0).to(tl.float32)
    tl.store(sums + columns, tl.sum(total, 0).to(sums.dtype.element_ty), mask=columns < num_columns)


@triton.jit
def _chunks_kernel(
    source, sums, num_rows, num_columns,
    KEY_DIM: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum a chunk of rows of a block of columns."""
    num_blocks = tl.cdiv(num_columns, COLUMNS)
    chunk = tl.program_id(0) // num_blocks
    columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    is_column = _is_summed(columns, num_columns, KEY_DIM)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = chunk * CHUNK + first + tl.arange(0, ROWS)
        at = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        is_there = (rows < num_rows)[:, None] & is_column[None, :]
        total += tl.sum(tl.load(source + at, mask=is_there, other=0.0).to(tl.float32), 0)
    tl.store(sums + chunk.to(tl.int64) * num_columns + columns, total, mask=columns < num_columns)


def column_sums(source: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum a contiguous tensor over its first dim, in float32; returns the other dims in `dtype`."""
    return _sums(source, dtype, 0)


def qkv_column_sums(d_qkv_TO: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """Sum the gradients of queries, keys and values, [T, heads * 3 * head_dim]: the gradient of their bias.

    Keys' are not read: their sum is 0. A bias of keys adds the same number to all scores of a query, whose softmax
    stays as it is; what a sum yields is rounding errors, which Adam would turn into steps of full size.
    """
    return _sums(d_qkv_TO, dtype, head_dim)


def _sums(source: Tensor, dtype: torch.dtype, key_dim: int) -> Tensor:
    sums = torch.empty(source.shape[1:], device=source.device, dtype=dtype)
    width = sums.numel()
    if len(source) > 8 * TALL_CHUNK:
        num_chunks = triton.cdiv(len(source), TALL_CHUNK)
        partial = torch.empty(num_chunks, width, device=source.device, dtype=torch.float32)
        _chunks_kernel[(num_chunks * triton.cdiv(width, TALL_COLUMNS),)](
            source, partial, len(source), width, KEY_DIM=key_dim,
            ROWS=TALL_ROWS, CHUNK=TALL_CHUNK, COLUMNS=TALL_COLUMNS, STAGES=TALL_STAGES, num_warps=4,
        )  # fmt: skip
        source = partial
    _sum_kernel[(triton.cdiv(width, COLUMNS),)](
        source, sums, len(source), width, KEY_DIM=key_dim, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )
    return sums
