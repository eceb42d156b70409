"""Variable-length self-attention of packed sequences in Triton, with attention dropout and a fused qkv tensor.

In: qkv_TH3K, the fused projection of all tokens of all documents, and cu_seqlens_N1, the cumulative lengths. Out:
context_THK. Optimized for many short documents, as in fine-tuning: a document is split into tiles of 64 tokens, and
the gradients of query, key and value are written directly into one tensor of the projection's shape. The dropout mask
is a counter hash of a seed on the device, so that each replay of a captured CUDA graph has a new mask.

Shape legend: T tokens, N documents, H heads, K head dim.
Source: Dao 2023, FlashAttention-2, arXiv:2307.08691.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import add_key_tile, add_query_tile, attend_tile
from .hashes import column_hash, drop_options, row_hash
from .hopper import is_hopper

LOG2_E = math.log2(math.e)

# TILE: tokens that a program owns; STEP: tokens of each iteration of its inner loop. Tuned on an H100 with head dim 64.
# The _32 options are for float32, whose matmuls are exact and not in TF32.
FORWARD: dict[str, Any] = {"TILE": 64, "STEP": 64, "PRECISION": "tf32", "num_warps": 4, "num_stages": 2}
BACKWARD: dict[str, Any] = {"TILE": 64, "STEP": 32, "PRECISION": "tf32", "num_warps": 4, "num_stages": 3}
FORWARD_32: dict[str, Any] = {"TILE": 32, "STEP": 32, "PRECISION": "ieee", "num_warps": 4, "num_stages": 1}
BACKWARD_32 = FORWARD_32
# On a processor at once, which short documents with dropout need; no register is spilled.
FOUR_PROGRAMS = {"maxnreg": 128}
FEWEST_SAVED = 64  # tiles that do not exist, for which a table is worth its time
TABLE_BLOCK = 128  # a multiple of all tiles and steps, which are read whole


@triton.jit
def _column_table_kernel(table, BLOCK: tl.constexpr):
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(table + columns, column_hash(columns).to(tl.int32))


@triton.jit
def _program(tiles, cu_seqlens, num_tiles, HEADS: tl.constexpr, HAS_TABLE: tl.constexpr, TILE: tl.constexpr):
    """Return first row, head, document, its start and its length of this program, from a tile table or `_grid`."""
    program = tl.program_id(0)
    if HAS_TABLE:
        slot, head = program // HEADS, program % HEADS
        first_row, start = tl.load(tiles + slot), tl.load(tiles + num_tiles + slot)
        return first_row, head, tl.load(tiles + 3 * num_tiles + slot), start, tl.load(tiles + 2 * num_tiles + slot)
    document = program // num_tiles // HEADS
    start = tl.load(cu_seqlens + document)
    length = tl.load(cu_seqlens + document + 1) - start
    return program % num_tiles * TILE, program // num_tiles % HEADS, document, start, length


@triton.jit(do_not_specialize=["num_tiles"])
def _forward_kernel(
    qkv, out, lse, cu_seqlens, tiles, seeds, table, scale, threshold, keep, num_tokens, num_tiles,
    HEADS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the attention output of one tile of queries of one head of one document."""
    first_row, head, _, start, length = _program(tiles, cu_seqlens, num_tiles, HEADS, HAS_TABLE, TILE)
    if first_row >= length:
        return
    rows = first_row + tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    token_stride = HEADS * 3 * DIM
    base = qkv + start * token_stride + head * 3 * DIM
    is_row = rows < length
    query = tl.load(base + rows[:, None] * token_stride + dims[None, :], mask=is_row[:, None], other=0.0)
    row_hashes = row_hash(tl.load(seeds), (start + rows) * HEADS + head) | 1
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    context = tl.zeros([TILE, DIM], tl.float32)
    state = (highest, total, context)
    # Full tiles of keys that all queries attend to need no mask.
    full = tl.minimum(first_row, length) // STEP * STEP if IS_CAUSAL else length // STEP * STEP
    end = tl.minimum(length, first_row + TILE) if IS_CAUSAL else length
    for first in range(0, full, STEP):
        state = attend_tile(
            state, first + tl.arange(0, STEP), query, base, rows, row_hashes, table, length, scale, threshold,
            token_stride, dims, DIM, False, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    for first in range(full, end, STEP):
        state = attend_tile(
            state, first + tl.arange(0, STEP), query, base, rows, row_hashes, table, length, scale, threshold,
            token_stride, dims, DIM, True, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    highest, total, context = state
    context = context / (total * keep)[:, None]
    at = (start + rows[:, None]) * HEADS * DIM + head * DIM + dims[None, :]
    tl.store(out + at, context.to(query.dtype), mask=is_row[:, None])
    tl.store(lse + head * num_tokens + start + rows, highest + tl.log2(total), mask=is_row)


@triton.jit
def _first_row(rows_of_head, head, start, document):
    """Return where a document's rows begin in the tensors of the backward pass: at multiples of 4, to load several."""
    return tl.multiple_of(head * rows_of_head + (start + 3 * document + 3) // 4 * 4, 4)


@triton.jit(do_not_specialize=["num_tiles"])
def _backward_keys_kernel(
    qkv, out, d_out, lse, row_lse, delta, hashes, d_qkv, cu_seqlens, tiles, seeds, table, scale, threshold, keep,
    num_tokens, rows_of_head, num_tiles,
    HEADS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one tile of keys and values of one head of one document.

    The dropout scale, 1 / (1 - dropout), is applied to gradients at the end only. Keys outside of the document are 0;
    their gradients are not stored.
    """
    first_own, head, document, start, length = _program(tiles, cu_seqlens, num_tiles, HEADS, HAS_TABLE, TILE)
    if first_own >= length:
        return
    own = first_own + tl.arange(0, TILE)
    is_own = own < length
    qkv_base = qkv + start * (HEADS * 3 * DIM) + head * 3 * DIM
    d_out_base = d_out + start * (HEADS * DIM) + head * DIM
    first_row = _first_row(rows_of_head, head, start, document)
    own_at = own[:, None] * (HEADS * 3 * DIM) + tl.arange(0, DIM)[None, :]
    key = tl.load(qkv_base + own_at + DIM, mask=is_own[:, None], other=0.0)
    value = tl.load(qkv_base + own_at + 2 * DIM, mask=is_own[:, None], other=0.0)
    own_hashes = column_hash(own)
    state = (tl.zeros([TILE, DIM], tl.float32), tl.zeros([TILE, DIM], tl.float32))
    full = length // STEP * STEP
    for first in range(first_own // STEP * STEP if IS_CAUSAL else 0, full, STEP):
        state = add_query_tile(
            state, first, key, value, own, own_hashes, qkv_base, d_out_base, row_lse + first_row, delta + first_row,
            hashes + first_row, length, scale, threshold, HEADS, DIM, STEP, False, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    if full < length:
        state = add_query_tile(
            state, full, key, value, own, own_hashes, qkv_base, d_out_base, row_lse + first_row, delta + first_row,
            hashes + first_row, length, scale, threshold, HEADS, DIM, STEP, True, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    d_key, d_value = state
    d_own_at = d_qkv + start * (HEADS * 3 * DIM) + head * 3 * DIM + own_at
    scale_natural = scale * 0.6931471805599453 / keep
    tl.store(d_own_at + DIM, (d_key * scale_natural).to(key.dtype), mask=is_own[:, None])
    tl.store(d_own_at + 2 * DIM, (d_value / keep).to(value.dtype), mask=is_own[:, None])


@triton.jit(do_not_specialize=["num_tiles"])
def _backward_queries_kernel(
    qkv, out, d_out, lse, row_lse, delta, hashes, d_qkv, cu_seqlens, tiles, seeds, table, scale, threshold, keep,
    num_tokens, rows_of_head, num_tiles,
    HEADS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    IS_CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one tile of queries of one head of one document.

    Also fills, for the kernel of keys, `delta`, the sum of out * d_out over the head dim, which the softmax gradient
    subtracts, `row_lse`, a copy of `lse`, and `hashes`, those of the rows of the dropout mask.
    """
    first_own, head, document, start, length = _program(tiles, cu_seqlens, num_tiles, HEADS, HAS_TABLE, TILE)
    if first_own >= length:
        return
    own = first_own + tl.arange(0, TILE)
    is_own = own < length
    dims = tl.arange(0, DIM)
    qkv_base = qkv + start * (HEADS * 3 * DIM) + head * 3 * DIM
    own_at = own[:, None] * (HEADS * 3 * DIM) + dims[None, :]
    d_context_at = (start + own[:, None]) * (HEADS * DIM) + head * DIM + dims[None, :]
    query = tl.load(qkv_base + own_at, mask=is_own[:, None], other=0.0)
    d_context = tl.load(d_out + d_context_at, mask=is_own[:, None], other=0.0)
    own_lse = tl.load(lse + head * num_tokens + start + own, mask=is_own, other=float("inf"))
    context = tl.load(out + d_context_at, mask=is_own[:, None], other=0.0)
    own_delta = tl.sum(context.to(tl.float32) * d_context.to(tl.float32), 1) * keep
    rows = _first_row(rows_of_head, head, start, document) + own
    tl.store(row_lse + rows, own_lse, mask=is_own)
    tl.store(delta + rows, own_delta, mask=is_own)
    own_hashes = row_hash(tl.load(seeds), (start + own) * HEADS + head) | 1
    if HAS_DROPOUT:
        tl.store(hashes + rows, own_hashes.to(tl.int32), mask=is_own)
    d_query = tl.zeros([TILE, DIM], tl.float32)
    end = tl.minimum(length, first_own + TILE) if IS_CAUSAL else length
    full = end // STEP * STEP
    for first in range(0, full, STEP):
        d_query = add_key_tile(
            d_query, first, query, d_context, own, own_lse, own_delta, own_hashes, table, qkv_base, length, scale,
            threshold, HEADS, DIM, STEP, False, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    if full < end:
        d_query = add_key_tile(
            d_query, full, query, d_context, own, own_lse, own_delta, own_hashes, table, qkv_base, length, scale,
            threshold, HEADS, DIM, STEP, True, IS_CAUSAL, HAS_DROPOUT, PRECISION,
        )  # fmt: skip
    scale_natural = scale * 0.6931471805599453 / keep
    d_own_at = d_qkv + start * (HEADS * 3 * DIM) + head * 3 * DIM + own_at
    tl.store(d_own_at, (d_query * scale_natural).to(query.dtype), mask=is_own[:, None])


def varlen_attention_forward(
    qkv_TH3K: Tensor, cu_seqlens_N1: Tensor, seed_1: Tensor, max_seqlen: int, dropout: float, is_causal: bool,
    tiles_4S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute self-attention within each document, without gradient: returns (context_THK, log2_sum_exp_HT).

    cu_seqlens_N1 is int32, from 0 to T; documents may be empty. `max_seqlen` is an upper bound of their lengths.
    seed_1 is one int64 on the device, used if dropout is not 0. tiles_4S is `tile_table`'s.
    """
    num_tokens, heads, _, dim = qkv_TH3K.shape
    assert qkv_TH3K.is_contiguous() and qkv_TH3K.numel() < 2**31, "the kernel indexes in 32 bits"
    context_THK = qkv_TH3K.new_empty(num_tokens, heads, dim)
    lse_HT = qkv_TH3K.new_empty(heads, num_tokens, dtype=torch.float32)
    options = FORWARD if qkv_TH3K.dtype != torch.float32 else FORWARD_32
    if options is FORWARD and dim <= 64 and dropout and tiles_4S is not None and is_hopper(qkv_TH3K.device):
        options = FORWARD | FOUR_PROGRAMS
    num_tiles, grid = _grid(max_seqlen, heads, cu_seqlens_N1, options["TILE"], tiles_4S)
    tiles = cu_seqlens_N1 if tiles_4S is None else tiles_4S
    _forward_kernel[grid](
        qkv_TH3K, context_THK, lse_HT, cu_seqlens_N1, tiles, seed_1, _column_table(max_seqlen, seed_1, dropout),
        LOG2_E / math.sqrt(dim), *drop_options(dropout), num_tokens, num_tiles,
        HEADS=heads, DIM=dim, IS_CAUSAL=is_causal, HAS_DROPOUT=dropout > 0,
        HAS_TABLE=tiles_4S is not None, **options,
    )  # fmt: skip
    return context_THK, lse_HT


# As operators, for compiled layers and autograd; the first call of one imports the compiler, which takes seconds.
varlen_attention = torch.library.custom_op("megabert::varlen_attention", varlen_attention_forward, mutates_args=())


@varlen_attention.register_fake
def _(
    qkv_TH3K: Tensor, cu_seqlens_N1: Tensor, seed_1: Tensor, max_seqlen: int, dropout: float, is_causal: bool,
    tiles_4S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    num_tokens, heads, _, dim = qkv_TH3K.shape
    return (
        qkv_TH3K.new_empty(num_tokens, heads, dim),
        qkv_TH3K.new_empty(heads, num_tokens, dtype=torch.float32),
    )


def varlen_attention_backward(
    d_context_THK: Tensor, qkv_TH3K: Tensor, context_THK: Tensor, lse_HT: Tensor, cu_seqlens_N1: Tensor, seed_1: Tensor,
    max_seqlen: int, dropout: float, is_causal: bool, tiles_4S: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute the gradient of qkv_TH3K."""
    num_tokens, heads, _, dim = qkv_TH3K.shape
    d_context_THK = d_context_THK.contiguous()
    d_qkv_TH3K = torch.empty_like(qkv_TH3K)
    rows_of_head = triton.cdiv(num_tokens + 3 * len(cu_seqlens_N1), 16) * 16
    rows_3HR = lse_HT.new_empty(3, heads, rows_of_head)
    row_lse_HR, delta_HR, hashes_HR = rows_3HR[0], rows_3HR[1], rows_3HR[2].view(torch.int32)
    threshold, keep = drop_options(dropout)
    options = BACKWARD if qkv_TH3K.dtype != torch.float32 else BACKWARD_32
    num_tiles, grid = _grid(max_seqlen, heads, cu_seqlens_N1, options["TILE"], tiles_4S)
    tiles = cu_seqlens_N1 if tiles_4S is None else tiles_4S
    table = _column_table(max_seqlen, seed_1, dropout)
    # Two passes over the tokens avoid atomic additions. Queries first: they compute `delta`.
    for kernel in (_backward_queries_kernel, _backward_keys_kernel):
        kernel[grid](
            qkv_TH3K, context_THK, d_context_THK, lse_HT, row_lse_HR, delta_HR, hashes_HR, d_qkv_TH3K, cu_seqlens_N1,
            tiles, seed_1, table, LOG2_E / math.sqrt(dim), threshold, keep, num_tokens, rows_of_head, num_tiles,
            HEADS=heads, DIM=dim, IS_CAUSAL=is_causal, HAS_DROPOUT=dropout > 0,
        HAS_TABLE=tiles_4S is not None, **options,
        )  # fmt: skip
    return d_qkv_TH3K


_backward_operator = torch.library.custom_op(
    "megabert::varlen_attention_backward", varlen_attention_backward, mutates_args=()
)


@_backward_operator.register_fake
def _(
    d_context_THK: Tensor, qkv_TH3K: Tensor, context_THK: Tensor, lse_HT: Tensor, cu_seqlens_N1: Tensor, seed_1: Tensor,
    max_seqlen: int, dropout: float, is_causal: bool, tiles_4S: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return torch.empty_like(qkv_TH3K)


_column_tables: dict[tuple[torch.device, int], Tensor] = {}


def _column_table(max_seqlen: int, seed_1: Tensor, dropout: float) -> Tensor:
    """Hash the columns of dropout masks once: in each tile, all threads would do so for the same few columns."""
    if not dropout:
        return seed_1
    key = seed_1.device, triton.cdiv(max_seqlen, TABLE_BLOCK)
    table = _column_tables.get(key)
    if table is None:
        table = torch.empty(key[1] * TABLE_BLOCK, device=seed_1.device, dtype=torch.int32)
        _column_table_kernel[(key[1],)](table, BLOCK=TABLE_BLOCK)
        if seed_1.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return table  # which is filled by each replay only
            torch.cuda.current_stream().synchronize()  # other streams may read it
        _column_tables[key] = table
    return table


def tile_table(cu_seqlens_N1: Tensor, num_tokens: int, max_seqlen: int, dtype: torch.dtype) -> Tensor | None:
    """List the tiles of documents of several lengths, once for all layers, so that no program is launched for nothing.

    Returns int32 [4, S] on the device: first row in its document, the document's start, length and number; or None
    where most tiles of all documents may exist.
    """
    tile = (FORWARD if dtype != torch.float32 else FORWARD_32)["TILE"]  # also that of the backward pass
    num_documents = len(cu_seqlens_N1) - 1
    num_slots = num_tokens // tile + num_documents
    if num_slots + FEWEST_SAVED > num_documents * triton.cdiv(max_seqlen, tile):
        return None
    starts_N, lengths_N = cu_seqlens_N1[:-1], cu_seqlens_N1.diff()
    counts_N = (lengths_N + tile - 1) // tile
    ends_N = counts_N.cumsum(0)
    slots_S = torch.arange(num_slots, device=cu_seqlens_N1.device)
    document_S = torch.searchsorted(ends_N, slots_S, right=True).clamp(max=num_documents - 1)
    # Slots behind the last tile begin behind the last document.
    first_S = (slots_S - (ends_N - counts_N)[document_S]) * tile
    return torch.stack([first_S, starts_N[document_S], lengths_N[document_S], document_S]).int()


def _grid(
    max_seqlen: int, heads: int, cu_seqlens_N1: Tensor, tile: int, tiles_4S: Tensor | None
) -> tuple[int, tuple[int]]:
    """Return the tiles of a document or of all, and the grid: one axis, as the others end at 65,535."""
    num_tiles = max(triton.cdiv(max_seqlen, tile), 1) if tiles_4S is None else tiles_4S.shape[1]
    size = num_tiles * heads * (len(cu_seqlens_N1) - 1 if tiles_4S is None else 1)
    assert size < 2**31, "the grid is indexed in 32 bits"
    return num_tiles, (size,)


def _setup_context(ctx, inputs, output):
    qkv_TH3K, cu_seqlens_N1, seed_1, ctx.max_seqlen, ctx.dropout, ctx.is_causal, _ = inputs
    ctx.save_for_backward(qkv_TH3K, *output, cu_seqlens_N1, seed_1)


def _backward(ctx, d_context_THK, d_lse_HT):
    d_qkv_TH3K = _backward_operator(d_context_THK, *ctx.saved_tensors, ctx.max_seqlen, ctx.dropout, ctx.is_causal)
    return d_qkv_TH3K, None, None, None, None, None, None


varlen_attention.register_autograd(_backward, setup_context=_setup_context)
