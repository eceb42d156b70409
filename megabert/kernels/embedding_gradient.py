"""Gradient of an embedding table in Triton: the gradients of a row's tokens are summed in float32, without atomics.

Tokens are sorted by id, so that those of one row form a run, and cut into chunks. A program adds up a chunk's tokens,
one after the other, and writes a run's sum to the table where the run ends; the parts of runs that go on in other
chunks are summed by a second kernel, in order. The same inputs give the same numbers, and a row of many tokens
([MASK]) takes no longer than many rows of one.

PyTorch's gradient of an embedding sorts 64-bit ids and adds parts of rows atomically (torch 2.11).

Shape legend: T tokens, R rows of the table, D hidden, C chunks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32
# Programs wait for memory most of the time: small ones, many of which run at once, read STAGES - 1 tokens ahead.
SUMS: dict[str, Any] = {"COLUMNS": 512, "STAGES": 4, "num_warps": 1}
JOINS: dict[str, Any] = {"COLUMNS": 256, "CHUNKS": 32, "num_warps": 4}


@triton.jit
def _id_at(ids, place, num_tokens):
    """Return the id at a place of the sorted order; -1 before the first and after the last."""
    is_place = (place >= 0) & (place < num_tokens)
    return tl.where(is_place, tl.load(ids + place, mask=is_place, other=0).to(tl.int32), -1)


@triton.jit
def _runs_kernel(
    gradients, ids, order, table, parts, num_tokens, width,
    CHUNK: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of equal ids in a chunk: into the table, or into `parts` where the run goes on outside.

    Part 0 of a chunk is that of the run which comes in from the chunk before, part 1 that of a run which begins here.
    """
    num_blocks = tl.cdiv(width, COLUMNS)
    chunk = tl.program_id(0) // num_blocks
    columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
    # As few in a row as float32 has in 16 bytes: the sums have one layout for the table and for the parts.
    columns = tl.max_contiguous(columns, 4)
    is_column = columns < width
    first = chunk * CHUNK
    end = tl.minimum(first + CHUNK, num_tokens)
    id_before = _id_at(ids, first - 1, num_tokens)
    own = _id_at(ids, first, num_tokens)
    total = tl.zeros([COLUMNS], tl.float32)
    for place in tl.range(first, end, num_stages=STAGES):
        token = tl.load(order + place)
        total += tl.load(gradients + token * width + columns, mask=is_column, other=0.0).to(tl.float32)
        next_id = _id_at(ids, place + 1, num_tokens)
        if (own != next_id) | (place == end - 1):
            if (own != id_before) & (own != next_id):
                at = own.to(tl.int64) * width + columns
                tl.store(table + at, total.to(table.dtype.element_ty), mask=is_column)
            else:
                at = (2 * chunk.to(tl.int64) + tl.where(own == id_before, 0, 1)) * width + columns
                tl.store(parts + at, total, mask=is_column)
            total = tl.zeros([COLUMNS], tl.float32)
        own = next_id


@triton.jit
def _join_kernel(
    ids, table, parts, num_tokens, width, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Sum the parts of the run that begins in a chunk and goes on in the next ones, if there is one."""
    num_blocks = tl.cdiv(width, COLUMNS)
    chunk = tl.program_id(0) // num_blocks
    own = _id_at(ids, chunk * CHUNK + CHUNK - 1, num_tokens)
    is_start = (own >= 0) & (own != _id_at(ids, chunk * CHUNK - 1, num_tokens))
    if is_start & (own == _id_at(ids, chunk * CHUNK + CHUNK, num_tokens)):
        columns = tl.program_id(0) % num_blocks * COLUMNS + tl.arange(0, COLUMNS)
        is_column = columns < width
        total = tl.load(parts + (2 * chunk.to(tl.int64) + 1) * width + columns, mask=is_column, other=0.0)
        next_chunk = chunk + 1
        while _id_at(ids, next_chunk * CHUNK, num_tokens) == own:
            chunks = next_chunk + tl.arange(0, CHUNKS)
            is_own = _id_at(ids, chunks * CHUNK, num_tokens) == own
            at = 2 * chunks.to(tl.int64)[:, None] * width + columns[None, :]
            total += tl.sum(tl.load(parts + at, mask=is_own[:, None] & is_column[None, :], other=0.0), 0)
            next_chunk += CHUNKS
        at = own.to(tl.int64) * width + columns
        tl.store(table + at, total.to(table.dtype.element_ty), mask=is_column)


def embedding_gradient(d_embedding_TD: Tensor, ids_T: Tensor, num_rows: int) -> Tensor:
    """Sum the tokens' gradients by id: [R, D], 0 for rows without a token.

    Ids must be in [0, num_rows).
    """
    num_tokens, width = d_embedding_TD.shape
    table_RD = d_embedding_TD.new_zeros(num_rows, width)
    if not num_tokens:
        return table_RD
    sorted_T, order_T = ids_T.to(_key_dtype(num_rows)).sort(stable=True)
    num_chunks = triton.cdiv(num_tokens, CHUNK)
    parts_C2D = torch.empty(num_chunks, 2, width, device=table_RD.device, dtype=torch.float32)
    _runs_kernel[(num_chunks * triton.cdiv(width, SUMS["COLUMNS"]),)](
        d_embedding_TD, sorted_T, order_T, table_RD, parts_C2D, num_tokens, width, CHUNK=CHUNK, **SUMS
    )
    _join_kernel[(num_chunks * triton.cdiv(width, JOINS["COLUMNS"]),)](
        sorted_T, table_RD, parts_C2D, num_tokens, width, CHUNK=CHUNK, **JOINS
    )
    return table_RD


def _key_dtype(num_rows: int) -> torch.dtype:
    """Return the narrowest dtype of the ids: a radix sort makes a pass for each of its bytes."""
    if num_rows <= 2**8:
        return torch.uint8
    return torch.int16 if num_rows <= 2**15 else torch.int32
